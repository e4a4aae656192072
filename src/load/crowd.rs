//! The thread of all viewers: one epoll over their sockets, their timers in one heap, the emulated path between.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Receiver;
use str0m::media::MediaKind;

use super::connection::{Joined, Outgoing};
use super::histogram::Histogram;
use super::path::{Path, Way};
use super::process;
use super::tally::Counts;
use super::viewer::{Milestones, Totals, Viewer};
use crate::io::Clock;
use crate::io::many::Many;
use crate::units::Instant;

/// From the answer to ICE and DTLS finished.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest sleep: also how old the shared figures get when nothing happens.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// Timers of one viewer fire at most so often.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// What the thread is told.
pub(super) enum Command {
    Join(Box<Joined>),
    /// Figures begin now.
    Measure,
    /// Latencies end now; losses still wait for their repair.
    StopMeasuring,
    /// Says goodbye for everyone, then ends.
    Finish,
}

/// What other threads see while it runs.
#[derive(Default)]
pub(super) struct Progress {
    pub connected: AtomicU64,
    /// With a first packet, and a first keyframe where there is video.
    pub playing: AtomicU64,
    pub failed: AtomicU64,
    pub packets: AtomicU64,
    pub bytes: AtomicU64,
    pub expected: AtomicU64,
    pub received: AtomicU64,
    pub measuring: AtomicBool,
    first_failure: Mutex<Option<String>>,
}

impl Progress {
    /// A client that will not come. Only the first one's reason is kept: the others' are the same, or follow from it.
    pub fn fail(&self, reason: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.first_failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    pub fn first_failure(&self) -> Option<String> {
        self.first_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the thread leaves behind.
pub(super) struct CrowdReport {
    /// Since [`Command::Measure`], as `audio`, which has no RTX: what is lost of it is lost for good.
    pub video: Counts,
    pub audio: Counts,
    pub rtx_packets: u64,
    pub unreadable: u64,
    pub latency: Histogram,
    /// Since the beginning.
    pub milestones: Vec<Milestones>,
    /// Viewers that were connected and got nothing in the end.
    pub silent: u64,
    /// Viewers whose connection the server has ended, or that broke.
    pub closed: u64,
    pub sampled: u64,
    pub emulated_losses: u64,
    pub emulation_overflow: u64,
    pub truncated: u64,
}

pub(super) struct Crowd {
    clock: Clock,
    many: Many,
    commands: Receiver<Command>,
    progress: Arc<Progress>,
    sample: usize,
    path: Path,
    round_trip: Duration,
    /// Without a packet for so long a viewer is silent.
    silence: Duration,
    viewers: Vec<Option<Box<Viewer>>>,
    /// Entries that are not at `scheduled` are stale.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    scheduled: Vec<Instant>,
    totals: Totals,
    baseline: Baseline,
    silent: u64,
    closed: u64,
    out: Outgoing,
    thread_cpu: Arc<AtomicU64>,
}

/// Counters when the measurement began.
#[derive(Default)]
struct Baseline {
    audio: Counts,
    video: Counts,
    rtx_packets: u64,
    unreadable: u64,
}

/// How viewers behave.
pub(super) struct Habits {
    /// Every so manieth is decrypted fully.
    pub sample: usize,
    pub loss: f64,
    pub delay: Duration,
    pub seed: u64,
    pub silence: Duration,
}

impl Crowd {
    /// `thread_cpu`: where the thread's processor time is told, in nanoseconds.
    pub fn new(
        clock: Clock,
        many: Many,
        commands: Receiver<Command>,
        progress: Arc<Progress>,
        habits: &Habits,
        thread_cpu: Arc<AtomicU64>,
    ) -> Crowd {
        let count = many.locals().len();
        Crowd {
            clock,
            many,
            commands,
            progress,
            sample: habits.sample,
            path: Path::new(habits.loss, habits.delay, habits.seed),
            round_trip: 2 * habits.delay,
            silence: habits.silence,
            viewers: (0..count).map(|_| None).collect(),
            timers: BinaryHeap::new(),
            scheduled: vec![Instant::FAR_FUTURE; count],
            totals: Totals { measuring: true, ..Totals::default() },
            baseline: Baseline::default(),
            silent: 0,
            closed: 0,
            out: Outgoing::new(),
            thread_cpu,
        }
    }

    pub fn run(mut self) -> std::io::Result<CrowdReport> {
        let mut ready = Vec::new();
        let mut next_summary = Instant::ZERO;
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Join(joined) => self.join(*joined),
                    Command::Measure => self.measure(),
                    Command::StopMeasuring => self.stop_measuring(),
                    Command::Finish => {
                        self.say_goodbye();
                        return Ok(self.report());
                    }
                }
            }
            let next = self.timers.peek().map_or(Instant::FAR_FUTURE, |Reverse((at, _))| *at);
            let next = next.min(self.path.next_timeout());
            self.many.wait(next.since(self.clock.now()).min(SLEEP_MAX), &mut ready)?;
            for socket in ready.drain(..) {
                self.receive(socket);
            }
            let now = self.clock.now();
            self.deliver(now);
            self.fire_timers(now);
            self.progress.packets.store(self.totals.packets, Ordering::Relaxed);
            self.progress.bytes.store(self.totals.bytes, Ordering::Relaxed);
            if next_summary <= now {
                next_summary = now + Duration::from_millis(200);
                self.summarise(now);
            }
        }
    }

    fn join(&mut self, joined: Joined) {
        let index = joined.index;
        let sampled = index.is_multiple_of(self.sample);
        self.viewers[index] = Some(Box::new(Viewer::new(joined, sampled, self.round_trip)));
        self.schedule(self.clock.now(), index, Instant::ZERO);
    }

    /// One recvmmsg; the rest of the socket comes next turn.
    fn receive(&mut self, socket: usize) {
        let now = self.clock.now();
        let Crowd { many, viewers, path, totals, out, .. } = self;
        let viewer = viewers[socket].as_mut();
        let Some(viewer) = viewer else {
            // Nobody is there yet: what comes is not for us.
            many.receive(socket, |_, _| {});
            return;
        };
        many.receive(socket, |from, data| {
            if path.loses() {
                return;
            }
            match path.is_direct() {
                true => viewer.handle_datagram(now, from, data, totals, out),
                false => path.push(now, socket, Way::ToViewer, from, data),
            }
        });
        let next = viewer.next_timeout();
        self.flush(now, socket);
        self.schedule(now, socket, next);
    }

    /// What the emulated path has held back.
    fn deliver(&mut self, now: Instant) {
        while let Some(mut delivery) = self.path.poll(now) {
            let index = delivery.viewer;
            match delivery.way {
                // A full send buffer is a loss like any other.
                Way::ToServer => drop(self.many.send(index, delivery.remote, &delivery.data)),
                Way::ToViewer => {
                    let Some(viewer) = &mut self.viewers[index] else { continue };
                    viewer.handle_datagram(now, delivery.remote, &mut delivery.data, &mut self.totals, &mut self.out);
                    let next = viewer.next_timeout();
                    self.flush(now, index);
                    self.schedule(now, index, next);
                }
            }
        }
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some(Reverse((at, index))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            if self.scheduled[index] != at {
                continue;
            }
            self.scheduled[index] = Instant::FAR_FUTURE;
            let Some(viewer) = &mut self.viewers[index] else { continue };
            viewer.handle_timeout(now, &mut self.out);
            let next = viewer.next_timeout();
            self.flush(now, index);
            self.schedule(now, index, next);
        }
    }

    /// Sends what a viewer has to say.
    fn flush(&mut self, now: Instant, index: usize) {
        for (to, data) in self.out.drain(..) {
            if self.path.loses() {
                continue;
            }
            match self.path.is_direct() {
                true => drop(self.many.send(index, to, &data)),
                false => self.path.push(now, index, Way::ToServer, to, &data),
            }
        }
    }

    fn schedule(&mut self, now: Instant, index: usize, at: Instant) {
        let at = at.max(now + TIMER_STEP);
        if at < self.scheduled[index] && at != Instant::FAR_FUTURE {
            self.scheduled[index] = at;
            self.timers.push(Reverse((at, index)));
        }
    }

    /// Counts how far everyone is, and gives up on those who take too long.
    fn summarise(&mut self, now: Instant) {
        let (mut connected, mut playing) = (0, 0);
        for slot in &mut self.viewers {
            let Some(viewer) = slot else { continue };
            let milestones = viewer.milestones();
            let shows = viewer.connection().video.is_none() || milestones.first_keyframe.is_some();
            connected += u64::from(milestones.connected.is_some());
            playing += u64::from(milestones.first_packet.is_some() && shows);
            if milestones.connected.is_none() && now.since(milestones.answered) > CONNECT_TIMEOUT {
                let joined = viewer.joined();
                let local = self.many.locals()[joined.index];
                self.progress.fail(joined.silence(local, CONNECT_TIMEOUT.as_secs()));
                *slot = None;
            }
        }
        self.progress.connected.store(connected, Ordering::Relaxed);
        self.progress.playing.store(playing, Ordering::Relaxed);
        let (mut counts, audio) = self.counts_since_baseline();
        counts.add(&audio);
        self.progress.expected.store(counts.expected, Ordering::Relaxed);
        self.progress.received.store(counts.received, Ordering::Relaxed);
        self.thread_cpu.store(
            process::own_thread_cpu_time().map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(0)),
            Ordering::Relaxed,
        );
    }

    fn measure(&mut self) {
        self.baseline = Baseline {
            audio: self.counts(MediaKind::Audio),
            video: self.counts(MediaKind::Video),
            rtx_packets: self.totals.rtx_packets,
            unreadable: self.totals.unreadable,
        };
        self.totals.latency = Histogram::default();
        self.totals.measuring = true;
        self.summarise(self.clock.now());
        self.progress.measuring.store(true, Ordering::Release);
    }

    fn stop_measuring(&mut self) {
        let now = self.clock.now();
        self.summarise(now);
        self.totals.measuring = false;
        let silent = self
            .viewers
            .iter()
            .flatten()
            .filter(|v| v.milestones().connected.is_some() && now.since(v.last_packet()) > self.silence);
        self.silent = silent.count() as u64;
        self.closed = self.viewers.iter().flatten().filter(|v| v.connection().is_closed()).count() as u64;
        self.progress.measuring.store(false, Ordering::Release);
    }

    fn say_goodbye(&mut self) {
        let now = self.clock.now();
        for index in 0..self.viewers.len() {
            if let Some(viewer) = &mut self.viewers[index]
                && !viewer.connection().is_closed()
            {
                viewer.close(now, &mut self.out);
                for (to, data) in self.out.drain(..) {
                    // Not lost on purpose: a server that is left with ghosts would spoil the next run.
                    let _ = self.many.send(index, to, &data);
                }
            }
        }
    }

    fn counts(&self, kind: MediaKind) -> Counts {
        let mut counts = Counts::default();
        self.viewers.iter().flatten().for_each(|v| counts.add(&v.counts(kind)));
        counts
    }

    /// Of video and of audio.
    fn counts_since_baseline(&self) -> (Counts, Counts) {
        let video = self.counts(MediaKind::Video).since(&self.baseline.video);
        (video, self.counts(MediaKind::Audio).since(&self.baseline.audio))
    }

    fn report(self) -> CrowdReport {
        let (video, audio) = self.counts_since_baseline();
        CrowdReport {
            video,
            audio,
            rtx_packets: self.totals.rtx_packets - self.baseline.rtx_packets,
            unreadable: self.totals.unreadable - self.baseline.unreadable,
            milestones: self.viewers.iter().flatten().map(|v| *v.milestones()).collect(),
            silent: self.silent,
            closed: self.closed,
            sampled: self.viewers.len().div_ceil(self.sample) as u64,
            emulated_losses: self.path.lost(),
            emulation_overflow: self.path.overflowed(),
            truncated: self.many.truncated(),
            latency: self.totals.latency,
        }
    }
}
