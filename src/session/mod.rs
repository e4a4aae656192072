//! One peer connection, sans-IO: a publisher or a viewer.
//!
//! Feed it with `handle_*`, then call [`Session::poll_output`] until it gives nothing, then again when
//! [`Session::next_timeout`] has come. Nothing here knows that sockets or other sessions exist.

pub mod bwe;
mod capture;
mod crossing;
pub mod egress;
#[cfg(test)]
mod egress_tests;
mod feedback;
pub mod negotiate;
mod peer;
mod publisher;
pub mod squeeze;
pub mod track;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use str0m::{Candidate, Event as RtcEvent, IceConnectionState};
use tracing::{debug, field, info, warn};

use crate::datagram::{SendBatch, SocketId};
use crate::id::{Rid, SessionId, StreamId};
use crate::limits;
use crate::srtp::dtls::{KeySlot, Observed};
use crate::units::Instant;
use crate::wire::packet::MediaPacket;
use crate::wire::sdp;
use egress::Egress;
use peer::{Peer, PeerError};
use publisher::Publisher;
use track::TrackSetup;

pub use publisher::TrackStarted;

/// Publisher or viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Publisher,
    Viewer,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Publisher => "publisher",
            Role::Viewer => "viewer",
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// DELETE on the session's URL.
    Deleted,
    /// DTLS close_notify from the client.
    ClosedByPeer,
    /// No DTLS within the connect timeout.
    NeverConnected,
    /// No authenticated packet for the dead timeout.
    Dead,
    /// Another publisher took the stream over.
    TakenOver,
    /// The publisher's grace ran out, or none ever came.
    NoPublisher,
    /// The stream's codec is not among those that the viewer accepted.
    CodecChanged,
    /// The server stops.
    Stopping,
    /// DTLS failed, or str0m gave up.
    Failed,
}

/// Our side of an ICE restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceRestart {
    pub ufrag: String,
    pub pwd: String,
}

/// What a session says to its shard.
#[derive(Debug)]
pub enum Output {
    /// ICE, DTLS and SRTP are up. A viewer's own media plane comes with it.
    Connected(Option<Box<Egress>>),
    /// A publisher's packet.
    Media(Arc<MediaPacket>),
    /// A publisher's track sent its first packet, or the first one in another format.
    TrackStarted(TrackStarted),
    /// The last output of a session.
    Closed(CloseReason),
}

/// One peer connection.
pub struct Session {
    pub id: SessionId,
    pub stream: StreamId,
    peer: Peer,
    plane: Plane,
    state: State,
    created: Instant,
    /// The last packet that STUN or SRTP has authenticated.
    last_authenticated: Instant,
    /// Said with the next poll.
    pending: VecDeque<Output>,
    /// str0m must be told the time before its output is complete: packets or requests were put in.
    touched: bool,
    /// The offer as str0m has read it, replayed with new credentials at an ICE restart.
    offer: Box<str>,
    observed: Observed,
}

/// What a viewer's media plane is made of, until its keys are there.
struct ViewerSetup {
    tracks: Vec<TrackSetup>,
    keys: KeySlot,
    cname: String,
    path: Option<(SocketId, SocketAddr)>,
    seed: u64,
}

impl ViewerSetup {
    fn new(tracks: Vec<TrackSetup>, keys: KeySlot, cname: String, seed: u64) -> ViewerSetup {
        ViewerSetup { tracks, keys, cname, path: None, seed }
    }

    /// To be called only when the certificate's fingerprint is verified.
    fn build(&mut self) -> Option<Egress> {
        let keys = self.keys.take_keys()?;
        let master = keys.master_keys().ok()?;
        let tracks = std::mem::take(&mut self.tracks);
        let cname = std::mem::take(&mut self.cname);
        Some(Egress::new(&master, tracks, cname, self.path, &mut StdRng::seed_from_u64(self.seed)))
    }
}

enum Plane {
    Publisher(Box<Publisher>),
    Viewer(ViewerSetup),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Live,
    /// str0m says goodbye; whatever it still sends goes out.
    Closing(CloseReason),
    Closed,
}

impl Session {
    fn new(now: Instant, id: SessionId, stream: StreamId, peer: Peer, plane: Plane) -> Session {
        Session {
            id,
            stream,
            peer,
            plane,
            state: State::Connecting,
            created: now,
            last_authenticated: now,
            pending: VecDeque::new(),
            touched: false,
            offer: Box::default(),
            observed: Observed::default(),
        }
    }

    fn publisher(now: Instant, id: SessionId, stream: StreamId, peer: Peer, plane: Publisher) -> Session {
        Session::new(now, id, stream, peer, Plane::Publisher(Box::new(plane)))
    }

    fn viewer(now: Instant, id: SessionId, stream: StreamId, peer: Peer, plane: ViewerSetup) -> Session {
        Session::new(now, id, stream, peer, Plane::Viewer(plane))
    }

    fn with(mut self, offer: String, observed: Observed) -> Session {
        self.offer = offer.into();
        self.observed = observed;
        self
    }

    pub fn role(&self) -> Role {
        match self.plane {
            Plane::Publisher(_) => Role::Publisher,
            Plane::Viewer(_) => Role::Viewer,
        }
    }

    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Feeds a datagram that the shard's gate has let through. Returns whether str0m could read it at all.
    ///
    /// `authenticated`: the gate has verified its STUN integrity.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        socket: SocketId,
        remote: SocketAddr,
        data: &[u8],
        authenticated: bool,
    ) -> bool {
        if authenticated {
            self.last_authenticated = now;
        }
        match self.peer.handle_receive(now, socket, remote, data) {
            Ok(read) => read,
            Err(e) => {
                self.fail(e);
                true
            }
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Closed => return,
            State::Connecting if now >= self.created + limits::CONNECT_TIMEOUT => {
                return self.close(now, CloseReason::NeverConnected);
            }
            State::Live if now >= self.last_authenticated + limits::DEAD_TIMEOUT => {
                return self.close(now, CloseReason::Dead);
            }
            _ => {}
        }
        if now >= self.peer.deadline()
            && let Err(e) = self.peer.handle_timeout(now)
        {
            return self.fail(e);
        }
        if let Plane::Publisher(publisher) = &mut self.plane
            && self.state == State::Live
            && publisher.pli_due(now)
        {
            for layer in 0..limits::LAYERS_MAX {
                self.request_keyframe(layer as u8);
            }
        }
    }

    /// SRTCP of this session was authentic.
    pub fn authenticated(&mut self, now: Instant) {
        self.last_authenticated = now;
    }

    /// The client has nominated this pair. A viewer's media plane, once it is taken, is to be told itself.
    pub fn set_path(&mut self, socket: SocketId, remote: SocketAddr) {
        if let Plane::Viewer(setup) = &mut self.plane {
            setup.path = Some((socket, remote));
        }
    }

    /// RTP and RTCP datagrams that str0m wanted to send beside a viewer's own media plane since the last call.
    pub fn take_suppressed(&mut self) -> u64 {
        self.peer.take_suppressed()
    }

    /// Names of a publisher's simulcast layers, in the order of the offer.
    pub fn rids(&self) -> impl Iterator<Item = Rid> + use<'_> {
        let Plane::Publisher(publisher) = &self.plane else { return None.into_iter().flatten() };
        Some(publisher.rids()).into_iter().flatten()
    }

    /// Asks this publisher's encoder for a keyframe of a layer. False when it does not send that, or is not connected.
    pub fn request_keyframe(&mut self, layer: u8) -> bool {
        let Plane::Publisher(publisher) = &self.plane else {
            return false;
        };
        if self.state != State::Live {
            return false;
        }
        self.touched = true;
        self.peer.with_rtc(|rtc| Ok(publisher.request_keyframe(rtc, layer))).unwrap_or_else(|e| {
            self.fail(e);
            false
        })
    }

    /// Trickled candidates, as the values of `a=candidate`. We never check them (ICE-lite); those that cannot be read
    /// or resolved are dropped silently (RFC 9725 §4.3.2).
    pub fn add_remote_candidates(&mut self, candidates: &[String]) {
        for line in candidates {
            let Ok(candidate) = Candidate::from_sdp_string(line) else { continue };
            let added = self.peer.with_rtc(|rtc| {
                rtc.add_remote_candidate(candidate);
                Ok(())
            });
            if let Err(e) = added {
                return self.fail(e);
            }
        }
    }

    /// The client restarts ICE: new credentials on both sides, DTLS and media go on.
    ///
    /// # Errors
    /// What str0m said; the old ICE session stays.
    pub fn restart_ice(&mut self, ufrag: &str, pwd: &str, candidates: &[String]) -> Result<IceRestart, String> {
        // str0m takes an offer that differs in its ICE credentials only for a restart.
        let sdp = sdp::with_ice(&self.offer, ufrag, pwd, candidates);
        let restarted = self.peer.with_rtc(|rtc| negotiate::restart(rtc, &sdp));
        match restarted {
            Ok(creds) => {
                self.touched = true;
                debug!(session = %self.id, "ICE restarted");
                Ok(IceRestart { ufrag: creds.ufrag, pwd: creds.pass })
            }
            Err(e @ PeerError::Rtc(_)) => Err(e.to_string()),
            Err(e @ PeerError::Panicked) => {
                let reason = e.to_string();
                self.fail(e);
                Err(reason)
            }
        }
    }

    /// Says goodbye (RTCP BYE, DTLS close_notify) and ends with [`Output::Closed`].
    pub fn close(&mut self, _now: Instant, reason: CloseReason) {
        if matches!(self.state, State::Closing(_) | State::Closed) {
            return;
        }
        self.state = State::Closing(reason);
        self.touched = true;
        if let Err(e) = self.peer.with_rtc(|rtc| Ok(rtc.close()?)) {
            self.fail(e);
        }
    }

    /// Datagrams go into `out`; everything else is returned, one at a time. `None`: nothing until the next input or
    /// [`Session::next_timeout`].
    pub fn poll_output(&mut self, now: Instant, out: &mut SendBatch) -> Option<Output> {
        if self.state == State::Closed {
            return self.pending.pop_front();
        }
        if std::mem::take(&mut self.touched)
            && let Err(e) = self.peer.handle_timeout(now)
        {
            self.fail(e);
        }
        loop {
            if let Some(output) = self.pending.pop_front() {
                return Some(output);
            }
            match self.peer.poll(out) {
                Ok(Some(event)) => self.handle_event(now, event),
                Ok(None) if self.state == State::Connecting && self.peer.is_connected() && self.connect(now) => {}
                Ok(None) => match self.state {
                    // str0m has nothing more to send: the goodbye is out.
                    State::Closing(reason) => {
                        self.state = State::Closed;
                        return Some(Output::Closed(reason));
                    }
                    State::Live | State::Connecting if !self.peer.is_alive() => {
                        self.state = State::Closed;
                        return Some(Output::Closed(CloseReason::Failed));
                    }
                    _ => return None,
                },
                Err(e) => {
                    self.fail(e);
                    return self.pending.pop_front();
                }
            }
        }
    }

    pub fn next_timeout(&self) -> Instant {
        let own = match self.state {
            State::Connecting => self.created + limits::CONNECT_TIMEOUT,
            State::Live => self.last_authenticated + limits::DEAD_TIMEOUT,
            State::Closing(_) | State::Closed => Instant::FAR_FUTURE,
        };
        let plane = match &self.plane {
            Plane::Publisher(p) => p.next_timeout(),
            Plane::Viewer(_) => Instant::FAR_FUTURE,
        };
        own.min(plane).min(self.peer.deadline())
    }

    /// Whether the offer named this address as a candidate; others are peer-reflexive (RFC 8445 §7.3.1.3).
    pub fn offered_candidate(&self, remote: SocketAddr) -> bool {
        let ip = remote.ip().to_string();
        let port = remote.port().to_string();
        self.offer.lines().filter_map(|l| l.strip_prefix("a=candidate:")).any(|l| {
            let mut words = l.split_ascii_whitespace().skip(4);
            words.next() == Some(ip.as_str()) && words.next() == Some(port.as_str())
        })
    }

    fn handle_event(&mut self, now: Instant, event: RtcEvent) {
        match event {
            RtcEvent::RtpPacket(rtp) => self.handle_rtp(now, rtp),
            RtcEvent::IceConnectionStateChange(state) => {
                // Advisory: after 15 s without a check str0m says Disconnected; media may still flow.
                if state == IceConnectionState::Connected || state == IceConnectionState::Completed {
                    info!(session = %self.id, state = ?state, "ICE connected");
                } else {
                    debug!(session = %self.id, state = ?state, "ICE");
                }
            }
            RtcEvent::Closed if !matches!(self.state, State::Closing(_) | State::Closed) => {
                self.state = State::Closing(CloseReason::ClosedByPeer);
            }
            _ => {}
        }
    }

    /// Everything is verified. False: DTLS has not handed out the keys yet, or the session has just failed.
    fn connect(&mut self, now: Instant) -> bool {
        let egress = match &mut self.plane {
            Plane::Publisher(_) => None,
            Plane::Viewer(setup) => match setup.build() {
                Some(egress) => Some(Box::new(egress)),
                None => return false,
            },
        };
        self.state = State::Live;
        self.last_authenticated = now;
        info!(
            session = %self.id,
            stream = %self.stream,
            role = self.role().name(),
            dtls = self.observed.version().map(field::debug),
            srtp = self.observed.profile().map(field::debug),
            after_ms = (now - self.created).as_millis() as u64,
            "DTLS connected"
        );
        self.pending.push_back(Output::Connected(egress));
        true
    }

    fn handle_rtp(&mut self, now: Instant, rtp: str0m::rtp::RtpPacket) {
        self.last_authenticated = now;
        let Plane::Publisher(publisher) = &mut self.plane else {
            // A viewer has no business sending media; it was decrypted, so it is its own and only counted.
            return;
        };
        let handled = self.peer.with_rtc(|rtc| Ok(publisher.handle_rtp(now, rtc, rtp)));
        match handled {
            Ok(Some((packet, started))) => {
                if let Some(track) = started {
                    info!(
                        session = %self.id,
                        stream = %self.stream,
                        kind = %track.kind,
                        codec = %track.format.codec,
                        payload_type = track.payload_type,
                        ssrc = track.ssrc,
                        "track started"
                    );
                    self.pending.push_back(Output::TrackStarted(track));
                }
                self.pending.push_back(Output::Media(Arc::new(packet)));
            }
            Ok(None) => {}
            Err(e) => self.fail(e),
        }
    }

    fn fail(&mut self, error: PeerError) {
        if self.state == State::Closed {
            return;
        }
        warn!(session = %self.id, role = self.role().name(), %error, "session failed");
        let reason = match self.state {
            State::Closing(reason) => reason,
            _ => CloseReason::Failed,
        };
        self.state = State::Closed;
        self.pending.push_back(Output::Closed(reason));
    }
}
