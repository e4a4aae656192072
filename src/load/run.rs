//! One run from its plan to its exit code: publish, ramp viewers up, settle, measure, clean up, tell.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::Sender;
use tokio::signal::unix::{SignalKind, signal};

use super::connection::{self, Joined};
use super::crowd::{self, CONNECT_TIMEOUT, Crowd, CrowdReport, Habits, Progress};
use super::flags::{Flags, Plan};
use super::live::Live;
use super::process;
use super::publishers::{self, Published, Publishers, PublishersReport};
use super::report::Report;
use super::signalling::{SessionUrl, Signaller};
use super::summary::{self, Ended, Mark, Measured};
use super::target::TargetError;
use crate::io::Clock;
use crate::io::many::{self, Many, Options};
use crate::units::Instant;

/// Exit codes: 0, thresholds held.
const EXIT_OK: u8 = 0;
const EXIT_MISSED: u8 = 1;
const EXIT_ERROR: u8 = 2;

/// Asked for each viewer's socket: 0.4 s of 10 Mbit/s in the kernel's own count.
const RECEIVE_BYTES: usize = 512 * 1024;

/// Threads that make offers: more would only wait for the server, which answers one at a time.
const WORKERS: usize = 4;

/// Between two looks at how far everyone is.
const TICK: Duration = Duration::from_millis(20);

/// From the last viewer's picture, or the publishers' last, to the first figure: keyframe bursts and start-up work pass.
const SETTLE: Duration = Duration::from_secs(1);

/// What publishers have sent reaches the server before the first viewer asks.
const PUBLISH_LEAD: Duration = Duration::from_millis(300);

/// After the last frame: what is on its way arrives, what was lost is repaired.
const DRAIN: Duration = Duration::from_millis(400);

/// A viewer's offer is made again so long when there is no stream yet, or the server wants it slower.
const RETRY_FOR: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Descriptors beside the sockets of clients: HTTP, epoll, files.
const OTHER_FILES: u64 = 64;

/// Why there is no report, in one line.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("{0}")]
    Target(#[from] TargetError),
    /// As the client that failed first says it.
    #[error("{0}")]
    Client(String),
    #[error("cannot {step}: {source}")]
    System { step: &'static str, source: std::io::Error },
    #[error("--server-pid {0}: no such process here, or not ours to read")]
    NoProcess(u32),
    #[error("a thread of the load tester died")]
    Panicked,
}

/// Runs `manycast load` and returns its exit code: 0 when thresholds held, 1 when one was missed, 2 when it could not
/// be measured as asked.
pub fn run(flags: Flags) -> u8 {
    let outcome = Plan::from_flags(flags).map_err(RunError::from).and_then(execute);
    outcome.unwrap_or_else(|error| {
        eprintln!("manycast load: {error}");
        EXIT_ERROR
    })
}

fn execute(plan: Plan) -> Result<u8, RunError> {
    let run = Run::start(plan)?;
    let measured = run.measure();
    let (plan, progress, ended) = run.finish()?;
    let measured = measured?;
    let report = summary::summarise(&plan, measured, ended);
    tell(&plan, &report)?;
    let failed = progress.failed.load(Ordering::Relaxed);
    if let Some(first) = progress.first_failure() {
        eprintln!("manycast load: {failed} of {} viewers did not connect; the first: {first}", plan.viewers());
        return Ok(EXIT_ERROR);
    }
    let missed = report.missed(&plan);
    for threshold in &missed {
        eprintln!("manycast load: threshold missed: {threshold}");
    }
    Ok(if missed.is_empty() { EXIT_OK } else { EXIT_MISSED })
}

/// The threads of a run, and what is shared with them.
struct Run {
    plan: Plan,
    clock: Clock,
    signaller: Signaller,
    publishers: Handle<publishers::Command, PublishersReport>,
    crowd: Handle<crowd::Command, CrowdReport>,
    published: Arc<Published>,
    progress: Arc<Progress>,
    sessions: Mutex<Vec<SessionUrl>>,
    interrupted: Arc<AtomicBool>,
    thread_cpu: Arc<AtomicU64>,
    live: Mutex<Live>,
}

/// A thread that takes commands and leaves a report.
struct Handle<C, R> {
    commands: Sender<C>,
    bell: crate::io::Doorbell,
    locals: Vec<SocketAddr>,
    thread: JoinHandle<std::io::Result<R>>,
}

impl<C, R> Handle<C, R> {
    fn tell(&self, command: C) {
        // It fails when the thread has died, which is found when it is joined.
        let _ = self.commands.send(command);
        self.bell.ring();
    }

    fn finish(self, command: C) -> Result<R, RunError> {
        self.tell(command);
        let report = self.thread.join().map_err(|_| RunError::Panicked)?;
        report.map_err(|source| RunError::System { step: "wait for sockets", source })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Publisher,
    Viewer,
}

impl Run {
    fn start(plan: Plan) -> Result<Run, RunError> {
        if let Some(pid) = plan.server_pid
            && process::usage(pid).is_none()
        {
            return Err(RunError::NoProcess(pid));
        }
        let failed = |step| move |source| RunError::System { step, source };
        let ip = plan.target.local_ip()?;
        let files = (plan.viewers() + plan.publishers()) as u64 + OTHER_FILES;
        many::raise_file_limit(files).map_err(failed("raise the limit of open files (ulimit -n)"))?;
        let open = |count, gro| Many::bind(ip, count, Options { gro, receive_bytes: RECEIVE_BYTES });
        let for_publishers = open(plan.publishers(), false).map_err(failed("open the publishers' sockets"))?;
        let for_viewers = open(plan.viewers(), plan.gro);
        let for_viewers = for_viewers.map_err(failed("open the viewers' sockets (ulimit -n?)"))?;
        let mut plan = plan;
        let granted = for_viewers.receive_bytes();
        if granted < RECEIVE_BYTES && plan.viewers() > 0 {
            let (granted, asked) = (granted / 1024, RECEIVE_BYTES / 1024);
            let advice = format!("sysctl -w net.core.rmem_max={RECEIVE_BYTES}");
            plan.notes
                .push(format!("the kernel grants {granted} kB of receive buffer a viewer, not {asked}: {advice}"));
        }

        let clock = Clock::new();
        let (published, progress) = (Arc::<Published>::default(), Arc::<Progress>::default());
        let thread_cpu = Arc::<AtomicU64>::default();
        let (commands, received) = crossbeam_channel::unbounded();
        let bell = for_publishers.doorbell();
        let locals = for_publishers.locals().to_vec();
        let (p, q) = (published.clone(), progress.clone());
        let machine = Publishers::new(clock, for_publishers, received, p, q, plan.source);
        let thread = spawn("load-publishers", move || machine.run())?;
        let publishers = Handle { commands, bell, locals, thread };

        let (commands, received) = crossbeam_channel::unbounded();
        let bell = for_viewers.doorbell();
        let locals = for_viewers.locals().to_vec();
        let rate = plan.source.packets_per_second() / plan.source.video.map_or(1.0, |v| v.packets_per_frame.into());
        let habits = Habits {
            sample: plan.sample,
            loss: plan.loss,
            delay: plan.delay,
            seed: plan.seed,
            silence: match plan.media_for {
                None => Duration::from_secs_f64((3.0 / rate).max(2.0)),
                // Then all are, as they should.
                Some(_) => Duration::MAX,
            },
        };
        let machine = Crowd::new(clock, for_viewers, received, progress.clone(), &habits, thread_cpu.clone());
        let thread = spawn("load-viewers", move || machine.run())?;
        let crowd = Handle { commands, bell, locals, thread };
        Ok(Run {
            signaller: Signaller::new(plan.target.legacy),
            sessions: Mutex::default(),
            interrupted: watch_signals(),
            live: Mutex::new(Live::new(clock.now())),
            plan,
            clock,
            publishers,
            crowd,
            published,
            progress,
            thread_cpu,
        })
    }

    /// Everything up to the last frame.
    fn measure(&self) -> Result<Measured, RunError> {
        let plan = &self.plan;
        let mut notes = plan.notes.clone();
        let publishers = plan.publishers() as u64;
        self.offer_all(Role::Publisher);
        let publishing = || self.published.connected.load(Ordering::Relaxed) == publishers;
        self.wait(2 * CONNECT_TIMEOUT, || publishing() || self.progress.first_failure().is_some());
        if let Some(reason) = self.progress.first_failure() {
            return Err(RunError::Client(reason));
        }
        self.pause(PUBLISH_LEAD);

        let memory_before_kb = plan.server_pid.and_then(process::resident_kb);
        let mut begin = self.mark();
        self.offer_all(Role::Viewer);
        let viewers = plan.viewers() as u64;
        let playing = || self.progress.playing.load(Ordering::Relaxed);
        let failed = || self.progress.failed.load(Ordering::Relaxed);
        self.wait(CONNECT_TIMEOUT + Duration::from_secs(1), || playing() + failed() >= viewers);
        let connected = || self.progress.connected.load(Ordering::Relaxed);
        if let Some(reason) = self.progress.first_failure().filter(|_| connected() == 0) {
            return Err(RunError::Client(reason));
        }
        if playing() + failed() < viewers && !self.is_interrupted() {
            let waiting = viewers - failed() - playing();
            notes
                .push(format!("{waiting} viewers are connected and had no packet or no keyframe when measuring began"));
        }
        if let Some(time) = plan.media_for {
            self.pause(time);
            self.publishers.tell(publishers::Command::Quiet);
        }
        self.pause(SETTLE);
        if !self.is_interrupted() {
            self.crowd.tell(crowd::Command::Measure);
            self.wait_for_crowd(true);
            self.published.measuring.store(true, Ordering::Relaxed);
            begin = self.mark();
            self.pause(plan.duration);
        }
        let mut end = self.mark();
        let memory_after_kb = plan.server_pid.and_then(process::resident_kb);
        self.published.measuring.store(false, Ordering::Relaxed);
        let interrupted = self.is_interrupted();
        self.crowd.tell(crowd::Command::StopMeasuring);
        self.wait_for_crowd(false);
        // The thread tells it now and then, and just now.
        end.thread_cpu = Duration::from_nanos(self.thread_cpu.load(Ordering::Relaxed));
        self.publishers.tell(publishers::Command::Quiet);
        thread::sleep(DRAIN + 4 * plan.delay + if plan.loss > 0.0 { DRAIN } else { Duration::ZERO });
        Ok(Measured { begin, end, connected: connected(), memory_before_kb, memory_after_kb, interrupted, notes })
    }

    /// Ends every session, here and at the server.
    fn finish(self) -> Result<(Plan, Arc<Progress>, Ended), RunError> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // The last ones first: viewers go before their publisher.
        let mut sessions = self.sessions.into_inner().unwrap_or_else(PoisonError::into_inner);
        sessions.reverse();
        let (next, not_deleted) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    while let Some(session) = sessions.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.signaller.end(session) {
                            let mut first = not_deleted.lock().unwrap_or_else(PoisonError::into_inner);
                            first.get_or_insert(error.to_string());
                        }
                    }
                });
            }
        });
        let crowd = self.crowd.finish(crowd::Command::Finish)?;
        let publishers = self.publishers.finish(publishers::Command::Finish)?;
        let not_deleted = not_deleted.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((self.plan, self.progress, Ended { crowd, publishers, not_deleted }))
    }

    /// Offers of all clients of a kind, viewers at the ramp's pace. Ends early when nobody is let in.
    fn offer_all(&self, role: Role) {
        let (count, interval) = match role {
            Role::Publisher => (self.plan.publishers(), Duration::ZERO),
            Role::Viewer => (self.plan.viewers(), self.plan.join_interval),
        };
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let start = self.clock.now();
        let hopeless = || {
            let failed = self.progress.first_failure().is_some();
            failed && self.progress.connected.load(Ordering::Relaxed) == 0
        };
        thread::scope(|scope| {
            let workers = WORKERS.min(count);
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || self.is_interrupted() || hopeless() {
                            break;
                        }
                        let at = start + interval.mul_f64(index as f64);
                        while self.clock.now() < at && !self.is_interrupted() {
                            thread::sleep(at.since(self.clock.now()).min(TICK));
                        }
                        if let Err(reason) = self.join(role, index) {
                            self.progress.fail(reason);
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            while done.load(Ordering::Relaxed) < workers {
                self.tick();
            }
        });
    }

    /// One client: offer, answer, and over to its thread.
    fn join(&self, role: Role, index: usize) -> Result<(), String> {
        let source = &self.plan.source;
        let endpoints = &self.plan.target.streams[index % self.plan.streams];
        let (url, local) = match role {
            Role::Publisher => (&endpoints.publish, self.publishers.locals[index]),
            Role::Viewer => (&endpoints.watch, self.crowd.locals[index]),
        };
        let (asked_at, epoch) = (self.clock.now(), self.clock.epoch());
        let offered = match role {
            Role::Publisher => connection::publisher(
                asked_at,
                epoch,
                local,
                source.video.map(|v| v.codec),
                source.audio_bytes.is_some(),
            ),
            Role::Viewer => connection::viewer(asked_at, epoch, local, source.video.is_some()),
        }?;
        let opened = loop {
            match self.signaller.offer(url, endpoints.token.as_deref(), &offered.offer) {
                Ok(opened) => break opened,
                Err(error) => {
                    let patient = self.clock.now().since(asked_at) < RETRY_FOR && !self.is_interrupted();
                    if role == Role::Publisher || !error.is_passing() || !patient {
                        return Err(error.to_string());
                    }
                    thread::sleep(RETRY_AFTER);
                }
            }
        };
        if let Some(session) = opened.session {
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
        let connection = offered.accept(&opened.answer).map_err(|why| format!("{url}: unusable answer: {why}"))?;
        let joined = Box::new(Joined {
            index,
            connection,
            url: url.clone(),
            asked_at,
            answered_at: self.clock.now(),
            candidates: connection::candidates(&opened.answer),
        });
        match role {
            Role::Publisher => self.publishers.tell(publishers::Command::Join(joined)),
            Role::Viewer => self.crowd.tell(crowd::Command::Join(joined)),
        }
        Ok(())
    }

    fn mark(&self) -> Mark {
        let own = std::process::id();
        Mark {
            at: self.clock.now(),
            packets: self.progress.packets.load(Ordering::Relaxed),
            bytes: self.progress.bytes.load(Ordering::Relaxed),
            published: self.published.packets.load(Ordering::Relaxed),
            server: self.plan.server_pid.and_then(process::usage),
            own: process::usage(own).unwrap_or_default(),
            thread_cpu: Duration::from_nanos(self.thread_cpu.load(Ordering::Relaxed)),
            kernel_drops: process::receive_buffer_errors(),
        }
    }

    fn wait_for_crowd(&self, measuring: bool) {
        // It answers within a turn; the bound is for a thread that has died.
        let mut turns = 0;
        while self.progress.measuring.load(Ordering::Acquire) != measuring && turns < 1000 {
            thread::sleep(Duration::from_millis(1));
            turns += 1;
        }
    }

    /// Until it is true, interrupted, or `limit` has passed.
    fn wait(&self, limit: Duration, done: impl Fn() -> bool) {
        let end = self.clock.now() + limit;
        while !done() && self.clock.now() < end && !self.is_interrupted() {
            self.tick();
        }
    }

    fn pause(&self, time: Duration) {
        let end = self.clock.now() + time;
        while self.clock.now() < end && !self.is_interrupted() {
            self.tick_until(end);
        }
    }

    fn tick(&self) {
        self.tick_until(self.clock.now() + TICK);
    }

    fn tick_until(&self, end: Instant) {
        thread::sleep(end.since(self.clock.now()).min(TICK));
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.show(self.clock.now(), &self.progress, self.plan.viewers());
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Prints the table, and writes the JSON where it is wanted.
fn tell(plan: &Plan, report: &Report) -> Result<(), RunError> {
    let failed = |source| RunError::System { step: "write the report", source };
    let to_stdout = plan.json.as_deref().is_some_and(|path| path.as_os_str() == "-");
    let table = report.table();
    // Whoever closes the pipe has read enough.
    let _ = match to_stdout {
        true => std::io::stderr().write_all(table.as_bytes()),
        false => std::io::stdout().write_all(table.as_bytes()),
    };
    let Some(path) = &plan.json else { return Ok(()) };
    let json = serde_json::to_string_pretty(report).map_err(|e| failed(e.into()))? + "\n";
    if to_stdout {
        std::io::stdout().write_all(json.as_bytes()).map_err(failed)
    } else {
        std::fs::write(path, json).map_err(failed)
    }
}

/// Ctrl-C and SIGTERM end the run early, with its table; a second one ends it at once.
fn watch_signals() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let watch = async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if flag.swap(true, Ordering::Relaxed) {
                // What a shell reports for SIGINT.
                std::process::exit(130);
            }
        }
    };
    // Without a runtime a signal ends the process, as it would have without us.
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() {
        let _ = thread::Builder::new().name("load-signals".into()).spawn(move || runtime.block_on(watch));
    }
    interrupted
}

fn spawn<R: Send + 'static>(name: &str, run: impl FnOnce() -> R + Send + 'static) -> Result<JoinHandle<R>, RunError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map_err(|source| RunError::System { step: "start a thread", source })
}
