//! RTCP with one viewer: what it reports and asks for, what we report. The cold part of its media plane.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use str0m::media::MediaKind;

use super::bwe::Bwe;
use super::egress::{Asked, Lost, Reported};
use super::negotiate::BoundFormat;
use super::track::{Splice, TrackSetup};
use crate::srtp::keys::MasterKeys;
use crate::srtp::open::RtcpOpener;
use crate::srtp::seal::RtcpSealer;
use crate::units::{Bitrate, Instant};
use crate::wire::rtcp::{self, NtpTime, Rtcp, SenderInfo};
use crate::wire::transport_cc::TransportFeedback;

/// Between sender reports (RFC 3550 §6.2 would allow five times as many seconds; lip sync wants it sooner).
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Between two resends of one packet: a NACK that crossed the first one on its way is not answered twice.
const RESEND_INTERVAL_MIN: Duration = Duration::from_millis(20);
const RESENDS_PER_PACKET_MAX: u8 = 10;
/// Packets whose resends are remembered: what one datagram may ask for, so that it is not answered twice. 12 kB of a viewer
/// that loses something.
const RESENDS_REMEMBERED: usize = NACKS_MAX;
/// Half of what is sent may be sent again, gathered up to this many bytes: a viewer that claims to lose everything cannot
/// make us send more. Half a second of 4 Mbit/s.
const RESEND_BYTES_MAX: u64 = 256 * 1024;
/// Of these, what second copies leave to first answers, and what a viewer begins with.
const RESEND_BYTES_RESERVED: u64 = RESEND_BYTES_MAX / 2;

/// How long a viewer's word on its path counts: browsers send REMB once a second, and reports.
const WORD_VALID: Duration = Duration::from_secs(5);
/// More, of 256, is a link that is full (draft-ietf-rmcat-gcc-02 §6).
const FULL_LOSS: u8 = 26;

/// NACKed numbers of one RTCP datagram that are looked at.
const NACKS_MAX: usize = 512;

/// Transport-wide feedback in one datagram, less one: 36 bytes of it may speak of 2048 packets.
const FEEDBACK_MAX: usize = 5;

/// Splices that a NACK may still mean. A viewer that is spliced more often within a round trip loses a repair.
const SPLICES_REMEMBERED: usize = 4;

/// What a viewer's numbers meant before the splice that is valid now.
#[derive(Default)]
pub(super) struct Past(VecDeque<(MediaKind, Splice)>);

impl Past {
    pub fn remember(&mut self, kind: MediaKind, splice: Splice) {
        if self.0.len() >= SPLICES_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((kind, splice));
    }

    /// The splice that gave out `out_seq`, `current` or one before it.
    pub fn splice_of(&self, current: Splice, kind: MediaKind, out_seq: u64) -> Option<Splice> {
        let past = self.0.iter().rev().filter(|(k, _)| *k == kind).map(|(_, splice)| *splice);
        std::iter::once(current).chain(past).find(|s| out_seq >= s.first_seq)
    }
}

pub(super) struct Feedback {
    opener: RtcpOpener,
    sealer: RtcpSealer,
    cname: String,
    tracks: Vec<Track>,
    /// Packets sent at the last report; no media, no report.
    reported_packets: u32,
    pub past: Past,
    /// Recently sent again, each at its number's place; empty before the first.
    resends: Vec<Option<Resent>>,
    /// Bytes that may be sent again.
    allowance: u64,
    /// From our last sender report to its echo.
    round_trip: Duration,
    /// What the viewer said last that its path carries (REMB).
    remb: Option<(Instant, Bitrate)>,
    /// When it last reported that much of its video is lost.
    full: Option<Instant>,
    /// On the video, since it was last taken.
    pub reported: Option<Reported>,
    /// SSRCs that reports have named since this was last emptied.
    pub acknowledged: Vec<u32>,
    /// The last FIR's number: a repeated one is the same request (RFC 5104 §4.3.1.1).
    last_fir: Option<u8>,
    /// Written and opened here.
    buffer: Vec<u8>,
    unix_offset: Duration,
}

struct Track {
    kind: MediaKind,
    ssrc: u32,
    rtx: Option<Rtx>,
    formats: Vec<BoundFormat>,
    /// Media bytes for which the allowance has grown.
    credited: u64,
}

#[derive(Clone, Copy)]
struct Resent {
    kind: MediaKind,
    /// In the viewer's numbering.
    seq: u64,
    at: Instant,
    times: u8,
}

struct Rtx {
    ssrc: u32,
    next_seq: u64,
}

/// Tells congestion control what concerns it.
fn inform(bwe: &mut Bwe, now: Instant, packet: &Rtcp, kind_of: &impl Fn(u32) -> Option<MediaKind>) {
    match packet {
        Rtcp::TransportCc { feedback, .. } => {
            // What is malformed tells nothing.
            if let Ok(feedback) = TransportFeedback::parse(feedback) {
                bwe.handle_feedback(now, &feedback);
            }
        }
        Rtcp::Remb { bitrate, .. } => bwe.handle_remb(*bitrate),
        Rtcp::SenderReport { blocks, .. } | Rtcp::ReceiverReport { blocks, .. } => {
            for block in blocks.clone().filter(|b| kind_of(b.ssrc) == Some(MediaKind::Video)) {
                bwe.handle_loss(now, f64::from(block.fraction_lost) / 256.0);
            }
        }
        _ => {}
    }
}

impl Feedback {
    pub fn new(keys: &MasterKeys, tracks: Vec<TrackSetup>, cname: String, rng: &mut StdRng) -> Feedback {
        let tracks = tracks
            .into_iter()
            .map(|t| Track {
                kind: t.kind,
                ssrc: t.ssrc,
                rtx: t.rtx_ssrc.map(|ssrc| Rtx { ssrc, next_seq: u64::from(rng.random::<u16>() & 0x7fff) }),
                formats: t.formats,
                credited: 0,
            })
            .collect();
        Feedback {
            opener: RtcpOpener::new(keys.remote),
            sealer: RtcpSealer::new(keys.local),
            cname,
            tracks,
            reported_packets: 0,
            past: Past::default(),
            resends: Vec::new(),
            allowance: RESEND_BYTES_RESERVED,
            round_trip: Duration::ZERO,
            remb: None,
            full: None,
            reported: None,
            acknowledged: Vec::new(),
            last_fir: None,
            buffer: Vec::new(),
            unix_offset: Duration::ZERO,
        }
    }

    pub fn formats(&self, ssrc: u32) -> &[BoundFormat] {
        self.tracks.iter().find(|t| t.ssrc == ssrc).map_or(&[], |t| &t.formats)
    }

    /// One sealed compound: a sender report per track, and our CNAME. `tracks`: SSRC, clock rate, newest timestamp, its
    /// capture, packets, octets.
    pub fn sender_reports(
        &mut self,
        now: Instant,
        unix: Duration,
        tracks: impl Iterator<Item = (u32, u32, u32, Instant, u32, u32)>,
    ) -> Option<&[u8]> {
        self.unix_offset = unix.saturating_sub(now - Instant::ZERO);
        self.buffer.clear();
        let mut sent = 0u32;
        let mut first = None;
        for (ssrc, clock_rate, timestamp, captured, packets, octets) in tracks {
            let elapsed = (now - captured).as_nanos() * u128::from(clock_rate) / 1_000_000_000;
            let info = SenderInfo {
                ntp: NtpTime::from_unix(unix),
                // Truncation is what a wrapping clock does.
                rtp_timestamp: timestamp.wrapping_add(elapsed as u32),
                packets,
                octets,
            };
            rtcp::write_sender_report(&mut self.buffer, ssrc, &info);
            sent = sent.wrapping_add(packets);
            first = first.or(Some(ssrc));
        }
        let first = first?;
        if sent == self.reported_packets {
            return None;
        }
        self.reported_packets = sent;
        rtcp::write_sdes_cname(&mut self.buffer, first, &self.cname);
        self.seal()
    }

    pub fn bye(&mut self, ssrcs: &[u32]) -> Option<&[u8]> {
        let first = *ssrcs.first()?;
        self.buffer.clear();
        // A compound begins with a report (RFC 3550 §6.1).
        rtcp::write_receiver_report(&mut self.buffer, first, &[]);
        rtcp::write_sdes_cname(&mut self.buffer, first, &self.cname);
        rtcp::write_bye(&mut self.buffer, ssrcs);
        self.seal()
    }

    fn seal(&mut self) -> Option<&[u8]> {
        self.sealer.seal_rtcp(&mut self.buffer).ok()?;
        Some(&self.buffer)
    }

    /// See [`Egress::handle_rtcp`](super::egress::Egress::handle_rtcp). `locate` finds the packet behind an SSRC and
    /// sequence number.
    pub fn handle_rtcp(
        &mut self,
        now: Instant,
        data: &[u8],
        locate: impl Fn(&Past, u32, u16) -> Option<Lost>,
        kind_of: impl Fn(u32) -> Option<MediaKind>,
        mut bwe: Option<&mut Bwe>,
        mut ask: impl FnMut(Asked),
    ) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(data);
        let opened = self.opener.open_rtcp(&mut buffer);
        if let Ok(bytes) = opened {
            let (mut nacks_left, mut feedback_left) = (NACKS_MAX, FEEDBACK_MAX);
            // What is malformed ends the compound; what came before it counts.
            for packet in rtcp::parse(&buffer[..bytes]).map_while(Result::ok) {
                feedback_left -= usize::from(matches!(packet, Rtcp::TransportCc { .. })).min(feedback_left);
                if let Some(bwe) = bwe.as_mut().filter(|_| feedback_left > 0) {
                    inform(bwe, now, &packet, &kind_of);
                }
                self.handle_packet(now, packet, &mut nacks_left, &locate, &kind_of, &mut ask);
            }
        }
        self.buffer = buffer;
        opened.is_ok()
    }

    fn handle_packet(
        &mut self,
        now: Instant,
        packet: Rtcp,
        nacks_left: &mut usize,
        locate: &impl Fn(&Past, u32, u16) -> Option<Lost>,
        kind_of: &impl Fn(u32) -> Option<MediaKind>,
        ask: &mut impl FnMut(Asked),
    ) {
        match packet {
            Rtcp::SenderReport { blocks, .. } | Rtcp::ReceiverReport { blocks, .. } => {
                let middle = NtpTime::from_unix(self.unix_offset + (now - Instant::ZERO)).middle();
                for block in blocks {
                    let round_trip = block.round_trip(middle);
                    self.round_trip = round_trip.unwrap_or(self.round_trip);
                    if kind_of(block.ssrc) == Some(MediaKind::Video) {
                        self.full = (block.fraction_lost >= FULL_LOSS).then_some(now);
                        self.reported = Some(Reported { fraction_lost: block.fraction_lost, round_trip });
                    }
                    // RTX has blocks of its own.
                    if kind_of(block.ssrc).is_some() && self.acknowledged.len() < self.tracks.len() {
                        self.acknowledged.push(block.ssrc);
                    }
                }
            }
            Rtcp::Remb { bitrate, .. } => self.remb = Some((now, bitrate)),
            Rtcp::Pli { media, .. } if kind_of(media) == Some(MediaKind::Video) => ask(Asked::Keyframe),
            Rtcp::Fir { entries, .. } => {
                for entry in entries {
                    if kind_of(entry.ssrc) == Some(MediaKind::Video) && self.last_fir != Some(entry.command_seq) {
                        self.last_fir = Some(entry.command_seq);
                        ask(Asked::Keyframe);
                    }
                }
            }
            Rtcp::Nack { media, lost, .. } => {
                let lost = lost.take(*nacks_left).inspect(|_| *nacks_left -= 1);
                lost.filter_map(|seq| locate(&self.past, media, seq)).for_each(|lost| ask(Asked::Resend(lost)));
            }
            _ => {}
        }
    }

    /// What the viewer's path carries by its own word; `None`: it has said nothing of late. Zero: nothing but what is needed.
    /// A word that does not count is none.
    pub fn bound(&self, now: Instant, counts: impl Fn(Bitrate) -> bool) -> Option<Bitrate> {
        if self.is_full(now) {
            return Some(Bitrate::from_bps(0));
        }
        self.remb.filter(|(at, word)| now.since(*at) <= WORD_VALID && counts(*word)).map(|(_, word)| word)
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full.is_some_and(|at| now.since(at) <= WORD_VALID)
    }

    /// SSRC and next number of the RTX stream for a packet, unless it was sent again a moment ago, too often, or too much was.
    pub fn grant_resend(
        &mut self,
        now: Instant,
        kind: MediaKind,
        seq: u64,
        bytes: usize,
        sent_octets: u64,
    ) -> Option<(u32, u64)> {
        let track = self.tracks.iter_mut().find(|t| t.kind == kind)?;
        self.allowance = (self.allowance + sent_octets.saturating_sub(track.credited) / 2).min(RESEND_BYTES_MAX);
        track.credited = sent_octets;
        if bytes as u64 > self.allowance {
            return None;
        }
        let wait = self.round_trip.clamp(RESEND_INTERVAL_MIN, REPORT_INTERVAL);
        if self.resends.is_empty() {
            self.resends.resize(RESENDS_REMEMBERED, None);
        }
        let place = &mut self.resends[seq as usize % RESENDS_REMEMBERED];
        let before = place.filter(|before| (before.kind, before.seq) == (kind, seq));
        if before.is_some_and(|before| now.since(before.at) < wait || before.times >= RESENDS_PER_PACKET_MAX) {
            return None;
        }
        *place = Some(Resent { kind, seq, at: now, times: before.map_or(1, |before| before.times + 1) });
        track.rtx.as_ref()?;
        self.allowance -= bytes as u64;
        self.next_rtx(kind)
    }

    /// Number on the RTX stream of a second copy of what was just granted; `None` on a full link, which it would only fill,
    /// and when so much is lost that first answers need what is left.
    ///
    /// On a link that loses, NACKs and what answers them are lost too. Browsers that only watch do not know the round trip
    /// and ask again after 100 ms (libwebrtc's `nack_requester.cc`): a picture can wait for the second answer, not for the
    /// third. Where nothing is lost, nothing is asked for.
    pub fn grant_copy(&mut self, now: Instant, kind: MediaKind, bytes: usize) -> Option<u64> {
        if self.is_full(now) {
            return None;
        }
        let left = self.allowance.checked_sub(bytes as u64).filter(|left| *left >= RESEND_BYTES_RESERVED)?;
        let (_, seq) = self.next_rtx(kind)?;
        self.allowance = left;
        Some(seq)
    }

    /// SSRC and next number of a track's RTX stream, to be sealed once.
    pub fn next_rtx(&mut self, kind: MediaKind) -> Option<(u32, u64)> {
        let rtx = self.tracks.iter_mut().find(|t| t.kind == kind)?.rtx.as_mut()?;
        rtx.next_seq += 1;
        Some((rtx.ssrc, rtx.next_seq - 1))
    }
}
