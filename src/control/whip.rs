//! Publishing by WHIP (RFC 9725): an offer that sends, answered by a session that receives.

use super::auth;
use super::controller::Controller;
use super::exchange::{Request, Response};
use super::life::Opening;
use super::problem::{ACCEPT_POST, Problem};
use crate::session::Role;
use crate::units::Instant;
use crate::wire::sdp::Offer;

impl Controller {
    pub(super) fn post_whip(&mut self, now: Instant, stream: &str, request: &Request) -> Result<Response, Problem> {
        let offer = self.read_offer(now, Role::Publisher, request)?;
        if !offer.media.iter().all(|m| m.sends()) {
            return Err(Problem::unusable(
                "wrong-direction",
                "every m-line of a publisher must be sendonly or sendrecv",
            ));
        }
        self.open_over_http(now, Role::Publisher, stream, &offer, request)
    }

    /// What WHIP and WHEP ask of every POST before the offer's contents matter.
    pub(super) fn read_offer(&mut self, now: Instant, role: Role, request: &Request) -> Result<Offer, Problem> {
        let client = self.client_ip(request);
        self.admit_post(now, client)?;
        self.auth.check(role, request)?;
        if !request.is("application/sdp") {
            return Err(Problem::media_type(ACCEPT_POST, "application/sdp"));
        }
        let text = std::str::from_utf8(&request.body).map_err(|_| Problem::malformed("the body is not UTF-8"))?;
        Ok(Offer::parse(text)?)
    }

    pub(super) fn open_over_http(
        &mut self,
        now: Instant,
        role: Role,
        stream: &str,
        offer: &Offer,
        request: &Request,
    ) -> Result<Response, Problem> {
        let client = self.client_ip(request);
        let token = auth::presented(request);
        let id = self.open(now, Opening { role, stream, offer, legacy: false, token, client })?;
        self.created(id, request)
    }
}
