//! `POST /sdp`: what Pion's `sfu` example of February 2019 took, with the answer in the response.
//!
//! A base64 session description goes in by `curl` or from a page; who publishes and who watches follows from what the
//! offer can do and from what the stream has.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hyper::StatusCode;
use hyper::header::{ACCEPT, CACHE_CONTROL, HeaderName, HeaderValue, LOCATION};

use super::auth;
use super::controller::Controller;
use super::exchange::{self, Request, Response};
use super::life::Opening;
use super::problem::Problem;
use super::route;
use crate::limits;
use crate::session::Role;
use crate::units::Instant;
use crate::wire::sdp::Offer;

const X_SESSION: HeaderName = HeaderName::from_static("x-session");

/// A decoded offer: as for WHIP.
const DECODED_BYTES_MAX: usize = 64 * 1024;

impl Controller {
    pub(super) fn post_legacy(&mut self, now: Instant, request: &Request) -> Response {
        match self.try_post_legacy(now, request) {
            Ok(response) => response,
            Err(problem) => self.refuse(problem, Role::Viewer).line(),
        }
    }

    fn try_post_legacy(&mut self, now: Instant, request: &Request) -> Result<Response, Problem> {
        let client = self.client_ip(request);
        self.admit_post(now, client)?;
        let stream = match request.query("stream") {
            Some(name) => route::stream_name(&name)?,
            None => route::STREAM_DEFAULT.to_owned(),
        };
        let offer = Offer::parse(&decode(&request.body)?)?;
        let role = self.legacy_role(now, &stream, &offer, request.query("role").as_deref())?;
        // A page that is pasted from cannot set headers, so the token may stand in the query here.
        let token = auth::presented(request).or_else(|| request.query("token"));
        self.auth.check_token(role, token.as_deref())?;

        let id = self.open(now, Opening { role, stream: &stream, offer: &offer, legacy: true, token, client })?;
        let record = self.sessions.get(id).ok_or_else(|| Problem::unavailable("the session has just ended"))?;
        let answer = serde_json::json!({ "type": "answer", "sdp": record.answer }).to_string();
        let wants_json = request.header(ACCEPT).is_some_and(|a| a.to_ascii_lowercase().contains("application/json"));
        let mut response = match wants_json {
            true => exchange::content(StatusCode::OK, "application/json", answer),
            false => {
                let text = STANDARD.encode(answer) + "\n";
                exchange::content(StatusCode::OK, "text/plain; charset=utf-8", text)
            }
        };
        let headers = response.headers_mut();
        headers.insert(X_SESSION, exchange::value(&record.token));
        headers.insert(LOCATION, exchange::value(&self.session_url(record, request)));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// An offer that only receives always watches, one that only sends publishes or takes over. One that could do
    /// both, as pages of 2019 send, publishes when nobody does or the publisher has gone silent.
    fn legacy_role(&self, now: Instant, stream: &str, offer: &Offer, asked: Option<&str>) -> Result<Role, Problem> {
        let sends = offer.media.iter().all(|m| m.sends());
        let receives = offer.media.iter().all(|m| m.receives());
        let wrong = || Problem::unusable("wrong-direction", "the offer cannot do what it is asked to");
        match (asked, sends, receives) {
            (Some("publish"), true, _) => Ok(Role::Publisher),
            (Some("view"), _, true) => Ok(Role::Viewer),
            (Some("publish" | "view"), ..) => Err(wrong()),
            (Some(_), ..) => Err(Problem::malformed("role must be publish or view")),
            (None, true, false) => Ok(Role::Publisher),
            (None, false, true) => Ok(Role::Viewer),
            (None, false, false) => Err(wrong()),
            (None, true, true) => {
                let silent = self.silent_for(now, stream).is_none_or(|silent| silent >= limits::PUBLISHER_SILENT);
                let pending =
                    self.streams.by_name(stream).is_some_and(|e| e.active.is_none() && !e.publishers.is_empty());
                Ok(if silent && !pending { Role::Publisher } else { Role::Viewer })
            }
        }
    }
}

/// Text of SDP out of what people post: base64 (either alphabet, padded or not, wrapped or not) of JSON or SDP, or
/// these themselves, or any of it in a form field `sdp`.
fn decode(body: &[u8]) -> Result<String, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::malformed("the body is not text"))?.trim();
    let unfolded;
    let text = match text.strip_prefix("sdp=") {
        Some(field) => {
            // `+` is left alone: base64 means it, and forms write it as %2B.
            unfolded = percent_encoding::percent_decode_str(field.split('&').next().unwrap_or_default())
                .decode_utf8()
                .map_err(|_| Problem::malformed("the form field is not text"))?;
            unfolded.trim()
        }
        None => text,
    };
    let decoded;
    let text = if text.starts_with('{') || text.starts_with("v=") {
        text
    } else {
        decoded = decode_base64(text)?;
        decoded.trim()
    };
    if text.len() > DECODED_BYTES_MAX {
        return Err(Problem::too_large());
    }
    if !text.starts_with('{') {
        return Ok(text.to_owned());
    }
    #[derive(serde::Deserialize)]
    struct Description {
        #[serde(rename = "type")]
        kind: String,
        sdp: String,
    }
    let description: Description = serde_json::from_str(text)
        .map_err(|_| Problem::malformed("the JSON must be {\"type\":\"offer\",\"sdp\":\"...\"}"))?;
    match description.kind.as_str() {
        "offer" => Ok(description.sdp),
        _ => Err(Problem::unusable("not-an-offer", "the session description is not an offer")),
    }
}

fn decode_base64(text: &str) -> Result<String, Problem> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    let standard: Vec<u8> = text
        .bytes()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|b| match b {
            b'-' => b'+',
            b'_' => b'/',
            b => b,
        })
        .collect();
    let wrong = || Problem::malformed("the body is neither SDP nor its base64");
    let bytes = engine.decode(standard).map_err(|_| wrong())?;
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_found_in_whatever_people_post() {
        let sdp = "v=0\r\ns=\u{fe}\u{ff}??>>\r\n";
        let json = serde_json::json!({ "type": "offer", "sdp": sdp }).to_string();
        let base64 = STANDARD.encode(&json);
        let wrapped: String =
            base64.as_bytes().chunks(60).map(|c| format!("{}\r\n", String::from_utf8_lossy(c))).collect();
        let url_safe = base64.replace('+', "-").replace('/', "_");
        let in_form = format!("sdp={}&x=1", base64.replace('+', "%2B").replace('=', "%3D"));
        for body in [
            json.clone(),
            base64.clone(),
            wrapped,
            url_safe,
            base64.trim_end_matches('=').to_owned(),
            format!("sdp={base64}"),
            in_form,
        ] {
            assert_eq!(decode(body.as_bytes()).expect(&body), sdp, "{body}");
        }
        // Bare SDP loses nothing but the whitespace around it.
        assert_eq!(decode(sdp.as_bytes()).expect("sdp"), sdp.trim());
        assert_eq!(decode(STANDARD.encode(sdp).as_bytes()).expect("sdp"), sdp.trim());
    }

    #[test]
    fn what_holds_no_offer_is_refused() {
        let check = |body: &[u8], status| assert_eq!(decode(body).expect_err("refused").status, status, "{body:?}");
        check(b"\xff\xfe", StatusCode::BAD_REQUEST);
        check(b"hello world!", StatusCode::BAD_REQUEST);
        check(b"{\"type\":\"offer\"}", StatusCode::BAD_REQUEST);
        check(b"{", StatusCode::BAD_REQUEST);
        check(b"{\"type\":\"answer\",\"sdp\":\"v=0\"}", StatusCode::UNPROCESSABLE_ENTITY);
        check(STANDARD.encode([0xff, 0xff]).as_bytes(), StatusCode::BAD_REQUEST);
        check("v=".repeat(40_000).as_bytes(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
