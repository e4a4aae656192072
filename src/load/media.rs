//! Synthetic media: payloads that a server takes for VP8, H264 or Opus, with a stamp at their end for the viewer.

use clap::ValueEnum;
use str0m::format::Codec;

use crate::units::Instant;

/// Payload of an Opus packet beside video: 32 kbit/s.
pub(super) const AUDIO_BYTES: usize = 80;

/// Opus packets a second, of 20 ms each.
pub(super) const AUDIO_PACKETS_PER_SECOND: u64 = 50;

/// What one publisher sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Source {
    pub video: Option<Video>,
    /// Payload of each packet.
    pub audio_bytes: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Video {
    pub codec: VideoCodec,
    pub frames_per_second: f64,
    pub packets_per_frame: u32,
    /// Payload of a full packet.
    pub packet_bytes: usize,
    pub sizes: Sizes,
    /// Frames from one keyframe to the next when nobody asks.
    pub keyframe_frames: u64,
}

/// How long the packets of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sizes {
    /// All full
    Even,
    /// The last one of each frame is anything from 64 bytes to full, as encoders leave it
    Tail,
    /// Each is anything from 200 bytes to full
    Random,
}

/// The shortest of [`Sizes::Random`].
const RANDOM_BYTES_MIN: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VideoCodec {
    Vp8,
    H264,
}

impl VideoCodec {
    pub fn to_str0m(self) -> Codec {
        match self {
            VideoCodec::Vp8 => Codec::Vp8,
            VideoCodec::H264 => Codec::H264,
        }
    }
}

impl Video {
    /// Payload of the next packet.
    pub fn payload_bytes(&self, last: bool, rng: &mut fastrand::Rng) -> usize {
        let full = self.packet_bytes;
        match self.sizes {
            Sizes::Tail if last => rng.usize(PAYLOAD_BYTES_MIN..=full),
            Sizes::Random => rng.usize(RANDOM_BYTES_MIN.min(full)..=full),
            Sizes::Even | Sizes::Tail => full,
        }
    }
}

impl Source {
    /// Packets a second, of audio and video together.
    pub fn packets_per_second(&self) -> f64 {
        let video = self.video.map_or(0.0, |v| v.frames_per_second * f64::from(v.packets_per_frame));
        video + self.audio_bytes.map_or(0.0, |_| AUDIO_PACKETS_PER_SECOND as f64)
    }
}

/// What a payload says of itself. It stands at the end, so that no codec's header has to be understood to read it.
///
/// ```text
/// | "load" | nanoseconds, 64 | packet, 32 | flags, 8 |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Just before the publisher encrypted it.
    pub sent: Instant,
    /// Counts the packets of its track.
    pub packet: u32,
    /// Of a keyframe, and its first packet.
    pub starts_keyframe: bool,
}

const MAGIC: &[u8; 4] = b"load";
pub(super) const STAMP_BYTES: usize = 17;

/// Payloads this short still have room for every header and the stamp.
pub(super) const PAYLOAD_BYTES_MIN: usize = 64;

impl Stamp {
    fn write(self, payload: &mut [u8]) {
        let start = payload.len() - STAMP_BYTES;
        let stamp = &mut payload[start..];
        stamp[..4].copy_from_slice(MAGIC);
        stamp[4..12].copy_from_slice(&self.sent.as_nanos().to_be_bytes());
        stamp[12..16].copy_from_slice(&self.packet.to_be_bytes());
        stamp[16] = u8::from(self.starts_keyframe);
    }

    /// `None` when somebody else's media was sent.
    pub fn read(payload: &[u8]) -> Option<Stamp> {
        let stamp = payload.last_chunk::<STAMP_BYTES>()?;
        let nanos = stamp[4..12].try_into().ok()?;
        let packet = stamp[12..16].try_into().ok()?;
        (&stamp[..4] == MAGIC).then(|| Stamp {
            sent: Instant::from_nanos(u64::from_be_bytes(nanos)),
            packet: u32::from_be_bytes(packet),
            starts_keyframe: stamp[16] == 1,
        })
    }
}

/// A packet's place in its frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub frame: u64,
    pub first: bool,
    pub keyframe: bool,
}

/// One packet of a video frame, `bytes` long (at least [`PAYLOAD_BYTES_MIN`]).
pub(super) fn video_payload(codec: VideoCodec, bytes: usize, place: Place, sent: Instant, packet: u32) -> Vec<u8> {
    let mut payload = Vec::with_capacity(bytes);
    match codec {
        VideoCodec::Vp8 => write_vp8(&mut payload, place),
        VideoCodec::H264 => write_h264(&mut payload, place, bytes),
    }
    // Not zero: in H264 a row of zeros would look like a start code.
    payload.resize(bytes, 0xa5);
    Stamp { sent, packet, starts_keyframe: place.keyframe && place.first }.write(&mut payload);
    payload
}

/// `bytes` of Opus, in one packet of 20 ms of CELT, full band, stereo.
pub(super) fn audio_payload(bytes: usize, sent: Instant, packet: u32) -> Vec<u8> {
    let mut payload = vec![0xfc];
    payload.resize(bytes, 0xa5);
    Stamp { sent, packet, starts_keyframe: true }.write(&mut payload);
    payload
}

/// RFC 7741 §4.2: X and S, then I with 15 bits, L and T; then the payload header with its inverse keyframe bit, and
/// for a keyframe the start code and 640 × 360.
fn write_vp8(out: &mut Vec<u8>, place: Place) {
    let picture = (place.frame & 0x7fff) as u16 | 0x8000;
    out.extend_from_slice(&[0x80 | u8::from(place.first) << 4, 0xe0]);
    out.extend_from_slice(&picture.to_be_bytes());
    out.extend_from_slice(&[place.frame as u8, 0x20]);
    if place.first {
        out.extend_from_slice(&[0x10 | u8::from(!place.keyframe), 0x02, 0x00]);
        if place.keyframe {
            out.extend_from_slice(&[0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01]);
        }
    }
}

/// Baseline 3.1, 640 × 360.
const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x02, 0x80, 0xbf, 0xe5, 0x96, 0x10, 0x00];
const PPS: &[u8] = &[0x68, 0xce, 0x38, 0x80];

/// Every packet is a slice of its own; a keyframe's first one is a STAP-A of SPS, PPS and the first slice (RFC 6184
/// §5.7.1). The first bit of a slice is 1 when it is its picture's first.
fn write_h264(out: &mut Vec<u8>, place: Place, packet_bytes: usize) {
    const STAP_A: u8 = 0x78;
    const IDR: u8 = 0x65;
    const SLICE: u8 = 0x41;
    if place.keyframe && place.first {
        out.push(STAP_A);
        for unit in [SPS, PPS] {
            out.extend_from_slice(&(unit.len() as u16).to_be_bytes());
            out.extend_from_slice(unit);
        }
        let slice_bytes = packet_bytes - out.len() - 2;
        out.extend_from_slice(&(slice_bytes as u16).to_be_bytes());
    }
    out.push(if place.keyframe { IDR } else { SLICE });
    out.push(if place.first { 0x88 } else { 0x44 });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Codec;
    use crate::wire::keyframe::starts_keyframe;
    use crate::wire::vp8;

    fn payload(codec: VideoCodec, keyframe: bool, first: bool) -> Vec<u8> {
        video_payload(codec, PAYLOAD_BYTES_MIN, Place { frame: 7, first, keyframe }, Instant::from_nanos(99), 5)
    }

    /// Lengths of 1000 frames of three packets: the shortest and the longest at each place.
    fn lengths(sizes: Sizes) -> [(usize, usize); 3] {
        let (codec, frames_per_second, packets_per_frame) = (VideoCodec::Vp8, 30.0, 3);
        let video =
            Video { codec, frames_per_second, packets_per_frame, packet_bytes: 1200, sizes, keyframe_frames: 60 };
        let mut rng = fastrand::Rng::with_seed(1);
        let frames: Vec<[usize; 3]> =
            (0..1000).map(|_| [0, 1, 2].map(|index| video.payload_bytes(index == 2, &mut rng))).collect();
        [0, 1, 2].map(|place| {
            let at_place = frames.iter().map(|frame| frame[place]);
            (at_place.clone().min().unwrap_or(0), at_place.max().unwrap_or(0))
        })
    }

    #[test]
    fn sizes_are_mixed_as_asked() {
        assert_eq!(lengths(Sizes::Even), [(1200, 1200); 3]);
        let [first, second, (shortest, longest)] = lengths(Sizes::Tail);
        assert_eq!([first, second], [(1200, 1200); 2]);
        assert!((64..80).contains(&shortest) && (1190..=1200).contains(&longest), "{shortest} to {longest}");
        for (shortest, longest) in lengths(Sizes::Random) {
            assert!((200..210).contains(&shortest) && (1190..=1200).contains(&longest), "{shortest} to {longest}");
        }
    }

    #[test]
    fn a_server_finds_keyframes_where_they_begin() {
        for (ours, codec) in [(VideoCodec::Vp8, Codec::Vp8), (VideoCodec::H264, Codec::H264)] {
            for (keyframe, first) in [(true, true), (true, false), (false, true), (false, false)] {
                let payload = payload(ours, keyframe, first);
                assert_eq!(starts_keyframe(codec, &payload), keyframe && first, "{codec} {keyframe} {first}");
            }
        }
    }

    #[test]
    fn stamps_are_read_as_written() {
        for codec in [VideoCodec::Vp8, VideoCodec::H264] {
            let payload = payload(codec, true, true);
            assert_eq!(payload.len(), PAYLOAD_BYTES_MIN);
            let expected = Stamp { sent: Instant::from_nanos(99), packet: 5, starts_keyframe: true };
            assert_eq!(Stamp::read(&payload), Some(expected));
        }
        let audio = audio_payload(AUDIO_BYTES, Instant::from_nanos(3), 1);
        assert_eq!(Stamp::read(&audio).map(|s| s.packet), Some(1));
        assert_eq!(Stamp::read(&[0; 100]), None);
        assert_eq!(Stamp::read(b"load"), None);
    }

    #[test]
    fn vp8_frames_are_numbered() {
        let header = vp8::parse(&payload(VideoCodec::Vp8, false, true), false).unwrap().numbers;
        assert_eq!((header.picture_id.map(|p| p.value), header.tl0_pic_idx), (Some(7), Some(7)));
    }
}
