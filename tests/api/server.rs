//! The server under test, with shards that the test plays.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use manycast::config::{Config, Flags};
use manycast::control::{Controller, http};
use manycast::id::{Generation, ShardId};
use manycast::metrics::ShardFigures;
use manycast::session::CloseReason;
use manycast::session::negotiate::PeerConfig;
use manycast::shard::message::{Command, Event, LayerReport, Report};
use manycast::shard::placement::Slot;
use manycast::srtp::dtls::{Certificate, crypto_provider};
use manycast::units::{Epoch, Instant};
use rand::SeedableRng;
use rand::rngs::StdRng;
use str0m::media::MediaKind;

use crate::client::{self, Reply};

pub const SHARD: ShardId = ShardId(0);
const WAIT: Duration = Duration::from_secs(20);

pub struct Server {
    pub address: SocketAddr,
    commands: Receiver<Command>,
    events: tokio::sync::mpsc::Sender<(ShardId, Event)>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `settings` as in the file.
    pub fn start(settings: &str) -> Server {
        let config = Config::resolve(Flags::default(), Some(settings)).expect("settings");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let epoch = Epoch::new(std::time::Instant::now());
        let peer = PeerConfig {
            epoch,
            candidates: Arc::from([([127, 0, 0, 1], 9).into()]),
            tcp_candidates: Arc::default(),
            crypto: crypto_provider(),
            certificate: Certificate::generate().expect("a certificate"),
        };
        let controller = Controller::new(config, peer, 1, StdRng::seed_from_u64(1));
        let (events, from_shards) = tokio::sync::mpsc::channel(64);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (sender, commands): (Sender<Command>, _) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let sink = move |_: ShardId, command: Command| sender.send(command).map_err(|e| e.0);
            let stop = async move {
                let _ = stopped.await;
            };
            runtime.block_on(http::serve(listener, controller, epoch, from_shards, sink, stop)).expect("served");
        });
        Server { address, commands, events, stop: Some(stop), thread: Some(thread) }
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        client::request(self.address, method, path, headers, body.as_bytes())
    }

    pub fn post(&self, path: &str, offer: &str) -> Reply {
        self.ask("POST", path, &[("Content-Type", "application/sdp")], offer)
    }

    pub fn command(&self) -> Command {
        self.commands.recv_timeout(WAIT).expect("a command")
    }

    /// What has come so far.
    pub fn try_command(&self) -> Option<Command> {
        self.commands.recv_timeout(Duration::from_millis(50)).ok()
    }

    pub fn event(&self, event: Event) {
        self.events.blocking_send((SHARD, event)).expect("the server runs");
    }

    /// The session that was announced last; other commands are skipped.
    pub fn announced(&self) -> Arc<Slot> {
        loop {
            if let Command::Announce { slot, .. } = self.command() {
                return slot;
            }
        }
    }

    /// Somebody publishes Opus and VP8.
    pub fn live(&self, stream: &str) -> Arc<Slot> {
        let reply = self.post(&format!("/whip/{stream}"), &crate::offer(crate::PUBLISH, 4_000_000_000));
        assert_eq!(reply.status, 201, "{reply:?}");
        let slot = self.announced();
        slot.adopt(SHARD).expect("waiting");
        let (session, id) = (slot.session, slot.stream.id);
        self.event(Event::Connected { session });
        for (kind, format) in [
            (MediaKind::Audio, manycast::wire::codec::Format::OPUS),
            (MediaKind::Video, manycast::wire::codec::Format::VP8),
        ] {
            self.event(Event::TrackStarted { session, stream: id, kind, format });
        }
        self.event(Event::PublisherActive { session, stream: id, generation: Generation(1) });
        slot
    }

    /// The shard's figures of a second, as far as layers go.
    pub fn report(&self, layers: Vec<LayerReport>) {
        let figures =
            ShardFigures { shard: SHARD, counters: Default::default(), publishers: 1, viewers: 1, backend: Vec::new() };
        self.event(Event::Report(Box::new(Report { at: Instant::ZERO, figures, tracks: Vec::new(), layers })));
    }

    pub fn end(&self, slot: &Slot) {
        self.event(Event::Ended { session: slot.session, reason: CloseReason::ClosedByPeer });
    }

    /// Asks the server to stop; the test answers for the shard.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends well");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = self.events.try_send((SHARD, Event::Stopped));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
