//! Offers in, answers out: what we read of a client's SDP, what we repair in it, and how our answer is finished.
//!
//! str0m does the negotiation itself; this file stands before and behind it and works on text only.

use super::codec::Format;
use str0m::media::{Direction, MediaKind};

/// A client's offer, parsed, checked and repaired.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The repaired text, fit for `str0m::change::SdpOffer::from_sdp_string`.
    pub sdp: String,
    /// In the order of the m-lines; at most one audio and one video.
    pub media: Vec<OfferedMedia>,
    pub ice_ufrag: String,
    pub ice_pwd: String,
    /// The value of `a=fingerprint`: hash function and hex.
    pub fingerprint: String,
}

#[derive(Clone, Debug)]
pub struct OfferedMedia {
    pub kind: MediaKind,
    pub mid: String,
    /// As the offer says it: `SendOnly` means that the client sends.
    pub direction: Direction,
    /// In the client's order of preference; only codecs that we pass through.
    pub formats: Vec<OfferedFormat>,
}

#[derive(Clone, Debug)]
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
    pub fn with_ice(&self, _ufrag: &str, _pwd: &str, _candidates: &[String]) -> Offer {
        self.clone()
    }
}
