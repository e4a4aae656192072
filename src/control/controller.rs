//! The sans-IO heart of control: requests and shards' events in, answers and commands out.
//!
//! A session lives in its [`Slot`] until the first authenticated STUN request of its client lands on a shard; until then
//! the controller works on it itself, afterwards by commands to the shard that owns it.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{ETAG, HeaderValue};
use hyper::{Method, StatusCode};
use rand::rngs::StdRng;
use rustc_hash::FxHashMap;
use tracing::{debug, info, warn};

use super::auth::Auth;
use super::exchange::{self, Request, Response};
use super::problem::Problem;
use super::rate::{Bucket, RateLimit};
use super::route::Route;
use super::sessions::{Ice, Record, Sessions};
use super::streams::Streams;
use super::timers::{Timer, Timers};
use super::{cors, origin, page, rate, resource};
use crate::config::Config;
use crate::id::{self, Generation, SessionId, ShardId, StreamId};
use crate::limits;
use crate::metrics::{self, Gauges, ShardFigures};
use crate::session::negotiate::{self, NegotiationError, PeerConfig, PublishRequest, WatchRequest};
use crate::session::{CloseReason, Role};
use crate::shard::message::{Command, Event, Report, RequestId};
use crate::shard::placement::Slot;
use crate::units::Instant;
use crate::wire::codec::Codec;
use crate::wire::sdp::{Offer, finish_answer};

/// What the controller wants done.
#[derive(Debug)]
pub enum Output {
    /// To one shard. Commands come before the answer that depends on them.
    Command(ShardId, Command),
    Respond(RequestId, Response),
}

/// Decides over sessions and streams.
pub struct Controller {
    pub(super) config: Config,
    peer: PeerConfig,
    shards: u16,
    pub(super) rng: StdRng,
    pub(super) auth: Auth,
    pub(super) streams: Streams,
    pub(super) sessions: Sessions,
    pub(super) timers: Timers,
    /// Offers of the last seconds, in case that one comes again.
    recent: FxHashMap<PostKey, SessionId>,
    recent_order: VecDeque<(Instant, PostKey)>,
    /// Exchanges that wait for a shard.
    pub(super) restarts: FxHashMap<RequestId, resource::PendingRestart>,
    posts: RateLimit,
    probes: RateLimit,
    figures: Vec<Option<ShardFigures>>,
    outputs: VecDeque<Output>,
    stalled: bool,
    stopping: bool,
    stopped: BTreeSet<ShardId>,
}

/// What makes two offers the same one, sent twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PostKey {
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
    /// `shards`: how many there are. `rng` yields tokens and ICE credentials: seed it from the operating system.
    pub fn new(config: Config, peer: PeerConfig, shards: u16, rng: StdRng) -> Controller {
        let limits = &config.limits;
        Controller {
            auth: Auth::new(&config),
            posts: RateLimit::new(limits.post_rate, limits.post_burst),
            probes: RateLimit::new(limits.probe_rate, limits.probe_rate.max(1.0)),
            peer,
            shards,
            rng,
            streams: Streams::default(),
            sessions: Sessions::default(),
            timers: Timers::default(),
            recent: FxHashMap::default(),
            recent_order: VecDeque::new(),
            restarts: FxHashMap::default(),
            figures: vec![None; usize::from(shards)],
            outputs: VecDeque::new(),
            stalled: false,
            stopping: false,
            stopped: BTreeSet::new(),
            config,
        }
    }

    /// Answers a request, now or after a shard has answered: exactly one [`Output::Respond`] per `id`.
    pub fn handle_request(&mut self, now: Instant, id: RequestId, request: Request) {
        if let Some(response) = self.route(now, id, &request) {
            self.respond(id, response, cors::origin(&request.headers).as_ref());
        }
    }

    /// What a shard says.
    pub fn handle_event(&mut self, now: Instant, shard: ShardId, event: Event) {
        match event {
            Event::Connected { session } => self.connected(session),
            Event::PublisherActive { session, stream, generation } => {
                self.publisher_active(now, session, stream, generation);
            }
            Event::TrackStarted { session, kind, format, .. } => {
                if let Some(record) = self.sessions.get_mut(session) {
                    record.set_track(kind, format);
                }
            }
            Event::IceRestarted { session, request, result } => self.ice_restarted(now, session, request, result),
            Event::Ended { session, reason } => self.ended(now, session, reason),
            Event::Report(report) => self.take_report(shard, *report),
            Event::Stopped => {
                self.stopped.insert(shard);
            }
        }
    }

    /// To be called when [`Self::next_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Connect(id) => {
                    if self.sessions.get(id).is_some_and(|r| !r.established) {
                        self.close(now, id, CloseReason::NeverConnected);
                    }
                }
                Timer::Closing(id) => {
                    if let Some(reason) = self.sessions.get(id).and_then(|r| r.closing) {
                        warn!(session = %id, "no shard says that the session ended");
                        self.ended(now, id, reason);
                    }
                }
                Timer::Wait(id) => self.wait_is_over(now, id),
                Timer::Grace(stream) => self.grace_is_over(now, stream),
                Timer::OldUfrag(id) => {
                    let ice = self.sessions.get_mut(id).map(|r| &mut r.ice);
                    let due = ice.filter(|ice| now >= ice.restarted + limits::ICE_RESTART_OVERLAP);
                    if let Some(ufrag) = due.and_then(|ice| ice.old_ufrag.take()) {
                        self.command_all(|| Command::Forget { ufrag: ufrag.clone() });
                    }
                }
                Timer::Restart(request) => self.restart_timed_out(request),
            }
        }
    }

    /// Ends every session and refuses new ones. Done when [`Self::is_stopped`].
    pub fn stop(&mut self, now: Instant) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        info!("stopping");
        for id in self.sessions.ids() {
            // Those that a shard owns end with the shard.
            if self.sessions.get(id).is_some_and(|r| r.slot.discard()) {
                self.ended(now, id, CloseReason::Stopping);
            }
        }
        self.command_all(|| Command::Stop);
    }

    /// Shards do not keep up with their commands: new sessions are refused meanwhile.
    pub fn set_stalled(&mut self, stalled: bool) {
        self.stalled = stalled;
    }

    /// For sessions from now on: the certificate changes daily, addresses may change.
    pub fn set_peer_config(&mut self, peer: PeerConfig) {
        self.peer = peer;
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn next_timeout(&self) -> Instant {
        self.timers.next()
    }

    /// Whether every shard has closed all of its sessions.
    pub fn is_stopped(&self) -> bool {
        self.stopped.len() == usize::from(self.shards)
    }

    // ------------------------------------------------------------------------------------------ requests

    fn route(&mut self, now: Instant, id: RequestId, request: &Request) -> Option<Response> {
        let route = match Route::of(request.uri.path()) {
            Ok(route) => route,
            Err(_) if request.method == Method::OPTIONS => return Some(cors::preflight(&Route::Health)),
            Err(problem) => return Some(problem.json()),
        };
        let wrong_method = || Some(Problem::method(route.allow()).json());
        let is_get = matches!(request.method, Method::GET | Method::HEAD);
        match (&route, &request.method) {
            (_, &Method::OPTIONS) => Some(cors::preflight(&route)),
            (Route::Page(asset), _) if is_get => Some(page::serve(asset)),
            (Route::Page(asset), &Method::POST) if asset.path == "/" => Some(self.post_legacy(now, request)),
            (Route::Legacy, &Method::POST) => Some(self.post_legacy(now, request)),
            (Route::Endpoint { role, stream }, &Method::POST) => {
                let answered = match role {
                    Role::Publisher => self.post_whip(now, stream, request),
                    Role::Viewer => self.post_whep(now, stream, request),
                };
                Some(answered.unwrap_or_else(|problem| self.refuse(problem, *role).json()))
            }
            (Route::Endpoint { role: Role::Publisher, .. }, _) if is_get => {
                Some(exchange::empty(StatusCode::NO_CONTENT))
            }
            (Route::Endpoint { role: Role::Viewer, .. }, _) if is_get => Some(super::whep::discovered()),
            (Route::Session { role, stream, token }, method) => {
                let target = resource::Target { role: *role, stream, token };
                let answered = match *method {
                    Method::PATCH => self.patch_session(now, id, target, request),
                    Method::DELETE => self.delete_session(now, target, request).map(Some),
                    _ if is_get => self.probe_session(now, target, request).map(Some),
                    _ => return wrong_method(),
                };
                answered.unwrap_or_else(|problem| Some(self.refuse(problem, *role).json()))
            }
            (Route::Health, _) if is_get => {
                Some(exchange::content(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"))
            }
            (Route::Metrics, _) if is_get => Some(self.guarded(request, Controller::metrics)),
            (Route::Streams, _) if is_get => Some(self.guarded(request, |controller| {
                let body = controller.streams.json(now, &controller.sessions).to_string();
                exchange::content(StatusCode::OK, "application/json", body)
            })),
            _ => wrong_method(),
        }
    }

    /// Figures of the node are for its operator: someone on this machine, or with a token.
    fn guarded(&self, request: &Request, answer: impl FnOnce(&Controller) -> Response) -> Response {
        let client = origin::client_ip(request, &self.config.limits.trusted_proxies);
        if !origin::is_local(request, client)
            && let Err(problem) = self.auth.check_any(request)
        {
            return problem.json();
        }
        answer(self)
    }

    fn metrics(&self) -> Response {
        let gauges = Gauges { streams: self.streams.len(), sessions_waiting: self.sessions.unestablished() };
        let figures: Vec<ShardFigures> = self.figures.iter().flatten().cloned().collect();
        exchange::content(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics::render(&gauges, &figures),
        )
    }

    pub(super) fn refuse(&self, problem: Problem, role: Role) -> Problem {
        if problem.is_server_error() {
            warn!(role = role.name(), status = problem.status.as_u16(), "request refused");
        } else {
            debug!(role = role.name(), status = problem.status.as_u16(), detail = %problem.detail, "request refused");
        }
        problem
    }

    /// The address that limits count for, or `None`: on a laptop all clients are loopback.
    pub(super) fn limited_client(&self, client: IpAddr) -> Option<IpAddr> {
        let exempt = client.is_loopback() && self.config.limits.trusted_proxies.is_empty();
        (!exempt).then(|| rate::client_key(client))
    }

    pub(super) fn client_ip(&self, request: &Request) -> IpAddr {
        origin::client_ip(request, &self.config.limits.trusted_proxies)
    }

    /// Before anything is looked at: do we take offers, and from this client?
    pub(super) fn admit_post(&mut self, now: Instant, client: IpAddr) -> Result<(), Problem> {
        if self.stopping || self.stalled {
            return Err(Problem::unavailable("the server takes no sessions now"));
        }
        match self.limited_client(client) {
            Some(client) => self
                .posts
                .take(now, client)
                .map_err(|wait| Problem::too_many("too many offers from this address", wait)),
            None => Ok(()),
        }
    }

    /// Counts a request for a session that does not exist.
    pub(super) fn unknown_session(&mut self, now: Instant, client: IpAddr) -> Problem {
        let limited = self.limited_client(client).map(|client| self.probes.take(now, client));
        match limited {
            Some(Err(wait)) => Problem::too_many("too many requests for unknown sessions", wait),
            _ => Problem::not_found("no such session"),
        }
    }

    // ------------------------------------------------------------------------------------------ sessions

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
        while self.recent_order.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = self.recent_order.pop_front() {
                self.recent.remove(&key);
            }
        }
        if let Some(id) = self.recent.get(&key).copied().filter(|id| self.sessions.get(*id).is_some()) {
            debug!(session = %id, "the same offer again");
            return Ok(id);
        }
        self.check_unestablished(opening.client)?;
        let id = self.create(now, &opening)?;
        self.recent.insert(key.clone(), id);
        self.recent_order.push_back((now + limits::POST_RETRY_WINDOW, key));
        Ok(id)
    }

    fn check_unestablished(&self, client: IpAddr) -> Result<(), Problem> {
        let limits = &self.config.limits;
        if self.sessions.unestablished() >= limits.unestablished_max {
            return Err(Problem::unavailable("too many sessions wait for their client"));
        }
        let of_client = self.limited_client(client).map_or(0, |c| self.sessions.unestablished_of(c));
        if of_client >= limits.unestablished_per_ip_max {
            let wait = std::time::Duration::from_secs(5);
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
                let request = WatchRequest { session: id, stream, published };
                negotiate::watch(now, &self.peer, offer, request, &mut self.rng)
            }
        };
        let finished = negotiated.map_err(|error| {
            if let NegotiationError::Unusable(reason) = &error {
                debug!(session = %id, reason, "offer not usable");
            }
            Problem::from(error)
        });
        let finished = finished.and_then(|n| Ok((finish_answer(&n.answer, offer)?, n)));
        let (answer, negotiated) = match finished {
            Ok(finished) => finished,
            Err(problem) => {
                self.streams.close_if_idle(stream);
                return Err(problem);
            }
        };

        let entry = self.streams.open(opening.stream);
        let mut wait_until = Instant::ZERO;
        match role {
            Role::Publisher => {
                entry.generation = generation;
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
            answer,
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
    fn published(&self, stream: &str) -> Vec<crate::wire::codec::Format> {
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
    fn ended(&mut self, now: Instant, id: SessionId, reason: CloseReason) {
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
                entry.active = None;
                entry.grace_until = now + limits::PUBLISHER_GRACE;
                self.timers.arm(entry.grace_until, Timer::Grace(stream));
                info!(stream = record.stream_name(), viewers = entry.viewers.len(), "stream has no publisher");
            }
        }
        self.streams.close_if_idle(stream);
    }

    // -------------------------------------------------------------------------------------------- events

    fn connected(&mut self, id: SessionId) {
        if self.sessions.establish(id)
            && let Some(record) = self.sessions.get(id)
        {
            info!(session = %id, stream = record.stream_name(), role = record.role.name(), "session connected");
        }
    }

    /// A publisher's first media: those that offered before it have been replaced.
    fn publisher_active(&mut self, now: Instant, id: SessionId, stream: StreamId, generation: Generation) {
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
    }

    fn take_report(&mut self, shard: ShardId, report: Report) {
        for track in &report.tracks {
            if let Some(entry) = self.streams.get_mut(track.stream) {
                entry.take_report(report.at, *track);
            }
        }
        if let Some(slot) = self.figures.get_mut(shard.index()) {
            *slot = Some(report.figures);
        }
    }

    fn wait_is_over(&mut self, now: Instant, id: SessionId) {
        let Some(record) = self.sessions.get(id) else { return };
        let entry = self.streams.get(record.slot.stream.id);
        // In a publisher's grace, that timer decides.
        if entry.is_some_and(|e| e.active.is_none() && e.grace_until <= now) {
            self.close(now, id, CloseReason::NoPublisher);
        }
    }

    fn grace_is_over(&mut self, now: Instant, stream: StreamId) {
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
    pub(super) fn silent_for(&self, now: Instant, stream: &str) -> Option<std::time::Duration> {
        self.streams.by_name(stream)?.silent_for(now)
    }

    // ------------------------------------------------------------------------------------------- outputs

    pub(super) fn respond(&mut self, id: RequestId, mut response: Response, origin: Option<&HeaderValue>) {
        cors::apply(&self.config.cors_origins, origin, &mut response);
        self.outputs.push_back(Output::Respond(id, response));
    }

    pub(super) fn command(&mut self, shard: ShardId, command: Command) {
        self.outputs.push_back(Output::Command(shard, command));
    }

    pub(super) fn command_all(&mut self, command: impl Fn() -> Command) {
        for shard in 0..self.shards {
            self.outputs.push_back(Output::Command(ShardId(shard), command()));
        }
    }

    pub(super) fn announce(&mut self, ufrag: String, pwd: String, slot: &Arc<Slot>) {
        self.command_all(|| Command::Announce { ufrag: ufrag.clone(), pwd: pwd.clone(), slot: slot.clone() });
    }

    /// 201 (RFC 9725 §4.2): where the session is, which ICE session this is, and our answer.
    pub(super) fn created(&self, id: SessionId, request: &Request) -> Result<Response, Problem> {
        use hyper::header::{CACHE_CONTROL, LINK, LOCATION};
        let record = self.sessions.get(id).ok_or_else(|| Problem::unavailable("the session has just ended"))?;
        let mut response = exchange::content(StatusCode::CREATED, "application/sdp", record.answer.clone());
        let headers = response.headers_mut();
        headers.insert(LOCATION, exchange::value(&self.session_url(record, request)));
        headers.insert(ETAG, exchange::value(&record.ice.etag));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(server) = &self.config.stun_server {
            headers.insert(LINK, exchange::value(&format!("<stun:{server}>; rel=\"ice-server\"")));
        }
        Ok(response)
    }

    /// Absolute, without query: clients resolve relative ones in three different ways.
    pub(super) fn session_url(&self, record: &Record, request: &Request) -> String {
        let proxies = &self.config.limits.trusted_proxies;
        origin::public_origin(request, self.config.public_url.as_deref(), proxies) + &record.path()
    }
}
