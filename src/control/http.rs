//! HTTP/1.1 in front of the controller: one thread, one loop that owns the controller, one task per connection.
//!
//! ```text
//! accept -> connection task: head, body, deadlines --calls--> loop: Controller --commands--> shards
//!                 ^---------------- response ------------------|  ^------------- events -----|
//! ```

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{StatusCode, http::request::Parts};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, error, warn};

use super::body::{self, Answer, Progress};
use super::controller::{Controller, Output, Part};
use super::exchange::Request;
use super::problem::Problem;
use super::{cors, rate, route};
use crate::config::{CorsOrigins, HttpLimits};
use crate::id::ShardId;
use crate::limits;
use crate::shard::message::{Command, Event, RequestId};
use crate::srtp::dtls::Certificate;
use crate::srtp::rotation::Rotation;
use crate::units::{Epoch, Instant};

/// Where commands to the shards go.
pub trait CommandSink {
    /// Queues a command for one shard, in order, without blocking.
    ///
    /// # Errors
    /// The command itself when the shard's queue is full; it is tried again.
    fn send(&mut self, shard: ShardId, command: Command) -> Result<(), Command>;
}

impl<F: FnMut(ShardId, Command) -> Result<(), Command>> CommandSink for F {
    fn send(&mut self, shard: ShardId, command: Command) -> Result<(), Command> {
        self(shard, command)
    }
}

/// Head of a request: Chromium's is under 1 kB.
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
const URI_CHARS_MAX: usize = 2_048;

/// Of a body that is too long we read on for so much, so that the client reads our answer and not a reset.
const DISCARDED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Calls that wait for the loop, which answers each within a millisecond. When it is full, connections wait, and after
/// [`limits::REQUEST_TIMEOUT`] give up.
const CALLS: usize = 256;

/// From the wish to stop until the shards must have said goodbye. The process has a second.
const STOP_TIMEOUT: Duration = Duration::from_millis(700);

/// How often a full command queue is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// A request on its way to the loop.
struct Call {
    request: Request,
    client: Client,
}

/// Who waits for the answer.
struct Client {
    reply: oneshot::Sender<Answer>,
    /// Closes the connection.
    cut: Arc<Notify>,
}

/// Serves until `stop` is ready and every shard has said [`Event::Stopped`], or has had time to.
///
/// To be run on a tokio runtime of one thread. `events` may be sent from any thread.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    mut controller: Controller,
    epoch: Epoch,
    mut events: mpsc::Receiver<(ShardId, Event)>,
    sink: impl CommandSink,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let (calls, mut called) = mpsc::channel(CALLS);
    let (closing, closed) = watch::channel(());
    let front = Arc::new(Front {
        limits: controller.config.limits.clone(),
        origins: controller.config.cors_origins.clone(),
        calls,
        open: Mutex::default(),
    });
    let accepting = tokio::spawn(accept(listener, front.clone(), closed));

    // Each open event stream is a connection, and has a part or an end to report at a time.
    let (progress, mut progressed) = mpsc::channel(2 * controller.config.limits.connections_max);
    let mut back = Back {
        sink,
        waiting: HashMap::new(),
        readers: HashMap::new(),
        progress,
        backlog: VecDeque::new(),
        stopping: false,
    };
    let mut stop = pin!(stop);
    let mut deadline = None;
    let mut last_request = 0u64;
    let mut rotation = Rotation::new(now(epoch));
    loop {
        back.flush(&mut controller);
        let now = now(epoch);
        if rotation.is_due(now) {
            match Certificate::generate() {
                Ok(certificate) => controller.set_certificate(certificate),
                Err(e) => warn!(error = %e, "the certificate stays for another day"),
            }
        }
        if deadline.is_some_and(|d| controller.is_stopped() || now >= d) {
            break;
        }
        let retry = if back.backlog.is_empty() { Instant::FAR_FUTURE } else { now + RETRY_INTERVAL };
        let wake = controller.next_timeout().min(retry).min(deadline.unwrap_or(Instant::FAR_FUTURE));
        let wake = wake.min(rotation.next_timeout());
        tokio::select! {
            Some(Call { request, client }) = called.recv() => {
                last_request += 1;
                let id = RequestId(last_request);
                back.waiting.insert(id, client);
                controller.handle_request(self::now(epoch), id, request);
            }
            Some((shard, event)) = events.recv() => controller.handle_event(self::now(epoch), shard, event),
            Some(progress) = progressed.recv() => match progress {
                Progress::Taken(reader) => controller.handle_taken(reader),
                Progress::Gone(reader) => {
                    back.readers.remove(&reader);
                    controller.handle_gone(reader);
                }
            },
            // An hour at most: what is further away is looked at again then.
            () = tokio::time::sleep((wake - now).min(Duration::from_secs(3600))) => {
                controller.handle_timeout(self::now(epoch));
            }
            () = &mut stop, if deadline.is_none() => {
                let now = self::now(epoch);
                deadline = Some(now + STOP_TIMEOUT);
                back.stopping = true;
                controller.stop(now);
            }
        }
    }
    if !controller.is_stopped() {
        warn!("not all shards have stopped in time");
    }
    accepting.abort();
    drop(closing);
    // Answers that were just given still have to be written.
    let _ = timeout(Duration::from_millis(100), async {
        while Arc::strong_count(&front) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the HTTP loop is where control's time comes from")]
fn now(epoch: Epoch) -> Instant {
    epoch.from_std(std::time::Instant::now())
}

// ---------------------------------------------------------------------------------- between loop and shards

struct Back<S> {
    sink: S,
    waiting: HashMap<RequestId, Client>,
    /// Clients of event streams: where the next part goes, and what closes the connection.
    readers: HashMap<RequestId, (mpsc::Sender<Bytes>, Arc<Notify>)>,
    progress: mpsc::Sender<Progress>,
    /// Commands that found their queue full. As long as there are any, no session is opened, so they are bounded by
    /// what the open ones need.
    backlog: VecDeque<(ShardId, Command)>,
    /// From here on a shard that takes no commands has just said goodbye.
    stopping: bool,
}

impl<S: CommandSink> Back<S> {
    fn flush(&mut self, controller: &mut Controller) {
        self.retry();
        while let Some(output) = controller.poll_output() {
            match output {
                Output::Respond(id, response) => {
                    if let Some(client) = self.waiting.remove(&id) {
                        // The client may have gone meanwhile.
                        let _ = client.reply.send(body::whole(response));
                    }
                }
                Output::Stream(id, part) => self.stream(id, part),
                Output::Command(shard, command) => self.send(shard, command),
            }
        }
        controller.set_stalled(!self.backlog.is_empty());
    }

    fn stream(&mut self, id: RequestId, part: Part) {
        match part {
            Part::Head(head) => {
                let Some(Client { reply, cut }) = self.waiting.remove(&id) else { return };
                let (sender, parts) = mpsc::channel(1);
                self.readers.insert(id, (sender, cut));
                // When the client has gone, the body is dropped here and says so.
                let _ = reply.send(body::growing(head, id, parts, self.progress.clone()));
            }
            Part::Body(bytes) => {
                // There is room: the one before has been taken.
                if let Some((parts, _)) = self.readers.get(&id) {
                    let _ = parts.try_send(bytes);
                }
            }
            Part::End => drop(self.readers.remove(&id)),
            Part::Cut => {
                if let Some((_, cut)) = self.readers.remove(&id) {
                    cut.notify_one();
                }
            }
        }
    }

    fn retry(&mut self) {
        for (shard, command) in std::mem::take(&mut self.backlog) {
            self.send(shard, command);
        }
    }

    fn send(&mut self, shard: ShardId, command: Command) {
        // What came first for this shard goes first.
        let behind = self.backlog.iter().any(|(s, _)| *s == shard);
        let refused = if behind { Some(command) } else { self.sink.send(shard, command).err() };
        if let Some(command) = refused {
            if self.backlog.is_empty() && !self.stopping {
                error!(%shard, "a shard does not take commands");
            }
            self.backlog.push_back((shard, command));
        }
    }
}

// -------------------------------------------------------------------------------- between loop and clients

/// What connections share.
struct Front {
    limits: HttpLimits,
    origins: CorsOrigins,
    calls: mpsc::Sender<Call>,
    open: Mutex<Open>,
}

/// Open connections: in all, and by client where that counts.
#[derive(Default)]
struct Open {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One open connection's place.
struct Place {
    front: Arc<Front>,
    client: Option<IpAddr>,
}

impl Front {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        // Plain counts: a panic elsewhere leaves them whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection, when there is one.
    fn enter(self: &Arc<Front>, peer: IpAddr) -> Option<Place> {
        let proxies = &self.limits.trusted_proxies;
        let peer = peer.to_canonical();
        let exempt = (peer.is_loopback() && proxies.is_empty()) || proxies.iter().any(|p| p.contains(peer));
        let client = (!exempt).then(|| rate::client_key(peer));
        let mut open = self.open();
        let of_client = client.map_or(0, |c| open.by_client.get(&c).copied().unwrap_or(0));
        if open.total >= self.limits.connections_max || of_client >= self.limits.connections_per_ip_max {
            return None;
        }
        open.total += 1;
        if let Some(client) = client {
            *open.by_client.entry(client).or_default() += 1;
        }
        Some(Place { front: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.front.open();
        open.total -= 1;
        if let Some(client) = self.client
            && let Some(count) = open.by_client.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                open.by_client.remove(&client);
            }
        }
    }
}

async fn accept(listener: TcpListener, front: Arc<Front>, closed: watch::Receiver<()>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match front.enter(peer.ip()) {
                Some(place) => {
                    tokio::spawn(connection(stream, peer.ip(), place, closed.clone()));
                }
                None => refuse(&stream),
            },
            Err(e) => {
                // Out of file descriptors, most likely: others must end first.
                warn!(error = %e, "cannot accept HTTP connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Too many connections: said at once, without reading anything.
fn refuse(stream: &TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nAccess-Control-Allow-Origin: *\r\nRetry-After: 2\r\n\
        Content-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = stream.try_write(ANSWER);
}

async fn connection(stream: TcpStream, peer: IpAddr, place: Place, mut closed: watch::Receiver<()>) {
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let front = &place.front;
    let cut = &Arc::new(Notify::new());
    let service = service_fn(|request: hyper::Request<Incoming>| async move {
        Ok::<_, Infallible>(exchange(front, cut, (peer, local), request).await)
    });
    let mut builder = http1::Builder::new();
    builder
        // OBS compares header names with their usual case.
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(front.limits.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cut.notified() => Ok(()),
        // The sender is dropped when the server stops.
        _ = closed.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        debug!(error = %e, "HTTP connection ended");
    }
}

/// One request, from its head to its answer.
async fn exchange(
    front: &Front,
    cut: &Arc<Notify>,
    (peer, local): (IpAddr, SocketAddr),
    request: hyper::Request<Incoming>,
) -> Answer {
    let (parts, body) = request.into_parts();
    let origin = cors::origin(&parts.headers);
    let answered = match read(front, &parts, body).await {
        Ok(body) => {
            let Parts { method, uri, headers, .. } = parts;
            call(front, cut, Request { method, uri, headers, body, peer, local }).await
        }
        Err(problem) => Err(problem),
    };
    answered.unwrap_or_else(|problem| {
        let mut response = problem.json();
        // Whatever is left of the request is not read.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        cors::apply(&front.origins, origin.as_ref(), &mut response);
        body::whole(response)
    })
}

/// Reads a body within its limits of size and time.
async fn read(front: &Front, parts: &Parts, body: Incoming) -> Result<Bytes, Problem> {
    if parts.uri.to_string().len() > URI_CHARS_MAX {
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "uri-too-long", "the URL is longer than 2048 characters"));
    }
    let max = route::body_bytes_max(parts.uri.path());
    let declared = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|d| d > DISCARDED_BYTES_MAX as u64) {
        return Err(Problem::too_large());
    }
    match timeout(front.limits.body_timeout, collect(body, max)).await {
        Ok(result) => result,
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not arrive in time")),
    }
}

async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, Problem> {
    let hint = body.size_hint().lower().min(max as u64);
    let mut bytes = Vec::with_capacity(usize::try_from(hint).unwrap_or(0));
    let mut discarded = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::malformed("the body is not well framed"))?;
        let Ok(data) = frame.into_data() else { continue };
        if discarded == 0 && bytes.len() + data.len() <= max {
            bytes.extend_from_slice(&data);
            continue;
        }
        discarded += data.len();
        if discarded > DISCARDED_BYTES_MAX {
            break;
        }
    }
    if discarded > 0 { Err(Problem::too_large()) } else { Ok(bytes.into()) }
}

/// Asks the loop.
async fn call(front: &Front, cut: &Arc<Notify>, request: Request) -> Result<Answer, Problem> {
    let unavailable = || Problem::unavailable("the server does not answer in time");
    let (reply, answer) = oneshot::channel();
    let asked = async {
        front.calls.send(Call { request, client: Client { reply, cut: cut.clone() } }).await.ok()?;
        answer.await.ok()
    };
    timeout(limits::REQUEST_TIMEOUT, asked).await.ok().flatten().ok_or_else(unavailable)
}
