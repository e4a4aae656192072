//! Transport-wide feedback: when each packet arrived (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1).
//!
//! ```text
//! | base sequence number, 16      | packet status count, 16       |
//! | reference time, 24, signed, 64 ms     | feedback count, 8     |
//! | chunk, 16                     | chunk, 16                 ... |
//! | delta, 8 or 16, 250 µs    ...                                 |
//! ```
//!
//! A chunk says for a run of packets, or for each of 7 or 14, whether it arrived and how wide its delta is. A delta
//! counts from the arrival before it, the first one from the reference time.

use crate::limits::FEEDBACK_STATUSES_MAX;

/// Of arrival times: the unit of a delta.
pub const TICK_MICROS: i64 = 250;
/// 64 ms, the unit of the reference time.
const TICKS_PER_REFERENCE: i64 = 64_000 / TICK_MICROS;
/// The reference time has 24 bits: it begins anew after 12 days.
pub const ARRIVAL_WRAP_TICKS: i64 = (1 << 24) * TICKS_PER_REFERENCE;

/// Cut short, of no packets or of more than [`FEEDBACK_STATUSES_MAX`], or with the status that is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed transport feedback")]
pub struct Malformed;

/// One feedback message, borrowed from its datagram; all of it is known to be there.
#[derive(Clone, Copy, Debug)]
pub struct TransportFeedback<'a> {
    base_seq: u16,
    count: u16,
    reference_ticks: i64,
    chunks: &'a [[u8; 2]],
    deltas: &'a [u8],
}

/// What became of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketStatus {
    /// Its transport-wide sequence number.
    pub seq: u16,
    /// When it arrived, in ticks of the receiver's clock modulo [`ARRIVAL_WRAP_TICKS`] (a delta may lead a little below
    /// 0 or above that); `None`: it has not arrived yet.
    pub arrival_ticks: Option<i64>,
}

impl<'a> TransportFeedback<'a> {
    /// `body`: what follows the SSRCs of the RTCP packet, [`Rtcp::TransportCc`](super::rtcp::Rtcp::TransportCc). Bytes
    /// after the last delta are padding.
    pub fn parse(body: &'a [u8]) -> Result<TransportFeedback<'a>, Malformed> {
        let (front, rest) = body.split_first_chunk::<8>().ok_or(Malformed)?;
        let count = u16::from_be_bytes([front[2], front[3]]);
        if count == 0 || usize::from(count) > FEEDBACK_STATUSES_MAX {
            return Err(Malformed);
        }
        let (chunks, delta_bytes) = measure(rest, count).ok_or(Malformed)?;
        let (chunks, deltas) = rest.split_at(2 * chunks);
        Ok(TransportFeedback {
            base_seq: u16::from_be_bytes([front[0], front[1]]),
            count,
            reference_ticks: i64::from(u32::from_be_bytes([0, front[4], front[5], front[6]])) * TICKS_PER_REFERENCE,
            chunks: chunks.as_chunks().0,
            deltas: deltas.get(..delta_bytes).ok_or(Malformed)?,
        })
    }

    /// One for each packet from the first to the last that the message speaks of, in the order of sending.
    pub fn statuses(&self) -> Statuses<'a> {
        Statuses {
            symbols: Symbols::new(self.chunks, self.count),
            deltas: self.deltas,
            seq: self.base_seq,
            ticks: self.reference_ticks,
        }
    }
}

/// How many chunks describe `count` packets, and how many bytes their deltas take.
fn measure(chunks: &[u8], count: u16) -> Option<(usize, usize)> {
    let all = chunks.as_chunks().0;
    let mut symbols = Symbols::new(all, count);
    let mut delta_bytes = 0;
    for _ in 0..count {
        delta_bytes += symbols.next()?.delta_bytes()?;
    }
    Some((all.len() - symbols.chunks.len(), delta_bytes))
}

/// See [`TransportFeedback::statuses`].
#[derive(Clone, Debug)]
pub struct Statuses<'a> {
    symbols: Symbols<'a>,
    deltas: &'a [u8],
    seq: u16,
    ticks: i64,
}

impl Iterator for Statuses<'_> {
    type Item = PacketStatus;

    fn next(&mut self) -> Option<PacketStatus> {
        let symbol = self.symbols.next()?;
        let (delta, rest) = self.deltas.split_at_checked(symbol.delta_bytes()?)?;
        self.deltas = rest;
        let seq = self.seq;
        self.seq = seq.wrapping_add(1);
        let delta = match *delta {
            [small] => i64::from(small),
            [high, low] => i64::from(i16::from_be_bytes([high, low])),
            _ => return Some(PacketStatus { seq, arrival_ticks: None }),
        };
        self.ticks += delta;
        Some(PacketStatus { seq, arrival_ticks: Some(self.ticks) })
    }
}

/// What a chunk says of one packet: 0 not received, 1 small delta, 2 large or negative delta, 3 reserved.
#[derive(Clone, Copy, Debug)]
struct Symbol(u16);

impl Symbol {
    fn delta_bytes(self) -> Option<usize> {
        (self.0 <= 2).then_some(usize::from(self.0))
    }
}

/// The symbols of all chunks, one for each packet.
///
/// ```text
/// |0| symbol, 2 |     run length, 13     |
/// |1|0|      14 symbols of 1 bit         |
/// |1|1|       7 symbols of 2 bits        |
/// ```
#[derive(Clone, Debug)]
struct Symbols<'a> {
    chunks: &'a [[u8; 2]],
    chunk: u16,
    /// Of the chunk at hand.
    left_in_chunk: u16,
    /// Of the message.
    left: u16,
}

impl<'a> Symbols<'a> {
    fn new(chunks: &'a [[u8; 2]], count: u16) -> Symbols<'a> {
        Symbols { chunks, chunk: 0, left_in_chunk: 0, left: count }
    }
}

impl Iterator for Symbols<'_> {
    type Item = Symbol;

    fn next(&mut self) -> Option<Symbol> {
        self.left = self.left.checked_sub(1)?;
        // A run may be empty.
        while self.left_in_chunk == 0 {
            let (chunk, rest) = self.chunks.split_first()?;
            self.chunks = rest;
            self.chunk = u16::from_be_bytes(*chunk);
            self.left_in_chunk = match self.chunk >> 14 {
                0b10 => 14,
                0b11 => 7,
                _ => self.chunk & 0x1fff,
            };
        }
        self.left_in_chunk -= 1;
        Some(Symbol(match self.chunk >> 14 {
            0b10 => self.chunk >> self.left_in_chunk & 1,
            0b11 => self.chunk >> (2 * self.left_in_chunk) & 3,
            _ => self.chunk >> 13 & 3,
        }))
    }
}

/// Writes feedback as a receiver would, for tests.
#[cfg(test)]
pub mod write {
    /// `arrivals`: for each packet from `base_seq` on, the ticks since the reference time (64 ms each). Chunks are chosen
    /// by `pick`: 0 runs, 1 vectors of one bit where they fit, else of two, 2 vectors of two bits.
    ///
    /// # Panics
    ///
    /// When two arrivals are further apart than 16 bits of ticks.
    pub fn feedback(base_seq: u16, reference: u32, arrivals: &[Option<i64>], pick: impl FnMut() -> u8) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&base_seq.to_be_bytes());
        out.extend_from_slice(&u16::try_from(arrivals.len()).expect("a count of 16 bits").to_be_bytes());
        out.extend_from_slice(&(reference << 8).to_be_bytes());
        let mut deltas = Vec::new();
        let mut last = 0;
        let symbols: Vec<u16> = arrivals
            .iter()
            .map(|arrival| {
                let Some(at) = *arrival else { return 0 };
                let delta = i16::try_from(at - last).expect("a delta of 16 bits");
                last = at;
                match u8::try_from(delta) {
                    Ok(small) => deltas.push(small),
                    Err(_) => deltas.extend_from_slice(&delta.to_be_bytes()),
                }
                if u8::try_from(delta).is_ok() { 1 } else { 2 }
            })
            .collect();
        chunks(&mut out, &symbols, pick);
        out.extend_from_slice(&deltas);
        out
    }

    fn chunks(out: &mut Vec<u8>, mut symbols: &[u16], mut pick: impl FnMut() -> u8) {
        while let Some(first) = symbols.first() {
            let vector = |bits: u16, from: &[u16]| {
                let per_chunk = 14 / bits;
                (0..per_chunk).fold(0, |chunk, at| chunk << bits | from.get(usize::from(at)).unwrap_or(&0))
            };
            let (chunk, used) = match pick() {
                0 => {
                    let run = symbols.iter().take_while(|s| *s == first).take(0x1fff).count();
                    (first << 13 | run as u16, run)
                }
                1 if symbols.iter().take(14).all(|s| *s < 2) => (0b10 << 14 | vector(1, symbols), 14),
                _ => (0b11 << 14 | vector(2, symbols), 7),
            };
            out.extend_from_slice(&chunk.to_be_bytes());
            symbols = &symbols[used.min(symbols.len())..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &[u8]) -> Result<Vec<(u16, Option<i64>)>, Malformed> {
        let feedback = TransportFeedback::parse(body)?;
        Ok(feedback.statuses().map(|s| (s.seq, s.arrival_ticks)).collect())
    }

    #[test]
    fn each_kind_of_chunk_as_the_draft_draws_it() {
        // A run of 2 small deltas; then two-bit symbols: large (backwards), not received, small.
        let body = [0xff, 0xfe, 0, 5, 0, 0, 1, 7, 0b0010_0000, 2, 0b1110_0001, 0, 4, 8, 0xff, 0xfe, 1, 0, 0, 0];
        let expected = vec![(65_534, Some(260)), (65_535, Some(268)), (0, Some(266)), (1, None), (2, Some(267))];
        assert_eq!(read(&body), Ok(expected));
        // One-bit symbols: 1 0 1, the other 11 beyond the count.
        let body = [0, 9, 0, 3, 0, 0, 0, 0, 0b1010_1000, 0, 5, 6];
        assert_eq!(read(&body), Ok(vec![(9, Some(5)), (10, None), (11, Some(11))]));
    }

    #[test]
    fn an_empty_run_is_passed_over() {
        let body = [0, 9, 0, 1, 0, 0, 0, 0, 0x20, 0, 0x20, 1, 5];
        assert_eq!(read(&body), Ok(vec![(9, Some(5))]));
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_malformed() {
        for body in [
            &[][..],
            &[0, 9, 0, 1, 0, 0, 0],                      // cut front
            &[0, 9, 0, 0, 0, 0, 0, 0, 0x20, 1, 5],       // of nothing
            &[0, 9, 0, 1, 0, 0, 0, 0],                   // without a chunk
            &[0, 9, 0, 2, 0, 0, 0, 0, 0x20, 1, 5],       // a chunk too few
            &[0, 9, 0, 2, 0, 0, 0, 0, 0x20, 2, 5],       // a delta too few
            &[0, 9, 0, 1, 0, 0, 0, 0, 0x40, 1, 5],       // half a large delta
            &[0, 9, 0, 1, 0, 0, 0, 0, 0x60, 1, 5, 5, 5], // the reserved status
            &[0, 9, 0xff, 0xff, 0, 0, 0, 0, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff],
        ] {
            assert_eq!(read(body), Err(Malformed), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_receiver_writes_is_read(
            base_seq: u16,
            reference in 0u32..1 << 24,
            gaps in proptest::collection::vec(proptest::option::weighted(0.8, prop_oneof![0i64..256, -300i64..2000]), 1..600),
            picks: [u8; 7],
        ) {
            let mut ticks = 0;
            let arrivals: Vec<Option<i64>> = gaps.iter().map(|gap| gap.map(|gap| { ticks += gap; ticks })).collect();
            let mut picks = picks.iter().cycle();
            let body = write::feedback(base_seq, reference, &arrivals, || picks.next().unwrap() % 3);
            let start = i64::from(reference) * TICKS_PER_REFERENCE;
            let expected: Vec<_> = arrivals
                .iter()
                .enumerate()
                .map(|(at, arrival)| (base_seq.wrapping_add(at as u16), arrival.map(|a| start + a)))
                .collect();
            prop_assert_eq!(read(&body), Ok(expected));
        }

        #[test]
        fn any_bytes_are_read_without_panic(count in 0u16..3000, bytes: Vec<u8>) {
            let body = [&[0, 9][..], &count.to_be_bytes(), &bytes].concat();
            if let Ok(statuses) = read(&body) {
                prop_assert_eq!(statuses.len(), usize::from(count));
                prop_assert!(statuses.len() <= FEEDBACK_STATUSES_MAX);
            }
        }
    }
}
