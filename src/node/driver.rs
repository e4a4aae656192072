//! The loop of one core: receive, let the shard work, send, ring peers, sleep until something happens.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::mpsc::error::TrySendError;
use tracing::warn;

use super::ice_tcp::Accepted;
use crate::datagram::{Class, Received, RecvBatch, SendBatch};
use crate::id::ShardId;
use crate::io::{Backend, BackendStats, Clock, Doorbell};
use crate::limits;
use crate::shard::Shard;
use crate::shard::message::{Command, Event, PeerMessage};
use crate::sync::{Inbox, MustRing};
use crate::units::Instant;

/// Messages of other shards per turn: as many as datagrams, so that neither starves the other.
const PEER_MESSAGES_PER_TURN: usize = limits::RECV_BATCH_DATAGRAMS;

/// How a shard is reached from other threads.
#[derive(Clone)]
pub(super) struct Peer {
    pub inbox: Arc<Inbox<PeerMessage>>,
    pub connections: Sender<Accepted>,
    pub doorbell: Doorbell,
}

/// To control: a shard's events in their order.
pub(super) type EventSender = tokio::sync::mpsc::Sender<(ShardId, Event)>;

/// One shard on its thread.
pub(super) struct Driver {
    shard: Shard,
    backend: Box<dyn Backend>,
    clock: Clock,
    /// All shards; this one too.
    peers: Vec<Peer>,
    commands: Receiver<Command>,
    /// TCP connections for sessions of this shard.
    connections: Receiver<Accepted>,
    events: EventSender,
    /// An event that control had no room for.
    held: Option<Event>,
    received: RecvBatch,
    out: SendBatch,
    /// Peers whose doorbell must ring at the end of this turn.
    to_ring: Vec<ShardId>,
}

impl Driver {
    pub fn new(
        shard: Shard,
        backend: Box<dyn Backend>,
        clock: Clock,
        peers: Vec<Peer>,
        commands: Receiver<Command>,
        connections: Receiver<Accepted>,
        events: EventSender,
    ) -> Driver {
        Driver {
            shard,
            backend,
            clock,
            peers,
            commands,
            connections,
            events,
            held: None,
            received: RecvBatch::new(),
            out: SendBatch::new(),
            to_ring: Vec::new(),
        }
    }

    /// Until the shard has stopped.
    ///
    /// # Errors
    /// The backend is beyond repair.
    pub fn run(mut self) -> std::io::Result<()> {
        let (mut worked, mut now) = (true, self.clock.now());
        loop {
            if worked && self.may_rest(now) {
                std::thread::sleep(limits::QUIET_REST);
            }
            let timeout = self.sleep_for(worked);
            self.received.clear();
            self.backend.receive(timeout, &mut self.received)?;
            self.inbox().woke();
            now = self.clock.now();
            worked = self.turn(now);
            if self.deliver_events() {
                return Ok(());
            }
        }
    }

    /// Nothing is going on but checks and reports, of which a full batch would be too many.
    fn may_rest(&self, now: Instant) -> bool {
        self.received.has_room() && self.shard.is_quiet(now)
    }

    /// How long to wait for datagrams: never after work, never while another shard has left something.
    fn sleep_for(&self, worked: bool) -> Option<Duration> {
        if worked || !self.inbox().prepare_to_sleep() {
            return Some(Duration::ZERO);
        }
        if self.held.is_some() {
            return Some(Duration::from_millis(1).min(self.shard.next_timeout().since(self.clock.now())));
        }
        Some(self.shard.next_timeout().since(self.clock.now()))
    }

    /// Returns whether there was anything to do.
    fn turn(&mut self, now: Instant) -> bool {
        let mut worked = !self.received.is_empty();
        // Control first: a session is announced before its answer leaves, so its first packet finds it.
        while let Ok(command) = self.commands.try_recv() {
            self.shard.handle_command(now, command, &mut self.out);
            worked = true;
        }
        while let Ok(accepted) = self.connections.try_recv() {
            self.adopt(now, accepted);
            worked = true;
        }
        self.received.at = now;
        for datagram in self.received.iter() {
            self.shard.handle_datagram(now, datagram, &mut self.out);
            // Handshakes and reports fill a batch too: media that waits, audio first, gets the next one.
            if self.out.is_full() {
                flush(&mut self.shard, self.backend.as_mut(), &mut self.out);
                self.shard.poll_transmit(now, &mut self.out);
                flush(&mut self.shard, self.backend.as_mut(), &mut self.out);
            }
        }
        for _ in 0..PEER_MESSAGES_PER_TURN {
            let Some(message) = self.inbox().pop() else { break };
            self.shard.handle_peer(now, message, &mut self.out);
            worked = true;
        }
        if now >= self.shard.next_timeout() {
            self.shard.handle_timeout(now, &mut self.out);
        }
        // Before this shard's own copies: the others can work meanwhile.
        self.hand_over();
        // One flush a turn: what has come meanwhile is looked at before the next, so audio waits for one flush at most.
        worked |= self.shard.poll_transmit(now, &mut self.out);
        flush(&mut self.shard, self.backend.as_mut(), &mut self.out);
        self.shard.handle_flushed(self.clock.now());
        while let Some((socket, remote)) = self.shard.poll_unused_stream() {
            // Closed when dropped; the goodbye has just been sent.
            self.backend.release(socket, remote);
        }
        self.hand_over();
        // What a full socket did not take is offered once more, at once: a turn is its whole delay.
        worked | !self.out.is_empty()
    }

    fn adopt(&mut self, now: Instant, accepted: Accepted) {
        let Accepted { connection, first } = accepted;
        let (socket, remote) = (connection.socket(), connection.remote());
        match self.backend.adopt(connection) {
            Ok(()) => {
                let handed_over = self.shard.counters_mut().datagrams_handed_over;
                self.shard.handle_datagram(now, Received { socket, remote, data: &first }, &mut self.out);
                // Its session may have ended meanwhile: then nobody would ever close it.
                let moves_on = self.shard.counters_mut().datagrams_handed_over > handed_over;
                if !moves_on && !self.shard.knows((socket, remote)) {
                    drop(self.backend.release(socket, remote));
                }
            }
            Err(e) => warn!(shard = %self.shard.id(), error = %e, "a TCP connection is lost"),
        }
    }

    /// A datagram that came by TCP for a session of another shard takes its connection along: only there it can be
    /// answered. Gives other messages back.
    fn pass_on_connection(&mut self, to: ShardId, message: PeerMessage) -> Option<PeerMessage> {
        match message {
            PeerMessage::Datagram(datagram) if datagram.socket.is_stream() => {
                let Some(connection) = self.backend.release(datagram.socket, datagram.remote) else {
                    return Some(PeerMessage::Datagram(datagram));
                };
                let peer = &self.peers[to.index()];
                // When it takes none, the connection is closed.
                if peer.connections.try_send(Accepted { connection, first: datagram.data }).is_ok() {
                    peer.doorbell.ring();
                }
                None
            }
            message => Some(message),
        }
    }

    /// Gives peers what is theirs; rings each sleeper once.
    fn hand_over(&mut self) {
        while let Some((to, message)) = self.shard.poll_peer() {
            let Some(message) = self.pass_on_connection(to, message) else { continue };
            match self.peers[to.index()].inbox.push(message) {
                Ok(MustRing(true)) => self.to_ring.push(to),
                Ok(MustRing(false)) => {}
                Err(_) => self.shard.peer_queue_full(),
            }
        }
        if self.to_ring.is_empty() {
            return;
        }
        for to in self.to_ring.drain(..) {
            self.backend.ring(&self.peers[to.index()].doorbell);
        }
        // Not only with the next receive: sleepers wake while this shard is still sending its own copies.
        self.backend.submit();
    }

    /// Returns true once the shard has stopped and control knows it.
    fn deliver_events(&mut self) -> bool {
        while let Some(mut event) = self.held.take().or_else(|| self.shard.poll_event()) {
            let stopped = matches!(event, Event::Stopped);
            if let Event::Report(report) = &mut event {
                report.figures.backend = figures(self.backend.stats());
            }
            match self.events.try_send((self.shard.id(), event)) {
                Ok(()) if stopped => return true,
                Ok(()) => {}
                // Control is behind; it is told again in a moment, nothing is lost.
                Err(TrySendError::Full((_, event))) => {
                    self.held = Some(event);
                    return false;
                }
                Err(TrySendError::Closed(_)) => return true,
            }
        }
        false
    }

    fn inbox(&self) -> &Inbox<PeerMessage> {
        &self.peers[self.shard.id().index()].inbox
    }
}

fn flush(shard: &mut Shard, backend: &mut dyn Backend, out: &mut SendBatch) {
    if out.is_empty() {
        return;
    }
    let sent = backend.send(out);
    let counters = shard.counters_mut();
    counters.datagrams_sent += sent.datagrams;
    counters.messages_sent += sent.messages;
    counters.bytes_sent += sent.bytes;
    counters.send_would_block += sent.would_block;
    counters.send_errors += sent.errors;
    counters.media_unsent += out.unsent().iter().map(|unsent| u64::from(unsent.datagrams)).sum::<u64>();
}

fn figures(stats: BackendStats) -> Vec<(&'static str, u64)> {
    vec![
        ("wait", stats.waits),
        ("doorbell", stats.doorbells),
        ("doorbell_failed", stats.bells_failed),
        ("truncated", stats.truncated),
        ("receive_error", stats.receive_errors),
        ("rearm", stats.rearms),
        ("out_of_buffers", stats.enobufs),
        ("segmentation_refused", stats.gso_refused),
        ("full_dropped_video", stats.full_dropped[Class::Video as usize]),
        ("full_dropped_audio", stats.full_dropped[Class::Audio as usize]),
        ("full_dropped_control", stats.full_dropped[Class::Control as usize]),
        ("full_kept", stats.full_kept),
        ("stream_opened", stats.streams_opened),
        ("stream_closed", stats.streams_closed),
        ("stream_dropped_video", stats.stream_dropped[Class::Video as usize]),
        ("stream_dropped_audio", stats.stream_dropped[Class::Audio as usize]),
        ("stream_dropped_control", stats.stream_dropped[Class::Control as usize]),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::datagram::SocketId;
    use crate::forward::table::Stream;
    use crate::id::{SessionId, StreamId};
    use crate::io::{BackendKind, Connection};
    use crate::session::negotiate::{self, PeerConfig, WatchRequest};
    use crate::shard::ShardConfig;
    use crate::shard::placement::Slot;
    use crate::srtp::dtls::{self, Certificate};
    use crate::wire::sdp::Offer;
    use crate::wire::stun::write_binding_request;

    const OFFER: &str = include_str!("../../tests/data/offers/chromium-view.sdp");

    /// Two drivers on this thread, and where their connections and commands go.
    fn pair(clock: Clock) -> ([Driver; 2], Vec<Peer>, Vec<crossbeam_channel::Sender<Command>>) {
        let backends = [(); 2].map(|()| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            crate::io::open(BackendKind::Mmsg, vec![socket]).unwrap()
        });
        let (connections, accepted): (Vec<_>, Vec<_>) = (0..2).map(|_| crossbeam_channel::bounded(4)).unzip();
        let (senders, commands): (Vec<_>, Vec<_>) = (0..2).map(|_| crossbeam_channel::bounded(4)).unzip();
        let peer = |(doorbell, connections): (Doorbell, &Sender<Accepted>)| Peer {
            inbox: Arc::new(Inbox::with_capacity(16)),
            connections: connections.clone(),
            doorbell,
        };
        let peers: Vec<Peer> = backends.iter().map(|b| b.doorbell()).zip(&connections).map(peer).collect();
        let mut queues = commands.into_iter().zip(accepted);
        let mut index = 0;
        let drivers = backends.map(|backend| {
            let (commands, accepted) = queues.next().unwrap();
            let shard = Shard::new(ShardId(index), ShardConfig::default());
            index += 1;
            let (events, _) = tokio::sync::mpsc::channel(16);
            Driver::new(shard, backend, clock, peers.clone(), commands, accepted, events)
        });
        (drivers, peers, senders)
    }

    /// A session of a viewer that no shard has adopted yet.
    struct Announced {
        ufrag: String,
        pwd: String,
        slot: Arc<Slot>,
    }

    impl Announced {
        fn command(&self) -> Command {
            Command::Announce { ufrag: self.ufrag.clone(), pwd: self.pwd.clone(), slot: self.slot.clone() }
        }
    }

    fn viewer(clock: Clock) -> Announced {
        let peer = PeerConfig {
            epoch: clock.epoch(),
            candidates: Arc::from([([127, 0, 0, 1], 9).into()]),
            tcp_candidates: Arc::from([([127, 0, 0, 1], 9).into()]),
            crypto: dtls::crypto_provider(),
            certificate: Certificate::generate().unwrap(),
        };
        let request =
            WatchRequest { session: SessionId(1), stream: StreamId(1), published: Vec::new(), estimate: false };
        let offer = Offer::parse(OFFER).unwrap();
        let negotiated =
            negotiate::watch(clock.now(), &peer, &offer, request, &mut StdRng::seed_from_u64(1)).ok().unwrap();
        assert!(negotiated.answer.contains(" 1 tcp ") && negotiated.answer.contains(" tcptype passive"));
        let stream = Arc::new(Stream::new(StreamId(1), "live"));
        let slot = Arc::new(Slot::new(SessionId(1), stream, negotiated.session));
        Announced { ufrag: negotiated.local_ufrag, pwd: negotiated.local_pwd, slot }
    }

    /// A check of the viewer's client.
    fn check(ufrag: &str, pwd: &str) -> Vec<u8> {
        // The client's ufrag is the one of its offer.
        let theirs = OFFER.lines().find_map(|l| l.strip_prefix("a=ice-ufrag:")).unwrap();
        write_binding_request(&format!("{ufrag}:{theirs}"), pwd, [7; 12], true)
    }

    /// A connection whose client knows a session's credentials.
    fn connection(ufrag: &str, pwd: &str) -> (TcpStream, Accepted) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let (stream, remote) = listener.accept().unwrap();
        let socket = SocketId::stream(0).unwrap();
        let connection = Connection::new(stream, socket, remote, Arc::default()).unwrap();
        let first = check(ufrag, pwd).into();
        (client, Accepted { connection, first })
    }

    /// A STUN success response, framed.
    fn is_answered(mut client: &TcpStream) -> bool {
        let mut read = [0; 200];
        client.read(&mut read).is_ok_and(|_| read[2..4] == [1, 1])
    }

    #[test]
    fn a_connection_follows_its_session_to_another_shard() {
        let clock = Clock::new();
        let ([mut wrong, mut right], peers, commands) = pair(clock);
        let viewer = viewer(clock);
        let Announced { ufrag, pwd, slot } = &viewer;
        commands.iter().for_each(|queue| queue.send(viewer.command()).unwrap());

        let (client, accepted) = connection(ufrag, pwd);
        peers[1].connections.send(accepted).ok().unwrap();
        right.turn(clock.now());
        assert!(is_answered(&client));
        assert_eq!(slot.owner(), Some(ShardId(1)));

        let (client, accepted) = connection(ufrag, pwd);
        peers[0].connections.send(accepted).ok().unwrap();
        wrong.turn(clock.now());
        assert!(!is_answered(&client));
        right.turn(clock.now());
        assert!(is_answered(&client));
        assert_eq!(wrong.backend.stats().streams_closed, 1);

        // Both end with the session.
        let session = SessionId(1);
        commands[1].send(Command::Close { session, reason: crate::session::CloseReason::Deleted }).unwrap();
        right.turn(clock.now());
        assert_eq!((right.shard.sessions(), right.backend.stats().streams_closed), (0, 2));

        // Nobody would ever close one that comes now.
        let (client, accepted) = connection(ufrag, pwd);
        peers[1].connections.send(accepted).ok().unwrap();
        right.turn(clock.now());
        assert!(!is_answered(&client));
        assert_eq!(right.backend.stats().streams_closed, 3);
    }

    #[test]
    fn checks_of_known_clients_leave_a_shard_quiet() {
        let clock = Clock::new();
        let ([mut driver, _], ..) = pair(clock);
        let (shard, out) = (&mut driver.shard, &mut driver.out);
        let viewer = viewer(clock);
        let check = check(&viewer.ufrag, &viewer.pwd);
        let check = Received { socket: SocketId(0), remote: ([127, 0, 0, 1], 7).into(), data: &check };

        let announced = clock.now();
        shard.handle_command(announced, viewer.command(), out);
        assert!(!shard.is_quiet(announced));
        let adopted = announced + limits::QUIET_AFTER;
        assert!(shard.is_quiet(adopted));
        shard.handle_datagram(adopted, check, out);
        assert!(!shard.is_quiet(adopted));
        let later = adopted + limits::QUIET_AFTER;
        shard.handle_datagram(later, check, out);
        assert_eq!((shard.counters_mut().datagrams_consumed, shard.is_quiet(later)), (2, true));
        shard.handle_peer(later, PeerMessage::KeyframeRequest { stream: StreamId(1), layer: 0 }, out);
        assert!(!shard.is_quiet(later));
    }

    #[test]
    fn a_quiet_shard_rests_unless_its_batch_is_full() {
        let clock = Clock::new();
        let ([mut driver, _], ..) = pair(clock);
        let now = Instant::ZERO + limits::QUIET_AFTER;
        assert!(driver.shard.is_quiet(now) && driver.may_rest(now));
        let remote = ([127, 0, 0, 1], 7).into();
        (1..limits::RECV_BATCH_DATAGRAMS).for_each(|_| driver.received.push(SocketId(0), remote, &[0], None));
        assert!(driver.may_rest(now));
        driver.received.push(SocketId(0), remote, &[0], None);
        assert!(driver.shard.is_quiet(now) && !driver.may_rest(now));
    }
}
