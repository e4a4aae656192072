//! The demo page, embedded: nothing is read from disk and nothing comes from elsewhere.

use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use super::exchange::{self, Response};

pub(super) struct Asset {
    pub path: &'static str,
    media_type: &'static str,
    body: &'static [u8],
}

static ASSETS: [Asset; 3] = [
    Asset { path: "/", media_type: "text/html; charset=utf-8", body: include_bytes!("page/index.html") },
    Asset { path: "/app.js", media_type: "text/javascript; charset=utf-8", body: include_bytes!("page/app.js") },
    Asset { path: "/style.css", media_type: "text/css; charset=utf-8", body: include_bytes!("page/style.css") },
];

/// Only what we serve ourselves. Pictures may be `data:` for an icon; media comes over WebRTC and from canvases.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|a| a.path == path)
}

pub(super) fn serve(asset: &'static Asset) -> Response {
    let mut response = exchange::content(StatusCode::OK, asset.media_type, asset.body);
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &str); 4] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // The page belongs to the binary: after an update the old one must not linger.
        (CACHE_CONTROL, "no-cache"),
    ];
    for (name, text) in fixed {
        headers.insert(name, HeaderValue::from_static(text));
    }
    response
}
