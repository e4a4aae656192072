//! Offers over HTTP: WHIP, WHEP or base64 in, an answer and the session's own URL out, DELETE at the end.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::target;

/// From a request to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Shorter than any server keeps an idle connection, so that none is used in the moment it is closed.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// Of a refusal's body in a message.
const QUOTE_CHARS: usize = 200;

/// Why there is no session, in one line.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignalError {
    #[error("{url}: no answer ({why}); is the server running there?")]
    Unreachable { url: String, why: String },
    #[error("{url}: refused with {status}{body}")]
    Refused { url: String, status: u16, body: String },
    #[error("{url}: not an answer to an offer: {why}")]
    Unusable { url: String, why: String },
}

impl SignalError {
    /// Whether the same offer may be taken a moment later: no publisher yet, or too many requests.
    pub fn is_passing(&self) -> bool {
        matches!(self, SignalError::Refused { status: 404 | 409 | 425 | 429 | 503, .. })
    }
}

/// What a server made of an offer.
#[derive(Debug)]
pub(super) struct Opened {
    pub answer: String,
    /// `None` when the server names none: then it ends with DTLS.
    pub session: Option<SessionUrl>,
}

/// Where a session is ended.
#[derive(Clone, Debug)]
pub(super) struct SessionUrl {
    url: String,
    token: Option<String>,
}

/// An HTTP client. Cheap to clone; copies share connections.
#[derive(Clone)]
pub(super) struct Signaller {
    agent: Agent,
    legacy: bool,
}

impl Signaller {
    pub fn new(legacy: bool) -> Signaller {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .max_idle_age(IDLE_MAX)
            .build();
        Signaller { agent: config.into(), legacy }
    }

    /// # Errors
    /// See [`SignalError`].
    pub fn offer(&self, url: &str, token: Option<&str>, sdp: &str) -> Result<Opened, SignalError> {
        let (content_type, body) = match self.legacy {
            true => ("text/plain", STANDARD.encode(serde_json::json!({ "type": "offer", "sdp": sdp }).to_string())),
            false => ("application/sdp", sdp.to_owned()),
        };
        let mut request = self.agent.post(url).header("Content-Type", content_type);
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.send(body.as_bytes());
        let response = response.map_err(|e| SignalError::Unreachable { url: url.into(), why: e.to_string() })?;
        let (headers, body) = accepted(url, response)?;
        let location = headers.get("location").and_then(|l| l.to_str().ok());
        let session = location
            .map(|location| SessionUrl { url: target::resolve(url, location), token: token.map(str::to_owned) });
        let answer = if self.legacy { decode(&body) } else { Some(body) };
        let answer = answer.filter(|sdp| sdp.trim_start().starts_with("v="));
        let why = "the body is no session description".to_owned();
        let answer = answer.ok_or(SignalError::Unusable { url: url.into(), why })?;
        Ok(Opened { answer, session })
    }

    /// # Errors
    /// When the server does not confirm; a session that it has ended itself is as good.
    pub fn end(&self, session: &SessionUrl) -> Result<(), SignalError> {
        let url = &session.url;
        let mut request = self.agent.delete(url);
        if let Some(token) = &session.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call();
        let response = response.map_err(|e| SignalError::Unreachable { url: url.clone(), why: e.to_string() })?;
        match response.status().as_u16() {
            404 | 410 => Ok(()),
            _ => accepted(url, response).map(|_| ()),
        }
    }
}

/// Headers and body of a 2xx.
fn accepted(url: &str, mut response: Response<Body>) -> Result<(HeaderMap, String), SignalError> {
    let body = response.body_mut().read_to_string();
    let status = response.status();
    if !status.is_success() {
        let body = quote(&body.unwrap_or_default());
        return Err(SignalError::Refused { url: url.into(), status: status.as_u16(), body });
    }
    let body = body.map_err(|e| SignalError::Unusable { url: url.into(), why: e.to_string() })?;
    Ok((response.headers().clone(), body))
}

/// `: what the server says`, on one line; of problem+json (RFC 9457) its own words.
fn quote(body: &str) -> String {
    let problem = serde_json::from_str::<serde_json::Value>(body).ok();
    let said = problem.as_ref().and_then(|p| p.get("detail").or_else(|| p.get("title"))?.as_str()).unwrap_or(body);
    let line = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(QUOTE_CHARS).collect();
    if short.is_empty() { short } else { format!(": {short}") }
}

/// The SDP in base64 of JSON.
fn decode(body: &str) -> Option<String> {
    let json = STANDARD.decode(body.trim()).ok()?;
    let description: serde_json::Value = serde_json::from_slice(&json).ok()?;
    description.get("sdp")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_quoted_on_one_line() {
        assert_eq!(
            quote(r#"{"type":"x","title":"Nope","detail":"a bearer\ntoken is needed"}"#),
            ": a bearer token is needed"
        );
        assert_eq!(quote("<h1>\nnginx</h1>"), ": <h1> nginx</h1>");
        assert_eq!(quote(""), "");
        assert_eq!(quote(&"x".repeat(999)).len(), 2 + QUOTE_CHARS);
    }

    #[test]
    fn a_base64_answer_is_read() {
        let body = STANDARD.encode(r#"{"type":"answer","sdp":"v=0\r\n"}"#) + "\n";
        assert_eq!(decode(&body).as_deref(), Some("v=0\r\n"));
        assert_eq!(decode("v=0"), None);
    }
}
