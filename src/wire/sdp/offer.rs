//! The sanitiser: a client's offer read, judged and repaired.
//!
//! What a client does wrong but harmlessly is put right here; what cannot be answered whole is refused with a
//! reason, because RFC 9725 §4.4.3 allows no partly successful answers.

use str0m::media::{Direction, MediaKind};

use super::candidate::{self, CANDIDATES_MAX};
use super::formats;
use super::lines::{self, Section};
use super::{Offer, OfferedMedia, Source};
use crate::limits::LAYERS_MAX;

/// Header extension ids that str0m can hold.
const EXTENSION_ID_MAX: u8 = 16;

/// Longest mid that str0m keeps whole; a cut one would not be the client's any more.
const MID_CHARS_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// Not SDP: answered 400.
    #[error("no SDP: line {line}: {what}")]
    Syntax { line: usize, what: &'static str },
    /// SDP that we cannot answer: 422.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

/// Why an offer that was understood cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("the offer has no m-line")]
    NoMedia,
    #[error("the offer has more than one {0} m-line")]
    TooManyMedia(&'static str),
    #[error("an m-line is neither audio nor video")]
    UnknownMedia,
    #[error("data channels are not served")]
    DataChannel,
    #[error("an m-line has port 0 and is not bundled")]
    DisabledMedia,
    #[error("media must be offered as UDP/TLS/RTP/SAVPF")]
    Transport,
    #[error("an m-line has no a=mid of 1 to 16 token characters, or two have the same")]
    Mid,
    #[error("the m-lines are not in one BUNDLE group with one transport")]
    NotBundled,
    #[error("a=rtcp-mux is missing")]
    NoRtcpMux,
    #[error("a=ice-ufrag or a=ice-pwd is missing or malformed")]
    IceCredentials,
    #[error("an ICE-lite client cannot connect to an ICE-lite server")]
    IceLite,
    #[error("a=fingerprint is missing or malformed")]
    NoFingerprint,
    #[error("the certificate's fingerprint must be given as sha-256")]
    WeakFingerprint,
    #[error("a=setup must be actpass, active or passive")]
    Setup,
    #[error("a=crypto is refused: keys come from DTLS only")]
    Crypto,
    #[error("payload type {0} stands for two formats")]
    DuplicatePayloadType(u8),
    #[error("simulcast needs 2 to {LAYERS_MAX} rids of 1 to 8 letters and digits, and their header extension")]
    Simulcast,
    #[error("the {0} m-line offers none of {1}")]
    NoCommonCodec(&'static str, &'static str),
}

impl Unusable {
    /// The last part of the problem's type, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Unusable::NoMedia | Unusable::UnknownMedia | Unusable::DisabledMedia => "unsupported-media",
            Unusable::TooManyMedia(_) => "too-many-media",
            Unusable::DataChannel => "data-channel",
            Unusable::Transport => "unsupported-transport",
            Unusable::Mid => "bad-mid",
            Unusable::NotBundled => "not-bundled",
            Unusable::NoRtcpMux => "no-rtcp-mux",
            Unusable::IceCredentials => "bad-ice-credentials",
            Unusable::IceLite => "ice-lite",
            Unusable::NoFingerprint => "no-fingerprint",
            Unusable::WeakFingerprint => "weak-fingerprint",
            Unusable::Setup => "bad-setup",
            Unusable::Crypto => "sdes-crypto",
            Unusable::DuplicatePayloadType(_) => "duplicate-payload-type",
            Unusable::Simulcast => "unsupported-simulcast",
            Unusable::NoCommonCodec(..) => "no-common-codec",
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Offer, OfferError> {
    let lines = lines::lines(text).map_err(|(line, what)| OfferError::Syntax { line, what })?;
    match lines.first() {
        Some(first) if first.letter == b'v' && first.value == "0" => {}
        _ => return Err(OfferError::Syntax { line: 1, what: "v=0 expected" }),
    }
    let sections = lines::sections(&lines);
    let (session, media) = sections.split_first().expect("the session section is always there");
    if media.is_empty() {
        return Err(Unusable::NoMedia.into());
    }
    if sections.iter().any(|s| s.has("crypto")) {
        return Err(Unusable::Crypto.into());
    }

    let mut offer = bundle(session, media)?;
    let mut claimed = Claimed::default();
    for section in media {
        let part = part(session, section, &mut claimed)?;
        if offer.media.iter().any(|m| m.kind == part.kind) {
            return Err(Unusable::TooManyMedia(name(part.kind)).into());
        }
        if offer.media.iter().any(|m| m.mid == part.mid) {
            return Err(Unusable::Mid.into());
        }
        offer.media.push(part);
    }
    Ok(offer)
}

/// str0m keeps eight bytes of a rid.
const RID_CHARS_MAX: usize = 8;

const RID_EXTENSIONS: [&str; 2] =
    ["urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id", "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"];

/// What all m-lines of one BUNDLE have in common; the m-lines are still to come.
fn bundle(session: &Section, media: &[Section]) -> Result<Offer, Unusable> {
    if session.has("ice-lite") {
        return Err(Unusable::IceLite);
    }
    // FFmpeg lists mids that do not exist, str0m wants exactly those that do, in order: the group is written anew.
    // Without any group a second m-line would need a transport of its own.
    let bundled = session.all("group").any(|g| g.split_ascii_whitespace().next() == Some("BUNDLE"));
    if media.len() > 1 && !bundled {
        return Err(Unusable::NotBundled);
    }

    // What the transport is may stand at session level, in every m-line, or (RFC 9143) only in the first.
    let ufrag = common(session, media, |s| s.first("ice-ufrag"))?.ok_or(Unusable::IceCredentials)?;
    let pwd = common(session, media, |s| s.first("ice-pwd"))?.ok_or(Unusable::IceCredentials)?;
    if !candidate::are_credentials(ufrag, pwd) {
        return Err(Unusable::IceCredentials);
    }
    let setup = common(session, media, |s| s.first("setup"))?.unwrap_or("actpass");
    let setup = ["actpass", "active", "passive"].into_iter().find(|s| *s == setup).ok_or(Unusable::Setup)?;

    let all = || std::iter::once(session).chain(media);
    let mut candidates: Vec<String> = Vec::new();
    for candidate in all().flat_map(|s| s.all("candidate")).filter_map(candidate::parse) {
        let current = candidate.ufrag.is_none_or(|u| u == ufrag);
        if current && candidates.len() < CANDIDATES_MAX && !candidates.contains(&candidate.text) {
            candidates.push(candidate.text);
        }
    }
    Ok(Offer {
        media: Vec::with_capacity(media.len()),
        ice_ufrag: ufrag.to_owned(),
        ice_pwd: pwd.to_owned(),
        fingerprint: fingerprint(session, media)?,
        setup,
        candidates,
        mixed_extensions: all().any(|s| s.has("extmap-allow-mixed")),
    })
}

/// The value that holds for the session and for every m-line that says one.
fn common<'a, T: PartialEq>(
    session: &'a Section,
    media: &'a [Section],
    get: impl Fn(&'a Section<'a>) -> Option<T>,
) -> Result<Option<T>, Unusable> {
    let mut found = None;
    for value in media.iter().map(|m| get(m).or_else(|| get(session))) {
        match (&found, value) {
            (None, value) => found = value,
            (Some(a), Some(b)) if *a != b => return Err(Unusable::NotBundled),
            _ => {}
        }
    }
    Ok(found)
}

/// The sha-256 fingerprint, in capitals. aiortc gives three hashes of one certificate; str0m checks this one.
fn fingerprint(session: &Section, media: &[Section]) -> Result<String, Unusable> {
    let sha256 = |s: &Section| {
        s.all("fingerprint").find_map(|value| {
            let (hash, hex) = value.split_once(' ')?;
            hash.eq_ignore_ascii_case("sha-256").then(|| hex.trim().to_ascii_uppercase())
        })
    };
    let Some(hex) = common(session, media, sha256)? else {
        let any = std::iter::once(session).chain(media).any(|s| s.has("fingerprint"));
        return Err(if any { Unusable::WeakFingerprint } else { Unusable::NoFingerprint });
    };
    let octets = hex.split(':').filter(|o| o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit())).count();
    if octets != 32 || hex.len() != 32 * 3 - 1 {
        return Err(Unusable::NoFingerprint);
    }
    Ok(format!("sha-256 {hex}"))
}

/// Numbers that one BUNDLE may use only once.
#[derive(Default)]
pub(super) struct Claimed {
    /// str0m panics when two formats claim one payload type.
    payload_types: Vec<u8>,
    /// RFC 9143 §8: one id means one extension in all m-lines.
    extensions: Vec<(u8, String)>,
}

impl Claimed {
    pub fn payload_type(&mut self, payload_type: u8) -> Result<(), Unusable> {
        if self.payload_types.contains(&payload_type) {
            return Err(Unusable::DuplicatePayloadType(payload_type));
        }
        self.payload_types.push(payload_type);
        Ok(())
    }

    fn extension(&mut self, id: u8, uri: &str) -> bool {
        if let Some((_, known)) = self.extensions.iter().find(|(known, _)| *known == id) {
            return known == uri;
        }
        self.extensions.push((id, uri.to_owned()));
        true
    }
}

/// One m-line.
fn part(session: &Section, section: &Section, claimed: &mut Claimed) -> Result<OfferedMedia, OfferError> {
    let malformed = OfferError::Syntax { line: 0, what: "a malformed m-line" };
    let mut words = section.media.unwrap_or_default().split_ascii_whitespace();
    let (Some(kind), Some(port), Some(transport)) = (words.next(), words.next(), words.next()) else {
        return Err(malformed);
    };
    let kind = match kind {
        "audio" => MediaKind::Audio,
        "video" => MediaKind::Video,
        "application" => return Err(Unusable::DataChannel.into()),
        _ => return Err(Unusable::UnknownMedia.into()),
    };
    if transport != "UDP/TLS/RTP/SAVPF" {
        return Err(Unusable::Transport.into());
    }
    let payload_types: Vec<u8> = words.map(str::parse).collect::<Result<_, _>>().map_err(|_| malformed)?;

    let mid = section.first("mid").filter(|mid| is_mid(mid)).ok_or(Unusable::Mid)?;
    // GStreamer offers later m-lines with port 0 and bundle-only (RFC 9143 §6): that is no refusal.
    let in_group = || session.all("group").any(|g| g.split_ascii_whitespace().any(|m| m == mid));
    if port == "0" && !section.has("bundle-only") && !in_group() {
        return Err(Unusable::DisabledMedia.into());
    }
    if !section.has("rtcp-mux") {
        return Err(Unusable::NoRtcpMux.into());
    }
    let direction = direction(section).or_else(|| direction(session)).unwrap_or(Direction::SendRecv);
    let formats = formats::formats(section, kind, &payload_types, claimed)?;
    let sends = matches!(direction, Direction::SendOnly | Direction::SendRecv);
    let rids = if sends { rids(section)? } else { Vec::new() };
    Ok(OfferedMedia {
        kind,
        mid: mid.to_owned(),
        direction,
        formats,
        extensions: extensions(section, claimed, !rids.is_empty()),
        source: (sends && rids.is_empty()).then(|| source(section)).flatten(),
        rids,
        reduced_size_rtcp: section.has("rtcp-rsize"),
    })
}

fn direction(section: &Section) -> Option<Direction> {
    const ALL: [(&str, Direction); 4] = [
        ("sendonly", Direction::SendOnly),
        ("recvonly", Direction::RecvOnly),
        ("sendrecv", Direction::SendRecv),
        ("inactive", Direction::Inactive),
    ];
    ALL.into_iter().find(|(name, _)| section.has(name)).map(|(_, direction)| direction)
}

/// RFC 9143: a token; here with letters, digits and a few signs only, so that it can be written anywhere.
fn is_mid(mid: &str) -> bool {
    (1..=MID_CHARS_MAX).contains(&mid.len())
        && mid.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'))
}

fn name(kind: MediaKind) -> &'static str {
    match kind {
        MediaKind::Audio => "audio",
        MediaKind::Video => "video",
    }
}

/// The layers of `a=simulcast:send`, the first of alternatives. One layer is no simulcast.
fn rids(section: &Section) -> Result<Vec<String>, Unusable> {
    let Some(value) = section.first("simulcast") else { return Ok(Vec::new()) };
    let mut words = value.split_ascii_whitespace();
    let Some(list) = words.by_ref().find(|w| *w == "send").and_then(|_| words.next()) else { return Ok(Vec::new()) };
    // `~`: the layer starts paused, which is up to the client.
    let first = |layer: &str| layer.split(',').next().unwrap_or_default().trim_start_matches('~').to_owned();
    let rids: Vec<String> = list.split(';').map(first).collect();
    if rids.len() == 1 {
        return Ok(Vec::new());
    }
    let is_rid =
        |rid: &String| (1..=RID_CHARS_MAX).contains(&rid.len()) && rid.bytes().all(|b| b.is_ascii_alphanumeric());
    let distinct = rids.iter().enumerate().all(|(i, rid)| !rids[..i].contains(rid));
    let shown = section.all("extmap").any(|e| e.split_ascii_whitespace().nth(1) == Some(RID_EXTENSIONS[0]));
    if rids.len() > LAYERS_MAX || !rids.iter().all(is_rid) || !distinct || !shown {
        return Err(Unusable::Simulcast);
    }
    Ok(rids)
}

/// The two rid extensions only with simulcast.
fn extensions(section: &Section, claimed: &mut Claimed, simulcast: bool) -> Vec<(u8, String)> {
    let mut extensions: Vec<(u8, String)> = Vec::new();
    for value in section.all("extmap") {
        let mut words = value.split_ascii_whitespace();
        let (Some(id), Some(uri)) = (words.next(), words.next()) else { continue };
        // Firefox writes `3/sendonly`; str0m does not read the direction, so it is left out.
        let Ok(id) = id.split('/').next().unwrap_or_default().parse::<u8>() else { continue };
        // 15 is reserved in the one-byte form (RFC 8285 §4.2).
        let fits = (1..=EXTENSION_ID_MAX).contains(&id) && id != 15 && uri.is_ascii();
        let known = extensions.iter().any(|(i, u)| *i == id || u == uri);
        if fits && !known && (simulcast || !RID_EXTENSIONS.contains(&uri)) && claimed.extension(id, uri) {
            extensions.push((id, uri.to_owned()));
        }
    }
    extensions
}

/// The SSRC that the client announces, with its RTX. Of several (simulcast by munging) the first one is what is left, for
/// that is not answered; layers with rids are found by the header extensions of their packets.
fn source(section: &Section) -> Option<Source> {
    let fid = |ssrc: u32| {
        section.all("ssrc-group").find_map(|group| {
            let mut words = group.split_ascii_whitespace();
            let is_fid = words.next()?.eq_ignore_ascii_case("FID");
            let (main, rtx) = (words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u32>().ok()?);
            (is_fid && (main == ssrc || rtx == ssrc)).then_some((main, rtx))
        })
    };
    let mut mains: Vec<(u32, Option<u32>)> = Vec::new();
    for ssrc in section.all("ssrc").filter_map(|v| v.split_ascii_whitespace().next()?.parse::<u32>().ok()) {
        let (main, rtx) = match fid(ssrc) {
            Some((main, rtx)) if main != rtx => (main, Some(rtx)),
            _ => (ssrc, None),
        };
        if !mains.iter().any(|(known, _)| *known == main) {
            mains.push((main, rtx));
        }
    }
    if section.has("rid") && mains.len() > 1 {
        return None;
    }
    mains.first().map(|&(ssrc, rtx)| Source { ssrc, rtx })
}
