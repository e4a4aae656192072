//! Datagrams in a byte stream (RFC 4571), the way in: sans-IO.
//!
//! ```text
//!   0                   1
//!   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5
//!  +-------------------------------+------------------
//!  |             LENGTH            |  LENGTH bytes …      (RFC 4571 §2)
//!  +-------------------------------+------------------
//! ```

use crate::limits;

/// Bytes of LENGTH.
pub(super) const LENGTH_BYTES: usize = 2;

/// A frame that is longer than any datagram of ours: whoever sends it does not speak our protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameTooLong;

/// Takes a stream apart, however it was cut on its way. Holds one frame that has not ended, at most.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    /// Of the frame that is coming, LENGTH included.
    partial: Vec<u8>,
}

impl Deframer {
    /// Gives each frame that is whole now to `handle`, in their order. Empty ones are null packets (RFC 4571 §2) and are
    /// skipped.
    ///
    /// # Errors
    /// The stream is of no use any more: a frame of more than [`limits::DATAGRAM_BYTES_MAX`] is announced.
    pub fn push(&mut self, mut bytes: &[u8], mut handle: impl FnMut(&[u8])) -> Result<(), FrameTooLong> {
        while !bytes.is_empty() {
            let missing = LENGTH_BYTES + self.length().unwrap_or(0) - self.partial.len();
            let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
            self.partial.extend_from_slice(taken);
            bytes = rest;
            let Some(length) = self.length() else { continue };
            if length > limits::DATAGRAM_BYTES_MAX {
                return Err(FrameTooLong);
            }
            if self.partial.len() == LENGTH_BYTES + length {
                if length > 0 {
                    handle(&self.partial[LENGTH_BYTES..]);
                }
                self.partial.clear();
            }
        }
        Ok(())
    }

    fn length(&self) -> Option<usize> {
        let length = self.partial.first_chunk::<LENGTH_BYTES>()?;
        Some(usize::from(u16::from_be_bytes(*length)))
    }
}

/// LENGTH of a datagram, which is shorter than 64 kB.
pub(super) fn length_of(datagram: &[u8]) -> [u8; LENGTH_BYTES] {
    debug_assert!(datagram.len() <= usize::from(u16::MAX));
    (datagram.len() as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frames(deframer: &mut Deframer, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        deframer.push(bytes, |frame| frames.push(frame.to_vec())).expect("short frames");
        frames
    }

    proptest! {
        #[test]
        fn a_stream_gives_the_same_frames_however_it_is_cut(
            datagrams in vec(vec(any::<u8>(), 0..300), 0..20),
            cuts in vec(1usize..50, 1..40),
        ) {
            let stream: Vec<u8> = datagrams.iter().flat_map(|d| [&length_of(d)[..], d].concat()).collect();
            let mut deframer = Deframer::default();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                got.extend(frames(&mut deframer, piece));
                rest = after;
            }
            let sent: Vec<Vec<u8>> = datagrams.into_iter().filter(|d| !d.is_empty()).collect();
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn no_stream_makes_it_hold_more_than_a_frame(pieces in vec(vec(any::<u8>(), 1..5000), 1..10)) {
            let mut deframer = Deframer::default();
            for piece in pieces {
                let mut longest = 0;
                let pushed = deframer.push(&piece, |frame| longest = longest.max(frame.len()));
                prop_assert!(longest <= limits::DATAGRAM_BYTES_MAX);
                prop_assert!(deframer.partial.len() <= LENGTH_BYTES + limits::DATAGRAM_BYTES_MAX);
                if pushed.is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_frame_that_is_too_long_ends_the_stream() {
        let mut deframer = Deframer::default();
        assert_eq!(frames(&mut deframer, &[0, 1, 7, 0x08]), [[7]]);
        assert_eq!(deframer.push(&[0x01, 1], |_| panic!("no frame")), Err(FrameTooLong));
    }
}
