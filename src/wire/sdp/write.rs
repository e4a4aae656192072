//! The repaired offer as text: only what was understood, in one fixed order.

use std::fmt;
use std::fmt::Write;

use str0m::media::{Direction, MediaKind};

use super::{Offer, OfferedMedia};

pub(super) fn line(out: &mut String, content: fmt::Arguments) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{content}\r\n");
}

pub(super) fn offer(offer: &Offer) -> String {
    let mut out = String::with_capacity(6 * 1024);
    let mids: Vec<&str> = offer.media.iter().map(|m| m.mid.as_str()).collect();
    session(&mut out, &mids.join(" "), offer.mixed_extensions);
    for (index, part) in offer.media.iter().enumerate() {
        media(&mut out, offer, part, index == 0);
    }
    out
}

/// See [`Offer::transport`].
pub(super) fn transport(offer: &Offer) -> String {
    let mut out = String::with_capacity(1024);
    session(&mut out, "0", false);
    line(&mut out, format_args!("m=audio 9 UDP/TLS/RTP/SAVPF 111"));
    line(&mut out, format_args!("c=IN IP4 0.0.0.0"));
    bundled(&mut out, offer, true);
    for attribute in ["mid:0", "inactive", "rtcp-mux", "rtpmap:111 opus/48000/2"] {
        line(&mut out, format_args!("a={attribute}"));
    }
    out
}

fn session(out: &mut String, mids: &str, mixed_extensions: bool) {
    for head in ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0"] {
        line(out, format_args!("{head}"));
    }
    line(out, format_args!("a=group:BUNDLE {mids}"));
    if mixed_extensions {
        line(out, format_args!("a=extmap-allow-mixed"));
    }
}

/// The transport, as each m-line says it.
fn bundled(out: &mut String, offer: &Offer, first: bool) {
    let mut put = |content: fmt::Arguments| line(out, content);
    put(format_args!("a=ice-ufrag:{}", offer.ice_ufrag));
    put(format_args!("a=ice-pwd:{}", offer.ice_pwd));
    // str0m gathers the candidates of all m-lines; BUNDLE has one transport, so they stand in the first.
    for candidate in offer.candidates.iter().filter(|_| first) {
        put(format_args!("a={candidate}"));
    }
    put(format_args!("a=fingerprint:{}", offer.fingerprint));
    put(format_args!("a=setup:{}", offer.setup));
}

fn media(out: &mut String, offer: &Offer, media: &OfferedMedia, first: bool) {
    line(out, format_args!("m={} 9 UDP/TLS/RTP/SAVPF {}", kind(media), payload_types(media)));
    line(out, format_args!("c=IN IP4 0.0.0.0"));
    bundled(out, offer, first);
    let mut put = |content: fmt::Arguments| line(out, content);
    put(format_args!("a=mid:{}", media.mid));
    for (id, uri) in &media.extensions {
        put(format_args!("a=extmap:{id} {uri}"));
    }
    put(format_args!(
        "a={}",
        match media.direction {
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::SendRecv => "sendrecv",
            Direction::Inactive => "inactive",
        }
    ));
    put(format_args!("a=rtcp-mux"));
    if media.reduced_size_rtcp {
        put(format_args!("a=rtcp-rsize"));
    }
    for f in &media.formats {
        let (pt, codec, rate) = (f.payload_type, f.format.codec, f.clock_rate);
        match f.channels {
            Some(channels) => put(format_args!("a=rtpmap:{pt} {codec}/{rate}/{channels}")),
            None => put(format_args!("a=rtpmap:{pt} {codec}/{rate}")),
        }
        let feedback = [
            (f.remb, "goog-remb"),
            (f.transport_cc, "transport-cc"),
            (f.fir, "ccm fir"),
            (f.nack, "nack"),
            (f.pli, "nack pli"),
        ];
        for (_, name) in feedback.iter().filter(|(wanted, _)| *wanted) {
            put(format_args!("a=rtcp-fb:{pt} {name}"));
        }
        if !f.fmtp.is_empty() {
            put(format_args!("a=fmtp:{pt} {}", f.fmtp));
        }
        if let Some(rtx) = f.rtx {
            put(format_args!("a=rtpmap:{rtx} rtx/{rate}"));
            put(format_args!("a=fmtp:{rtx} apt={pt}"));
        }
    }
    for rid in &media.rids {
        put(format_args!("a=rid:{rid} send"));
    }
    if !media.rids.is_empty() {
        put(format_args!("a=simulcast:send {}", media.rids.join(";")));
    }
    if let Some(source) = &media.source {
        if let Some(rtx) = source.rtx {
            put(format_args!("a=ssrc-group:FID {} {rtx}", source.ssrc));
        }
        for ssrc in std::iter::once(source.ssrc).chain(source.rtx) {
            put(format_args!("a=ssrc:{ssrc} cname:-"));
        }
    }
}

pub(super) fn kind(media: &OfferedMedia) -> &'static str {
    match media.kind {
        MediaKind::Audio => "audio",
        MediaKind::Video => "video",
    }
}

/// As the m-line lists them: each format, then its RTX.
pub(super) fn payload_types(media: &OfferedMedia) -> String {
    let all = media.formats.iter().flat_map(|f| std::iter::once(f.payload_type).chain(f.rtx));
    all.map(|pt| pt.to_string()).collect::<Vec<_>>().join(" ")
}
