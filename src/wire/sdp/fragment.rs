//! `application/trickle-ice-sdpfrag` (RFC 8840 §9): candidates that come later, and ICE restarts.

use super::candidate::{self, CANDIDATES_MAX};
use super::lines;
use super::write::line;

/// What a client's fragment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SdpFrag {
    /// At session level or in an m-line: clients do either.
    pub ufrag: Option<String>,
    pub pwd: Option<String>,
    /// Each `candidate:…`, fit for `str0m::Candidate::from_sdp_string`. What we have no use for is left out silently
    /// (RFC 9725 §4.3.2).
    pub candidates: Vec<String>,
    pub end_of_candidates: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    #[error("no SDP fragment: line {line}: {what}")]
    Syntax { line: usize, what: &'static str },
    #[error("a=ice-ufrag and a=ice-pwd must come together and be well formed")]
    IceCredentials,
}

impl SdpFrag {
    /// # Errors
    /// [`FragmentError`]: answered 400.
    pub fn parse(text: &str) -> Result<SdpFrag, FragmentError> {
        let lines = lines::lines(text).map_err(|(line, what)| FragmentError::Syntax { line, what })?;
        if !lines.iter().any(|l| l.letter == b'a') {
            return Err(FragmentError::Syntax { line: 0, what: "no attribute" });
        }
        let sections = lines::sections(&lines);
        let first = |name| sections.iter().find_map(|s| s.first(name)).map(str::to_owned);
        let (ufrag, pwd) = (first("ice-ufrag"), first("ice-pwd"));
        match (&ufrag, &pwd) {
            (None, None) => {}
            (Some(ufrag), Some(pwd)) if candidate::are_credentials(ufrag, pwd) => {}
            _ => return Err(FragmentError::IceCredentials),
        }

        let mut candidates: Vec<String> = Vec::new();
        for candidate in sections.iter().flat_map(|s| s.all("candidate")).filter_map(candidate::parse) {
            let current = candidate.ufrag.is_none() || ufrag.is_none() || candidate.ufrag == ufrag;
            if current && candidates.len() < CANDIDATES_MAX && !candidates.contains(&candidate.text) {
                candidates.push(candidate.text);
            }
        }
        let end_of_candidates = sections.iter().any(|s| s.has("end-of-candidates"));
        Ok(SdpFrag { ufrag, pwd, candidates, end_of_candidates })
    }
}

/// Our side of an ICE restart: the transport lines of the finished `answer` with new credentials.
pub fn restart_fragment(answer: &str, ufrag: &str, pwd: &str) -> String {
    let Ok(lines) = lines::lines(answer) else { return String::new() };
    let mut out = String::with_capacity(512);
    let is_media = |l: &lines::Line| l.letter == b'm';
    let start = lines.iter().position(is_media).unwrap_or(lines.len());
    for l in &lines[..start] {
        if l.value == "ice-lite" || l.value.starts_with("group:BUNDLE") {
            line(&mut out, format_args!("a={}", l.value));
        }
    }
    // The m-line that carries the transport of the BUNDLE; the fragment names it and no other.
    for (index, l) in lines[start..].iter().enumerate() {
        match (l.letter, l.value) {
            (b'm', _) if index > 0 => break,
            (b'm', value) => line(&mut out, format_args!("m={value}")),
            (_, value) if value.starts_with("ice-ufrag:") => line(&mut out, format_args!("a=ice-ufrag:{ufrag}")),
            (_, value) if value.starts_with("ice-pwd:") => line(&mut out, format_args!("a=ice-pwd:{pwd}")),
            (_, value) => {
                let kept = ["mid:", "candidate:", "ice-options:", "end-of-candidates"];
                if kept.iter().any(|k| value.starts_with(k)) {
                    line(&mut out, format_args!("a={value}"));
                }
            }
        }
    }
    out
}
