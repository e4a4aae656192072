//! Which packets of a track may leave as segments of one message.
//!
//! UDP segmentation (UDP_SEGMENT) wants all segments of one size; only the last may be shorter. Encoders cut a frame
//! into packets that differ by a byte, so packets are made equal by RTP padding where that costs little, and the
//! sequence is cut where it does not. Order is never changed.

use crate::wire::codec::Format;
use crate::wire::packet::{CanonicalPacket, MediaPacket, Run};

/// How far to go for larger messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmenting {
    /// Segments of one message at most: they leave back to back.
    pub segments_max: usize,
    /// Padding of a packet at most, in percent of the largest payload of its run.
    pub padding_percent: usize,
}

impl Default for Segmenting {
    fn default() -> Self {
        // 16 segments cost a tenth of 16 messages; more gains little and bursts more. 2 % is what GSO gives back many
        // times over.
        Segmenting { segments_max: 16, padding_percent: 2 }
    }
}

/// The last byte of a padded packet counts the padding (RFC 3550 §5.1).
const PADDING_BYTES_MAX: usize = 255;

/// Of one message, with dependency descriptors: an IPv4 datagram carries 65,507 bytes; the rest is for headers, other extensions
/// and tags of 64 segments.
const PAYLOADS_BYTES_MAX: usize = 58_000;

/// Cuts `packets` into runs, appended to `runs`.
pub fn plan(packets: &[CanonicalPacket], segmenting: Segmenting, runs: &mut Vec<Run>) {
    let mut start = 0;
    while start < packets.len() {
        let run = first_run(packets, start, segmenting);
        start = run.packets.end;
        runs.push(run);
    }
}

/// What leaves as one message of what comes from `start` on.
pub fn first_run(packets: &[CanonicalPacket], start: usize, segmenting: Segmenting) -> Run {
    let shape = shape(&packets[start].packet);
    let dependency_bytes = packets[start].packet.dependency_bytes();
    let (mut low, mut high) = (usize::MAX, 0);
    let mut end = start;
    for candidate in packets[start..].iter().take(segmenting.segments_max.max(1)) {
        let bytes = candidate.packet.payload.len();
        // A keyframe begins a message: how it goes on is decided viewer by viewer.
        if self::shape(&candidate.packet) != shape || candidate.packet.starts_keyframe && end > start {
            break;
        }
        let (lower, higher) = (low.min(bytes), high.max(bytes));
        if (higher + dependency_bytes) * (end - start + 1) > PAYLOADS_BYTES_MAX && end > start {
            break;
        }
        let slack = (higher * segmenting.padding_percent / 100).min(PADDING_BYTES_MAX);
        if higher - lower <= slack || end == start {
            (low, high) = (lower, higher);
            end += 1;
        } else if bytes < low {
            // The last segment may be shorter.
            end += 1;
            break;
        } else {
            break;
        }
    }
    Run { packets: start..end, payload_bytes: high }
}

/// What must be the same in a run: the extensions and the length of the dependency descriptor decide that of the header, the
/// format the payload type.
fn shape(packet: &MediaPacket) -> (u8, usize, Format) {
    (packet.extensions.shape(), packet.dependency_bytes(), packet.format)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::wire::dependency::Dependency;
    use crate::wire::descriptor::Rewrite;
    use crate::wire::packet::EndToEnd;
    use crate::wire::packet::testing::video;

    fn packet(bytes: usize, audio_level: Option<u8>) -> CanonicalPacket {
        let extensions = EndToEnd { audio_level, ..Default::default() };
        let packet = MediaPacket { extensions, ..video(1, 0, false, bytes) };
        CanonicalPacket { packet: Arc::new(packet), seq: 1, timestamp: 0, marker: false, rewrite: Rewrite::default() }
    }

    /// Sizes in, runs out: (number of packets, payload bytes).
    fn check(sizes: &[usize], expected: &[(usize, usize)]) {
        let packets: Vec<CanonicalPacket> = sizes.iter().map(|s| packet(*s, None)).collect();
        let mut runs = Vec::new();
        plan(&packets, Segmenting { segments_max: 8, padding_percent: 2 }, &mut runs);
        let got: Vec<(usize, usize)> = runs.iter().map(|r| (r.packets.len(), r.payload_bytes)).collect();
        assert_eq!(got, expected, "{sizes:?}");
    }

    #[test]
    fn packets_that_are_nearly_equal_leave_together() {
        check(&[1100; 10], &[(8, 1100), (2, 1100)]);
        // libwebrtc: "the last packets are one byte wider than the rest".
        check(&[1100, 1100, 1100, 1101, 1101], &[(5, 1101)]);
        check(&[1100, 1100, 300], &[(3, 1100)]);
        check(&[300, 1100, 1100], &[(1, 300), (2, 1100)]);
        check(&[1100, 300, 1100], &[(2, 1100), (1, 1100)]);
        check(&[80], &[(1, 80)]);
        check(&[], &[]);
    }

    #[test]
    fn a_message_is_no_longer_than_a_datagram_may_be() {
        let packets: Vec<CanonicalPacket> = (0..64).map(|_| packet(1400, None)).collect();
        let mut runs = Vec::new();
        plan(&packets, Segmenting { segments_max: 64, padding_percent: 2 }, &mut runs);
        assert_eq!(runs.iter().map(|r| r.packets.len()).collect::<Vec<_>>(), [41, 23]);
    }

    #[test]
    fn only_the_last_segment_may_be_shorter() {
        let run = Run { packets: 3..6, payload_bytes: 1101 };
        assert_eq!([3, 4, 5].map(|i| run.padded_bytes(i, 1100)), [1101, 1101, 1100]);
    }

    #[test]
    fn another_set_of_extensions_begins_another_run() {
        let packets = [packet(100, None), packet(100, Some(3)), packet(100, Some(4))];
        let mut runs = Vec::new();
        plan(&packets, Segmenting::default(), &mut runs);
        assert_eq!(runs.iter().map(|r| r.packets.len()).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn dependency_descriptors_of_one_length_share_a_run() {
        let with = |dependency_bytes: usize, bytes| {
            let dependency = Some(Dependency::of(vec![0; dependency_bytes]));
            let packet = MediaPacket { dependency, ..video(1, 0, false, bytes) };
            CanonicalPacket { packet: Arc::new(packet), ..self::packet(bytes, None) }
        };
        let runs_of = |packets: &[CanonicalPacket]| {
            let mut runs = Vec::new();
            plan(packets, Segmenting { segments_max: 64, padding_percent: 2 }, &mut runs);
            runs.iter().map(|r| r.packets.len()).collect::<Vec<_>>()
        };
        assert_eq!(runs_of(&[with(90, 100), with(3, 100), with(3, 100), packet(100, None)]), [1, 2, 1]);
        let long: Vec<_> = (0..64).map(|_| with(255, 1200)).collect();
        assert_eq!(runs_of(&long), [39, 25], "they count in a message's length");
    }
}
