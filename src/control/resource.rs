//! The session's own URL: trickle and ICE restart by PATCH, the end by DELETE. The same for WHIP and WHEP.

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_MATCH};
use tracing::debug;

use super::controller::Controller;
use super::cors;
use super::exchange::{self, Request, Response};
use super::problem::{ACCEPT_PATCH, Problem};
use super::sessions::Record;
use super::timers::Timer;
use crate::id::SessionId;
use crate::limits;
use crate::session::{CloseReason, IceRestart, Role};
use crate::shard::message::{Command, RequestId};
use crate::units::Instant;
use crate::wire::sdp::{SdpFrag, restart_fragment};

const FRAGMENT: &str = "application/trickle-ice-sdpfrag";

/// The parts of a session's path.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub role: Role,
    pub stream: &'a str,
    pub token: &'a str,
}

/// An exchange that waits for a shard to restart ICE.
pub(super) struct PendingRestart {
    session: SessionId,
    remote_ufrag: String,
    origin: Option<HeaderValue>,
}

impl Controller {
    pub(super) fn find_session(
        &mut self,
        now: Instant,
        target: Target,
        request: &Request,
    ) -> Result<SessionId, Problem> {
        let fits = |r: &&Record| r.role == target.role && r.stream_name() == target.stream && r.closing.is_none();
        match self.sessions.find(target.token).filter(fits) {
            Some(record) => {
                self.auth.check_presented(record.role, request)?;
                Ok(record.id)
            }
            None => {
                let client = self.client_ip(request);
                Err(self.unknown_session(now, client))
            }
        }
    }

    /// As [`Self::find_session`], for requests of which a session may only send so many.
    pub(super) fn admit_to_session(
        &mut self,
        now: Instant,
        target: Target,
        request: &Request,
    ) -> Result<&mut Record, Problem> {
        let id = self.find_session(now, target, request)?;
        let rate = self.config.limits.patch_rate;
        let record = self.sessions.get_mut(id).ok_or_else(|| Problem::not_found("no such session"))?;
        let admitted = record.patches.take(now, rate, rate.max(1.0));
        admitted.map_err(|wait| Problem::too_many("too many requests for this session", wait))?;
        Ok(record)
    }

    pub(super) fn probe_session(
        &mut self,
        now: Instant,
        target: Target,
        request: &Request,
    ) -> Result<Response, Problem> {
        self.find_session(now, target, request).map(|_| exchange::empty(StatusCode::NO_CONTENT))
    }

    /// 200 and nothing else will do for OBS; it closes DTLS first, so the session may be gone already. If-Match does
    /// not matter here (RFC 9725 §4.3.1).
    pub(super) fn delete_session(
        &mut self,
        now: Instant,
        target: Target,
        request: &Request,
    ) -> Result<Response, Problem> {
        let closing = self.sessions.find(target.token).is_some_and(|r| r.closing.is_some());
        if closing || self.sessions.ended_lately(now, target.token) {
            self.auth.check_presented(target.role, request)?;
            return Ok(exchange::empty(StatusCode::OK));
        }
        let id = self.find_session(now, target, request)?;
        self.close(now, id, CloseReason::Deleted);
        Ok(exchange::empty(StatusCode::OK))
    }

    /// Decides by the ufrag what the client wants, not by If-Match: clients differ in what they send there.
    /// `Ok(None)`: a shard answers.
    pub(super) fn patch_session(
        &mut self,
        now: Instant,
        request_id: RequestId,
        target: Target,
        request: &Request,
    ) -> Result<Option<Response>, Problem> {
        let record = self.admit_to_session(now, target, request)?;
        let id = record.id;
        if !request.is(FRAGMENT) {
            return Err(Problem::media_type(ACCEPT_PATCH, FRAGMENT));
        }
        let text = std::str::from_utf8(&request.body).map_err(|_| Problem::malformed("the body is not UTF-8"))?;
        let fragment = SdpFrag::parse(text)?;

        let if_match = request.header(IF_MATCH).map(str::trim);
        let ice = &record.ice;
        let is_current = fragment.ufrag.as_ref().is_none_or(|u| *u == ice.remote_ufrag);
        // The answer to a restart got lost and the client tries again.
        let is_retry = fragment.ufrag.is_some() && if_match.is_some() && if_match == ice.old_etag.as_deref();
        if is_current
            && is_retry
            && let Some(body) = &ice.restart_reply
        {
            return Ok(Some(restarted(body.clone(), &ice.etag)));
        }
        let matches = |m: &str| m.split(',').any(|tag| matches!(tag.trim(), "*") || tag.trim() == ice.etag);
        if !if_match.is_none_or(matches) {
            return Err(Problem::precondition(&ice.etag));
        }
        let is_old = fragment.ufrag.is_some() && fragment.ufrag == ice.old_remote_ufrag;
        match fragment {
            _ if is_current => self.trickle(id, fragment.candidates),
            // A straggler from before the restart.
            _ if is_old => {}
            SdpFrag { ufrag: Some(ufrag), pwd: Some(pwd), candidates, .. } => {
                let origin = cors::origin(&request.headers);
                return self.restart(now, request_id, id, (ufrag, pwd), candidates, origin);
            }
            _ => {}
        }
        Ok(Some(exchange::empty(StatusCode::NO_CONTENT)))
    }

    fn trickle(&mut self, id: SessionId, mut candidates: Vec<String>) {
        let Some(record) = self.sessions.get_mut(id) else { return };
        candidates.truncate(limits::TRICKLED_CANDIDATES_MAX.saturating_sub(record.candidates_trickled));
        record.candidates_trickled += candidates.len();
        if candidates.is_empty() {
            return;
        }
        debug!(session = %id, candidates = candidates.len(), "candidates trickled");
        if record.slot.with_waiting(|session| session.add_remote_candidates(&candidates)).is_none()
            && let Some(owner) = record.slot.owner()
        {
            self.command(owner, Command::AddCandidates { session: id, candidates });
        }
    }

    fn restart(
        &mut self,
        now: Instant,
        request_id: RequestId,
        id: SessionId,
        (ufrag, pwd): (String, String),
        candidates: Vec<String>,
        origin: Option<HeaderValue>,
    ) -> Result<Option<Response>, Problem> {
        let record = self.sessions.get_mut(id).ok_or_else(|| Problem::not_found("no such session"))?;
        if record.ice.restarting.is_some() {
            return Err(Problem::unavailable("another ICE restart of this session is under way"));
        }
        if let Some(result) = record.slot.with_waiting(|session| session.restart_ice(&ufrag, &pwd, &candidates)) {
            return self.apply_restart(now, id, ufrag, result).map(Some);
        }
        let owner = record.slot.owner().ok_or_else(|| Problem::not_found("no such session"))?;
        record.ice.restarting = Some(request_id);
        self.restarts.insert(request_id, PendingRestart { session: id, remote_ufrag: ufrag.clone(), origin });
        self.timers.arm(now + limits::SHARD_ANSWER_TIMEOUT, Timer::Restart(request_id));
        self.command(owner, Command::RestartIce { session: id, request: request_id, ufrag, pwd, candidates });
        Ok(None)
    }

    /// Both ufrags stay routable for a while: media goes on over the old path until the new one is nominated.
    fn apply_restart(
        &mut self,
        now: Instant,
        id: SessionId,
        remote_ufrag: String,
        result: Result<IceRestart, String>,
    ) -> Result<Response, Problem> {
        let ours = result.map_err(|reason| {
            debug!(session = %id, reason, "ICE restart failed");
            Problem::unusable("ice-restart", "ICE could not be restarted; the old ICE session goes on")
        })?;
        let etag = self.etag();
        let record = self.sessions.get_mut(id).ok_or_else(|| Problem::not_found("no such session"))?;
        let body = restart_fragment(&record.answer, &ours.ufrag, &ours.pwd);
        let ice = &mut record.ice;
        let forgotten = ice.old_ufrag.replace(std::mem::replace(&mut ice.ufrag, ours.ufrag.clone()));
        ice.old_remote_ufrag = Some(std::mem::replace(&mut ice.remote_ufrag, remote_ufrag));
        ice.old_etag = Some(std::mem::replace(&mut ice.etag, etag.clone()));
        ice.restart_reply = Some(body.clone());
        ice.restarted = now;
        record.candidates_trickled = 0;
        let slot = record.slot.clone();
        if let Some(ufrag) = forgotten {
            self.command_all(|| Command::Forget { ufrag: ufrag.clone() });
        }
        self.announce(ours.ufrag, ours.pwd, &slot);
        self.timers.arm(now + limits::ICE_RESTART_OVERLAP, Timer::OldUfrag(id));
        Ok(restarted(body, &etag))
    }

    /// A shard has restarted ICE, or could not.
    pub(super) fn ice_restarted(
        &mut self,
        now: Instant,
        id: SessionId,
        request: RequestId,
        result: Result<IceRestart, String>,
    ) {
        let Some(pending) = self.restarts.remove(&request) else {
            // The client has had its 503. The shard's side is what counts from now on.
            debug!(session = %id, "ICE restart came late");
            return;
        };
        if let Some(record) = self.sessions.get_mut(id) {
            record.ice.restarting = None;
        }
        let applied = self.apply_restart(now, id, pending.remote_ufrag, result);
        self.respond(request, applied.unwrap_or_else(Problem::json), pending.origin.as_ref());
    }

    pub(super) fn restart_timed_out(&mut self, request: RequestId) {
        if self.restarts.contains_key(&request) {
            self.restart_failed(request, Problem::unavailable("the session does not answer"));
        }
    }

    pub(super) fn restart_failed(&mut self, request: RequestId, problem: Problem) {
        let Some(pending) = self.restarts.remove(&request) else { return };
        if let Some(record) = self.sessions.get_mut(pending.session) {
            record.ice.restarting = None;
        }
        self.respond(request, problem.json(), pending.origin.as_ref());
    }
}

fn restarted(body: String, etag: &str) -> Response {
    let mut response = exchange::content(StatusCode::OK, FRAGMENT, body);
    response.headers_mut().insert(ETAG, exchange::value(etag));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
