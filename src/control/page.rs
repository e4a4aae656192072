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

/// The document's own name is not part of its address; every other file is served under its name.
macro_rules! assets {
    ($($file:literal as $media_type:expr),* $(,)?) => {
        &[
            Asset { path: "/", media_type: "text/html; charset=utf-8", body: include_bytes!("page/index.html") },
            $(Asset {
                path: concat!("/", $file),
                media_type: $media_type,
                body: include_bytes!(concat!("page/", $file)),
            },)*
        ]
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

static ASSETS: &[Asset] = assets![
    "style.css" as "text/css; charset=utf-8",
    "favicon.svg" as "image/svg+xml",
    "app.js" as SCRIPT,
    "dom.js" as SCRIPT,
    "legacy.js" as SCRIPT,
    "pattern.js" as SCRIPT,
    "pattern-worker.js" as SCRIPT,
    "publish.js" as SCRIPT,
    "quality.js" as SCRIPT,
    "signal.js" as SCRIPT,
    "source.js" as SCRIPT,
    "stats.js" as SCRIPT,
    "streams.js" as SCRIPT,
    "watch.js" as SCRIPT,
    "whep.js" as SCRIPT,
    "whip.js" as SCRIPT,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A merge once left stubs in the page's place, and a module that is not in the table is a blank page.
    #[test]
    fn every_file_of_the_page_is_served_and_none_is_a_stub() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/control/page");
        for entry in std::fs::read_dir(folder).expect("the page's folder") {
            let name = entry.expect("an entry").file_name().into_string().expect("plain names");
            let path = if name == "index.html" { "/".to_owned() } else { format!("/{name}") };
            let asset = find(&path).unwrap_or_else(|| panic!("{name} is not served"));
            assert!(asset.body.len() > 400, "{name} is only {} bytes", asset.body.len());
        }
    }
}
