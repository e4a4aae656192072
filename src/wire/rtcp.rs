//! RTCP as we write and read it ourselves: reports (RFC 3550 §6), feedback (RFC 4585, RFC 5104), REMB.
//!
//! A compound packet is built by calling the `write_*` functions one after the other on one buffer: a report first,
//! then SDES (RFC 3550 §6.1), since reduced size (RFC 5506) is not negotiated.
//!
//! ```text
//!  0                   1                   2                   3
//! |V=2|P| count/FMT |      PT       |     length in words - 1     |
//! |                      SSRC of the sender                       |
//! |                              ...                              |
//! ```

use std::time::Duration;

use crate::units::Bitrate;

const HEADER_BYTES: usize = 4;
const VERSION_2: u8 = 0x80;
const PADDING: u8 = 0x20;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SDES: u8 = 202;
const BYE: u8 = 203;
const TRANSPORT_FEEDBACK: u8 = 205;
const PAYLOAD_FEEDBACK: u8 = 206;

/// FMT of `TRANSPORT_FEEDBACK`.
const NACK: u8 = 1;
const TRANSPORT_CC: u8 = 15;

/// FMT of `PAYLOAD_FEEDBACK`.
const PLI: u8 = 1;
const FIR: u8 = 4;
/// "Application layer feedback", which is REMB when it says so.
const ALFB: u8 = 15;
const REMB_NAME: [u8; 4] = *b"REMB";

const SENDER_INFO_BYTES: usize = 20;
const REPORT_BLOCK_BYTES: usize = 24;

/// The 5 bits of the count.
const COUNT_MAX: usize = 31;

const CNAME: u8 = 1;

/// Seconds from 1900, where NTP begins, to 1970: 70 years and 17 leap days.
const NTP_TO_UNIX_SECONDS: u64 = (70 * 365 + 17) * 86_400;

/// A time of day as NTP writes it: 32 bits of seconds since 1900, 32 of fractions. It wraps in 2036.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// `unix`: time since 1970. Exact to a quarter of a nanosecond.
    pub fn from_unix(unix: Duration) -> NtpTime {
        let seconds = unix.as_secs().wrapping_add(NTP_TO_UNIX_SECONDS);
        let fraction = (u64::from(unix.subsec_nanos()) << 32) / 1_000_000_000;
        NtpTime(seconds << 32 | fraction)
    }

    /// The middle 32 bits, in 1/65,536 s, by which a receiver report names a sender report (LSR).
    pub fn middle(self) -> u32 {
        (self.0 >> 16) as u32
    }
}

/// What a sender report says of its stream (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderInfo {
    /// The moment of the report...
    pub ntp: NtpTime,
    /// ...in the stream's clock.
    pub rtp_timestamp: u32,
    /// Sent so far, without RTX, which is a stream of its own.
    pub packets: u32,
    /// Payload bytes of those packets, without header and padding.
    pub octets: u32,
}

/// How one of our streams arrives (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportBlock {
    /// The stream that is reported on.
    pub ssrc: u32,
    /// Of the packets since the report before, in 1/256.
    pub fraction_lost: u8,
    /// Since the beginning, 24 bits; negative when there were more duplicates than losses.
    pub cumulative_lost: i32,
    /// With the roll-overs above it.
    pub highest_seq: u32,
    /// In the stream's clock.
    pub jitter: u32,
    /// [`NtpTime::middle`] of the last sender report that arrived; 0: none did.
    pub last_sr: u32,
    /// From its arrival until now, in 1/65,536 s.
    pub delay_since_last_sr: u32,
}

impl ReportBlock {
    /// How long our report and this one were on their way together. `now`: [`NtpTime::middle`] of the clock that our
    /// sender reports show. `None` when no sender report had arrived, or the peer's figures make it negative.
    pub fn round_trip(&self, now: u32) -> Option<Duration> {
        if self.last_sr == 0 {
            return None;
        }
        let ticks = now.wrapping_sub(self.last_sr).wrapping_sub(self.delay_since_last_sr);
        // Half the range, 9 hours, is never a round trip: the difference was negative.
        (ticks < 1 << 31).then(|| Duration::from_nanos((u64::from(ticks) * 1_000_000_000) >> 16))
    }

    fn parse(bytes: &[u8; REPORT_BLOCK_BYTES]) -> ReportBlock {
        ReportBlock {
            ssrc: word(bytes, 0),
            fraction_lost: bytes[4],
            // Shifted up and down again for the sign.
            cumulative_lost: (word(bytes, 4) << 8).cast_signed() >> 8,
            highest_seq: word(bytes, 8),
            jitter: word(bytes, 12),
            last_sr: word(bytes, 16),
            delay_since_last_sr: word(bytes, 20),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let lost = self.cumulative_lost.clamp(-0x80_0000, 0x7f_ffff).cast_unsigned() & 0xff_ffff;
        let loss = u32::from(self.fraction_lost) << 24 | lost;
        for word in [self.ssrc, loss, self.highest_seq, self.jitter, self.last_sr, self.delay_since_last_sr] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
}

/// Appends a sender report without report blocks: 28 bytes.
pub fn write_sender_report(out: &mut Vec<u8>, ssrc: u32, info: &SenderInfo) {
    write_packet(out, SENDER_REPORT, 0, |out| {
        out.extend_from_slice(&ssrc.to_be_bytes());
        out.extend_from_slice(&info.ntp.0.to_be_bytes());
        for word in [info.rtp_timestamp, info.packets, info.octets] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    });
}

/// Appends a receiver report, of the first 31 blocks: 8 bytes and 24 for each. It may have none.
pub fn write_receiver_report(out: &mut Vec<u8>, ssrc: u32, blocks: &[ReportBlock]) {
    let blocks = &blocks[..blocks.len().min(COUNT_MAX)];
    write_packet(out, RECEIVER_REPORT, blocks.len() as u8, |out| {
        out.extend_from_slice(&ssrc.to_be_bytes());
        for block in blocks {
            block.write(out);
        }
    });
}

/// Appends the CNAME of one source. Of a name longer than 255 bytes, the most there is room for, the first 255.
pub fn write_sdes_cname(out: &mut Vec<u8>, ssrc: u32, cname: &str) {
    let name = &cname.as_bytes()[..cname.len().min(255)];
    write_packet(out, SDES, 1, |out| {
        out.extend_from_slice(&ssrc.to_be_bytes());
        out.extend_from_slice(&[CNAME, name.len() as u8]);
        out.extend_from_slice(name);
        // The list of items ends with one zero at least, and on a word.
        out.push(0);
    });
}

/// Appends word that streams have ended: the first 31 of them.
pub fn write_bye(out: &mut Vec<u8>, ssrcs: &[u32]) {
    let ssrcs = &ssrcs[..ssrcs.len().min(COUNT_MAX)];
    write_packet(out, BYE, ssrcs.len() as u8, |out| {
        for ssrc in ssrcs {
            out.extend_from_slice(&ssrc.to_be_bytes());
        }
    });
}

/// Appends a request for a keyframe of stream `media` (RFC 4585 §6.3.1).
pub fn write_pli(out: &mut Vec<u8>, sender: u32, media: u32) {
    write_packet(out, PAYLOAD_FEEDBACK, PLI, |out| {
        out.extend_from_slice(&sender.to_be_bytes());
        out.extend_from_slice(&media.to_be_bytes());
    });
}

/// Appends a request for lost packets (RFC 4585 §6.2.1). `lost` ascends, wrapping; neighbours share an entry.
pub fn write_nack(out: &mut Vec<u8>, sender: u32, media: u32, lost: &[u16]) {
    write_packet(out, TRANSPORT_FEEDBACK, NACK, |out| {
        out.extend_from_slice(&sender.to_be_bytes());
        out.extend_from_slice(&media.to_be_bytes());
        let mut rest = lost;
        while let [first, others @ ..] = rest {
            let near = others.iter().take_while(|seq| (1..=16).contains(&seq.wrapping_sub(*first))).count();
            let mask = others[..near].iter().fold(0u16, |mask, seq| mask | 1 << (seq.wrapping_sub(*first) - 1));
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&mask.to_be_bytes());
            rest = &others[near..];
        }
    });
}

/// Appends one packet with the body that `body` appends, filled up to a word with zeros.
fn write_packet(out: &mut Vec<u8>, kind: u8, count: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[VERSION_2 | count, kind, 0, 0]);
    body(out);
    out.resize(start + (out.len() - start).next_multiple_of(4), 0);
    let words = u16::try_from((out.len() - start) / 4 - 1).expect("a packet fits a datagram");
    out[start + 2..start + 4].copy_from_slice(&words.to_be_bytes());
}

/// One packet of a compound, borrowed from its datagram.
#[derive(Clone, Debug)]
pub enum Rtcp<'a> {
    SenderReport {
        ssrc: u32,
        info: SenderInfo,
        blocks: ReportBlocks<'a>,
    },
    ReceiverReport {
        ssrc: u32,
        blocks: ReportBlocks<'a>,
    },
    Bye {
        ssrcs: Ssrcs<'a>,
    },
    Pli {
        sender: u32,
        media: u32,
    },
    Fir {
        sender: u32,
        entries: FirEntries<'a>,
    },
    Nack {
        sender: u32,
        media: u32,
        lost: LostSeqs<'a>,
    },
    Remb {
        sender: u32,
        bitrate: Bitrate,
        ssrcs: Ssrcs<'a>,
    },
    /// What follows the SSRCs, unread (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1).
    TransportCc {
        sender: u32,
        media: u32,
        feedback: &'a [u8],
    },
    /// SDES, APP, XR and feedback that we have no use for.
    Other {
        packet_type: u8,
    },
}

/// A length that does not fit, or a version that is not 2. Nothing can be read from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed RTCP")]
pub struct Malformed;

/// The packets of a compound, one after the other; [`Malformed`] once, and then no more.
///
/// It need not begin with a report: Chromium sends feedback alone when reduced size is agreed on.
pub fn parse(compound: &[u8]) -> Compound<'_> {
    Compound { rest: compound }
}

/// See [`parse`].
#[derive(Clone, Debug)]
pub struct Compound<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Compound<'a> {
    type Item = Result<Rtcp<'a>, Malformed>;

    fn next(&mut self) -> Option<Result<Rtcp<'a>, Malformed>> {
        if self.rest.is_empty() {
            return None;
        }
        let packet = split_packet(self.rest).and_then(|(packet, rest)| {
            self.rest = rest;
            parse_one(packet)
        });
        if packet.is_none() {
            self.rest = &[];
        }
        Some(packet.ok_or(Malformed))
    }
}

/// Header and body of the first packet, without padding, and what follows it.
fn split_packet(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    if header[0] >> 6 != 2 {
        return None;
    }
    let words = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let (mut packet, rest) = bytes.split_at_checked(HEADER_BYTES + 4 * words)?;
    if header[0] & PADDING != 0 {
        let count = usize::from(*packet.last()?);
        // By RFC 3550 §6.4.1 only the last packet is padded, by a multiple of four. Transport-wide feedback is not made of
        // words: libwebrtc and str0m pad each by one to three, wherever it stands.
        if count == 0 || count > 4 * words {
            return None;
        }
        packet = &packet[..packet.len() - count];
    }
    Some((packet, rest))
}

/// `packet` has a header at least.
fn parse_one(packet: &[u8]) -> Option<Rtcp<'_>> {
    let (header, body) = packet.split_at_checked(HEADER_BYTES)?;
    let (count, kind) = (header[0] & 0x1f, header[1]);
    match (kind, count) {
        (SENDER_REPORT, _) => {
            let (front, rest) = body.split_first_chunk::<{ 4 + SENDER_INFO_BYTES }>()?;
            let info = SenderInfo {
                ntp: NtpTime(u64::from(word(front, 4)) << 32 | u64::from(word(front, 8))),
                rtp_timestamp: word(front, 12),
                packets: word(front, 16),
                octets: word(front, 20),
            };
            Some(Rtcp::SenderReport { ssrc: word(front, 0), info, blocks: ReportBlocks::take(rest, count)? })
        }
        (RECEIVER_REPORT, _) => {
            let (front, rest) = body.split_first_chunk::<4>()?;
            Some(Rtcp::ReceiverReport { ssrc: word(front, 0), blocks: ReportBlocks::take(rest, count)? })
        }
        (BYE, _) => Some(Rtcp::Bye { ssrcs: Ssrcs::take(body, count)? }),
        (TRANSPORT_FEEDBACK | PAYLOAD_FEEDBACK, _) => {
            let (front, rest) = body.split_first_chunk::<8>()?;
            parse_feedback(kind, count, word(front, 0), word(front, 4), rest)
        }
        _ => Some(Rtcp::Other { packet_type: kind }),
    }
}

fn parse_feedback(kind: u8, format: u8, sender: u32, media: u32, rest: &[u8]) -> Option<Rtcp<'_>> {
    match (kind, format) {
        (TRANSPORT_FEEDBACK, NACK) => Some(Rtcp::Nack { sender, media, lost: LostSeqs::new(rest)? }),
        (TRANSPORT_FEEDBACK, TRANSPORT_CC) => Some(Rtcp::TransportCc { sender, media, feedback: rest }),
        (PAYLOAD_FEEDBACK, PLI) => Some(Rtcp::Pli { sender, media }),
        (PAYLOAD_FEEDBACK, FIR) => Some(Rtcp::Fir { sender, entries: FirEntries::new(rest)? }),
        (PAYLOAD_FEEDBACK, ALFB) if rest.starts_with(&REMB_NAME) => parse_remb(sender, &rest[REMB_NAME.len()..]),
        _ => Some(Rtcp::Other { packet_type: kind }),
    }
}

/// draft-alvestrand-rmcat-remb-03 §2.2.
///
/// ```text
/// | number of SSRCs, 8 | exponent, 6 | mantissa, 18 |
/// | SSRC ...                                        |
/// ```
fn parse_remb(sender: u32, rest: &[u8]) -> Option<Rtcp<'_>> {
    let (front, rest) = rest.split_first_chunk::<4>()?;
    let figures = word(front, 0);
    let (count, exponent, mantissa) = (figures >> 24, figures >> 18 & 0x3f, u64::from(figures & 0x3_ffff));
    // The mantissa has 18 bits, so that an exponent up to 46 loses none.
    let bps = if exponent <= 46 || mantissa == 0 { mantissa << exponent } else { u64::MAX };
    Some(Rtcp::Remb { sender, bitrate: Bitrate::from_bps(bps), ssrcs: Ssrcs::take(rest, count as u8)? })
}

/// The blocks of a report.
#[derive(Clone, Debug)]
pub struct ReportBlocks<'a>(std::slice::Iter<'a, [u8; REPORT_BLOCK_BYTES]>);

impl<'a> ReportBlocks<'a> {
    /// Extensions of a profile may follow them (RFC 3550 §6.4.3).
    fn take(bytes: &'a [u8], count: u8) -> Option<ReportBlocks<'a>> {
        bytes.as_chunks().0.get(..count.into()).map(|blocks| ReportBlocks(blocks.iter()))
    }
}

impl Iterator for ReportBlocks<'_> {
    type Item = ReportBlock;

    fn next(&mut self) -> Option<ReportBlock> {
        self.0.next().map(ReportBlock::parse)
    }
}

/// The streams that a packet is about.
#[derive(Clone, Debug)]
pub struct Ssrcs<'a>(std::slice::Iter<'a, [u8; 4]>);

impl<'a> Ssrcs<'a> {
    fn take(bytes: &'a [u8], count: u8) -> Option<Ssrcs<'a>> {
        bytes.as_chunks().0.get(..count.into()).map(|ssrcs| Ssrcs(ssrcs.iter()))
    }
}

impl Iterator for Ssrcs<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0.next().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

/// One request for a keyframe (RFC 5104 §4.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirEntry {
    /// The stream that a keyframe is asked of.
    pub ssrc: u32,
    /// Counts commands: the same number again is a repetition.
    pub command_seq: u8,
}

/// The requests in one FIR.
#[derive(Clone, Debug)]
pub struct FirEntries<'a>(std::slice::Iter<'a, [u8; 8]>);

impl<'a> FirEntries<'a> {
    fn new(bytes: &'a [u8]) -> Option<FirEntries<'a>> {
        let (entries, rest) = bytes.as_chunks();
        rest.is_empty().then(|| FirEntries(entries.iter()))
    }
}

impl Iterator for FirEntries<'_> {
    type Item = FirEntry;

    fn next(&mut self) -> Option<FirEntry> {
        self.0.next().map(|entry| FirEntry { ssrc: word(entry, 0), command_seq: entry[4] })
    }
}

/// Sequence numbers that a NACK asks for: up to 17 for each of its entries, so thousands in a datagram.
#[derive(Clone, Debug)]
pub struct LostSeqs<'a> {
    entries: std::slice::Iter<'a, [u8; 4]>,
    /// The entry at hand: its first number, and bit n for the number n after it that is still to come.
    first: u16,
    pending: u32,
}

impl<'a> LostSeqs<'a> {
    fn new(bytes: &'a [u8]) -> Option<LostSeqs<'a>> {
        let (entries, rest) = bytes.as_chunks();
        rest.is_empty().then(|| LostSeqs { entries: entries.iter(), first: 0, pending: 0 })
    }
}

impl Iterator for LostSeqs<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if self.pending == 0 {
            let entry = self.entries.next()?;
            self.first = u16::from_be_bytes([entry[0], entry[1]]);
            self.pending = u32::from(u16::from_be_bytes([entry[2], entry[3]])) << 1 | 1;
        }
        let after = self.pending.trailing_zeros();
        self.pending &= self.pending - 1;
        Some(self.first.wrapping_add(after as u16))
    }
}

/// # Panics
///
/// When there are less than 4 bytes at `at`.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INFO: SenderInfo =
        SenderInfo { ntp: NtpTime(0x0123_4567_89ab_cdef), rtp_timestamp: 90_000, packets: 7, octets: 7700 };

    const BLOCK: ReportBlock = ReportBlock {
        ssrc: 11,
        fraction_lost: 64,
        cumulative_lost: -2,
        highest_seq: 0x1_0005,
        jitter: 90,
        last_sr: 0x4567_89ab,
        delay_since_last_sr: 65_536,
    };

    fn compound(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn one(bytes: &[u8]) -> Rtcp<'_> {
        let mut packets = parse(bytes);
        let packet = packets.next().expect("a packet").expect("well-formed");
        assert!(packets.next().is_none());
        packet
    }

    /// As text, since the iterators inside have no equality.
    fn shown(bytes: &[u8]) -> Vec<String> {
        parse(bytes)
            .map(|packet| match packet {
                Ok(Rtcp::SenderReport { ssrc, blocks, .. }) => format!("SR {ssrc} of {}", blocks.count()),
                Ok(Rtcp::ReceiverReport { ssrc, blocks }) => format!("RR {ssrc} of {}", blocks.count()),
                Ok(Rtcp::Bye { ssrcs }) => format!("BYE {:?}", ssrcs.collect::<Vec<_>>()),
                Ok(Rtcp::Other { packet_type }) => format!("{packet_type}"),
                Ok(other) => format!("{other:?}"),
                Err(Malformed) => "malformed".into(),
            })
            .collect()
    }

    #[test]
    fn ntp_counts_from_1900() {
        assert_eq!(NtpTime::from_unix(Duration::ZERO).0 >> 32, 2_208_988_800);
        let quarter = NtpTime::from_unix(Duration::from_millis(1250));
        assert_eq!(quarter, NtpTime(2_208_988_801 << 32 | 0x4000_0000));
        assert_eq!(quarter.middle(), (2_208_988_801_u64 << 16) as u32 | 0x4000);
        // 2036-02-07 06:28:16: the seconds begin anew.
        assert_eq!(NtpTime::from_unix(Duration::from_secs(2_085_978_496)), NtpTime(0));
    }

    #[test]
    fn a_compound_as_a_viewer_gets_it() {
        let bytes = compound(|out| {
            write_sender_report(out, 11, &INFO);
            write_sdes_cname(out, 11, "cname");
            write_bye(out, &[11, 12]);
        });
        assert_eq!(bytes[..4], [0x80, 200, 0, 6]);
        assert_eq!(bytes[28..44], [0x81, 202, 0, 3, 0, 0, 0, 11, 1, 5, b'c', b'n', b'a', b'm', b'e', 0]);
        assert_eq!(bytes[44..], [0x82, 203, 0, 2, 0, 0, 0, 11, 0, 0, 0, 12]);
        assert_eq!(shown(&bytes), ["SR 11 of 0", "202", "BYE [11, 12]"]);
        let Some(Ok(Rtcp::SenderReport { info, .. })) = parse(&bytes).next() else { panic!("not a sender report") };
        assert_eq!(info, INFO);
    }

    #[test]
    fn a_cname_always_ends_with_a_zero() {
        for length in 0..10 {
            let bytes = compound(|out| write_sdes_cname(out, 1, &"x".repeat(length)));
            assert_eq!((bytes.len() % 4, bytes.last()), (0, Some(&0)), "{length}");
            assert_eq!(shown(&bytes), ["202"]);
        }
        assert_eq!(compound(|out| write_sdes_cname(out, 1, &"x".repeat(300)))[9], 255);
    }

    #[test]
    fn a_report_block_makes_the_round_trip() {
        let bytes = compound(|out| write_receiver_report(out, 5, &[BLOCK, ReportBlock::default()]));
        let Rtcp::ReceiverReport { ssrc: 5, blocks } = one(&bytes) else { panic!("not a receiver report") };
        assert_eq!(blocks.collect::<Vec<_>>(), [BLOCK, ReportBlock::default()]);
    }

    #[test]
    fn the_round_trip_time_is_what_the_peer_did_not_hold() {
        let check = |now, expected| assert_eq!(BLOCK.round_trip(now), expected);
        check(0x4567_89ab + 65_536 + 6554, Some(Duration::from_nanos(100_006_103)));
        check(0x4567_89ab + 65_536, Some(Duration::ZERO));
        check(0x4567_89ab + 65_535, None);
        assert_eq!(ReportBlock::default().round_trip(5), None, "it saw no sender report");
    }

    #[test]
    fn a_nack_names_numbers_across_the_wrap() {
        let lost = [65_530, 65_535, 0, 10, 11, 27, 28, 1000];
        let bytes = compound(|out| write_nack(out, 1, 2, &lost));
        assert_eq!(bytes.len(), 12 + 4 * 4, "16 numbers after the first share its entry");
        let Rtcp::Nack { sender: 1, media: 2, lost: read } = one(&bytes) else { panic!("not a NACK") };
        assert_eq!(read.collect::<Vec<_>>(), lost);
    }

    #[test]
    fn keyframe_requests() {
        assert!(matches!(one(&compound(|out| write_pli(out, 1, 2))), Rtcp::Pli { sender: 1, media: 2 }));
        let fir = [0x84, 206, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 11, 7, 0, 0, 0, 0, 0, 0, 12, 8, 0, 0, 0];
        let Rtcp::Fir { sender: 1, entries } = one(&fir) else { panic!("not a FIR") };
        let entry = |ssrc, command_seq| FirEntry { ssrc, command_seq };
        assert_eq!(entries.collect::<Vec<_>>(), [entry(11, 7), entry(12, 8)]);
    }

    #[test]
    fn a_remb() {
        let remb = |figures: [u8; 3]| {
            let [a, b, c] = figures;
            [0x8f, 206, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, b'R', b'E', b'M', b'B', 1, a, b, c, 0, 0, 0, 11]
        };
        let check = |figures, expected| {
            let bytes = remb(figures);
            let Rtcp::Remb { bitrate, ssrcs, .. } = one(&bytes) else { panic!("not a REMB") };
            assert_eq!((bitrate.as_bps(), ssrcs.collect::<Vec<_>>()), (expected, vec![11]));
        };
        check([2 << 2, 0x27, 0x10], 40_000);
        check([46 << 2 | 3, 0xff, 0xff], 0x3_ffff << 46);
        check([63 << 2, 0, 1], u64::MAX);
        check([63 << 2, 0, 0], 0);
        let mut other_name = remb([0, 0, 0]);
        other_name[12] = b'r';
        assert!(matches!(one(&other_name), Rtcp::Other { packet_type: 206 }));
    }

    #[test]
    fn transport_cc_is_passed_on_unread() {
        let bytes = [0x8f, 205, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 9, 9];
        assert!(matches!(one(&bytes), Rtcp::TransportCc { sender: 1, media: 2, feedback: [9, 9, 9, 9] }));
    }

    #[test]
    fn packets_may_be_padded() {
        let report = compound(|out| write_receiver_report(out, 5, &[]));
        let padded = |padding: &[u8]| {
            let mut bytes =
                [&report[..], &[0xa1, 203, 0, (1 + padding.len() / 4) as u8, 0, 0, 0, 11], padding].concat();
            bytes.truncate(bytes.len() / 4 * 4);
            bytes
        };
        assert_eq!(shown(&padded(&[0, 0, 0, 4])), ["RR 5 of 0", "BYE [11]"]);
        assert_eq!(shown(&padded(&[0, 0, 0, 0, 0, 0, 0, 8])), ["RR 5 of 0", "BYE [11]"]);
        for wrong in [0, 8, 12] {
            assert_eq!(shown(&padded(&[0, 0, 0, wrong])), ["RR 5 of 0", "malformed"], "a count of {wrong}");
        }
        let followed = [padded(&[0, 0, 0, 4]), report.clone()].concat();
        assert_eq!(shown(&followed), ["RR 5 of 0", "BYE [11]", "RR 5 of 0"]);
        let feedback = [0xaf, 205, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 0, 2];
        assert!(matches!(one(&feedback), Rtcp::TransportCc { feedback: [9, 9], .. }));
    }

    #[test]
    fn what_is_malformed_ends_the_walk() {
        let report = compound(|out| write_receiver_report(out, 5, &[]));
        for broken in [
            &[0x80][..],                                                // cut header
            &[0x40, 201, 0, 1, 0, 0, 0, 5],                             // version 1
            &[0x80, 201, 0, 2, 0, 0, 0, 5],                             // overruns
            &[0x80, 201, 0, 0],                                         // without its SSRC
            &[0x81, 201, 0, 1, 0, 0, 0, 5],                             // a block too few
            &[0x80, 200, 0, 1, 0, 0, 0, 5],                             // without sender info
            &[0x82, 203, 0, 1, 0, 0, 0, 5],                             // an SSRC too few
            &[0x81, 206, 0, 1, 0, 0, 0, 5],                             // PLI of nothing
            &[0x84, 206, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1],     // half an entry of FIR
            &[0x8f, 206, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0, 82, 69, 77, 66], // REMB of nothing
        ] {
            let bytes = [&report, broken, &report].concat();
            assert_eq!(shown(&bytes[..report.len() + broken.len()]), ["RR 5 of 0", "malformed"], "{broken:?}");
            assert_eq!(shown(&bytes)[0], "RR 5 of 0");
        }
        assert!(shown(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            walk(&bytes);
        }

        /// Random bodies behind headers that are in order, so that they are read.
        #[test]
        fn any_bodies_are_read_without_panic(
            packets in proptest::collection::vec((0u8..64, 199u8..208, proptest::collection::vec(any::<u8>(), 0..60)), 1..5),
        ) {
            let mut bytes = Vec::new();
            for (low, kind, body) in &packets {
                write_packet(&mut bytes, *kind, *low, |out| out.extend_from_slice(body));
            }
            walk(&bytes);
        }

        #[test]
        fn lost_numbers_make_the_round_trip(start: u16, gaps in proptest::collection::vec(1u16..40, 0..100)) {
            let lost: Vec<u16> = gaps.iter().scan(start, |seq, gap| { *seq = seq.wrapping_add(*gap); Some(*seq) }).collect();
            let bytes = compound(|out| write_nack(out, 1, 2, &lost));
            let Rtcp::Nack { lost: read, .. } = one(&bytes) else { panic!("not a NACK") };
            prop_assert_eq!(read.collect::<Vec<_>>(), lost);
        }
    }

    fn walk(bytes: &[u8]) {
        let mut packets = 0;
        for packet in parse(bytes) {
            packets += 1;
            match packet {
                Ok(Rtcp::SenderReport { blocks, .. } | Rtcp::ReceiverReport { blocks, .. }) => blocks.for_each(drop),
                Ok(Rtcp::Bye { ssrcs } | Rtcp::Remb { ssrcs, .. }) => ssrcs.for_each(drop),
                Ok(Rtcp::Fir { entries, .. }) => entries.for_each(drop),
                Ok(Rtcp::Nack { lost, .. }) => lost.for_each(drop),
                _ => {}
            }
        }
        assert!(packets <= bytes.len() / HEADER_BYTES + 1);
    }
}
