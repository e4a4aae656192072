//! One viewer: connects by str0m, then counts what it is sent, reports on it, and asks again for what is missing.
//!
//! Media goes past str0m, which would take 2 to 3 µs for each packet. A viewer of the sample decrypts everything; the
//! others read headers, decrypt until their first keyframe (or nobody would know when they saw a picture), and what
//! comes by RTX (its original number is encrypted).

use std::net::SocketAddr;
use std::time::Duration;

use str0m::media::MediaKind;

use super::connection::{Connection, Joined, Outgoing, PayloadKind, PayloadKinds};
use super::histogram::Histogram;
use super::media::Stamp;
use super::tally::{Counts, Tally};
use crate::srtp::open::{OpenError, RtpOpener};
use crate::srtp::seal::RtcpSealer;
use crate::units::Instant;
use crate::wire::rtcp::{self, ReportBlock};
use crate::wire::rtp::{self, RtpView};

/// Between receiver reports, each time varied by half, as libwebrtc's `rtcp_sender.cc` has it: one datagram for video
/// and one for audio, whether or not anything is received.
const VIDEO_REPORT_INTERVAL: Duration = Duration::from_secs(1);
const AUDIO_REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// A track that is silent for longer has no block in reports any more; libwebrtc's `receive_statistics_impl.cc`.
const REPORT_SILENCE: Duration = Duration::from_secs(8);

/// How long a picture without keyframe is watched before one is asked for. Longer than the interval between keyframes
/// that the server's own request on joining should end.
const PLI_INTERVAL: Duration = Duration::from_secs(2);

/// RTP streams of one viewer: audio and video are two. More come when a server changes SSRCs.
const TRACKS_MAX: usize = 8;

const RTP_BYTES_MIN: usize = 12;

/// What all viewers of a thread count together.
#[derive(Default)]
pub(super) struct Totals {
    /// RTP datagrams, duplicates and RTX too.
    pub packets: u64,
    /// UDP payload of those.
    pub bytes: u64,
    pub rtx_packets: u64,
    /// Could not be decrypted, or of an unknown payload type.
    pub unreadable: u64,
    pub latency: Histogram,
    /// Latencies are taken down.
    pub measuring: bool,
}

/// When a viewer got how far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Milestones {
    pub asked: Instant,
    pub answered: Instant,
    pub connected: Option<Instant>,
    pub first_packet: Option<Instant>,
    pub first_keyframe: Option<Instant>,
}

pub(super) struct Viewer {
    joined: Joined,
    sampled: bool,
    kinds: Box<PayloadKinds>,
    media: Option<Media>,
    tracks: Vec<Track>,
    milestones: Milestones,
    last_packet: Instant,
    next_reports: Vec<(MediaKind, Instant)>,
    next_pli: Instant,
    /// Between two requests for one packet.
    retry: Duration,
}

/// What there is once DTLS has finished.
struct Media {
    opener: RtpOpener,
    sealer: RtcpSealer,
    /// Ours, in reports.
    ssrc: u32,
    /// Where media comes from.
    remote: Option<SocketAddr>,
}

struct Track {
    ssrc: u32,
    kind: MediaKind,
    tally: Tally,
    reported: Counts,
    last_packet: Instant,
}

impl Viewer {
    /// `round_trip`: what the emulated path adds.
    pub fn new(joined: Joined, sampled: bool, round_trip: Duration) -> Viewer {
        let milestones = Milestones { asked: joined.asked_at, answered: joined.answered_at, ..Milestones::default() };
        Viewer {
            sampled,
            kinds: Box::new(joined.connection.payload_kinds()),
            media: None,
            tracks: Vec::new(),
            milestones,
            last_packet: Instant::ZERO,
            next_reports: Vec::new(),
            next_pli: Instant::FAR_FUTURE,
            retry: Duration::from_millis(50) + round_trip,
            joined,
        }
    }

    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        data: &mut [u8],
        totals: &mut Totals,
        out: &mut Outgoing,
    ) {
        if matches!(data.first(), Some(128..=191)) {
            // Before the keys are there nothing can be read; a real client drops it too.
            if self.media.is_some() {
                self.handle_media(now, from, data, totals);
            }
            return;
        }
        self.joined.connection.handle_datagram(now, from, data, out);
        self.take_keys(now);
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outgoing) {
        if self.joined.connection.next_timeout() <= now {
            self.joined.connection.handle_timeout(now, out);
            self.take_keys(now);
        }
        self.send_feedback(now, out);
    }

    pub fn close(&mut self, now: Instant, out: &mut Outgoing) {
        self.joined.connection.close(now, out);
    }

    pub fn next_timeout(&self) -> Instant {
        let tracks = self.tracks.iter().map(|t| t.tally.next_timeout());
        let reports = self.next_reports.iter().map(|(_, at)| *at);
        let own = tracks.chain(reports).fold(self.next_pli, Instant::min);
        self.joined.connection.next_timeout().min(own)
    }

    pub fn milestones(&self) -> &Milestones {
        &self.milestones
    }

    pub fn counts(&self, kind: MediaKind) -> Counts {
        let mut counts = Counts::default();
        self.tracks.iter().filter(|t| t.kind == kind).for_each(|t| counts.add(&t.tally.counts()));
        counts
    }

    pub fn last_packet(&self) -> Instant {
        self.last_packet
    }

    pub fn joined(&self) -> &Joined {
        &self.joined
    }

    pub fn connection(&self) -> &Connection {
        &self.joined.connection
    }

    fn take_keys(&mut self, now: Instant) {
        if self.media.is_some() {
            return;
        }
        let Some(keys) = self.joined.connection.take_keys() else { return };
        let Ok(keys) = keys.master_keys() else { return };
        self.milestones.connected = Some(now);
        let kinds =
            [(MediaKind::Video, self.joined.connection.video), (MediaKind::Audio, self.joined.connection.audio)];
        let negotiated = kinds.into_iter().filter(|(_, mid)| mid.is_some());
        self.next_reports = negotiated.map(|(kind, _)| (kind, now + until_report(kind))).collect();
        self.media = Some(Media {
            opener: RtpOpener::new(keys.remote),
            sealer: RtcpSealer::new(keys.local),
            ssrc: 0x1000_0000 | self.joined.index as u32,
            remote: None,
        });
    }

    fn handle_media(&mut self, now: Instant, from: SocketAddr, data: &mut [u8], totals: &mut Totals) {
        let Some(media) = &mut self.media else { return };
        let payload_type = data.get(1).map_or(64, |b| b & 127);
        // RFC 5761 §4: these are RTCP's. Sender reports are of no use here.
        if data.len() < RTP_BYTES_MIN || (64..=95).contains(&payload_type) {
            return;
        }
        media.remote = Some(from);
        totals.packets += 1;
        totals.bytes += data.len() as u64;
        self.last_packet = now;
        if self.milestones.first_packet.is_none() {
            self.milestones.first_packet = Some(now);
            self.next_pli = if self.joined.connection.video.is_some() { now + PLI_INTERVAL } else { self.next_pli };
        }
        match self.kinds[usize::from(payload_type)] {
            PayloadKind::Media(kind) => self.handle_plain(now, kind, data, totals),
            PayloadKind::Rtx => self.handle_rtx(now, data, totals),
            PayloadKind::Unknown => totals.unreadable += 1,
        }
    }

    fn handle_plain(&mut self, now: Instant, kind: MediaKind, data: &mut [u8], totals: &mut Totals) {
        let seq = u16::from_be_bytes([data[2], data[3]]);
        let ssrc = u32::from_be_bytes([data[8], data[9], data[10], data[11]]);
        let fresh = match self.tracks.iter().position(|t| t.ssrc == ssrc) {
            Some(at) => {
                self.tracks[at].last_packet = now;
                self.tracks[at].tally.note(now, seq)
            }
            None if self.tracks.len() < TRACKS_MAX => {
                let tally = Tally::new(seq, self.retry);
                self.tracks.push(Track { ssrc, kind, tally, reported: Counts::default(), last_packet: now });
                true
            }
            None => {
                totals.unreadable += 1;
                false
            }
        };
        let awaits_picture = kind == MediaKind::Video && self.milestones.first_keyframe.is_none();
        if fresh && (self.sampled || awaits_picture) {
            self.read(now, kind, data, totals);
        }
    }

    fn handle_rtx(&mut self, now: Instant, data: &mut [u8], totals: &mut Totals) {
        totals.rtx_packets += 1;
        let mut original = None;
        let tracks = &mut self.tracks;
        let Some(media) = &mut self.media else { return };
        let Some(payload) = open(&mut media.opener, data, totals) else { return };
        // Padding, as probes have it, repairs nothing. Only video has RTX.
        if let Some((seq, payload)) = rtp::parse_rtx(payload)
            && let Some(track) = tracks.iter_mut().rev().find(|t| t.kind == MediaKind::Video)
            && track.tally.repair(seq)
        {
            original = Stamp::read(payload);
        }
        if let Some(stamp) = original {
            self.note_stamp(now, MediaKind::Video, stamp, totals);
        }
    }

    fn read(&mut self, now: Instant, kind: MediaKind, data: &mut [u8], totals: &mut Totals) {
        let Some(media) = &mut self.media else { return };
        let stamp = open(&mut media.opener, data, totals).and_then(Stamp::read);
        if let Some(stamp) = stamp {
            self.note_stamp(now, kind, stamp, totals);
        }
    }

    fn note_stamp(&mut self, now: Instant, kind: MediaKind, stamp: Stamp, totals: &mut Totals) {
        if totals.measuring && self.sampled {
            totals.latency.note(now.since(stamp.sent));
        }
        if kind == MediaKind::Video && stamp.starts_keyframe && self.milestones.first_keyframe.is_none() {
            self.milestones.first_keyframe = Some(now);
            self.next_pli = Instant::FAR_FUTURE;
        }
    }

    /// Reports, each when it is due, and what is asked for.
    fn send_feedback(&mut self, now: Instant, out: &mut Outgoing) {
        for at in 0..self.next_reports.len() {
            let (kind, due) = self.next_reports[at];
            if due <= now {
                self.next_reports[at].1 = now + until_report(kind);
                let tracks = self.tracks.iter_mut().filter(|t| t.kind == kind);
                let heard = tracks.filter(|t| now.since(t.last_packet) < REPORT_SILENCE);
                let blocks: Vec<ReportBlock> = heard.map(report).collect();
                self.send(&blocks, &[], out);
            }
        }
        let requests = self.requests(now);
        if !requests.is_empty() {
            self.send(&[], &requests, out);
        }
    }

    /// For lost packets and for a keyframe, as RTCP.
    fn requests(&mut self, now: Instant) -> Vec<u8> {
        let (mut requests, mut lost) = (Vec::new(), Vec::new());
        let Some(media) = &self.media else { return requests };
        for track in &mut self.tracks {
            track.tally.due(now, &mut lost);
            // Only video was negotiated with NACK.
            if !lost.is_empty() && track.kind == MediaKind::Video {
                rtcp::write_nack(&mut requests, media.ssrc, track.ssrc, &lost);
            }
        }
        if self.next_pli <= now {
            self.next_pli = now + PLI_INTERVAL;
            if let Some(track) = self.tracks.iter().rev().find(|t| t.kind == MediaKind::Video) {
                rtcp::write_pli(&mut requests, media.ssrc, track.ssrc);
            }
        }
        requests
    }

    /// A compound begins with a report and has a name (RFC 3550 §6.1).
    fn send(&mut self, blocks: &[ReportBlock], requests: &[u8], out: &mut Outgoing) {
        let Some(media) = &mut self.media else { return };
        let Some(remote) = media.remote else { return };
        let mut compound = Vec::with_capacity(128);
        rtcp::write_receiver_report(&mut compound, media.ssrc, blocks);
        rtcp::write_sdes_cname(&mut compound, media.ssrc, "load");
        compound.extend_from_slice(requests);
        if media.sealer.seal_rtcp(&mut compound).is_ok() {
            out.push((remote, compound));
        }
    }
}

fn until_report(kind: MediaKind) -> Duration {
    let interval = if kind == MediaKind::Video { VIDEO_REPORT_INTERVAL } else { AUDIO_REPORT_INTERVAL };
    interval.mul_f64(0.5 + fastrand::f64())
}

/// Decrypts in place and returns the payload.
fn open<'a>(opener: &mut RtpOpener, data: &'a mut [u8], totals: &mut Totals) -> Option<&'a [u8]> {
    match opener.open_rtp(data) {
        Ok(opened) => RtpView::parse(&data[..opened.plain_bytes]).map(|view| view.payload),
        Err(OpenError::Replayed) => None,
        Err(_) => {
            totals.unreadable += 1;
            None
        }
    }
}

/// Without the round trip, for which sender reports would have to be decrypted.
fn report(track: &mut Track) -> ReportBlock {
    let counts = track.tally.counts();
    let new = counts.since(&track.reported);
    track.reported = counts;
    // More may have come than was expected: repairs of what was lost before.
    let lost = new.expected.saturating_sub(new.received);
    ReportBlock {
        ssrc: track.ssrc,
        fraction_lost: (lost * 256).checked_div(new.expected).unwrap_or(0).min(255) as u8,
        cumulative_lost: (counts.expected - counts.received) as i32,
        highest_seq: track.tally.highest(),
        ..ReportBlock::default()
    }
}
