//! The thread of all publishers: frames leave in one burst each, by an absolute schedule that never drifts.
//!
//! Apart from the viewers' thread, so that busy viewers do not hold the stream up. When this thread itself gets no
//! processor, frames are late, and the report says by how much.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use str0m::format::Codec;
use str0m::media::{Mid, Pt};
use str0m::rtp::RtpWrite;

use super::connection::{Joined, Outgoing};
use super::crowd::{CONNECT_TIMEOUT, Progress};
use super::histogram::Histogram;
use super::media::{self, AUDIO_PACKETS_PER_SECOND, Place, Source, Video};
use crate::io::Clock;
use crate::io::many::Many;
use crate::units::Instant;

/// The longest sleep.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// Audio runs so far behind video: str0m sends what is due at one time in the order of a hash map.
const AUDIO_OFFSET: Duration = Duration::from_millis(7);

/// RTP time and sequence numbers begin somewhere (RFC 3550 §5.1); seeing them on the wire is no secret here.
const FIRST_TIMESTAMP: u32 = 1_000_000;
const FIRST_SEQ: u64 = 1000;

pub(super) enum Command {
    Join(Box<Joined>),
    /// Frames stop; connections live.
    Quiet,
    /// Says goodbye, then ends.
    Finish,
}

/// What other threads see while it runs.
#[derive(Default)]
pub(super) struct Published {
    /// Publishers that are connected.
    pub connected: AtomicU64,
    pub packets: AtomicU64,
    /// Lateness is taken down.
    pub measuring: AtomicBool,
}

/// What the thread leaves behind.
#[derive(Default)]
pub(super) struct PublishersReport {
    /// How long after its time a frame left.
    pub late: Histogram,
    pub keyframe_requests: u64,
    /// Datagrams that the socket did not take.
    pub send_errors: u64,
    /// Publishers whose connection the server has ended, or that broke.
    pub closed: u64,
}

pub(super) struct Publishers {
    clock: Clock,
    many: Many,
    commands: Receiver<Command>,
    published: Arc<Published>,
    progress: Arc<Progress>,
    source: Source,
    members: Vec<Publisher>,
    quiet: bool,
    report: PublishersReport,
    packets: u64,
}

struct Publisher {
    joined: Joined,
    video: Option<(Mid, Pt)>,
    audio: Option<(Mid, Pt)>,
    /// When it was connected: the zero of its schedule.
    started: Option<Instant>,
    frames: u64,
    video_packets: u64,
    audio_packets: u64,
    keyframe_wanted: bool,
    sizes: fastrand::Rng,
}

impl Publishers {
    pub fn new(
        clock: Clock,
        many: Many,
        commands: Receiver<Command>,
        published: Arc<Published>,
        progress: Arc<Progress>,
        source: Source,
    ) -> Publishers {
        let report = PublishersReport::default();
        let members = Vec::new();
        Publishers { clock, many, commands, published, progress, source, members, quiet: false, report, packets: 0 }
    }

    pub fn run(mut self) -> std::io::Result<PublishersReport> {
        let (mut ready, mut out) = (Vec::new(), Outgoing::new());
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Join(joined) => self.members.push(Publisher::new(*joined, &self.source)),
                    Command::Quiet => self.fall_quiet(),
                    Command::Finish => {
                        self.say_goodbye();
                        return Ok(self.report);
                    }
                }
            }
            let next = self.members.iter().map(|m| m.next_timeout(&self.source, self.quiet)).min();
            let next = next.unwrap_or(Instant::FAR_FUTURE);
            self.many.wait(next.since(self.clock.now()).min(SLEEP_MAX), &mut ready)?;
            for socket in ready.drain(..) {
                let now = self.clock.now();
                let member = self.members.iter_mut().find(|m| m.joined.index == socket);
                let Some(member) = member else {
                    self.many.receive(socket, |_, _| {});
                    continue;
                };
                let connection = &mut member.joined.connection;
                self.many.receive(socket, |from, data| connection.handle_datagram(now, from, data, &mut out));
                self.send(socket, &mut out);
            }
            for index in 0..self.members.len() {
                self.step(index, &mut out);
            }
            self.tell();
        }
    }

    /// Does what is due for one publisher.
    fn step(&mut self, index: usize, out: &mut Outgoing) {
        let member = &mut self.members[index];
        let socket = member.joined.index;
        let now = self.clock.now();
        if member.started.is_none() && member.joined.connection.is_connected() {
            member.started = Some(now);
        }
        if member.joined.connection.take_keyframe_wanted() {
            self.report.keyframe_requests += 1;
            member.keyframe_wanted = true;
        }
        if member.joined.connection.next_timeout() <= now {
            member.joined.connection.handle_timeout(now, out);
            self.send(socket, out);
        }
        // One frame at a time, each with its own stamp: a publisher that is late sends what it owes one after the other.
        while !self.quiet {
            let now = self.clock.now();
            let Some(due) = self.members[index].next_due(&self.source).filter(|due| *due <= now) else { break };
            self.packets += self.members[index].write_due(now, &self.source);
            self.members[index].joined.connection.handle_timeout(now, out);
            self.send(socket, out);
            if self.published.measuring.load(Ordering::Relaxed) {
                self.report.late.note(now.since(due));
            }
        }
    }

    fn send(&mut self, socket: usize, out: &mut Outgoing) {
        for (to, data) in out.drain(..) {
            self.report.send_errors += u64::from(self.many.send(socket, to, &data).is_err());
        }
    }

    fn tell(&mut self) {
        let now = self.clock.now();
        let mut connected = 0;
        self.members.retain(|member| {
            connected += u64::from(member.started.is_some());
            let late = member.started.is_none() && now.since(member.joined.answered_at) > CONNECT_TIMEOUT;
            if late {
                let local = self.many.locals()[member.joined.index];
                self.progress.fail(member.joined.silence(local, CONNECT_TIMEOUT.as_secs()));
            }
            !late
        });
        self.published.connected.store(connected, Ordering::Relaxed);
        self.published.packets.store(self.packets, Ordering::Relaxed);
    }

    fn fall_quiet(&mut self) {
        self.quiet = true;
        self.report.closed = self.members.iter().filter(|m| m.joined.connection.is_closed()).count() as u64;
    }

    fn say_goodbye(&mut self) {
        let (now, mut out) = (self.clock.now(), Outgoing::new());
        for index in 0..self.members.len() {
            let joined = &mut self.members[index].joined;
            joined.connection.close(now, &mut out);
            let socket = joined.index;
            self.send(socket, &mut out);
        }
    }
}

impl Publisher {
    fn new(joined: Joined, source: &Source) -> Publisher {
        let connection = &joined.connection;
        let track =
            |mid: Option<Mid>, codec: Codec| mid.and_then(|mid| Some((mid, connection.payload_type(mid, codec)?)));
        let video = source.video.and_then(|v| track(connection.video, v.codec.to_str0m()));
        let audio = source.audio_bytes.and_then(|_| track(connection.audio, Codec::Opus));
        Publisher {
            video,
            audio,
            started: None,
            frames: 0,
            video_packets: 0,
            audio_packets: 0,
            keyframe_wanted: true,
            // Always the same: two runs send the same.
            sizes: fastrand::Rng::with_seed(joined.index as u64),
            joined,
        }
    }

    fn next_timeout(&self, source: &Source, quiet: bool) -> Instant {
        let due = if quiet { None } else { self.next_due(source) };
        due.unwrap_or(Instant::FAR_FUTURE).min(self.joined.connection.next_timeout())
    }

    /// When the next frame or audio packet is to leave.
    fn next_due(&self, source: &Source) -> Option<Instant> {
        if self.joined.connection.is_closed() {
            return None;
        }
        let (video, audio) = self.dues(source);
        Some(video.min(audio)).filter(|due| *due != Instant::FAR_FUTURE)
    }

    fn dues(&self, source: &Source) -> (Instant, Instant) {
        let Some(started) = self.started else { return (Instant::FAR_FUTURE, Instant::FAR_FUTURE) };
        let video = source.video.filter(|_| self.video.is_some());
        let video = video.map(|v| started + Duration::from_secs_f64(self.frames as f64 / v.frames_per_second));
        let audio = self.audio.map(|_| started + AUDIO_OFFSET + audio_time(self.audio_packets));
        (video.unwrap_or(Instant::FAR_FUTURE), audio.unwrap_or(Instant::FAR_FUTURE))
    }

    /// Gives str0m the next frame or audio packet, whichever is due first. Returns its packets.
    fn write_due(&mut self, now: Instant, source: &Source) -> u64 {
        let (video_due, audio_due) = self.dues(source);
        match (source.video, source.audio_bytes) {
            (Some(video), _) if video_due <= audio_due => self.write_frame(now, &video),
            (_, Some(bytes)) => self.write_audio(now, bytes),
            _ => 0,
        }
    }

    fn write_frame(&mut self, now: Instant, video: &Video) -> u64 {
        let frame = self.frames;
        self.frames += 1;
        let keyframe = std::mem::take(&mut self.keyframe_wanted) || frame.is_multiple_of(video.keyframe_frames);
        let Some((mid, payload_type)) = self.video else { return 0 };
        let at = self.joined.connection.at(now);
        let mut direct = self.joined.connection.rtc().direct_api();
        let Some(stream) = direct.stream_tx_by_mid(mid, None) else { return 0 };
        let timestamp = FIRST_TIMESTAMP.wrapping_add((frame as f64 * 90_000.0 / video.frames_per_second) as u64 as u32);
        for index in 0..video.packets_per_frame {
            let place = Place { frame, first: index == 0, keyframe };
            let last = index + 1 == video.packets_per_frame;
            let bytes = video.payload_bytes(last, &mut self.sizes);
            let payload = media::video_payload(video.codec, bytes, place, now, self.video_packets as u32);
            let seq = FIRST_SEQ + self.video_packets;
            let write = RtpWrite::new(payload_type, seq.into(), timestamp, at, payload).marker(last).nackable(true);
            stream.write_rtp(write);
            self.video_packets += 1;
        }
        video.packets_per_frame.into()
    }

    fn write_audio(&mut self, now: Instant, bytes: usize) -> u64 {
        let packet = self.audio_packets;
        self.audio_packets += 1;
        let Some((mid, payload_type)) = self.audio else { return 0 };
        let at = self.joined.connection.at(now);
        let mut direct = self.joined.connection.rtc().direct_api();
        let Some(stream) = direct.stream_tx_by_mid(mid, None) else { return 0 };
        let payload = media::audio_payload(bytes, now, packet as u32);
        let timestamp = FIRST_TIMESTAMP.wrapping_add((packet as u32).wrapping_mul(960));
        stream.write_rtp(RtpWrite::new(payload_type, (FIRST_SEQ + packet).into(), timestamp, at, payload));
        1
    }
}

fn audio_time(packets: u64) -> Duration {
    Duration::from_nanos(packets * (1_000_000_000 / AUDIO_PACKETS_PER_SECOND))
}
