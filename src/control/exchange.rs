//! One HTTP request and its answer, whole: the controller sees no streams of bytes.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};

/// A request whose body has been read.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The other end of the TCP connection: the client, or a proxy.
    pub peer: IpAddr,
    /// Our end of it.
    pub local: SocketAddr,
}

pub type Response = hyper::Response<Bytes>;

impl Request {
    /// A header's value, when it is text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the body is of this media type; parameters do not matter.
    pub fn is(&self, media_type: &str) -> bool {
        let declared = self.header(CONTENT_TYPE).unwrap_or_default();
        declared.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media_type)
    }

    /// One parameter of the query, percent-decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let pairs = self.uri.query()?.split('&');
        let value = pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1;
        percent_encoding::percent_decode_str(value).decode_utf8().ok().map(|v| v.into_owned())
    }
}

/// A response without body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

/// A response with a body of one type.
pub(super) fn content(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A header value of our own making.
pub(super) fn value(text: &str) -> HeaderValue {
    // What we write is ASCII: numbers, tokens, checked names and origins.
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
