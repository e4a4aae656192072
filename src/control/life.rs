//! A session's life: opened by an offer, connected, replaced, waited for, ended; and what that means for its stream.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;
use tracing::{debug, info};

use super::controller::Controller;
use super::problem::Problem;
use super::rate::Bucket;
use super::sessions::{Ice, Record};
use super::timers::Timer;
use crate::forward::select;
use crate::id::{self, Generation, SessionId, StreamId};
use crate::limits;
use crate::session::negotiate::{self, NegotiationError, PublishRequest, WatchRequest};
use crate::session::{CloseReason, Role};
use crate::shard::message::Command;
use crate::shard::placement::Slot;
use crate::units::Instant;
use crate::wire::codec::{Codec, Format};
use crate::wire::sdp::Offer;

/// What makes two offers the same one, sent twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PostKey {
    role: Role,
    legacy: bool,
    stream: String,
    ufrag: String,
    pwd: String,
    fingerprint: String,
    token: Option<String>,
}

/// What a session is to be opened for.
pub(super) struct Opening<'a> {
    pub role: Role,
    pub stream: &'a str,
    pub offer: &'a Offer,
    /// Of the 2019 example: VP8, keyframes on a timer, viewers may come first.
    pub legacy: bool,
    pub token: Option<String>,
    pub client: IpAddr,
}

impl Controller {
    /// Opens a session, or finds the one that the same offer has opened a moment ago.
    pub(super) fn open(&mut self, now: Instant, opening: Opening) -> Result<SessionId, Problem> {
        let key = PostKey {
            role: opening.role,
            legacy: opening.legacy,
            stream: opening.stream.to_owned(),
            ufrag: opening.offer.ice_ufrag.clone(),
            pwd: opening.offer.ice_pwd.clone(),
            fingerprint: opening.offer.fingerprint.clone(),
            token: opening.token.clone(),
        };
        while let Some((until, key)) = self.recent_order.pop_front_if(|(until, _)| *until <= now) {
            // The same offer may have opened another session since, when the first one had ended.
            if self.recent.get(&key).is_some_and(|(_, newest)| *newest == until) {
                self.recent.remove(&key);
            }
        }
        let repeated = self.recent.get(&key).map(|(id, _)| *id);
        if let Some(id) = repeated.filter(|id| self.sessions.get(*id).is_some_and(|r| r.closing.is_none())) {
            debug!(session = %id, "the same offer again");
            return Ok(id);
        }
        self.check_unestablished(opening.client)?;
        let id = self.create(now, &opening)?;
        let until = now + limits::POST_RETRY_WINDOW;
        self.recent.insert(key.clone(), (id, until));
        self.recent_order.push_back((until, key));
        Ok(id)
    }

    fn check_unestablished(&self, client: IpAddr) -> Result<(), Problem> {
        let limits = &self.config.limits;
        if self.sessions.unestablished() >= limits.unestablished_max {
            return Err(Problem::unavailable("too many sessions wait for their client"));
        }
        let of_client = self.limited_client(client).map_or(0, |c| self.sessions.unestablished_of(c));
        if of_client >= limits.unestablished_per_ip_max {
            let wait = Duration::from_secs(5);
            return Err(Problem::too_many("too many sessions of this address are not connected yet", wait));
        }
        Ok(())
    }

    /// Builds a session and lets the shards expect its client.
    fn create(&mut self, now: Instant, opening: &Opening) -> Result<SessionId, Problem> {
        let Opening { role, offer, legacy, .. } = *opening;
        let id = self.sessions.next_id();
        let published = self.published(opening.stream);
        let entry = self.streams.open(opening.stream);
        let table = entry.table.clone();
        let stream = table.id;
        let generation = Generation(entry.generation.0 + 1);
        // Browsers begin with the lowest layer.
        let simulcast = entry.simulcast;
        let negotiated = match role {
            Role::Publisher => {
                let request = PublishRequest {
                    session: id,
                    stream,
                    generation,
                    pli_interval: legacy.then_some(limits::LEGACY_PLI_INTERVAL),
                    video_codecs: if legacy { vec![Codec::Vp8] } else { Vec::new() },
                };
                negotiate::publish(now, &self.peer, offer, request, &mut self.rng)
            }
            Role::Viewer => {
                let estimate = simulcast || select::is_choice(&table.layers());
                let request = WatchRequest { session: id, stream, published, estimate };
                negotiate::watch(now, &self.peer, offer, request, &mut self.rng)
            }
        };
        let negotiated = match negotiated {
            Ok(negotiated) => negotiated,
            Err(error) => {
                if let NegotiationError::Unusable(reason) = &error {
                    debug!(session = %id, reason, "offer not usable");
                }
                self.streams.close_if_idle(stream);
                return Err(error.into());
            }
        };

        let entry = self.streams.open(opening.stream);
        let mut wait_until = Instant::ZERO;
        match role {
            Role::Publisher => {
                entry.generation = generation;
                entry.simulcast = offer.media(MediaKind::Video).is_some_and(|m| m.rids.len() > 1);
                entry.publishers.insert(id, generation);
            }
            Role::Viewer => {
                entry.viewers.insert(id);
                if entry.active.is_none() {
                    wait_until = now + limits::VIEWER_WAIT;
                    self.timers.arm(wait_until, Timer::Wait(id));
                }
            }
        }
        let slot = Arc::new(Slot::new(id, table, negotiated.session));
        let announced = (negotiated.local_ufrag.clone(), negotiated.local_pwd.clone());
        let token = id::session_token(&mut self.rng);
        let etag = self.etag();
        let record = Record {
            id,
            token,
            role,
            slot: slot.clone(),
            created: now,
            client: self.limited_client(opening.client),
            established: false,
            closing: None,
            answer: negotiated.answer,
            ice: Ice {
                ufrag: negotiated.local_ufrag,
                old_ufrag: None,
                restarted: Instant::ZERO,
                remote_ufrag: offer.ice_ufrag.clone(),
                old_remote_ufrag: None,
                etag,
                old_etag: None,
                restart_reply: None,
                restarting: None,
            },
            patches: Bucket::full(now, self.config.limits.patch_rate.max(1.0)),
            candidates_trickled: 0,
            wait_until,
            video_line: offer.media.iter().position(|m| m.kind == MediaKind::Video),
            wish: None,
            event_streams: 0,
            tracks: [None, None],
        };
        info!(session = %id, stream = opening.stream, role = role.name(), "session created");
        debug!(session = %id, token = &record.token[..6], client = %opening.client, legacy, "session created");
        self.sessions.insert(record);
        self.timers.arm(now + limits::CONNECT_TIMEOUT, Timer::Connect(id));
        self.announce(announced.0, announced.1, &slot);
        Ok(id)
    }

    /// What a stream's active publisher sends.
    fn published(&self, stream: &str) -> Vec<Format> {
        let active = self.streams.by_name(stream).and_then(|e| e.active);
        active.and_then(|a| self.sessions.get(a.session)).map(Record::published).unwrap_or_default()
    }

    /// A strong one, for one ICE session (RFC 9110 §8.8.3).
    pub(super) fn etag(&mut self) -> String {
        let token = id::session_token(&mut self.rng);
        format!("\"{}\"", &token[..11])
    }

    /// Ends a session: at once when no shard has it, else by its shard.
    pub(super) fn close(&mut self, now: Instant, id: SessionId, reason: CloseReason) {
        let Some(record) = self.sessions.get_mut(id).filter(|r| r.closing.is_none()) else { return };
        // Adoption holds the slot's lock: when nothing waits here, a shard owns the session or it has ended.
        match (record.slot.discard(), record.slot.owner()) {
            (false, Some(owner)) => {
                record.closing = Some(reason);
                self.timers.arm(now + limits::SHARD_ANSWER_TIMEOUT, Timer::Closing(id));
                self.command(owner, Command::Close { session: id, reason });
            }
            _ => self.ended(now, id, reason),
        }
    }

    /// A session is gone: nobody answers for it any more, and its stream may be affected.
    pub(super) fn ended(&mut self, now: Instant, id: SessionId, reason: CloseReason) {
        let Some(record) = self.sessions.remove(now, id) else { return };
        let lived = now - record.created;
        info!(
            session = %id, stream = record.stream_name(), role = record.role.name(), ?reason,
            seconds = lived.as_secs(), "session ended"
        );
        for ufrag in std::iter::once(&record.ice.ufrag).chain(&record.ice.old_ufrag) {
            self.command_all(|| Command::Forget { ufrag: ufrag.clone() });
        }
        if let Some(request) = record.ice.restarting {
            self.restart_failed(request, Problem::not_found("no such session"));
        }
        let stream = record.slot.stream.id;
        if let Some(entry) = self.streams.get_mut(stream) {
            entry.publishers.remove(&id);
            entry.viewers.remove(&id);
            if entry.active.is_some_and(|a| a.session == id) {
                entry.deactivate(now + limits::PUBLISHER_GRACE);
                self.timers.arm(entry.grace_until, Timer::Grace(stream));
                info!(stream = record.stream_name(), viewers = entry.viewers.len(), "stream has no publisher");
                self.tell_live(stream, false);
            }
        }
        self.end_event_streams(stream, id, reason);
        self.viewers_changed(now, stream);
        self.streams.close_if_idle(stream);
    }

    pub(super) fn connected(&mut self, now: Instant, id: SessionId) {
        if self.sessions.establish(id)
            && let Some(record) = self.sessions.get(id)
        {
            info!(session = %id, stream = record.stream_name(), role = record.role.name(), "session connected");
            let stream = record.slot.stream.id;
            self.tell_early_wish(id);
            self.viewers_changed(now, stream);
        }
    }

    /// A publisher's first media: those that offered before it have been replaced.
    pub(super) fn publisher_active(&mut self, now: Instant, id: SessionId, stream: StreamId, generation: Generation) {
        let Some(entry) = self.streams.get_mut(stream).filter(|e| e.publishers.contains_key(&id)) else { return };
        if entry.active.is_some_and(|a| a.generation > generation) {
            // Overtaken between its first packet and this event.
            return self.close(now, id, CloseReason::TakenOver);
        }
        entry.activate(now, id, generation);
        info!(stream = &*entry.table.name, session = %id, viewers = entry.viewers.len(), "stream is live");
        let replaced: Vec<SessionId> =
            entry.publishers.iter().filter(|(_, g)| **g < generation).map(|(id, _)| *id).collect();
        for id in replaced {
            self.close(now, id, CloseReason::TakenOver);
        }
        self.tell_live(stream, true);
    }

    pub(super) fn wait_is_over(&mut self, now: Instant, id: SessionId) {
        let Some(record) = self.sessions.get(id) else { return };
        let entry = self.streams.get(record.slot.stream.id);
        // In a publisher's grace, that timer decides.
        if entry.is_some_and(|e| e.active.is_none() && e.grace_until <= now) {
            self.close(now, id, CloseReason::NoPublisher);
        }
    }

    pub(super) fn grace_is_over(&mut self, now: Instant, stream: StreamId) {
        let Some(entry) = self.streams.get(stream).filter(|e| e.active.is_none() && e.grace_until <= now) else {
            return;
        };
        let waiting = |id: &SessionId| self.sessions.get(*id).is_some_and(|r| r.wait_until > now);
        let over: Vec<SessionId> = entry.viewers.iter().filter(|id| !waiting(id)).copied().collect();
        for id in over {
            self.close(now, id, CloseReason::NoPublisher);
        }
    }

    /// How long a stream's publisher has sent nothing; `None` when it has none.
    pub(super) fn silent_for(&self, now: Instant, stream: &str) -> Option<Duration> {
        self.streams.by_name(stream)?.silent_for(now)
    }
}
