//! `…/sse`: WHEP's server-sent events extension, and when clients are told what.

use std::time::Duration;

use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, StatusCode};

use super::controller::{Controller, Output, Part};
use super::cors;
use super::event_streams::{EventStream, Key, Kind, PER_SESSION_MAX};
use super::exchange::{self, Request, Response};
use super::layer::layers_json;
use super::problem::{ACCEPT_POST, Problem};
use super::resource::Target;
use super::timers::Timer;
use crate::id::{SessionId, StreamId};
use crate::session::CloseReason;
use crate::shard::message::RequestId;
use crate::units::Instant;

/// Layers change together when a publisher's encoder adapts.
const LAYERS_GATHERED: Duration = Duration::from_millis(250);

/// Bitrates are told so often.
const LAYERS_INTERVAL: Duration = Duration::from_secs(5);

/// A crowd that comes is told in steps.
const VIEWER_COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// Proxies let go of what is silent for 30 s or more.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Before anything else: how long browsers wait until they connect again, in ms.
const RETRY: &[u8] = b"retry: 2000\n\n";

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The `Link`s of a viewer's 201, with the events that there are.
pub(super) fn links(session_url: &str) -> [HeaderValue; 2] {
    const REL: &str = "urn:ietf:params:whep:ext:core";
    let events = Kind::EVENTS.map(Kind::name).join(",");
    [
        exchange::value(&format!("<{session_url}/sse>; rel=\"{REL}:server-sent-events\"; events=\"{events}\"")),
        exchange::value(&format!("<{session_url}/layer>; rel=\"{REL}:layer\"")),
    ]
}

impl Controller {
    /// Makes an event stream; it is opened by a GET.
    pub(super) fn post_events(&mut self, now: Instant, target: Target, request: &Request) -> Result<Response, Problem> {
        let record = self.admit_to_session(now, target, request)?;
        let wants = wanted(request)?;
        let (id, stream, video_line) = (record.id, record.slot.stream.id, record.video_line);
        if self.events.of_session(stream, id).count() >= PER_SESSION_MAX {
            let detail = "this session has two event streams already";
            return Err(Problem::new(StatusCode::CONFLICT, "too-many-event-streams", detail));
        }
        let record = self.sessions.get_mut(id).ok_or_else(|| Problem::not_found("no such session"))?;
        record.event_streams += 1;
        let number = record.event_streams;
        let mut response = exchange::empty(StatusCode::CREATED);
        let record = self.sessions.get(id).ok_or_else(|| Problem::not_found("no such session"))?;
        let endpoint = self.endpoint_url(record, request);
        self.events.insert((stream, id, number), EventStream::new(wants, video_line, endpoint));
        let url = format!("{}/sse/{number}", self.session_url(record, request));
        response.headers_mut().insert(LOCATION, exchange::value(&url));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// GET opens, DELETE destroys. `Ok(None)`: the answer has begun and goes on.
    pub(super) fn use_event_stream(
        &mut self,
        now: Instant,
        id: RequestId,
        (target, number): (Target, u32),
        request: &Request,
    ) -> Result<Option<Response>, Problem> {
        let session = self.find_session(now, target, request)?;
        let key = self.sessions.get(session).map(|r| (r.slot.stream.id, session, number));
        let key =
            key.filter(|key| self.events.contains(*key)).ok_or_else(|| Problem::not_found("no such event stream"))?;
        match request.method {
            Method::DELETE => {
                self.outputs.extend(self.events.remove(key));
                Ok(Some(exchange::empty(StatusCode::OK)))
            }
            Method::HEAD => Ok(Some(head())),
            _ => {
                self.open_event_stream(now, id, key, request)?;
                Ok(None)
            }
        }
    }

    fn open_event_stream(&mut self, now: Instant, id: RequestId, key: Key, request: &Request) -> Result<(), Problem> {
        // Each holds a connection for as long as it likes: half of them are left for everyone else.
        let limits = &self.config.limits;
        let client = self.limited_client(self.client_ip(request));
        if self.events.readers() >= (limits.connections_max / 2).max(1) {
            return Err(Problem::unavailable("too many event streams are open"));
        }
        if client.is_some_and(|c| self.events.readers_of(c) >= (limits.connections_per_ip_max / 2).max(1)) {
            return Err(Problem::too_many("too many event streams of this address", LAYERS_INTERVAL));
        }
        self.outputs.extend(self.events.open(key, id, client));
        let mut response = head();
        cors::apply(&self.config.cors_origins, cors::origin(&request.headers).as_ref(), &mut response);
        self.outputs.push_back(Output::Stream(id, Part::Head(response)));
        self.outputs.push_back(Output::Stream(id, Part::Body(RETRY.into())));
        self.timers.arm(now + PING_INTERVAL, Timer::Ping(id));

        let (stream, ..) = key;
        let Some(entry) = self.streams.get_mut(stream) else { return Ok(()) };
        if entry.layers_due == Instant::FAR_FUTURE {
            entry.layers_due = now + LAYERS_INTERVAL;
            self.timers.arm(entry.layers_due, Timer::Layers(stream));
        }
        if let Some(events) = self.events.read_by(id) {
            self.outputs.extend(events.introduce(entry.active.is_some()));
            if let Some(line) = events.video_line.filter(|_| !entry.layers.is_empty()) {
                self.outputs.extend(events.say(Kind::Layers, &layers_json(line, &entry.layers)));
            }
        }
        self.viewers_changed(now, stream);
        Ok(())
    }

    /// A reader has taken the last [`Part::Body`] and can take another.
    pub fn handle_taken(&mut self, reader: RequestId) {
        let next = self.events.read_by(reader).and_then(EventStream::handle_taken);
        self.outputs.extend(next);
    }

    /// The answer to `reader` can be written no more: it has ended, or its connection has.
    pub fn handle_gone(&mut self, reader: RequestId) {
        self.events.handle_gone(reader);
    }

    pub(super) fn ping(&mut self, now: Instant, reader: RequestId) {
        if let Some(events) = self.events.read_by(reader) {
            self.outputs.extend(events.ping());
            self.timers.arm(now + PING_INTERVAL, Timer::Ping(reader));
        }
    }

    /// A publisher has begun or gone.
    pub(super) fn tell_live(&mut self, stream: StreamId, live: bool) {
        self.outputs.extend(self.events.heard(stream).filter_map(|events| events.tell_live(live)));
    }

    /// More than bitrates has changed.
    pub(super) fn layers_changed(&mut self, now: Instant, stream: StreamId) {
        let Some(entry) = self.streams.get_mut(stream).filter(|_| self.events.is_heard(stream)) else { return };
        let due = now + LAYERS_GATHERED;
        if due < entry.layers_due {
            entry.layers_due = due;
            self.timers.arm(due, Timer::Layers(stream));
        }
    }

    pub(super) fn tell_layers(&mut self, now: Instant, stream: StreamId) {
        let Some(entry) = self.streams.get_mut(stream).filter(|e| e.layers_due <= now) else { return };
        if !self.events.is_heard(stream) {
            entry.layers_due = Instant::FAR_FUTURE;
            return;
        }
        entry.layers_due = now + LAYERS_INTERVAL;
        self.timers.arm(entry.layers_due, Timer::Layers(stream));
        if entry.layers.is_empty() {
            return;
        }
        let layers = &entry.layers;
        self.outputs.extend(self.events.heard(stream).filter_map(|events| {
            let line = events.video_line?;
            events.say(Kind::Layers, &layers_json(line, layers))
        }));
    }

    /// Viewers have come or gone, or somebody listens who does not know how many there are.
    pub(super) fn viewers_changed(&mut self, now: Instant, stream: StreamId) {
        let Some(entry) = self.streams.get_mut(stream).filter(|_| self.events.is_heard(stream)) else { return };
        if entry.viewers_due == Instant::FAR_FUTURE {
            entry.viewers_due = now.max(entry.viewers_told + VIEWER_COUNT_INTERVAL);
            self.timers.arm(entry.viewers_due, Timer::ViewerCount(stream));
        }
    }

    pub(super) fn tell_viewers(&mut self, now: Instant, stream: StreamId) {
        let Some(entry) = self.streams.get_mut(stream).filter(|e| e.viewers_due <= now) else { return };
        entry.viewers_due = Instant::FAR_FUTURE;
        entry.viewers_told = now;
        let count = entry.watching(&self.sessions);
        self.outputs.extend(self.events.heard(stream).filter_map(|events| events.tell_viewers(count)));
    }

    /// A session's event streams end with it. Whom a new codec is the end of may come again with another offer.
    pub(super) fn end_event_streams(&mut self, stream: StreamId, session: SessionId, reason: CloseReason) {
        if reason == CloseReason::CodecChanged {
            self.outputs.extend(self.events.of_session(stream, session).filter_map(EventStream::tell_reconnect));
        }
        self.outputs.extend(self.events.remove_session(stream, session));
    }
}

fn head() -> Response {
    let mut response = exchange::content(StatusCode::OK, "text/event-stream", "");
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would gather what is to be read at once.
    response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// The events that a POST asks for: a JSON array of names; an empty one or no body asks for all.
fn wanted(request: &Request) -> Result<Vec<Kind>, Problem> {
    if request.body.is_empty() {
        return Ok(Kind::EVENTS.into());
    }
    if !request.is("application/json") {
        return Err(Problem::media_type(ACCEPT_POST, "application/json"));
    }
    let names: Vec<String> = serde_json::from_slice(&request.body)
        .map_err(|_| Problem::malformed("the body must be a JSON array of event names"))?;
    if names.is_empty() {
        return Ok(Kind::EVENTS.into());
    }
    let unknown = || Problem::malformed(format!("the events are {}", Kind::EVENTS.map(Kind::name).join(", ")));
    names.iter().map(|name| Kind::of(name)).collect::<Option<_>>().ok_or_else(unknown)
}
