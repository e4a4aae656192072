//! Watching by WHEP (draft-ietf-wish-whep-04): an offer that receives, answered by a session that sends.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, HeaderValue};

use super::controller::Controller;
use super::exchange::{self, Request, Response};
use super::problem::Problem;
use crate::session::Role;
use crate::units::Instant;

/// When to look again for a stream that is not live.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl Controller {
    pub(super) fn post_whep(&mut self, now: Instant, stream: &str, request: &Request) -> Result<Response, Problem> {
        let offer = self.read_offer(now, Role::Viewer, request)?;
        if !offer.media.iter().all(|m| m.receives()) {
            return Err(Problem::unusable("wrong-direction", "every m-line of a viewer must be recvonly or sendrecv"));
        }
        // A publisher that has offered but sent nothing yet is not live: nobody knows what it will send.
        if self.streams.by_name(stream).is_none_or(|e| e.active.is_none()) {
            let problem = Problem::new(StatusCode::CONFLICT, "not-live", "nobody publishes this stream now");
            return Err(problem.retry_after(RETRY_AFTER));
        }
        self.open_over_http(now, Role::Viewer, stream, &offer, request)
    }
}

/// GET and HEAD on the endpoint tell players that this is WHEP.
pub(super) fn discovered() -> Response {
    let mut response = exchange::content(StatusCode::OK, "application/sdp", "");
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}
