//! Who may do what: static bearer tokens, one to publish and one to watch.

use hyper::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

use super::exchange::Request;
use super::problem::Problem;
use crate::config::{Config, Secret};
use crate::session::Role;

/// The tokens that are asked for; none means that anyone may.
pub(super) struct Auth {
    publish: Option<Secret>,
    view: Option<Secret>,
}

impl Auth {
    pub fn new(config: &Config) -> Auth {
        Auth { publish: config.publish_token.clone(), view: config.view_token.clone() }
    }

    fn needed(&self, role: Role) -> Option<&Secret> {
        match role {
            Role::Publisher => self.publish.as_ref(),
            Role::Viewer => self.view.as_ref(),
        }
    }

    /// Lets a request open a session. A token to publish does not let watch.
    pub fn check(&self, role: Role, request: &Request) -> Result<(), Problem> {
        self.check_token(role, presented(request).as_deref())
    }

    /// As [`Self::check`], with a token from elsewhere.
    pub fn check_token(&self, role: Role, token: Option<&str>) -> Result<(), Problem> {
        match (self.needed(role), token) {
            (None, _) => Ok(()),
            (Some(needed), Some(token)) if same(needed, token) => Ok(()),
            (Some(_), token) => Err(Problem::unauthorized(token.is_some())),
        }
    }

    /// Lets a request touch a session. Its URL is a capability, and players that say goodbye with a beacon have no
    /// header to send; but a token that is sent must be right.
    pub fn check_presented(&self, role: Role, request: &Request) -> Result<(), Problem> {
        match presented(request) {
            None => Ok(()),
            token => self.check_token(role, token.as_deref()),
        }
    }

    /// Lets a request see figures of the whole node: any token of ours does.
    pub fn check_any(&self, request: &Request) -> Result<(), Problem> {
        let token = presented(request);
        let known = |secret: &Option<Secret>| {
            let pair = secret.as_ref().zip(token.as_deref());
            pair.is_some_and(|(secret, token)| same(secret, token))
        };
        if known(&self.publish) | known(&self.view) { Ok(()) } else { Err(Problem::unauthorized(token.is_some())) }
    }
}

/// `Bearer token` in any case, or the bare token that Eyevinn's player sends.
pub(super) fn presented(request: &Request) -> Option<String> {
    let value = request.header(AUTHORIZATION)?.trim();
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().to_owned()),
        Some(_) => None,
        None => Some(value.to_owned()),
    }
}

/// Takes the same time wherever the difference is. Lengths may be told apart.
fn same(secret: &Secret, token: &str) -> bool {
    secret.expose().as_bytes().ct_eq(token.as_bytes()).into()
}
