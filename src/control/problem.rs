//! Errors as clients get them: `application/problem+json` (RFC 9457), or one line for people with curl.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{ALLOW, ETAG, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

use super::exchange::{self, Response};
use crate::session::negotiate::NegotiationError;
use crate::wire::sdp::{AnswerError, FragmentError, OfferError};

pub(super) const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
pub(super) const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// Why a request fails. Never holds a token, SDP or an address.
#[derive(Debug)]
pub(super) struct Problem {
    pub status: StatusCode,
    /// Last part of the type, for programs.
    kind: &'static str,
    /// One sentence for people.
    pub detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, kind, detail: detail.into(), headers: Vec::new() }
    }

    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.headers.push((name, value));
        self
    }

    /// 400.
    pub fn malformed(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// 401: RFC 6750 §3 wants no error code when no token was sent at all.
    pub fn unauthorized(presented: bool) -> Problem {
        let (challenge, detail) = match presented {
            true => ("Bearer realm=\"sfu\", error=\"invalid_token\"", "the bearer token is not valid here"),
            false => ("Bearer realm=\"sfu\"", "a bearer token is needed"),
        };
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// 404.
    pub fn not_found(detail: &'static str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// 405.
    pub fn method(allow: &'static str) -> Problem {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", format!("allowed: {allow}"))
            .with(ALLOW, HeaderValue::from_static(allow))
    }

    /// 412, with the entity tag that holds.
    pub fn precondition(etag: &str) -> Problem {
        let detail = "If-Match does not name the current ICE session";
        Problem::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", detail).with(ETAG, exchange::value(etag))
    }

    /// 413.
    pub fn too_large() -> Problem {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is longer than this resource takes")
    }

    /// 415, with what would be right.
    pub fn media_type(name: HeaderName, expected: &'static str) -> Problem {
        let detail = format!("the Content-Type must be {expected}");
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
            .with(name, HeaderValue::from_static(expected))
    }

    /// 422.
    pub fn unusable(kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, kind, detail)
    }

    /// 429.
    pub fn too_many(detail: &'static str, wait: Duration) -> Problem {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail).retry_after(wait)
    }

    /// 503.
    pub fn unavailable(detail: &'static str) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(Duration::from_secs(2))
    }

    pub fn retry_after(self, wait: Duration) -> Problem {
        // Whole seconds, and never "at once".
        let seconds = wait.as_secs_f64().ceil().max(1.0);
        self.with(RETRY_AFTER, exchange::value(&format!("{seconds}")))
    }

    /// As WHIP and WHEP clients take it.
    pub fn json(self) -> Response {
        let body = serde_json::json!({
            "type": format!("/problems/{}", self.kind),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut response = exchange::content(self.status, "application/problem+json", body.to_string());
        response.headers_mut().extend(self.headers);
        response
    }

    /// As people with curl take it.
    pub fn line(self) -> Response {
        let line = format!("{}\n", self.detail);
        let mut response = exchange::content(self.status, "text/plain; charset=utf-8", line);
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<OfferError> for Problem {
    fn from(error: OfferError) -> Problem {
        match &error {
            OfferError::Syntax { .. } => Problem::malformed(error.to_string()),
            OfferError::Unusable(unusable) => Problem::unusable(unusable.kind(), error.to_string()),
        }
    }
}

impl From<FragmentError> for Problem {
    fn from(error: FragmentError) -> Problem {
        Problem::malformed(error.to_string())
    }
}

impl From<NegotiationError> for Problem {
    fn from(error: NegotiationError) -> Problem {
        match &error {
            NegotiationError::NoCommonCodec(_) => Problem::unusable("no-common-codec", error.to_string()),
            // str0m's words may quote the offer: they go to the log, not to the client.
            NegotiationError::Unusable(_) => Problem::unusable("unusable-offer", "the offer cannot be answered"),
            NegotiationError::Answer(answer) => (*answer).into(),
        }
    }
}

impl From<AnswerError> for Problem {
    fn from(error: AnswerError) -> Problem {
        let kind = match error {
            AnswerError::Rejected(_) => "no-common-codec",
            AnswerError::TooLong | AnswerError::Mismatch => "unusable-offer",
        };
        Problem::unusable(kind, error.to_string())
    }
}
