//! The finisher: what str0m's answer lacks for real clients. It changes the text only, never what str0m believes.

use super::Offer;
use super::lines::{self, Line};
use super::write::line;

/// FFmpeg's WHIP muxer reads no longer answer (`MAX_SDP_SIZE`).
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// More addresses than this are cut off: enough for every client, and the answer stays short.
const ANSWER_CANDIDATES_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// RFC 9725 §4.4.3 allows no partly successful answers, but str0m writes `m=… 0` without a word.
    #[error("the {0} m-line has no format that can be answered")]
    Rejected(&'static str),
    #[error("the answer would be longer than 8 KiB")]
    TooLong,
    #[error("the answer has other m-lines than the offer")]
    Mismatch,
}

/// Finishes str0m's `answer` to `offer`.
///
/// One stream id and one CNAME for audio and video (GStreamer synchronises by CNAME, Chromium by stream id), IPv4
/// candidates first (FFmpeg takes the first) and TCP last, the end of candidates, reduced-size RTCP where it was offered,
/// and Opus in stereo from publishers: in WebRTC the receiver says so (RFC 7587 §7.1).
///
/// # Errors
/// [`AnswerError`]: the session must be dropped and the offer refused.
pub fn finish_answer(answer: &str, offer: &Offer) -> Result<String, AnswerError> {
    let lines = lines::lines(answer).map_err(|_| AnswerError::Mismatch)?;
    let identity = Identity::of(&lines);

    let mut out = String::with_capacity(answer.len() + 256);
    let mut sections = 0;
    let start = lines.iter().position(|l| l.letter == b'm').unwrap_or(lines.len());
    let (session, mut rest) = lines.split_at(start);
    for l in session.iter().filter(|l| offer.mixed_extensions || l.value != "extmap-allow-mixed") {
        put(&mut out, l, &identity);
    }
    while !rest.is_empty() {
        let end = rest.iter().skip(1).position(|l| l.letter == b'm').map_or(rest.len(), |i| i + 1);
        let (section, after) = rest.split_at(end);
        let offered = offer.media.get(sections).ok_or(AnswerError::Mismatch)?;
        media(&mut out, section, &identity, offered.reduced_size_rtcp)?;
        sections += 1;
        rest = after;
    }
    if sections != offer.media.len() || sections == 0 {
        return Err(AnswerError::Mismatch);
    }
    within_limits(out)
}

/// # Errors
/// [`AnswerError::TooLong`].
pub(super) fn within_limits(mut answer: String) -> Result<String, AnswerError> {
    if answer.len() > ANSWER_BYTES_MAX {
        return Err(AnswerError::TooLong);
    }
    // It is kept with its session.
    answer.shrink_to_fit();
    Ok(answer)
}

/// What audio and video share.
struct Identity<'a> {
    stream: Option<&'a str>,
    cname: Option<&'a str>,
}

impl<'a> Identity<'a> {
    fn of(lines: &[Line<'a>]) -> Identity<'a> {
        let stream = lines.iter().find_map(|l| l.value.strip_prefix("msid:")?.split(' ').next());
        let cname = lines.iter().find_map(|l| l.value.strip_prefix("ssrc:")?.split_once(" cname:").map(|(_, c)| c));
        Identity { stream: stream.filter(|s| *s != "-"), cname }
    }
}

fn put(out: &mut String, l: &Line, identity: &Identity) {
    let letter = char::from(l.letter);
    let value = l.value;
    let ssrc = value.strip_prefix("ssrc:").and_then(|v| v.split_once(' '));
    match (identity, ssrc) {
        (Identity { stream: Some(stream), .. }, _) if value.starts_with("msid-semantic:") => {
            line(out, format_args!("a=msid-semantic: WMS {stream}"));
        }
        (Identity { stream: Some(stream), .. }, _) if value.starts_with("msid:") => {
            let track = value.split_once(' ').map_or("-", |(_, track)| track);
            line(out, format_args!("a=msid:{stream} {track}"));
        }
        (Identity { stream: Some(stream), .. }, Some((ssrc, attribute))) if attribute.starts_with("msid:") => {
            let track = attribute.split_once(' ').map_or("-", |(_, track)| track);
            line(out, format_args!("a=ssrc:{ssrc} msid:{stream} {track}"));
        }
        (Identity { cname: Some(cname), .. }, Some((ssrc, attribute))) if attribute.starts_with("cname:") => {
            line(out, format_args!("a=ssrc:{ssrc} cname:{cname}"));
        }
        _ => line(out, format_args!("{letter}={value}")),
    }
}

fn media(out: &mut String, section: &[Line], identity: &Identity, reduced_size: bool) -> Result<(), AnswerError> {
    let m = section[0].value;
    let kind = if m.starts_with("audio ") { "audio" } else { "video" };
    if m.split(' ').nth(1) == Some("0") {
        return Err(AnswerError::Rejected(kind));
    }
    let candidates = candidates(section.iter().map(|l| l.value).filter(|v| v.starts_with("candidate:")));

    let receives = section.iter().any(|l| matches!(l.value, "recvonly" | "sendrecv"));
    let opus = section
        .iter()
        .find_map(|l| l.value.strip_prefix("rtpmap:")?.split_once(' '))
        .filter(|(_, map)| receives && map.to_ascii_lowercase().starts_with("opus/"))
        .map(|(pt, _)| pt);
    let opus_fmtp = opus.map(|pt| format!("fmtp:{pt} "));
    let has_fmtp = opus_fmtp.as_deref().is_some_and(|p| section.iter().any(|l| l.value.starts_with(p)));

    let mut listed = false;
    for l in section {
        let value = l.value;
        if value.starts_with("candidate:") {
            if !std::mem::replace(&mut listed, true) {
                candidates.iter().for_each(|c| line(out, format_args!("a={c}")));
                line(out, format_args!("a=end-of-candidates"));
            }
        } else if let Some(parameters) = opus_fmtp.as_deref().and_then(|p| value.strip_prefix(p)) {
            line(out, format_args!("a=fmtp:{} {}", opus.unwrap_or_default(), stereo(parameters)));
        } else if value == "rtcp-mux" && reduced_size && l.letter == b'a' {
            line(out, format_args!("a=rtcp-mux"));
            line(out, format_args!("a=rtcp-rsize"));
        } else if value != "end-of-candidates" && value != "rtcp-rsize" {
            put(out, l, identity);
        }
        if let (Some(pt), false) = (opus, has_fmtp)
            && value.strip_prefix("rtpmap:").is_some_and(|v| v.split(' ').next() == Some(pt))
        {
            line(out, format_args!("a=fmtp:{pt} {}", stereo("")));
        }
    }
    Ok(())
}

/// str0m's candidates as an answer lists them.
pub(super) fn candidates<'a>(known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    // str0m names the ICE generation in each candidate. They outlive it: a restart repeats them under a new ufrag.
    let without_ufrag = known.map(|c| c.split_once(" ufrag ").map_or(c, |(candidate, _)| candidate));
    let mut candidates: Vec<&str> = without_ufrag.collect();
    candidates.sort_by_key(|c| {
        let word = |index| c.split(' ').nth(index);
        (word(2) == Some("tcp"), word(4).is_some_and(|address| address.contains(':')))
    });
    candidates.truncate(ANSWER_CANDIDATES_MAX);
    candidates
}

/// Opus parameters of a receiver that takes stereo and in-band repair.
fn stereo(parameters: &str) -> String {
    const OURS: [&str; 3] = ["useinbandfec", "stereo", "sprop-stereo"];
    let kept = parameters.split(';').map(str::trim).filter(|p| {
        let name = p.split('=').next().unwrap_or_default();
        !p.is_empty() && !OURS.contains(&name)
    });
    let ours = OURS.map(|name| format!("{name}=1"));
    kept.map(str::to_owned).chain(ours).collect::<Vec<_>>().join(";")
}
