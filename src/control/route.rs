//! Paths: which resource a request is for.

use percent_encoding::percent_decode_str;

use super::page::{self, Asset};
use super::problem::Problem;
use crate::session::Role;

/// Offers: Chromium's is 7 kB.
const OFFER_BYTES_MAX: usize = 64 * 1024;

/// An offer in base64 inside JSON.
const LEGACY_BYTES_MAX: usize = 96 * 1024;

/// ICE fragments.
const FRAGMENT_BYTES_MAX: usize = 16 * 1024;

/// A choice of layer, a list of events.
const JSON_BYTES_MAX: usize = 4 * 1024;

/// What else may carry a body has no use for it.
const OTHER_BYTES_MAX: usize = 4 * 1024;

/// Characters of a stream's name.
const STREAM_NAME_CHARS_MAX: usize = 128;

/// The stream of URLs that name none.
pub(super) const STREAM_DEFAULT: &str = "default";

pub(super) enum Route {
    /// The demo page; `POST /` is the legacy endpoint.
    Page(&'static Asset),
    /// `/sdp`
    Legacy,
    /// `/whip/{stream}` or `/whep/{stream}`
    Endpoint {
        role: Role,
        stream: String,
    },
    /// `/whip/{stream}/{session}` or `/whep/{stream}/{session}`
    Session {
        role: Role,
        stream: String,
        token: String,
    },
    /// `/whep/{stream}/{session}/layer`
    Layer {
        stream: String,
        token: String,
    },
    /// `/whep/{stream}/{session}/sse`
    Events {
        stream: String,
        token: String,
    },
    /// `/whep/{stream}/{session}/sse/{number}`
    EventStream {
        stream: String,
        token: String,
        number: u32,
    },
    Health,
    Metrics,
    Streams,
}

impl Route {
    /// Finds the resource. A slash at the end does not matter; each segment is percent-decoded once, then judged, and
    /// never used as a file's name.
    pub fn of(path: &str) -> Result<Route, Problem> {
        let unknown = || Problem::not_found("no such resource");
        if let Some(asset) = page::find(path) {
            return Ok(Route::Page(asset));
        }
        let path = path.strip_prefix('/').ok_or_else(unknown)?;
        let segments: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').collect();
        let role = match segments[0] {
            "whip" => Role::Publisher,
            "whep" => Role::Viewer,
            _ => {
                return match segments[..] {
                    ["sdp"] => Ok(Route::Legacy),
                    ["healthz"] => Ok(Route::Health),
                    ["metrics"] => Ok(Route::Metrics),
                    ["api", "streams"] => Ok(Route::Streams),
                    _ => Err(unknown()),
                };
            }
        };
        let viewers = role == Role::Viewer;
        match segments[1..] {
            [] => Ok(Route::Endpoint { role, stream: STREAM_DEFAULT.to_owned() }),
            [stream] => Ok(Route::Endpoint { role, stream: stream_name(stream)? }),
            [stream, token] => Ok(Route::Session { role, stream: stream_name(stream)?, token: token.to_owned() }),
            [stream, token, "layer"] if viewers => {
                Ok(Route::Layer { stream: stream_name(stream)?, token: token.to_owned() })
            }
            [stream, token, "sse"] if viewers => {
                Ok(Route::Events { stream: stream_name(stream)?, token: token.to_owned() })
            }
            [stream, token, "sse", number] if viewers => {
                let number = number.parse().map_err(|_| unknown())?;
                Ok(Route::EventStream { stream: stream_name(stream)?, token: token.to_owned(), number })
            }
            _ => Err(unknown()),
        }
    }

    /// The methods of the resource.
    pub fn allow(&self) -> &'static str {
        match self {
            Route::Page(asset) if asset.path == "/" => "OPTIONS, GET, HEAD, POST",
            Route::Page(_) | Route::Health | Route::Metrics | Route::Streams => "OPTIONS, GET, HEAD",
            Route::Legacy | Route::Layer { .. } | Route::Events { .. } => "OPTIONS, POST",
            Route::EventStream { .. } => "OPTIONS, GET, HEAD, DELETE",
            Route::Endpoint { .. } => "OPTIONS, POST, GET, HEAD",
            Route::Session { .. } => "OPTIONS, PATCH, DELETE, GET, HEAD",
        }
    }

    /// Bytes of body that are read.
    pub fn body_bytes_max(&self) -> usize {
        match self {
            Route::Page(_) | Route::Legacy => LEGACY_BYTES_MAX,
            Route::Endpoint { .. } => OFFER_BYTES_MAX,
            Route::Session { .. } => FRAGMENT_BYTES_MAX,
            Route::Layer { .. } | Route::Events { .. } => JSON_BYTES_MAX,
            Route::EventStream { .. } | Route::Health | Route::Metrics | Route::Streams => OTHER_BYTES_MAX,
        }
    }
}

/// Bytes of body that are read for a path, known or not.
pub(super) fn body_bytes_max(path: &str) -> usize {
    Route::of(path).map_or(OTHER_BYTES_MAX, |route| route.body_bytes_max())
}

/// Checks a stream's name as a client wrote it.
pub(super) fn stream_name(written: &str) -> Result<String, Problem> {
    let wrong = || Problem::not_found("a stream's name has 1 to 128 characters of A-Z a-z 0-9 . _ ~ -");
    let name = percent_decode_str(written).decode_utf8().map_err(|_| wrong())?;
    let fits = (1..=STREAM_NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-'));
    // Clients resolve dot segments away before they send them (RFC 3986 §5.2.4): such a stream could not be reached.
    if fits && name != "." && name != ".." { Ok(name.into_owned()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_resource() {
        let check = |path: &str, expected: &str| {
            let found = match Route::of(path) {
                Ok(Route::Page(asset)) => format!("page {}", asset.path),
                Ok(Route::Legacy) => "legacy".to_owned(),
                Ok(Route::Endpoint { role, stream }) => format!("{} {stream}", role.name()),
                Ok(Route::Session { role, stream, token }) => format!("{} {stream} {token}", role.name()),
                Ok(Route::Layer { stream, token }) => format!("layer {stream} {token}"),
                Ok(Route::Events { stream, token }) => format!("events {stream} {token}"),
                Ok(Route::EventStream { stream, token, number }) => format!("events {stream} {token} {number}"),
                Ok(Route::Health | Route::Metrics | Route::Streams) => "node".to_owned(),
                Err(problem) => problem.status.as_str().to_owned(),
            };
            assert_eq!(found, expected, "{path}");
        };
        check("/", "page /");
        check("/app.js", "page /app.js");
        check("/sdp", "legacy");
        check("/sdp/", "legacy");
        check("/whip", "publisher default");
        check("/whip/a.b_c~d-E", "publisher a.b_c~d-E");
        check("/whep/%61", "viewer a");
        check("/whep/a/", "viewer a");
        check("/whep/a/tok", "viewer a tok");
        check("/whep/a/tok/x", "404");
        check("/whep/a/tok/layer", "layer a tok");
        check("/whep/a/tok/sse/", "events a tok");
        check("/whep/a/tok/sse/2", "events a tok 2");
        check("/whep/a/tok/sse/x", "404");
        check("/whep/a/tok/sse/4294967296", "404");
        check("/whip/a/tok/layer", "404");
        check("/whip/a/tok/sse", "404");
        check("/whep//tok", "404");
        check("/whep/%252e", "404");
        check("/whep/..", "404");
        check("/whep/%2e%2e", "404");
        check("/whep/a%2fb", "404");
        check("/whep/%ff", "404");
        check(&format!("/whip/{}", "x".repeat(129)), "404");
        check("/metrics", "node");
        check("/../etc/passwd", "404");
        check("/index.html/..", "404");
        check("*", "404");
    }
}
