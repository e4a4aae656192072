//! The only threads: one per shard, one for control. This file wires cores, sockets and queues together.
//!
//! ```text
//!             HTTP                                UDP (SO_REUSEPORT, one socket per shard and address)
//!              │                                   │                  │
//!        ┌─────▼─────┐  commands + doorbell  ┌─────▼────┐  inbox ┌────▼─────┐
//!        │  control  ├──────────────────────►│ shard 0  │◄──────►│ shard 1  │ …
//!        │  (tokio)  │◄──────────────────────┤ (core 0) │  bells │ (core 1) │
//!        └───────────┘        events         └──────────┘        └──────────┘
//! ```

mod addresses;
mod discovery;
mod driver;
mod ice_tcp;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, warn};

use crate::config::{Config, IoBackend, PublicIp, ShardCount};
use crate::control::http::CommandSink;
use crate::control::{self, Controller};
use crate::datagram::SocketId;
use crate::forward::burst::Segmenting;
use crate::id::ShardId;
use crate::io::sockets::{self, SocketError};
use crate::io::{BackendKind, Clock, Doorbell, IoChoice, ProbeError, Selection};
use crate::limits;
use crate::session::negotiate::PeerConfig;
use crate::shard::message::{Command, PeerMessage};
use crate::shard::{Shard, ShardConfig};
use crate::srtp::dtls::{self, Certificate};
use crate::sync::Inbox;
use addresses::{Address, Wanted};
use driver::{Driver, Peer};
use ice_tcp::{Accepted, Acceptor, Directory};

/// Sockets, rings and bells of up to 64 shards, and what the process has open anyway.
const OTHER_FILES: usize = 1024;

/// Why the node did not start. Each names what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("http (--http): {address}: {source}{}", hint(.source))]
    Http { address: SocketAddr, source: io::Error },
    #[error("ice-tcp (--ice-tcp): {address}: {source}{}", hint(.source))]
    IceTcp { address: SocketAddr, source: io::Error },
    #[error("udp (--udp): {0}; choose another port, or stop what uses it")]
    Udp(#[from] SocketError),
    #[error("udp (--udp): no interface is up")]
    NoAddress,
    #[error("io (--io): io_uring does not work here: {0}; use --io auto")]
    Uring(#[from] ProbeError),
    #[error("the network interfaces cannot be listed: {0}")]
    Interfaces(io::Error),
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; choose another port, or stop what uses it",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has this address",
        _ => "",
    }
}

/// Runs a node until it is told to stop (SIGINT or SIGTERM); sessions then get DTLS close_notify.
///
/// `say` gets plain lines for the operator: what was started and what should be mended, at last `ready`.
///
/// # Errors
/// [`StartError`] before `ready`; nothing is left running.
pub fn serve(config: Config, mut say: impl FnMut(&str)) -> Result<(), StartError> {
    let mut banner = Vec::new();
    let listener =
        TcpListener::bind(config.http).map_err(|source| StartError::Http { address: config.http, source })?;
    let http = listener.local_addr().map_err(|source| StartError::Http { address: config.http, source })?;
    banner_http(&config, http, &mut banner);

    let Plan { udp: plan, tcp } = plan_addresses(&config, http, &mut banner)?;
    let (count, pinned) = shards_and_cores(&config, &mut banner);
    let selection = crate::io::select(match config.io {
        IoBackend::Auto => IoChoice::Auto,
        IoBackend::Uring => IoChoice::Uring,
        IoBackend::Mmsg => IoChoice::Mmsg,
    })?;
    let binds: Vec<SocketAddr> = plan.iter().map(|a| a.bind).collect();
    let group = sockets::open_group(&binds, count)?;
    let bound = group.locals.iter().zip(&plan);
    let candidates: Arc<[SocketAddr]> = bound.map(|(b, a)| SocketAddr::new(a.candidate, b.port())).collect();
    banner.push(format!("media    UDP {}", list(&candidates)));
    let (streams, tcp_candidates) = listen(&tcp)?;
    if !streams.is_empty() {
        raise_file_limit(&config)?;
        banner.push(format!("media    TCP {}, where UDP does not come through", list(&tcp_candidates)));
    }
    banner.push(describe_io(&selection, &config));
    banner.extend(group.buffers.advice().map(|advice| format!("warning  {advice}")));

    let clock = Clock::new();
    let epoch = clock.epoch();
    let peer_config = PeerConfig {
        epoch,
        candidates,
        tcp_candidates,
        crypto: dtls::crypto_provider(),
        certificate: Certificate::generate().map_err(io::Error::other).map_err(system("DTLS certificate"))?,
    };
    let shard_config = ShardConfig {
        segmenting: Segmenting { segments_max: config.gso_segments, padding_percent: config.gso_padding_percent },
        video_hold: config.video_hold,
        unix_at_start: clock.unix_at_start(),
    };
    let mut seed = <StdRng as SeedableRng>::Seed::default();
    getrandom::fill(&mut seed).map_err(io::Error::other).map_err(system("random numbers"))?;
    let controller = Controller::new(config, peer_config, count as u16, StdRng::from_seed(seed));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("tokio"))?;

    let (events, from_shards) = tokio::sync::mpsc::channel(limits::EVENT_QUEUE);
    let Started { commands, connections, doorbells, threads } =
        start_shards(selection.kind, group.shards, &pinned, clock, shard_config, &events)
            .map_err(system("starting the shards"))?;
    drop(events);
    let directory = (!streams.is_empty()).then(Arc::<Directory>::default);
    let acceptor = directory.clone().map(|directory| {
        let shards = connections.into_iter().zip(doorbells.iter().cloned()).collect();
        Arc::new(Acceptor { directory, shards, places: Arc::default() })
    });
    let sink = Commands { queues: commands, doorbells, directory };
    banner.iter().for_each(|line| say(line));
    say("ready    Ctrl-C stops");
    let served = runtime.block_on(async {
        let stop = stop_signal()?;
        for (socket, stream) in streams.into_iter().enumerate() {
            if let (Some(acceptor), Some(socket)) = (acceptor.clone(), SocketId::stream(socket)) {
                tokio::spawn(acceptor.run(tokio::net::TcpListener::from_std(stream)?, socket));
            }
        }
        control::http::serve(listener, controller, epoch, from_shards, sink, stop).await
    });
    // A shard that has not said goodbye in time is not waited for.
    for thread in threads.into_iter().filter(JoinHandle::is_finished) {
        if thread.join().is_err() {
            error!("a shard panicked");
        }
    }
    served.map_err(system("control"))
}

/// Ready at the first SIGINT or SIGTERM; a second one ends the process at once.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        };
        next().await;
        tokio::spawn(async move {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            std::process::exit(code);
        });
    })
}

/// Control's end of the way to the shards.
struct Commands {
    queues: Vec<Sender<Command>>,
    doorbells: Vec<Doorbell>,
    /// Where TCP is accepted too: who may come there.
    directory: Option<Arc<Directory>>,
}

impl CommandSink for Commands {
    fn send(&mut self, shard: ShardId, command: Command) -> Result<(), Command> {
        // Before the answer leaves, as the shards.
        if let Some(directory) = self.directory.as_ref().filter(|_| shard == ShardId(0)) {
            directory.overhear(&command);
        }
        self.queues[shard.index()].try_send(command).map_err(|e| e.into_inner())?;
        self.doorbells[shard.index()].ring();
        Ok(())
    }
}

/// The shards as others reach them, each list by shard.
struct Started {
    commands: Vec<Sender<Command>>,
    connections: Vec<Sender<Accepted>>,
    doorbells: Vec<Doorbell>,
    threads: Vec<JoinHandle<()>>,
}

/// One thread per shard. Each opens its backend itself (a ring belongs to the thread that made it), then all tell
/// each other their doorbells, then all run.
fn start_shards(
    kind: BackendKind,
    sockets: Vec<Vec<std::net::UdpSocket>>,
    pinned: &[Option<core_affinity::CoreId>],
    clock: Clock,
    config: ShardConfig,
    events: &driver::EventSender,
) -> io::Result<Started> {
    let count = sockets.len();
    let inboxes: Vec<Arc<Inbox<PeerMessage>>> =
        (0..count).map(|_| Arc::new(Inbox::with_capacity(limits::PEER_QUEUE_MESSAGES))).collect();
    let (connections, accepted): (Vec<Sender<Accepted>>, Vec<Receiver<Accepted>>) =
        (0..count).map(|_| crossbeam_channel::bounded(limits::ACCEPTED_QUEUE)).unzip();
    let bells: Arc<Vec<OnceLock<io::Result<Doorbell>>>> = Arc::new((0..count).map(|_| OnceLock::new()).collect());
    let opened = Arc::new(Barrier::new(count + 1));
    let mut commands = Vec::new();
    let mut threads = Vec::new();
    for (i, (sockets, accepted)) in sockets.into_iter().zip(accepted).enumerate() {
        let (sender, receiver): (_, Receiver<Command>) = crossbeam_channel::bounded(limits::COMMAND_QUEUE);
        commands.push(sender);
        let (inboxes, bells, opened, events) = (inboxes.clone(), bells.clone(), opened.clone(), events.clone());
        let connections = connections.clone();
        let core = pinned.get(i).copied().flatten();
        let thread = std::thread::Builder::new().name(format!("shard {i}")).spawn(move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                warn!(shard = i, core = core.id, "the shard could not be pinned");
            }
            let backend = crate::io::open(kind, sockets);
            let (bell, backend) = match backend {
                Ok(backend) => (Ok(backend.doorbell()), Some(backend)),
                Err(e) => (Err(e), None),
            };
            let _ = bells[i].set(bell);
            opened.wait();
            let (Some(backend), Some(peers)) = (backend, peers(&inboxes, &connections, &bells)) else { return };
            // Where a wait is late by up to 1 ms, a hold of 200 µs would be one of 1 ms.
            let video_hold = if backend.is_precise() { config.video_hold } else { Duration::ZERO };
            let shard = Shard::new(ShardId(i as u16), ShardConfig { video_hold, ..config });
            if let Err(e) = Driver::new(shard, backend, clock, peers, receiver, accepted, events).run() {
                error!(shard = i, error = %e, "the shard stopped");
            }
        })?;
        threads.push(thread);
    }
    opened.wait();
    let mut doorbells = Vec::new();
    for bell in bells.iter() {
        match bell.get() {
            Some(Ok(bell)) => doorbells.push(bell.clone()),
            Some(Err(e)) => return Err(io::Error::new(e.kind(), e.to_string())),
            None => return Err(io::Error::other("a shard did not start")),
        }
    }
    Ok(Started { commands, connections, doorbells, threads })
}

/// `None` when a shard has no backend: then nobody runs.
fn peers(
    inboxes: &[Arc<Inbox<PeerMessage>>],
    connections: &[Sender<Accepted>],
    bells: &[OnceLock<io::Result<Doorbell>>],
) -> Option<Vec<Peer>> {
    let bells = bells.iter().map(|b| b.get().and_then(|b| b.as_ref().ok()).cloned());
    let peers = inboxes.iter().zip(connections).zip(bells);
    peers
        .map(|((inbox, connections), bell)| {
            Some(Peer { inbox: inbox.clone(), connections: connections.clone(), doorbell: bell? })
        })
        .collect()
}

/// Where media is received.
struct Plan {
    udp: Vec<Address>,
    tcp: Vec<Address>,
}

/// Each TCP connection takes a descriptor, and those of HTTP must not run out by it.
fn raise_file_limit(config: &Config) -> Result<(), StartError> {
    let wanted = limits::STREAMS_MAX + config.limits.connections_max + OTHER_FILES;
    crate::io::many::raise_file_limit(wanted as u64).map(|_| ()).map_err(system("the limit of open files"))
}

/// Opens the listeners of ICE over TCP; the index of each is that of its candidate.
fn listen(addresses: &[Address]) -> Result<(Vec<TcpListener>, Arc<[SocketAddr]>), StartError> {
    let mut listeners = Vec::new();
    let mut candidates = Vec::new();
    for Address { bind, candidate } in addresses {
        let failed = |source| StartError::IceTcp { address: *bind, source };
        let listener = TcpListener::bind(bind).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        candidates.push(SocketAddr::new(*candidate, listener.local_addr().map_err(failed)?.port()));
        listeners.push(listener);
    }
    Ok((listeners, candidates.into()))
}

fn plan_addresses(config: &Config, http: SocketAddr, banner: &mut Vec<String>) -> Result<Plan, StartError> {
    let interfaces: Vec<IpAddr> =
        if_addrs::get_if_addrs().map_err(StartError::Interfaces)?.into_iter().map(|i| i.ip()).collect();
    let http_on_loopback = config.http.ip().is_loopback();
    let mut public = config.public_ips.clone();
    if let Some(server) = &config.stun_server {
        let wanted = Wanted { binds: &config.udp, public: &[], http_on_loopback: false };
        for address in addresses::plan(wanted, &interfaces) {
            match discovery::mapped_address(server, address.bind) {
                Ok(mapped) => {
                    if mapped.port() != address.bind.port() && address.bind.port() != 0 {
                        banner.push(format!(
                            "warning  the NAT maps UDP {} to port {}: viewers outside cannot reach it; forward port {} \
                             to this host unchanged",
                            address.bind,
                            mapped.port(),
                            address.bind.port()
                        ));
                    }
                    public.push(PublicIp { public: mapped.ip(), local: Some(address.bind.ip()) });
                }
                Err(e) => banner
                    .push(format!("warning  stun-server: {e}; the address of {} is offered as it is", address.bind)),
            }
        }
    }
    let plan = |binds| addresses::plan(Wanted { binds, public: &public, http_on_loopback }, &interfaces);
    let (udp, mut tcp) = (plan(&config.udp), plan(&config.ice_tcp));
    if udp.is_empty() {
        return Err(StartError::NoAddress);
    }
    // One that was not named itself gives way to HTTP.
    tcp.retain(|a| a.bind != http || config.ice_tcp.contains(&a.bind));
    // A host with more addresses than there are ids offers those that come first.
    tcp.truncate(SocketId::STREAMS_MAX);
    Ok(Plan { udp, tcp })
}

/// How many shards, and the CPU of each.
fn shards_and_cores(config: &Config, banner: &mut Vec<String>) -> (usize, Vec<Option<core_affinity::CoreId>>) {
    // Counts the CPUs of the affinity mask and of the cgroup's quota.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let count = match config.shards {
        ShardCount::Auto => cpus.min(limits::SHARDS_MAX),
        ShardCount::Exactly(n) => n,
    };
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let pin = config.pin && count <= cpus.min(cores.len());
    let how = match (pin, config.pin) {
        (true, _) => "each on its own CPU".to_string(),
        (false, false) => "not pinned".to_string(),
        (false, true) => format!("not pinned: more than the {cpus} CPUs that this process may use"),
    };
    banner.push(format!("shards   {count}, {how}"));
    let pinned = (0..count).map(|i| cores.get(i).copied().filter(|_| pin)).collect();
    (count, pinned)
}

fn banner_http(config: &Config, http: SocketAddr, banner: &mut Vec<String>) {
    let origin = match &config.public_url {
        Some(url) => url.clone(),
        None if http.ip().is_loopback() => format!("http://localhost:{}", http.port()),
        None => format!("http://{http}"),
    };
    banner.push(format!("open     {origin}/"));
    banner.push(format!("publish  {origin}/whip/NAME   watch {origin}/whep/NAME   curl {origin}/sdp"));
    if !http.ip().is_loopback() && config.publish_token.is_none() {
        banner.push(
            "warning  anyone who reaches this address can publish; set --publish-token (and --view-token)".into(),
        );
    }
}

fn describe_io(selection: &Selection, config: &Config) -> String {
    let name = match selection.kind {
        BackendKind::Uring(_) => "io_uring",
        BackendKind::Mmsg => "epoll with recvmmsg and sendmmsg",
    };
    let why = match (&selection.fallback, config.io) {
        (Some(reason), _) => format!("io_uring does not work here: {reason}"),
        (None, IoBackend::Auto) => "its probe passed".to_string(),
        (None, _) => "as --io says".to_string(),
    };
    format!("I/O      {name} ({why})")
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}
