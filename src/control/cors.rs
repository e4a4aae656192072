//! What browsers need to let pages of other origins use us (Fetch), on every response, errors included: without it
//! a page sees "network error" instead of the reason.

use hyper::StatusCode;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, HeaderMap, HeaderValue, ORIGIN, VARY,
};

use super::exchange::{self, Response};
use super::problem::{ACCEPT_PATCH, ACCEPT_POST};
use super::route::Route;
use crate::config::CorsOrigins;

const METHODS: HeaderValue = HeaderValue::from_static("OPTIONS, GET, HEAD, POST, PATCH, DELETE");

/// `*` would not cover Authorization (Fetch §3.2.3), so all are named.
const HEADERS: HeaderValue = HeaderValue::from_static("Authorization, Content-Type, If-Match, Accept, Last-Event-ID");

const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Location, ETag, Link, Accept-Post, Accept-Patch, Retry-After, WWW-Authenticate, X-Session",
);

/// A day: browsers cap it lower.
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");

/// Adds the headers to any response.
pub(super) fn apply(origins: &CorsOrigins, origin: Option<&HeaderValue>, response: &mut Response) {
    let headers = response.headers_mut();
    match origins {
        CorsOrigins::Any => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        CorsOrigins::These(allowed) => {
            headers.append(VARY, HeaderValue::from_static("Origin"));
            if let Some(origin) = origin.filter(|o| allowed.iter().any(|a| a.as_bytes() == o.as_bytes())) {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            }
        }
    }
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}

/// The answer to OPTIONS, before any token is asked for: a preflight cannot carry one. No `Link` here: RFC 9725 §4.6
/// forbids credentials on it, and MediaMTX's client fails on links that it does not know.
pub(super) fn preflight(route: &Route) -> Response {
    let mut response = exchange::empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.insert(ALLOW, HeaderValue::from_static(route.allow()));
    match route {
        Route::Endpoint { .. } => {
            headers.insert(ACCEPT_POST, HeaderValue::from_static("application/sdp"));
        }
        Route::Layer { .. } | Route::Events { .. } => {
            headers.insert(ACCEPT_POST, HeaderValue::from_static("application/json"));
        }
        Route::Session { .. } => {
            headers.insert(ACCEPT_PATCH, HeaderValue::from_static("application/trickle-ice-sdpfrag"));
        }
        _ => {}
    }
    response
}

/// The page that sent the request, when a browser says so.
pub(super) fn origin(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ORIGIN).cloned()
}
