//! What a payload is encoded as, and which of a peer's payload types can carry it.

use std::fmt;

use str0m::media::MediaKind;

/// The codecs that are passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    Opus,
    Vp8,
    Vp9,
    H264,
    H265,
    Av1,
}

impl Codec {
    pub fn kind(self) -> MediaKind {
        match self {
            Codec::Opus => MediaKind::Audio,
            _ => MediaKind::Video,
        }
    }

    /// The encoding name of `a=rtpmap`, in its usual spelling.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Opus => "opus",
            Codec::Vp8 => "VP8",
            Codec::Vp9 => "VP9",
            Codec::H264 => "H264",
            Codec::H265 => "H265",
            Codec::Av1 => "AV1",
        }
    }

    /// Encoding names compare without regard to case (RFC 8866 §6.6; GStreamer writes `OPUS`).
    pub fn from_name(name: &str) -> Option<Codec> {
        const ALL: [Codec; 6] = [Codec::Opus, Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1];
        ALL.into_iter().find(|c| c.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A codec with what of its `a=fmtp` decides whether a decoder can take the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    pub codec: Codec,
    /// H264: `profile-level-id` (24 bits). VP9 and H265: `profile-id`. AV1: `profile`. Else 0.
    pub profile: u32,
    /// H264: `packetization-mode`. Else 0.
    pub packetization_mode: u8,
}

impl Format {
    pub const OPUS: Format = Format { codec: Codec::Opus, profile: 0, packetization_mode: 0 };
    pub const VP8: Format = Format { codec: Codec::Vp8, profile: 0, packetization_mode: 0 };
}
