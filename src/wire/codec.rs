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

    /// Reads what matters of an `a=fmtp` value; a parameter that is missing has the default of its RFC.
    ///
    /// `None` when a parameter has a value that does not exist: nothing can be decoded by such a format.
    pub fn parse(codec: Codec, fmtp: &str) -> Option<Format> {
        let number = |name, default, max| match parameter(fmtp, name) {
            None => Some(default),
            Some(value) => value.parse::<u32>().ok().filter(|v| *v <= max),
        };
        let (profile, packetization_mode) = match codec {
            Codec::Opus | Codec::Vp8 => (0, 0),
            // RFC 9628 §6.1.
            Codec::Vp9 => (number("profile-id", 0, 3)?, 0),
            // RFC 7798 §7.1: Main when it is not said.
            Codec::H265 => (number("profile-id", 1, 31)?, 0),
            // AV1 RTP specification §7.2.1.
            Codec::Av1 => (number("profile", 0, 2)?, 0),
            Codec::H264 => {
                let profile = match parameter(fmtp, "profile-level-id") {
                    None => H264_PROFILE_LEVEL_DEFAULT,
                    Some(hex) if hex.len() == 6 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                        u32::from_str_radix(hex, 16).ok()?
                    }
                    Some(_) => return None,
                };
                // Mode 2, interleaved, is used by nobody on the web.
                (profile, number("packetization-mode", 0, 1)? as u8)
            }
        };
        Some(Format { codec, profile, packetization_mode })
    }

    /// Which of a viewer's formats can carry what is published; the position of the best one.
    ///
    /// H264 needs the same packetization mode; among those the profile decides only the order, because publishers
    /// lie about it (OBS says 42e01f whatever it encodes) and decoders take any of baseline, main and high. The
    /// others need the same profile.
    pub fn pick(viewer: &[Format], published: Format) -> Option<usize> {
        viewer
            .iter()
            .enumerate()
            .filter_map(|(index, format)| Some((format.distance(published)?, index)))
            .min()
            .map(|(_, index)| index)
    }

    /// How far this format of a viewer is from the published one; `None` when it cannot carry it.
    fn distance(self, published: Format) -> Option<u8> {
        if self.codec != published.codec || self.packetization_mode != published.packetization_mode {
            return None;
        }
        match self.codec {
            Codec::Opus | Codec::Vp8 => Some(0),
            Codec::Vp9 | Codec::H265 | Codec::Av1 => (self.profile == published.profile).then_some(0),
            Codec::H264 => Some(match (self.profile, published.profile) {
                (a, b) if a == b => 0,
                // Profile and its constraints are equal; the level is not.
                (a, b) if a >> 8 == b >> 8 => 1,
                (a, b) if a >> 16 == b >> 16 => 2,
                (a, _) if is_constrained_baseline(a) => 3,
                _ => 4,
            }),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec {
            Codec::Opus | Codec::Vp8 => write!(f, "{}", self.codec),
            Codec::H264 => write!(f, "H264 {:06x} mode {}", self.profile, self.packetization_mode),
            _ => write!(f, "{} profile {}", self.codec, self.profile),
        }
    }
}

/// Baseline, level 1: what RFC 6184 §8.1 infers when the offer is silent.
const H264_PROFILE_LEVEL_DEFAULT: u32 = 0x42_00_0a;

/// Baseline with `constraint_set1_flag`: what every H264 decoder takes.
fn is_constrained_baseline(profile_level_id: u32) -> bool {
    profile_level_id >> 16 == 0x42 && profile_level_id & 0x4000 != 0
}

/// The value of one `name=value` in an `a=fmtp` line. Names compare without regard to case.
pub fn parameter<'a>(fmtp: &'a str, name: &str) -> Option<&'a str> {
    fmtp.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h264(profile: u32, packetization_mode: u8) -> Format {
        Format { codec: Codec::H264, profile, packetization_mode }
    }

    fn of(codec: Codec, profile: u32) -> Format {
        Format { codec, profile, packetization_mode: 0 }
    }

    #[test]
    fn fmtp_decides_the_format() {
        let check = |codec, fmtp, expected| assert_eq!(Format::parse(codec, fmtp), expected, "{codec} {fmtp:?}");
        check(Codec::Opus, "minptime=10;useinbandfec=1", Some(Format::OPUS));
        check(Codec::Vp8, "", Some(Format::VP8));
        check(Codec::Vp9, "", Some(of(Codec::Vp9, 0)));
        check(Codec::Vp9, "profile-id=2", Some(of(Codec::Vp9, 2)));
        check(Codec::Vp9, "profile-id=9", None);
        check(Codec::H265, "", Some(of(Codec::H265, 1)));
        check(Codec::Av1, "level-idx=5;profile=1;tier=0", Some(of(Codec::Av1, 1)));
        check(
            Codec::H264,
            "level-asymmetry-allowed=1; Packetization-Mode=1; profile-level-id=42E01F",
            Some(h264(0x42e01f, 1)),
        );
        check(Codec::H264, "", Some(h264(0x42000a, 0)));
        check(Codec::H264, "profile-level-id=422001f", None);
        check(Codec::H264, "profile-level-id=+2e01f", None);
        check(Codec::H264, "packetization-mode=2", None);
    }

    #[test]
    fn a_viewer_gets_the_nearest_profile_of_the_same_mode() {
        let chromium = [
            h264(0x42001f, 1),
            h264(0x42001f, 0),
            h264(0x42e01f, 1),
            h264(0x42e01f, 0),
            h264(0x4d001f, 1),
            h264(0xf4001f, 1),
        ];
        let check = |published, expected| assert_eq!(Format::pick(&chromium, published), expected, "{published}");
        check(h264(0x42e01f, 1), Some(2));
        check(h264(0x42e034, 1), Some(2)); // another level
        check(h264(0x42c01f, 1), Some(0)); // other constraints of baseline
        check(h264(0x42001f, 0), Some(1));
        check(h264(0x640032, 1), Some(2)); // High: nobody offers it, constrained baseline is the safest name
        assert_eq!(Format::pick(&[h264(0x4d001f, 1)], h264(0x640032, 1)), Some(0));
        assert_eq!(Format::pick(&[h264(0x42e01f, 0)], h264(0x42e01f, 1)), None);
    }

    #[test]
    fn other_codecs_need_the_same_profile() {
        let viewer = [Format::OPUS, Format::VP8, of(Codec::Vp9, 0), of(Codec::Vp9, 2), of(Codec::Av1, 0)];
        let check = |published, expected| assert_eq!(Format::pick(&viewer, published), expected, "{published}");
        check(Format::OPUS, Some(0));
        check(Format::VP8, Some(1));
        check(of(Codec::Vp9, 2), Some(3));
        check(of(Codec::Vp9, 1), None);
        check(of(Codec::Av1, 1), None);
        check(of(Codec::H265, 1), None);
    }
}
