//! The sans-IO heart of control: requests and shards' events in, answers and commands out.
//!
//! A session lives in its [`Slot`] until the first authenticated STUN request of its client lands on a shard; until then
//! the controller works on it itself, afterwards by commands to the shard that owns it.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{ETAG, HeaderValue};
use hyper::{Method, StatusCode};
use rand::rngs::StdRng;
use rustc_hash::FxHashMap;
use tracing::{debug, info, warn};

use super::auth::Auth;
use super::event_streams::EventStreams;
use super::exchange::{self, Request, Response};
use super::life::PostKey;
use super::problem::Problem;
use super::rate::RateLimit;
use super::route::Route;
use super::sessions::{Record, Sessions};
use super::streams::Streams;
use super::timers::{Timer, Timers};
use super::{cors, events, origin, page, rate, resource};
use crate::config::Config;
use crate::id::{SessionId, ShardId};
use crate::limits;
use crate::metrics::{self, Gauges, ShardFigures};
use crate::session::negotiate::PeerConfig;
use crate::session::{CloseReason, Role};
use crate::shard::message::{Command, Event, Report, RequestId};
use crate::shard::placement::Slot;
use crate::srtp::dtls::Certificate;
use crate::units::Instant;

/// What the controller wants done.
#[derive(Debug)]
pub enum Output {
    /// To one shard. Commands come before the answer that depends on them.
    Command(ShardId, Command),
    Respond(RequestId, Response),
    /// An answer that goes on for as long as its event stream is read.
    Stream(RequestId, Part),
}

/// A part of an answer that goes on.
#[derive(Debug)]
pub enum Part {
    /// Comes first. Its own body does not matter.
    Head(Response),
    /// The next comes after [`Controller::handle_taken`].
    Body(Bytes),
    /// Comes last.
    End,
    /// Comes last too: the client does not read, so its connection is to be closed.
    Cut,
}

/// Decides over sessions and streams.
pub struct Controller {
    pub(super) config: Config,
    pub(super) peer: PeerConfig,
    shards: u16,
    pub(super) rng: StdRng,
    pub(super) auth: Auth,
    pub(super) streams: Streams,
    pub(super) sessions: Sessions,
    pub(super) timers: Timers,
    /// Offers of the last seconds, in case that one comes again.
    pub(super) recent: FxHashMap<PostKey, (SessionId, Instant)>,
    pub(super) recent_order: VecDeque<(Instant, PostKey)>,
    /// Exchanges that wait for a shard.
    pub(super) restarts: FxHashMap<RequestId, resource::PendingRestart>,
    pub(super) events: EventStreams,
    posts: RateLimit,
    probes: RateLimit,
    figures: Vec<Option<ShardFigures>>,
    pub(super) outputs: VecDeque<Output>,
    stalled: bool,
    stopping: bool,
    stopped: BTreeSet<ShardId>,
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
            events: EventStreams::default(),
            figures: vec![None; usize::from(shards)],
            outputs: VecDeque::new(),
            stalled: false,
            stopping: false,
            stopped: BTreeSet::new(),
            config,
        }
    }

    /// Answers a request, now or after a shard has answered: exactly one [`Output::Respond`], or
    /// [`Part::Head`], per `id`.
    pub fn handle_request(&mut self, now: Instant, id: RequestId, request: Request) {
        if let Some(response) = self.route(now, id, &request) {
            self.respond(id, response, cors::origin(&request.headers).as_ref());
        }
    }

    /// What a shard says.
    pub fn handle_event(&mut self, now: Instant, shard: ShardId, event: Event) {
        match event {
            Event::Connected { session } => self.connected(now, session),
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
            Event::Report(report) => self.take_report(now, shard, *report),
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
                    let Some(record) = self.sessions.get_mut(id) else { continue };
                    if record.established {
                        record.forget_answer();
                    } else {
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
                Timer::Layers(stream) => self.tell_layers(now, stream),
                Timer::ViewerCount(stream) => self.tell_viewers(now, stream),
                Timer::Ping(reader) => self.ping(now, reader),
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

    /// For sessions from now on; those that there are keep the one that their answer names.
    pub fn set_certificate(&mut self, certificate: Certificate) {
        self.peer.certificate = certificate;
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
            (Route::Layer { stream, token }, &Method::POST) => {
                let target = resource::Target { role: Role::Viewer, stream, token };
                let answered = self.select_layer(now, target, request);
                Some(answered.unwrap_or_else(|problem| self.refuse(problem, Role::Viewer).json()))
            }
            (Route::Events { stream, token }, &Method::POST) => {
                let target = resource::Target { role: Role::Viewer, stream, token };
                let answered = self.post_events(now, target, request);
                Some(answered.unwrap_or_else(|problem| self.refuse(problem, Role::Viewer).json()))
            }
            (Route::EventStream { stream, token, number }, method) if is_get || method == Method::DELETE => {
                let target = resource::Target { role: Role::Viewer, stream, token };
                let answered = self.use_event_stream(now, id, (target, *number), request);
                answered.unwrap_or_else(|problem| Some(self.refuse(problem, Role::Viewer).json()))
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
        debug!(role = role.name(), status = problem.status.as_u16(), detail = %problem.detail, "request refused");
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

    fn take_report(&mut self, now: Instant, shard: ShardId, report: Report) {
        for track in &report.tracks {
            if let Some(entry) = self.streams.get_mut(track.stream) {
                entry.take_report(report.at, *track);
            }
        }
        for layers in report.layers.chunk_by(|a, b| a.stream == b.stream) {
            let stream = layers[0].stream;
            if self.streams.get_mut(stream).is_some_and(|e| e.take_layers(layers.to_vec())) {
                self.layers_changed(now, stream);
            }
        }
        if let Some(slot) = self.figures.get_mut(shard.index()) {
            *slot = Some(report.figures);
        }
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
        if record.role == Role::Viewer {
            for link in events::links(&self.session_url(record, request)) {
                headers.append(LINK, link);
            }
        }
        Ok(response)
    }

    /// Absolute, without query: clients resolve relative ones in three different ways.
    pub(super) fn session_url(&self, record: &Record, request: &Request) -> String {
        format!("{}/{}", self.endpoint_url(record, request), record.token)
    }

    /// Where another session like this one may be opened.
    pub(super) fn endpoint_url(&self, record: &Record, request: &Request) -> String {
        let proxies = &self.config.limits.trusted_proxies;
        origin::public_origin(request, self.config.public_url.as_deref(), proxies) + &record.endpoint_path()
    }
}
