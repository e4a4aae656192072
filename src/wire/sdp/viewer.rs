//! The answer to a viewer, whole: it accepts every format and extension that we pass through, as the viewer numbers them.
//!
//! str0m would write the same after it has read all of a browser's offer, 180 lines, one by one, and kept a table of them:
//! half of what a join cost. `session::negotiate` compares the two in its tests.

use std::fmt;

use str0m::format::FormatParams;
use str0m::media::MediaKind;
use str0m::rtp::Extension;

use super::answer::{self, AnswerError};
use super::write::{self, line};
use super::{Offer, OfferedFormat, OfferedMedia};
use crate::wire::dependency;

/// Our side of a viewer's session.
#[derive(Clone, Debug)]
pub struct Sending<'a> {
    /// Of the session: the number in `o=`.
    pub id: u64,
    pub ufrag: &'a str,
    pub pwd: &'a str,
    /// SHA-256 of our certificate, as hex with colons.
    pub fingerprint: &'a str,
    /// Each `candidate:…`, as str0m writes it.
    pub candidates: &'a [String],
    /// One for audio and video: Chromium synchronises by it.
    pub stream: &'a str,
    /// One for audio and video: GStreamer synchronises by it.
    pub cname: &'a str,
    /// Whether the viewer is to tell of each packet's arrival (transport-cc): only worth its cost where there is a choice
    /// of layers.
    pub estimate: bool,
    /// One for each of [`Offer::media`], in that order.
    pub tracks: &'a [SendingTrack],
}

/// What we send on one m-line.
#[derive(Clone, Debug)]
pub struct SendingTrack {
    pub name: String,
    pub ssrc: u32,
    pub rtx_ssrc: Option<u32>,
}

/// Header extensions that pass from end to end, and the mid that BUNDLE needs.
const AUDIO: [Extension; 3] = [Extension::AudioLevel, Extension::RtpMid, Extension::AbsoluteCaptureTime];
const VIDEO: [Extension; 3] = [Extension::RtpMid, Extension::AbsoluteCaptureTime, Extension::VideoOrientation];

/// Writes the answer to an `offer` whose m-lines all receive.
///
/// # Errors
/// [`AnswerError::TooLong`]: the offer must be refused.
pub fn viewer_answer(offer: &Offer, ours: &Sending) -> Result<String, AnswerError> {
    let mut out = String::with_capacity(6 * 1024);
    let mut put = |content: fmt::Arguments| line(&mut out, content);
    put(format_args!("v=0"));
    put(format_args!("o=- {} 2 IN IP4 0.0.0.0", ours.id));
    put(format_args!("s=-"));
    put(format_args!("t=0 0"));
    let mids: Vec<&str> = offer.media.iter().map(|m| m.mid.as_str()).collect();
    put(format_args!("a=group:BUNDLE {}", mids.join(" ")));
    if offer.mixed_extensions {
        put(format_args!("a=extmap-allow-mixed"));
    }
    put(format_args!("a=msid-semantic: WMS {}", ours.stream));
    put(format_args!("a=ice-lite"));
    for (index, (offered, track)) in offer.media.iter().zip(ours.tracks).enumerate() {
        put(format_args!("m={} 9 UDP/TLS/RTP/SAVPF {}", write::kind(offered), write::payload_types(offered)));
        put(format_args!("c=IN IP4 0.0.0.0"));
        if index == 0 {
            let candidates = answer::candidates(ours.candidates.iter().map(String::as_str));
            candidates.iter().for_each(|c| put(format_args!("a={c}")));
            put(format_args!("a=end-of-candidates"));
        }
        put(format_args!("a=ice-ufrag:{}", ours.ufrag));
        put(format_args!("a=ice-pwd:{}", ours.pwd));
        put(format_args!("a=ice-options:trickle"));
        put(format_args!("a=fingerprint:sha-256 {}", ours.fingerprint));
        put(format_args!("a=setup:{}", if offer.setup == "passive" { "active" } else { "passive" }));
        media(&mut put, offered, track, offer.mixed_extensions, ours);
    }
    answer::within_limits(out)
}

fn media(
    put: &mut impl FnMut(fmt::Arguments),
    offered: &OfferedMedia,
    track: &SendingTrack,
    mixed: bool,
    ours: &Sending,
) {
    let Sending { stream, cname, .. } = ours;
    let SendingTrack { name, ssrc, rtx_ssrc } = track;
    put(format_args!("a=mid:{}", offered.mid));
    let passed = match offered.kind {
        MediaKind::Audio => AUDIO,
        MediaKind::Video => VIDEO,
    };
    // On all m-lines or on none: str0m, as a viewer, takes the last one's word for all of them.
    let counted = (ours.estimate && offered.tells_arrivals()).then_some(Extension::TransportSequenceNumber);
    // A keyframe's has more than 16 bytes, and without it the others mean nothing.
    let dependency = (mixed && offered.kind == MediaKind::Video).then_some(dependency::URI);
    let taken = |uri: &str| passed.iter().chain(&counted).any(|e| e.as_uri() == uri) || dependency == Some(uri);
    for (id, uri) in offered.extensions.iter().filter(|(_, uri)| taken(uri)) {
        put(format_args!("a=extmap:{id} {uri}"));
    }
    put(format_args!("a=sendonly"));
    put(format_args!("a=msid:{stream} {name}"));
    put(format_args!("a=rtcp-mux"));
    if offered.reduced_size_rtcp {
        put(format_args!("a=rtcp-rsize"));
    }
    offered.formats.iter().for_each(|f| format(put, f, counted.is_some()));
    for ssrc in std::iter::once(ssrc).chain(rtx_ssrc) {
        put(format_args!("a=ssrc:{ssrc} cname:{cname}"));
        put(format_args!("a=ssrc:{ssrc} msid:{stream} {name}"));
    }
    if let Some(rtx) = rtx_ssrc {
        put(format_args!("a=ssrc-group:FID {ssrc} {rtx}"));
    }
}

fn format(put: &mut impl FnMut(fmt::Arguments), f: &OfferedFormat, counted: bool) {
    let (pt, codec, rate) = (f.payload_type, f.format.codec, f.clock_rate);
    match f.channels {
        Some(channels) => put(format_args!("a=rtpmap:{pt} {codec}/{rate}/{channels}")),
        None => put(format_args!("a=rtpmap:{pt} {codec}/{rate}")),
    }
    let feedback = [
        (f.remb, "goog-remb"),
        (f.transport_cc && counted, "transport-cc"),
        (f.fir, "ccm fir"),
        (f.nack, "nack"),
        (f.pli, "nack pli"),
    ];
    for (_, name) in feedback.iter().filter(|(offered, _)| *offered) {
        put(format_args!("a=rtcp-fb:{pt} {name}"));
    }
    // Only parameters that have a meaning between the two of us, not whatever an offer holds.
    let parameters = FormatParams::parse_line(&f.fmtp).to_string();
    if !parameters.is_empty() {
        put(format_args!("a=fmtp:{pt} {parameters}"));
    }
    if let Some(rtx) = f.rtx {
        put(format_args!("a=rtpmap:{rtx} rtx/{rate}"));
        put(format_args!("a=fmtp:{rtx} apt={pt}"));
    }
}
