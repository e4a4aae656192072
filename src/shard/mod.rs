//! One core's world, sans-IO: demux, sessions, timers, mailbox.
//!
//! The owner (a thread of `node`, or the simulator) feeds it with `handle_*` and after each round calls
//! [`Shard::poll_transmit`] until it says that nothing is left, then takes what is for others with
//! [`Shard::poll_peer`] and [`Shard::poll_event`]. Nothing here knows that threads or sockets exist.

mod demux;
pub mod message;
pub mod placement;
mod timers;
mod viewers;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use slab::Slab;
use str0m::media::MediaKind;
use tracing::{debug, info, trace};

use crate::datagram::{Received, SendBatch, SocketId};
use crate::forward::burst::Segmenting;
use crate::forward::canonical::Refused;
use crate::forward::fanout::{Fanout, Taken};
use crate::forward::keyframes::KeyframeRequests;
use crate::id::{Generation, SessionId, ShardId, StreamId};
use crate::limits;
use crate::metrics::{Counters, DropReason, ShardFigures};
use crate::session::{CloseReason, Output, Role, Session, TrackStarted};
use crate::units::Instant;
use crate::wire::classify::Kind;
use crate::wire::packet::MediaPacket;
use demux::{Demux, Gate, Remote};
use message::{Command, Event, ForeignDatagram, PeerMessage, Report, TrackReport};
use placement::Slot;
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
    config: ShardConfig,
    timers: Timers,
    peers: VecDeque<(ShardId, PeerMessage)>,
    events: VecDeque<Event>,
    /// TCP connections that no session uses any more.
    unused_streams: VecDeque<Remote>,
    counters: Counters,
    /// Copies of this round: when their packets had been received, and how many in a row.
    copied: Vec<(Instant, u64)>,
    next_report: Instant,
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
    /// The 4-tuple that the client nominated last.
    selected: Option<Remote>,
    publishing: Option<Publishing>,
    broken_rtcp: RateLimit,
}

/// A publisher's side of an entry.
struct Publishing {
    /// Viewers see it.
    active: bool,
    keyframes: KeyframeRequests,
    tracks: [Option<TrackReport>; 2],
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
            config,
            timers: Timers::new(),
            peers: VecDeque::new(),
            events: VecDeque::new(),
            unused_streams: VecDeque::new(),
            counters: Counters::default(),
            copied: Vec::new(),
            next_report: Instant::ZERO + limits::REPORT_INTERVAL,
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
        match message {
            PeerMessage::Media(packet) => self.forward_here(now, &packet, out),
            PeerMessage::Datagram(d) => {
                self.counters.datagrams_taken_over += 1;
                let datagram = Received { socket: d.socket, remote: d.remote, data: &d.data };
                self.route_datagram(now, datagram, true, out);
            }
            PeerMessage::KeyframeRequest { stream } => self.request_keyframe_here(now, stream, out),
        }
    }

    /// An order from control.
    pub fn handle_command(&mut self, now: Instant, command: Command, out: &mut SendBatch) {
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
                self.events.push_back(Event::IceRestarted { session, request, result });
            }
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
            if let Some(publishing) = &mut entry.publishing
                && publishing.keyframes.poll(now)
                && entry.session.request_keyframe()
            {
                self.counters.keyframe_requests_sent += 1;
            }
            self.drain(now, key, out);
        }
        if now >= self.next_report {
            self.next_report = now + limits::REPORT_INTERVAL;
            let report = self.report(now);
            self.events.push_back(Event::Report(Box::new(report)));
        }
    }

    /// When to call [`Self::handle_timeout`].
    pub fn next_timeout(&self) -> Instant {
        self.timers.next().min(self.next_report).min(self.held_until().unwrap_or(Instant::FAR_FUTURE))
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

    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn route_datagram(&mut self, now: Instant, datagram: Received, handed_over: bool, out: &mut SendBatch) {
        match self.demux.gate(&datagram, handed_over) {
            Gate::Session { key, kind } => self.feed(now, key, kind, datagram, out),
            Gate::Stun { slot, nominated } => self.feed_stun(now, slot, nominated, datagram, out),
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
        self.validate(key, (datagram.socket, datagram.remote), nominated);
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
        let id = session.id;
        let publishing = (session.role() == Role::Publisher).then(|| Publishing {
            active: false,
            keyframes: KeyframeRequests::new(),
            tracks: [None, None],
        });
        let key = self.sessions.insert(Entry {
            session,
            slot,
            armed: Armed::default(),
            viewer: None,
            remotes: Vec::new(),
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
                if entry.remotes.len() >= limits::REMOTES_PER_SESSION_MAX {
                    let oldest = entry.remotes.remove(0);
                    self.demux.unlearn(oldest, key);
                    self.unused_streams.extend(Some(oldest).filter(|(socket, _)| socket.is_stream()));
                }
                entry.remotes.push(remote);
            }
        }
        // Browsers nominate a pair that they have checked before, so this need not be the first we see of it.
        if nominated && entry.selected != Some(remote) {
            entry.selected = Some(remote);
            debug!(session = %entry.session.id, remote = %remote.1, "pair selected");
        }
        self.demux.learn(remote, key);
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
        let keyframes = entry.publishing.as_ref().map_or(Instant::FAR_FUTURE, |p| p.keyframes.next_timeout());
        let deadline = entry.session.next_timeout().min(keyframes);
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

    fn handle_track(&mut self, now: Instant, key: usize, track: TrackStarted) {
        let entry = &mut self.sessions[key];
        let stream = entry.session.stream;
        if let Some(publishing) = &mut entry.publishing {
            publishing.tracks[track.kind as usize] = Some(TrackReport {
                stream,
                kind: track.kind,
                format: track.format,
                packets: 0,
                bytes: 0,
                last_packet: now,
            });
        }
        let event = Event::TrackStarted { session: entry.session.id, stream, kind: track.kind, format: track.format };
        self.events.push_back(event);
    }

    /// A publisher's packet: once to each shard that has viewers of its kind.
    fn handle_media(&mut self, now: Instant, key: usize, packet: &Arc<MediaPacket>, out: &mut SendBatch) {
        self.counters.media_received += 1;
        self.counters.media_received_bytes += packet.payload.len() as u64;
        if !self.is_active(now, key, packet.generation) {
            return self.counters.drops.count(DropReason::Stale);
        }
        let entry = &mut self.sessions[key];
        if let Some(publishing) = &mut entry.publishing {
            if packet.starts_keyframe && packet.kind == MediaKind::Video {
                self.counters.keyframes_received += 1;
                publishing.keyframes.handle_keyframe(now);
            }
            if let Some(track) = &mut publishing.tracks[packet.kind as usize] {
                track.packets += 1;
                track.bytes += packet.payload.len() as u64;
                track.last_packet = now;
            }
        }
        let mut interest = entry.slot.stream.interest(packet.kind);
        let mine = 1u64 << self.id.index();
        if interest & mine != 0 {
            self.forward_here(now, packet, out);
            interest &= !mine;
        }
        while interest != 0 {
            let shard = ShardId(interest.trailing_zeros() as u16);
            interest &= interest - 1;
            self.counters.peer_packets_sent += 1;
            self.peers.push_back((shard, PeerMessage::Media(packet.clone())));
        }
    }

    /// Whether viewers see this publisher. Its first authenticated RTP makes it so, unless a later one has come first.
    fn is_active(&mut self, now: Instant, key: usize, generation: Generation) -> bool {
        let entry = &mut self.sessions[key];
        let Some(publishing) = &mut entry.publishing else { return false };
        let stream = &entry.slot.stream;
        let current = stream.active();
        if current == generation {
            return true;
        }
        if current > generation || !stream.activate(generation, self.id) {
            // Somebody took over: this one is told goodbye. The drain that brought us here goes on and sees to it.
            entry.session.close(now, CloseReason::TakenOver);
            return false;
        }
        publishing.active = true;
        self.publishers.insert(stream.id, key);
        info!(session = %entry.session.id, stream = %stream.id, shard = %self.id, "publisher live");
        let event = Event::PublisherActive { session: entry.session.id, stream: stream.id, generation };
        self.events.push_back(event);
        true
    }

    /// Queues a packet for this shard's viewers.
    fn forward_here(&mut self, now: Instant, packet: &Arc<MediaPacket>, out: &mut SendBatch) {
        let reason = match self.fanout.handle(packet) {
            Taken::Queued | Taken::Unwatched => return,
            Taken::Full => DropReason::TrackQueueFull,
            Taken::Refused(Refused::Stale) => DropReason::Stale,
            Taken::Refused(Refused::Padding) => DropReason::Padding,
            Taken::Refused(Refused::AwaitingKeyframe) => {
                if self.fanout.ask_for_keyframe(now, packet.stream) {
                    self.request_keyframe(now, packet.stream, out);
                }
                DropReason::AwaitingKeyframe
            }
        };
        self.counters.drops.count(reason);
    }

    /// Somebody on this shard needs a keyframe.
    fn request_keyframe(&mut self, now: Instant, stream: StreamId, out: &mut SendBatch) {
        if self.publishers.contains_key(&stream) {
            self.request_keyframe_here(now, stream, out);
        } else {
            self.send_keyframe_request(stream);
        }
    }

    /// A viewer says that it needs a keyframe, which it may do as often as it likes.
    fn request_keyframe_for_viewer(&mut self, now: Instant, stream: StreamId, out: &mut SendBatch) {
        self.counters.keyframe_requests_received += 1;
        if self.publishers.contains_key(&stream) || self.fanout.pass_on_keyframe_request(now, stream) {
            self.request_keyframe(now, stream, out);
        }
    }

    /// Passes a request to the publisher's shard; to this one too, where it is the one: it comes back as a message.
    fn send_keyframe_request(&mut self, stream: StreamId) {
        let Some(shared) = self.fanout.stream(stream) else { return };
        if shared.active() == Generation::default() {
            return; // Nobody publishes yet; the first keyframe will come by itself.
        }
        self.peers.push_back((shared.publisher_shard(), PeerMessage::KeyframeRequest { stream }));
    }

    fn request_keyframe_here(&mut self, now: Instant, stream: StreamId, out: &mut SendBatch) {
        let Some(&key) = self.publishers.get(&stream) else { return };
        let Some(entry) = self.sessions.get_mut(key) else { return };
        let Some(publishing) = &mut entry.publishing else { return };
        publishing.keyframes.handle_request(now);
        if publishing.keyframes.poll(now) && entry.session.request_keyframe() {
            self.counters.keyframe_requests_sent += 1;
        }
        self.drain(now, key, out);
    }

    fn remove(&mut self, key: usize, reason: CloseReason) {
        let mut entry = self.sessions.remove(key);
        let id = entry.session.id;
        self.counters.str0m_media_suppressed += entry.session.take_suppressed();
        if let Some(viewer) = entry.viewer {
            self.fanout.leave(entry.slot.stream.id, viewer);
            self.resends.retain(|r| r.viewer != viewer);
            self.viewers.remove(viewer);
        }
        self.by_id.remove(&id);
        for remote in entry.remotes {
            self.demux.unlearn(remote, key);
            self.unused_streams.extend(Some(remote).filter(|(socket, _)| socket.is_stream()));
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
        Report { at: now, figures, tracks }
    }
}
