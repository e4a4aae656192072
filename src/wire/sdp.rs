//! Offers in, answers out: what we read of a client's SDP, what we repair in it, and how our answer is finished.
//!
//! str0m negotiates a publisher's media itself; this module stands before and behind it. An offer is not patched but read
//! and written anew, so that str0m sees nothing but what was understood and checked here. Of a viewer's offer it sees the
//! transport only, and the answer is written here.

mod answer;
mod candidate;
mod formats;
mod fragment;
mod lines;
mod offer;
mod viewer;
mod write;

pub use answer::{AnswerError, finish_answer};
pub use fragment::{FragmentError, SdpFrag, restart_fragment};
pub use offer::{OfferError, Unusable};
pub use viewer::{Sending, SendingTrack, viewer_answer};

use super::codec::{self, Codec, Format};
use str0m::media::{Direction, MediaKind};
use str0m::rtp::Extension;

/// A client's offer, parsed, checked and repaired.
#[derive(Clone, Debug)]
pub struct Offer {
    /// In the order of the m-lines; at most one audio and one video.
    pub media: Vec<OfferedMedia>,
    pub ice_ufrag: String,
    pub ice_pwd: String,
    /// The value of `a=fingerprint`: hash function and hex.
    pub fingerprint: String,
    /// The value of `a=setup`.
    setup: &'static str,
    /// Each `candidate:…`.
    candidates: Vec<String>,
    /// `a=extmap-allow-mixed`: the client reads both forms of header extensions (RFC 8285 §6).
    pub mixed_extensions: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedMedia {
    pub kind: MediaKind,
    pub mid: String,
    /// As the offer says it: `SendOnly` means that the client sends.
    pub direction: Direction,
    /// In the client's order of preference; only codecs that we pass through. Never empty.
    pub formats: Vec<OfferedFormat>,
    /// Names of the simulcast layers that the client sends (RFC 8853), in its order; empty without simulcast.
    pub rids: Vec<String>,
    /// Header extensions: id and URI.
    extensions: Vec<(u8, String)>,
    source: Option<Source>,
    reduced_size_rtcp: bool,
}

/// An announced SSRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    ssrc: u32,
    rtx: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedFormat {
    pub payload_type: u8,
    /// Payload type of the RTX stream that repairs this one (RFC 4588 `apt`).
    pub rtx: Option<u8>,
    pub format: Format,
    /// Hz.
    pub clock_rate: u32,
    pub channels: Option<u8>,
    /// The `a=fmtp` parameters as written, without payload type; empty when there is no such line.
    pub fmtp: String,
    pub nack: bool,
    pub pli: bool,
    pub fir: bool,
    pub transport_cc: bool,
    pub remb: bool,
}

impl Offer {
    /// Reads, checks and repairs what a client sent.
    ///
    /// # Errors
    /// [`OfferError::Syntax`] for what is no SDP at all, [`OfferError::Unusable`] for an offer that is understood but
    /// cannot be answered whole.
    pub fn parse(text: &str) -> Result<Offer, OfferError> {
        offer::parse(text)
    }

    /// The repaired text, fit for `str0m::change::SdpOffer::from_sdp_string`.
    pub fn sdp(&self) -> String {
        write::offer(self)
    }

    /// An offer of the same transport, and of one m-line that carries nothing: all that str0m needs for ICE and DTLS. It
    /// reads this in a twentieth of the time that a browser's whole offer takes.
    pub fn transport(&self) -> String {
        write::transport(self)
    }

    pub fn media(&self, kind: MediaKind) -> Option<&OfferedMedia> {
        self.media.iter().find(|m| m.kind == kind)
    }
}

impl OfferedFormat {
    /// Whether str0m cannot tell it from the other one.
    fn is_twin(&self, other: &OfferedFormat) -> bool {
        let (a, b) = (self.format, other.format);
        (a.codec, a.packetization_mode) == (b.codec, b.packetization_mode)
            && match a.codec {
                Codec::H264 => self.h264_profile_and_level() == other.h264_profile_and_level(),
                _ => a.profile == b.profile,
            }
    }

    /// `profile-level-id` with the constraints that all of its profile have (RFC 6184 §8.1, table 5).
    fn h264_profile_and_level(&self) -> u32 {
        let said = codec::parameter(&self.fmtp, "profile-level-id").is_some();
        // libwebrtc infers level 3.1 where the RFC infers 1, and str0m follows it.
        let id = if said { self.format.profile } else { 0x42_00_1f };
        let constraints = (id >> 8) & 0xff;
        let profile = match (id >> 16, constraints & 0xcf) {
            // Constrained baseline, baseline, main, extended; the others are what they say.
            (0x42, 0x40 | 0xc0) | (0x4d, 0x80 | 0xc0) | (0x58, 0xc0) => 0x42_40,
            (0x42, 0x00 | 0x80) | (0x58, 0x80) => 0x42_00,
            (0x4d, 0x00 | 0x40) if constraints & 0x20 == 0 => 0x4d_00,
            (0x58, 0x00) => 0x58_00,
            _ => id >> 8,
        };
        profile << 8 | id & 0xff
    }
}

impl OfferedMedia {
    /// The id that the client gave to a header extension.
    pub fn extension(&self, uri: &str) -> Option<u8> {
        self.extensions.iter().find(|(_, known)| known == uri).map(|(id, _)| *id)
    }

    /// Whether the client would send transport-wide feedback: it reads the numbers, and says that it tells of them.
    pub fn tells_arrivals(&self) -> bool {
        let numbers = Extension::TransportSequenceNumber.as_uri();
        self.extension(numbers).is_some() && self.formats.iter().any(|f| f.transport_cc)
    }

    /// Whether the client means to send on this m-line.
    pub fn sends(&self) -> bool {
        matches!(self.direction, Direction::SendOnly | Direction::SendRecv)
    }

    /// Whether the client means to receive on this m-line.
    pub fn receives(&self) -> bool {
        matches!(self.direction, Direction::RecvOnly | Direction::SendRecv)
    }
}

/// An offer's repaired text as an ICE restart makes it: other credentials and candidates, nothing else changes.
///
/// `candidates` as in [`SdpFrag::candidates`].
pub fn with_ice(offer: &str, ufrag: &str, pwd: &str, candidates: &[String]) -> String {
    let mut sdp = String::with_capacity(offer.len());
    let mut listed = false;
    for line in offer.split_inclusive("\r\n") {
        if line.starts_with("a=ice-ufrag:") {
            write::line(&mut sdp, format_args!("a=ice-ufrag:{ufrag}"));
        } else if line.starts_with("a=ice-pwd:") {
            write::line(&mut sdp, format_args!("a=ice-pwd:{pwd}"));
            if !std::mem::replace(&mut listed, true) {
                candidates.iter().for_each(|c| write::line(&mut sdp, format_args!("a={c}")));
            }
        } else if !line.starts_with("a=candidate:") {
            sdp.push_str(line);
        }
    }
    sdp
}

#[cfg(test)]
mod tests;
