//! One core's world, sans-IO: demux, sessions, timers, mailbox.
//!
//! The owner (a thread of `node`, or the simulator) feeds it with `handle_*` and after each round calls
//! [`Shard::poll_transmit`] until it says that nothing is left, then takes what is for others with
//! [`Shard::poll_peer`] and [`Shard::poll_event`]. Nothing here knows that threads or sockets exist.

mod demux;
mod layers;
pub mod message;
pub mod placement;
mod publishing;
mod start;
mod timers;
mod viewers;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;
use tracing::{debug, info, trace};

use crate::datagram::{Received, SendBatch, SocketId};
use crate::forward::burst::Segmenting;
use crate::forward::canonical::Refused;
use crate::forward::fanout::Fanout;
use crate::forward::track::NotTaken;
use crate::id::{Generation, SessionId, ShardId, StreamId};
use crate::limits;
use crate::metrics::{Counters, DropReason, ShardFigures};
use crate::session::{CloseReason, Output, Role, Session};
use crate::units::Instant;
use crate::wire::classify::Kind;
use crate::wire::packet::MediaPacket;
use demux::{Demux, Gate, Remote};
use message::{Command, Event, ForeignDatagram, PeerMessage, Report};
use placement::Slot;
use publishing::Publishing;
use start::Starts;
use timers::{Armed, Timers};
use viewers::{Resend, Viewer};

/// One core's sessions and everything that happens to them.
pub struct Shard {
    id: ShardId,
    demux: Demux,
    sessions: Slab<Entry>,
    by_id: FxHashMap<SessionId, usize>,
    /// The publisher that viewers see, where it lives on this shard.
    publishers: FxHashMap<StreamId, usize>,
    /// Viewers by their keys in `viewers`.
    fanout: Fanout<usize>,
    viewers: Slab<Viewer>,
    /// Granted, and waiting for their turn; at most [`limits::RESEND_QUEUE_PACKETS`].
    resends: VecDeque<Resend>,
    starts: Starts,
    config: ShardConfig,
    timers: Timers,
    /// Of viewers' congestion control, by their keys in `viewers`.
    probe_timers: Timers,
    peers: VecDeque<(ShardId, PeerMessage)>,
    events: VecDeque<Event>,
    /// TCP connections that no session uses any more.
    unused_streams: VecDeque<Remote>,
    counters: Counters,
    /// Copies of this round: when their packets had been received, and how many in a row.
    copied: Vec<(Instant, u64)>,
    next_report: Instant,
    /// When viewers of streams with several layers are looked at next.
    next_select: Instant,
    /// When media, a handshake or another thread last wanted something.
    last_stir: Instant,
    stopping: bool,
}

/// What all shards of a node have in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardConfig {
    pub segmenting: Segmenting,
    /// How long the beginning of a video frame waits for the rest, so that it leaves in fewer messages.
    pub video_hold: Duration,
    /// The wall clock at [`Instant::ZERO`], for sender reports.
    pub unix_at_start: Duration,
}

/// A session with what the shard keeps about it.
struct Entry {
    session: Box<Session>,
    slot: Arc<Slot>,
    armed: Armed,
    /// Key of a connected viewer's media plane.
    viewer: Option<usize>,
    /// Validated 4-tuples, least recently authenticated first.
    remotes: Vec<Remote>,
    /// All that were validated since ICE began: str0m has a candidate for each at most.
    seen: FxHashSet<Remote>,
    /// The 4-tuple that the client nominated last.
    selected: Option<Remote>,
    publishing: Option<Publishing>,
    broken_rtcp: RateLimit,
}

/// Lets one log line pass in ten seconds.
#[derive(Default)]
struct RateLimit(Option<Instant>);

impl RateLimit {
    fn passes(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|last| now.since(last) >= Duration::from_secs(10));
        if due {
            self.0 = Some(now);
        }
        due
    }
}

impl Shard {
    pub fn new(id: ShardId, config: ShardConfig) -> Shard {
        Shard {
            id,
            demux: Demux::new(id),
            sessions: Slab::new(),
            by_id: FxHashMap::default(),
            publishers: FxHashMap::default(),
            fanout: Fanout::new(id, config.segmenting),
            viewers: Slab::new(),
            resends: VecDeque::new(),
            starts: Starts::default(),
            config,
            timers: Timers::new(),
            probe_timers: Timers::new(),
            peers: VecDeque::new(),
            events: VecDeque::new(),
            unused_streams: VecDeque::new(),
            counters: Counters::default(),
            copied: Vec::new(),
            next_report: Instant::ZERO + limits::REPORT_INTERVAL,
            next_select: Instant::FAR_FUTURE,
            last_stir: Instant::ZERO,
            stopping: false,
        }
    }

    pub fn id(&self) -> ShardId {
        self.id
    }

    /// A datagram from one of this shard's sockets.
    pub fn handle_datagram(&mut self, now: Instant, datagram: Received, out: &mut SendBatch) {
        self.counters.datagrams_received += 1;
        self.counters.bytes_received += datagram.data.len() as u64;
        self.route_datagram(now, datagram, false, out);
    }

    /// A message from another shard.
    pub fn handle_peer(&mut self, now: Instant, message: PeerMessage, out: &mut SendBatch) {
        self.last_stir = now;
        match message {
            PeerMessage::Media(packet) => self.forward_here(now, &packet, out),
            PeerMessage::Datagram(d) => {
                self.counters.datagrams_taken_over += 1;
                let datagram = Received { socket: d.socket, remote: d.remote, data: &d.data };
                self.route_datagram(now, datagram, true, out);
            }
            PeerMessage::KeyframeRequest { stream, layer } => self.request_keyframe_here(now, stream, layer, out),
            PeerMessage::PastRequest { stream, layer, from } => self.send_past(stream, layer, from),
            PeerMessage::Past { stream, packets, whole } => self.handle_past(now, stream, &packets, whole),
        }
    }

    /// An order from control.
    pub fn handle_command(&mut self, now: Instant, command: Command, out: &mut SendBatch) {
        self.last_stir = now;
        match command {
            Command::Announce { ufrag, pwd, slot } => self.demux.announce(ufrag, &pwd, slot),
            Command::Forget { ufrag } => self.demux.forget(&ufrag),
            Command::Close { session, reason } => {
                if let Some(key) = self.by_id.get(&session).copied() {
                    self.close(now, key, reason, out);
                }
            }
            Command::AddCandidates { session, candidates } => {
                self.with_session(now, session, out, |s| s.add_remote_candidates(&candidates));
            }
            Command::RestartIce { session, request, ufrag, pwd, candidates } => {
                let result = self
                    .with_session(now, session, out, |s| s.restart_ice(&ufrag, &pwd, &candidates))
                    .unwrap_or_else(|| Err("the session has ended".into()));
                if let (Ok(_), Some(key)) = (&result, self.by_id.get(&session)) {
                    self.sessions[*key].seen.clear();
                }
                self.events.push_back(Event::IceRestarted { session, request, result });
            }
            Command::SelectLayer { session, wish } => self.handle_wish(now, session, wish, out),
            Command::Stop => {
                self.stopping = true;
                let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
                for key in keys {
                    self.close(now, key, CloseReason::Stopping, out);
                }
                self.say_when_stopped();
            }
        }
    }

    /// To be called when [`Self::next_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut SendBatch) {
        while let Some((at, key)) = self.timers.pop_due(now) {
            let Some(entry) = self.sessions.get_mut(key) else { continue };
            if !entry.armed.fires(at) {
                continue;
            }
            entry.session.handle_timeout(now);
            self.poll_publishing(now, key);
            self.drain(now, key, out);
        }
        self.handle_overdue(now);
        self.select_all(now, out);
        self.handle_probes(now, out);
        if now >= self.next_report {
            self.arm_select(now);
            self.next_report = now + limits::REPORT_INTERVAL;
            let report = self.report(now);
            self.events.push_back(Event::Report(Box::new(report)));
        }
    }

    /// When to call [`Self::handle_timeout`].
    pub fn next_timeout(&self) -> Instant {
        self.timers
            .next()
            .min(self.probe_timers.next())
            .min(self.next_report)
            .min(self.next_select)
            .min(self.next_transmit())
    }

    /// Whether nothing but checks and reports has come for a while: a few milliseconds do not matter to them.
    pub fn is_quiet(&self, now: Instant) -> bool {
        now.since(self.last_stir) >= limits::QUIET_AFTER && self.next_transmit() == Instant::FAR_FUTURE
    }

    /// The next message for another shard. What its queue does not take is given back to [`Self::peer_queue_full`].
    pub fn poll_peer(&mut self) -> Option<(ShardId, PeerMessage)> {
        self.peers.pop_front()
    }

    pub fn peer_queue_full(&mut self) {
        self.counters.drops.count(DropReason::PeerQueueFull);
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next TCP connection that is to be closed, once everything is sent.
    pub fn poll_unused_stream(&mut self) -> Option<(SocketId, SocketAddr)> {
        self.unused_streams.pop_front()
    }

    /// The driver adds what the backend reports.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Whether the 4-tuple is that of a session here.
    pub fn knows(&self, remote: (SocketId, SocketAddr)) -> bool {
        self.demux.knows(remote)
    }

    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What is kept for sessions, by name: all of it none when nobody is there.
    pub fn holdings(&self) -> [(&'static str, usize); 10] {
        [
            ("sessions", self.sessions.len()),
            ("names of sessions", self.by_id.len()),
            ("publishers", self.publishers.len()),
            ("viewers", self.viewers.len()),
            ("watched streams", self.fanout.streams()),
            ("resends", self.resends.len()),
            ("starts", self.starts.len()),
            ("ufrags", self.demux.credentials()),
            ("4-tuples", self.demux.remotes()),
            ("messages that wait", self.peers.len() + self.events.len()),
        ]
    }

    fn route_datagram(&mut self, now: Instant, datagram: Received, handed_over: bool, out: &mut SendBatch) {
        match self.demux.gate(&datagram, handed_over) {
            Gate::Session { key, kind } => self.feed(now, key, kind, datagram, out),
            Gate::Stun { slot, nominated, repaired: None } => self.feed_stun(now, slot, nominated, datagram, out),
            Gate::Stun { slot, nominated, repaired: Some(data) } => {
                self.counters.stun_repaired += 1;
                self.feed_stun(now, slot, nominated, Received { data: &data, ..datagram }, out);
            }
            Gate::HandOver(_) if handed_over => self.counters.drops.count(DropReason::Misrouted),
            Gate::HandOver(owner) => {
                self.counters.datagrams_handed_over += 1;
                let message = PeerMessage::Datagram(Box::new(ForeignDatagram {
                    socket: datagram.socket,
                    remote: datagram.remote,
                    data: datagram.data.into(),
                }));
                self.peers.push_back((owner, message));
            }
            Gate::Drop(reason) => {
                if reason == DropReason::RtcpTooShort {
                    trace!("broken RTCP discarded");
                }
                self.counters.drops.count(reason);
            }
        }
    }

    /// A datagram from a validated 4-tuple.
    fn feed(&mut self, now: Instant, key: usize, kind: Kind, datagram: Received, out: &mut SendBatch) {
        let Some(entry) = self.sessions.get_mut(key) else {
            return self.counters.drops.count(DropReason::SessionGone);
        };
        let media = matches!(kind, Kind::Rtp | Kind::Rtcp);
        if media && !entry.session.is_live() {
            return self.counters.drops.count(DropReason::MediaBeforeDtls);
        }
        if let Some(viewer) = entry.viewer
            && media
        {
            return self.feed_viewer(now, key, viewer, kind, datagram.data, out);
        }
        if !entry.session.handle_datagram(now, datagram.socket, datagram.remote, datagram.data, false) {
            if kind == Kind::Rtcp && entry.broken_rtcp.passes(now) {
                info!(session = %entry.session.id, "broken RTCP discarded");
            }
            return self.counters.drops.count(DropReason::Unreadable);
        }
        if matches!(kind, Kind::Rtp | Kind::Dtls) {
            self.last_stir = now;
        }
        let before = self.counters.media_received;
        self.drain(now, key, out);
        match kind {
            Kind::Rtp if self.counters.media_received == before => {
                self.counters.drops.count(DropReason::RtpDiscarded);
            }
            Kind::Rtp => {}
            _ => self.counters.datagrams_consumed += 1,
        }
    }

    /// STUN that its session's password has authenticated.
    fn feed_stun(&mut self, now: Instant, slot: Arc<Slot>, nominated: bool, datagram: Received, out: &mut SendBatch) {
        let key = match self.by_id.get(&slot.session) {
            Some(key) => *key,
            None => match slot.adopt(self.id) {
                Some(session) => self.adopt(now, session, slot),
                None => return self.counters.drops.count(DropReason::SessionGone),
            },
        };
        let remote = (datagram.socket, datagram.remote);
        let seen = &mut self.sessions[key].seen;
        if seen.len() >= limits::REMOTES_IN_ALL_MAX && !seen.contains(&remote) {
            return self.counters.drops.count(DropReason::StunTooManyRemotes);
        }
        seen.insert(remote);
        self.validate(key, remote, nominated);
        let entry = &mut self.sessions[key];
        if nominated {
            match entry.viewer {
                Some(viewer) => self.viewers[viewer].egress.set_path(datagram.socket, datagram.remote),
                None => entry.session.set_path(datagram.socket, datagram.remote),
            }
        }
        if entry.session.handle_datagram(now, datagram.socket, datagram.remote, datagram.data, true) {
            self.counters.datagrams_consumed += 1;
        } else {
            self.counters.drops.count(DropReason::Unreadable);
        }
        self.drain(now, key, out);
    }

    fn adopt(&mut self, now: Instant, session: Box<Session>, slot: Arc<Slot>) -> usize {
        info!(session = %session.id, stream = %session.stream, role = session.role().name(), shard = %self.id,
            "ICE checking");
        self.counters.sessions_started += 1;
        self.last_stir = now;
        let id = session.id;
        let publishing = (session.role() == Role::Publisher).then(|| Publishing::new(&session));
        let key = self.sessions.insert(Entry {
            session,
            slot,
            armed: Armed::default(),
            viewer: None,
            remotes: Vec::new(),
            seen: FxHashSet::default(),
            selected: None,
            publishing,
            broken_rtcp: RateLimit::default(),
        });
        self.by_id.insert(id, key);
        if self.stopping {
            self.sessions[key].session.close(now, CloseReason::Stopping);
        }
        key
    }

    /// Remembers a 4-tuple that STUN has validated; the least recently used one makes room.
    fn validate(&mut self, key: usize, remote: Remote, nominated: bool) {
        let entry = &mut self.sessions[key];
        match entry.remotes.iter().position(|r| *r == remote) {
            Some(at) => {
                let remote = entry.remotes.remove(at);
                entry.remotes.push(remote);
            }
            None => {
                if !entry.session.offered_candidate(remote.1) {
                    debug!(session = %entry.session.id, remote = %remote.1, "peer-reflexive candidate learned");
                }
                entry.remotes.push(remote);
            }
        }
        let oldest = (entry.remotes.len() > limits::REMOTES_PER_SESSION_MAX).then(|| entry.remotes.remove(0));
        // Browsers nominate a pair that they have checked before, so this need not be the first we see of it.
        if nominated && entry.selected != Some(remote) {
            entry.selected = Some(remote);
            debug!(session = %entry.session.id, remote = %remote.1, "pair selected");
        }
        if let Some(oldest) = oldest {
            self.let_go(oldest, key);
        }
        self.demux.learn(remote, key);
    }

    /// A session uses a 4-tuple no longer.
    fn let_go(&mut self, remote: Remote, key: usize) {
        if self.demux.unlearn(remote, key) && remote.0.is_stream() {
            self.unused_streams.push_back(remote);
        }
    }

    fn with_session<T>(
        &mut self,
        now: Instant,
        session: SessionId,
        out: &mut SendBatch,
        f: impl FnOnce(&mut Session) -> T,
    ) -> Option<T> {
        let key = *self.by_id.get(&session)?;
        let result = f(&mut self.sessions[key].session);
        self.drain(now, key, out);
        Some(result)
    }

    /// Takes everything that a session has to say, as str0m wants it after each input.
    fn drain(&mut self, now: Instant, key: usize, out: &mut SendBatch) {
        loop {
            let Some(entry) = self.sessions.get_mut(key) else { return };
            match entry.session.poll_output(now, out) {
                None => break,
                Some(Output::Media(packet)) => self.handle_media(now, key, &packet, out),
                Some(Output::TrackStarted(track)) => self.handle_track(now, key, track),
                Some(Output::Connected(egress)) => self.handle_connected(now, key, egress, out),
                Some(Output::Closed(reason)) => return self.remove(key, reason),
            }
        }
        let entry = &mut self.sessions[key];
        self.counters.str0m_media_suppressed += entry.session.take_suppressed();
        let publishing = entry.publishing.as_ref().map_or(Instant::FAR_FUTURE, Publishing::next_timeout);
        let deadline = entry.session.next_timeout().min(publishing);
        self.timers.arm(key, &mut entry.armed, deadline);
    }

    /// Says goodbye to a session's client.
    fn close(&mut self, now: Instant, key: usize, reason: CloseReason, out: &mut SendBatch) {
        let Some(entry) = self.sessions.get_mut(key) else { return };
        if let Some(viewer) = entry.viewer
            && entry.session.is_live()
        {
            self.viewers[viewer].egress.say_bye(out);
        }
        entry.session.close(now, reason);
        self.drain(now, key, out);
    }

    /// Queues a packet for this shard's viewers.
    fn forward_here(&mut self, now: Instant, packet: &Arc<MediaPacket>, out: &mut SendBatch) {
        let mut keyframe_wanted = false;
        let drops = &mut self.counters.drops;
        self.fanout.handle(now, packet, |not| {
            keyframe_wanted |= not == NotTaken::Refused(Refused::AwaitingKeyframe);
            drops.count(match not {
                NotTaken::Full => DropReason::TrackQueueFull,
                NotTaken::Refused(Refused::Stale) => DropReason::Stale,
                NotTaken::Refused(Refused::Padding) => DropReason::Padding,
                NotTaken::Refused(Refused::AwaitingKeyframe) => DropReason::AwaitingKeyframe,
            });
        });
        if keyframe_wanted && self.fanout.ask_for_keyframe(now, packet.stream, packet.layer) {
            self.request_keyframe(now, packet.stream, packet.layer, out);
        }
    }

    /// Somebody on this shard needs a keyframe.
    fn request_keyframe(&mut self, now: Instant, stream: StreamId, layer: u8, out: &mut SendBatch) {
        if self.publishers.contains_key(&stream) {
            self.request_keyframe_here(now, stream, layer, out);
        } else {
            self.send_keyframe_request(stream, layer);
        }
    }

    /// For a viewer that joins a layer: not held back by what others have asked for, which it may have come too late for.
    fn request_keyframe_at_once(&mut self, now: Instant, stream: StreamId, layer: u8, out: &mut SendBatch) {
        if self.fanout.joined(now, stream, layer) {
            self.request_keyframe(now, stream, layer, out);
        }
    }

    /// A viewer says that it needs a keyframe, which it may do as often as it likes.
    fn request_keyframe_for_viewer(&mut self, now: Instant, stream: StreamId, layer: u8, out: &mut SendBatch) {
        self.counters.keyframe_requests_received += 1;
        if self.publishers.contains_key(&stream) || self.fanout.pass_on_keyframe_request(now, stream, layer) {
            self.request_keyframe(now, stream, layer, out);
        }
    }

    /// Passes a request to the publisher's shard; to this one too, where it is the one: it comes back as a message.
    fn send_keyframe_request(&mut self, stream: StreamId, layer: u8) {
        let Some(shared) = self.fanout.stream(stream) else { return };
        if shared.active() == Generation::default() {
            return; // Nobody publishes yet; the first keyframe will come by itself.
        }
        self.peers.push_back((shared.publisher_shard(), PeerMessage::KeyframeRequest { stream, layer }));
    }

    fn remove(&mut self, key: usize, reason: CloseReason) {
        let mut entry = self.sessions.remove(key);
        let id = entry.session.id;
        self.counters.str0m_media_suppressed += entry.session.take_suppressed();
        if let Some(viewer) = entry.viewer {
            self.fanout.leave(entry.slot.stream.id, viewer);
            self.resends.retain(|r| r.viewer != viewer);
            self.starts.leave(viewer);
            self.viewers.remove(viewer);
        }
        self.by_id.remove(&id);
        for remote in entry.remotes {
            self.let_go(remote, key);
        }
        match entry.publishing {
            Some(_) => {
                if self.publishers.get(&entry.slot.stream.id) == Some(&key) {
                    self.publishers.remove(&entry.slot.stream.id);
                }
                info!(session = %id, stream = %entry.slot.stream.id, ?reason, "publisher left");
            }
            None => {
                info!(session = %id, stream = %entry.slot.stream.id, ?reason, "viewer left");
            }
        }
        self.counters.sessions_ended += 1;
        self.events.push_back(Event::Ended { session: id, reason });
        self.say_when_stopped();
    }

    fn say_when_stopped(&mut self) {
        if self.stopping && self.sessions.is_empty() {
            self.events.push_back(Event::Stopped);
        }
    }

    fn report(&self, now: Instant) -> Report {
        let publishing = self.sessions.iter().filter_map(|(_, e)| e.publishing.as_ref());
        let publishers = publishing.clone().count();
        let tracks = publishing.filter(|p| p.active).flat_map(|p| p.tracks.iter().flatten().copied()).collect();
        let figures = ShardFigures {
            shard: self.id,
            counters: self.counters.clone(),
            publishers,
            viewers: self.sessions.len() - publishers,
            backend: Vec::new(),
        };
        let active = self.sessions.iter().filter(|(_, e)| e.publishing.as_ref().is_some_and(|p| p.active));
        let layers = active.flat_map(|(_, e)| publishing::layer_reports(&e.slot.stream)).collect();
        Report { at: now, figures, tracks, layers }
    }
}
