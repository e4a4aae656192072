//! The repaired offer as text: only what was understood, in one fixed order.

use std::fmt;
use std::fmt::Write;

use str0m::media::{Direction, MediaKind};

use super::OfferedMedia;

/// What all m-lines have in common.
pub(super) struct Header {
    pub ufrag: String,
    pub pwd: String,
    pub fingerprint: String,
    pub setup: String,
    /// Each `candidate:…`.
    pub candidates: Vec<String>,
    /// `a=extmap-allow-mixed`.
    pub mixed_extensions: bool,
}

/// One m-line.
pub(super) struct Parts {
    pub media: OfferedMedia,
    pub extensions: Vec<(u8, String)>,
    pub source: Option<Source>,
    pub reduced_size_rtcp: bool,
}

/// An announced SSRC.
pub(super) struct Source {
    pub ssrc: u32,
    pub rtx: Option<u32>,
}

pub(super) fn line(out: &mut String, content: fmt::Arguments) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{content}\r\n");
}

pub(super) fn offer(header: &Header, parts: &[Parts]) -> String {
    let mut out = String::with_capacity(4096);
    let mut put = |content: fmt::Arguments| line(&mut out, content);
    put(format_args!("v=0"));
    put(format_args!("o=- 1 1 IN IP4 0.0.0.0"));
    put(format_args!("s=-"));
    put(format_args!("t=0 0"));
    let mids: Vec<&str> = parts.iter().map(|p| p.media.mid.as_str()).collect();
    put(format_args!("a=group:BUNDLE {}", mids.join(" ")));
    if header.mixed_extensions {
        put(format_args!("a=extmap-allow-mixed"));
    }
    for (index, part) in parts.iter().enumerate() {
        media(&mut out, header, part, index == 0);
    }
    out
}

fn media(out: &mut String, header: &Header, part: &Parts, first: bool) {
    let mut put = |content: fmt::Arguments| line(out, content);
    let Parts { media, .. } = part;
    let kind = match media.kind {
        MediaKind::Audio => "audio",
        MediaKind::Video => "video",
    };
    let payload_types: Vec<String> = media
        .formats
        .iter()
        .flat_map(|f| std::iter::once(f.payload_type).chain(f.rtx))
        .map(|pt| pt.to_string())
        .collect();
    put(format_args!("m={kind} 9 UDP/TLS/RTP/SAVPF {}", payload_types.join(" ")));
    put(format_args!("c=IN IP4 0.0.0.0"));
    put(format_args!("a=ice-ufrag:{}", header.ufrag));
    put(format_args!("a=ice-pwd:{}", header.pwd));
    // str0m gathers the candidates of all m-lines; BUNDLE has one transport, so they stand in the first.
    for candidate in header.candidates.iter().filter(|_| first) {
        put(format_args!("a={candidate}"));
    }
    put(format_args!("a=fingerprint:{}", header.fingerprint));
    put(format_args!("a=setup:{}", header.setup));
    put(format_args!("a=mid:{}", media.mid));
    for (id, uri) in &part.extensions {
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
    if part.reduced_size_rtcp {
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
    if let Some(source) = &part.source {
        if let Some(rtx) = source.rtx {
            put(format_args!("a=ssrc-group:FID {} {rtx}", source.ssrc));
        }
        for ssrc in std::iter::once(source.ssrc).chain(source.rtx) {
            put(format_args!("a=ssrc:{ssrc} cname:-"));
        }
    }
}
