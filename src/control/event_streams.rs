//! Open event streams (WHATWG server-sent events): who listens to what, and what waits until it is read.
//!
//! A reader has one part under way; what comes meanwhile waits, the last of each kind. So a slow one gets the news, not
//! the history, and one that reads nothing at all is let go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use rustc_hash::FxHashMap;
use serde_json::Value;

use super::controller::{Output, Part};
use crate::id::{SessionId, StreamId};
use crate::shard::message::RequestId;

/// Event streams of one session: a page and its reload, or a player and a dashboard.
pub(super) const PER_SESSION_MAX: usize = 2;

/// Events that come while a reader takes none, until it is cut off: with layers every 5 s that is more than a minute. At
/// most one of each kind is kept.
const BEHIND_MAX: usize = 16;

/// What is said on an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Active,
    Inactive,
    Layers,
    Reconnect,
    ViewerCount,
    /// A comment: proxies close what is silent.
    Ping,
}

impl Kind {
    /// Those that clients may ask for.
    pub const EVENTS: [Kind; 5] = [Kind::Active, Kind::Inactive, Kind::Layers, Kind::Reconnect, Kind::ViewerCount];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Active => "active",
            Kind::Inactive => "inactive",
            Kind::Layers => "layers",
            Kind::Reconnect => "reconnect",
            Kind::ViewerCount => "viewercount",
            Kind::Ping => "ping",
        }
    }

    pub fn of(name: &str) -> Option<Kind> {
        Kind::EVENTS.into_iter().find(|kind| kind.name() == name)
    }
}

/// Which event stream: the number counts within the session.
pub(super) type Key = (StreamId, SessionId, u32);

/// All that a session may have.
fn keys(stream: StreamId, session: SessionId) -> RangeInclusive<Key> {
    (stream, session, 0)..=(stream, session, u32::MAX)
}

/// One event stream, read or not.
pub(super) struct EventStream {
    wants: Vec<Kind>,
    /// The viewer's m-line that layers are of.
    pub video_line: Option<usize>,
    /// The URL that viewers of this stream send their offers to.
    endpoint: String,
    told_live: bool,
    told_viewers: Option<usize>,
    last_id: u64,
    reader: Option<Reader>,
}

/// The exchange whose answer goes on and on.
struct Reader {
    request: RequestId,
    /// The last part has not been taken.
    busy: bool,
    /// At most one of each kind.
    waiting: Vec<(Kind, String)>,
    behind: usize,
}

impl EventStream {
    pub fn new(wants: Vec<Kind>, video_line: Option<usize>, endpoint: String) -> EventStream {
        EventStream { wants, video_line, endpoint, told_live: false, told_viewers: None, last_id: 0, reader: None }
    }

    /// To a reader that has just come: that somebody publishes, or does no more. A client that never heard of a
    /// publisher does not hear that there is none.
    pub fn introduce(&mut self, live: bool) -> Option<Output> {
        let lived = std::mem::replace(&mut self.told_live, false);
        if live || lived { self.say_live(live) } else { None }
    }

    /// Says whether somebody publishes, when that is news.
    pub fn tell_live(&mut self, live: bool) -> Option<Output> {
        if self.told_live == live { None } else { self.say_live(live) }
    }

    fn say_live(&mut self, live: bool) -> Option<Output> {
        self.told_live = live;
        self.say(if live { Kind::Active } else { Kind::Inactive }, &serde_json::json!({}))
    }

    /// Says how many watch, when that is news.
    pub fn tell_viewers(&mut self, count: usize) -> Option<Output> {
        if self.told_viewers == Some(count) {
            return None;
        }
        self.told_viewers = Some(count);
        self.say(Kind::ViewerCount, &serde_json::json!({ "viewercount": count }))
    }

    /// Says where a new session may be opened, for this one ends. A reader that has not taken what it got before misses it.
    pub fn tell_reconnect(&mut self) -> Option<Output> {
        let url = serde_json::json!({ "url": self.endpoint });
        self.say(Kind::Reconnect, &url)
    }

    /// Says something, now or when the reader has taken what it got before; nothing to who did not ask for it.
    pub fn say(&mut self, kind: Kind, data: &Value) -> Option<Output> {
        if !self.wants.contains(&kind) {
            return None;
        }
        self.last_id += 1;
        let (name, id) = (kind.name(), self.last_id);
        self.push(kind, format!("event: {name}\nid: {id}\ndata: {data}\n\n"))
    }

    pub fn ping(&mut self) -> Option<Output> {
        self.push(Kind::Ping, ": ping\n\n".to_owned())
    }

    fn push(&mut self, kind: Kind, text: String) -> Option<Output> {
        let reader = self.reader.as_mut()?;
        reader.waiting.retain(|(waiting, _)| *waiting != kind);
        reader.waiting.push((kind, text));
        reader.behind += usize::from(reader.busy);
        if reader.behind > BEHIND_MAX {
            return self.reader.take().map(|reader| Output::Stream(reader.request, Part::Cut));
        }
        reader.flush()
    }

    /// The last part has been taken.
    pub fn handle_taken(&mut self) -> Option<Output> {
        let reader = self.reader.as_mut()?;
        reader.busy = false;
        reader.behind = 0;
        reader.flush()
    }
}

impl Reader {
    fn flush(&mut self) -> Option<Output> {
        if self.busy || self.waiting.is_empty() {
            return None;
        }
        self.busy = true;
        let text: String = self.waiting.drain(..).map(|(_, text)| text).collect();
        Some(Output::Stream(self.request, Part::Body(text.into())))
    }
}

/// All event streams. Those of ended sessions are gone.
#[derive(Default)]
pub(super) struct EventStreams {
    streams: BTreeMap<Key, EventStream>,
    /// Answers that go on, with whom limits count them for; also those that are about to end.
    readers: FxHashMap<RequestId, (Key, Option<IpAddr>)>,
}

impl EventStreams {
    pub fn of_session(&mut self, stream: StreamId, session: SessionId) -> impl Iterator<Item = &mut EventStream> {
        self.streams.range_mut(keys(stream, session)).map(|(_, events)| events)
    }

    pub fn insert(&mut self, key: Key, events: EventStream) {
        self.streams.insert(key, events);
    }

    pub fn contains(&self, key: Key) -> bool {
        self.streams.contains_key(&key)
    }

    pub fn readers(&self) -> usize {
        self.readers.len()
    }

    pub fn readers_of(&self, client: IpAddr) -> usize {
        self.readers.values().filter(|(_, of)| *of == Some(client)).count()
    }

    /// Gives a stream its reader. The first part, which is under way already, must come from the caller. Returns the
    /// end of the reader before it.
    pub fn open(&mut self, key: Key, request: RequestId, client: Option<IpAddr>) -> Option<Output> {
        let events = self.streams.get_mut(&key)?;
        let reader = Reader { request, busy: true, waiting: Vec::new(), behind: 0 };
        let before = events.reader.replace(reader);
        events.told_viewers = None;
        self.readers.insert(request, (key, client));
        before.map(|reader| Output::Stream(reader.request, Part::End))
    }

    /// The stream that a reader reads.
    pub fn read_by(&mut self, request: RequestId) -> Option<&mut EventStream> {
        let (key, _) = self.readers.get(&request)?;
        self.streams.get_mut(key).filter(|e| e.reader.as_ref().is_some_and(|r| r.request == request))
    }

    /// The reader's connection is gone.
    pub fn handle_gone(&mut self, request: RequestId) {
        if let Some(events) = self.read_by(request) {
            events.reader = None;
        }
        self.readers.remove(&request);
    }

    /// Returns the end of its reader.
    pub fn remove(&mut self, key: Key) -> Option<Output> {
        let reader = self.streams.remove(&key)?.reader?;
        Some(Output::Stream(reader.request, Part::End))
    }

    /// All that a session had. Returns the ends of their readers.
    pub fn remove_session(&mut self, stream: StreamId, session: SessionId) -> Vec<Output> {
        let all: Vec<Key> = self.streams.range(keys(stream, session)).map(|(key, _)| *key).collect();
        all.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Those of one stream that are being read.
    pub fn heard(&mut self, stream: StreamId) -> impl Iterator<Item = &mut EventStream> {
        let all = self.streams.range_mut((stream, SessionId(0), 0)..=(stream, SessionId(u64::MAX), u32::MAX));
        all.map(|(_, events)| events).filter(|events| events.reader.is_some())
    }

    pub fn is_heard(&mut self, stream: StreamId) -> bool {
        self.heard(stream).next().is_some()
    }
}
