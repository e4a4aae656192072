//! The media plane of one viewer, ours alone: header, SRTP, and what of a packet differs from viewer to viewer.
//!
//! This is the hot part, one per viewer in the shard's dense table; what RTCP needs stands apart, in `feedback`. str0m
//! keeps ICE and DTLS of the session. No function here allocates: copies are written straight into the send batch.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use str0m::media::MediaKind;

use super::bwe::{Bwe, ProbeOrder};
use super::feedback::{Feedback, Past, REPORT_INTERVAL};
use super::squeeze::Squeeze;
use super::track::{Moment, PayloadTypes, Phase, Splice, TrackSetup, TrackTx};
use crate::datagram::{Class, Label, SendBatch, SocketId};
use crate::srtp::keys::MasterKeys;
use crate::srtp::seal::RtpSealer;
use crate::units::{Bitrate, Instant};
use crate::wire::dependency;
use crate::wire::descriptor::Rewrite;
use crate::wire::packet::{CanonicalPacket, EndToEnd, MediaPacket, Rendition, Run};
use crate::wire::rtp::{self, OSN_BYTES, RtpHeader};

/// Header, extensions (mid of 16 bytes, capture time, level, orientation, number, all their heads) and padding to a word; the
/// dependency descriptor comes to it.
const HEADER_BYTES_MAX: usize = 80;

/// Everything that sends to one viewer.
pub struct Egress {
    sealer: RtpSealer,
    /// Where the client wants its media: the pair that it nominated last.
    path: Option<(SocketId, SocketAddr)>,
    /// The shard's key of this viewer, on every message: it learns what a full socket dropped.
    owner: Option<u32>,
    /// Audio and video.
    tracks: [Option<TrackTx>; 2],
    /// When the next sender report is due, if media was sent. The first media brings the first: lip sync needs it.
    next_report: Instant,
    /// Where the publisher sends several layers: what the viewer's path carries.
    bwe: Option<Box<Bwe>>,
    feedback: Box<Feedback>,
}

/// What a viewer's path is taken for until it has shown what it carries.
const START: Bitrate = Bitrate::from_bps(1_000_000);

/// A browser's word about its path, in percent of what it has got, that tells more than that.
const WORD_PERCENT: u64 = 130;

/// Never the keys.
impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").finish_non_exhaustive()
    }
}

/// What became of a run for one viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Sent {
        packets: u32,
        payload_bytes: u32,
    },
    /// The viewer has not negotiated this kind, or no path is nominated yet.
    NotWanted,
    /// The viewer has no payload type for the stream's codec.
    NoPayloadType,
    /// The viewer waits for a keyframe.
    AwaitingKeyframe,
    /// Nothing new: older than the first packet that the viewer got, or sent already, by a replay for one.
    BeforeStart,
}

/// What a viewer's RTCP asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Keyframe,
    /// To be sent again, if it is still stored: see [`Egress::grant_resend`].
    Resend(Lost),
}

/// A packet that a viewer has NACKed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub kind: MediaKind,
    pub rendition: Rendition,
    /// Canonical.
    pub seq: u64,
    /// In the viewer's numbering.
    out_seq: u64,
}

/// What a viewer's report says about its video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Of the packets since the report before, in 1/256.
    pub fraction_lost: u8,
    /// Between our last sender report and this; `None` before it has seen one.
    pub round_trip: Option<Duration>,
}

/// A place on the RTX stream, to be sealed once.
#[derive(Debug)]
pub struct Granted {
    kind: MediaKind,
    payload_type: u8,
    ssrc: u32,
    seq: u64,
    /// The packet's own number (RFC 4588 §4).
    osn: u16,
    timestamp: u32,
    rewrite: Rewrite,
    /// Its time is not that of its capture.
    squeezed: bool,
}

impl Egress {
    /// `keys` come from a DTLS handshake whose certificate is verified. `path`: the pair that the client has nominated, if
    /// it has.
    pub fn new(
        keys: &MasterKeys,
        tracks: Vec<TrackSetup>,
        cname: String,
        path: Option<(SocketId, SocketAddr)>,
        rng: &mut StdRng,
    ) -> Egress {
        let mut hot = [None, None];
        let mut cold = Vec::new();
        for track in tracks {
            hot[track.kind as usize] = Some(TrackTx::new(&track, rng));
            cold.push(track);
        }
        let counted = cold.iter().any(|t: &TrackSetup| t.extensions.transport_cc != 0);
        let bwe = counted.then(|| Box::new(Bwe::new(START, true)));
        let feedback = Box::new(Feedback::new(keys, cold, cname, rng));
        let sealer = RtpSealer::new(keys.local);
        Egress { sealer, path, owner: None, tracks: hot, next_report: Instant::ZERO, bwe, feedback }
    }

    /// The client has nominated this pair; STUN has authenticated that.
    pub fn set_path(&mut self, socket: SocketId, remote: SocketAddr) {
        self.path = Some((socket, remote));
    }

    pub fn set_owner(&mut self, owner: u32) {
        self.owner = Some(owner);
    }

    /// Writes the packets of `run`, which have just come, as one message.
    ///
    /// # Panics
    /// When `run` is none of `packets`.
    pub fn write(
        &mut self,
        now: Instant,
        kind: MediaKind,
        rendition: Rendition,
        packets: &[CanonicalPacket],
        run: &Run,
        out: &mut SendBatch,
    ) -> Written {
        let (Some(_), Some(track)) = (self.path, &mut self.tracks[kind as usize]) else { return Written::NotWanted };
        let current = track.splice.is_some_and(|s| s.rendition == rendition);
        let mut run = run;
        let cut;
        match track.phase {
            Phase::Live if current => {
                if track.is_crossing() {
                    cut = Run { packets: track.stop_in(packets, run), ..*run };
                    run = &cut;
                    if run.packets.is_empty() {
                        return Written::NotWanted;
                    }
                }
            }
            _ if rendition != track.target => return Written::NotWanted,
            _ => match track.start_in(kind, rendition, packets, run, &mut self.feedback) {
                // A viewer brings audio and video together when it has a report on each.
                true => self.next_report = Instant::ZERO,
                false if track.phase == Phase::Waiting => return Written::AwaitingKeyframe,
                false => return Written::NotWanted,
            },
        }
        self.write_current(now, kind, packets, run, out)
    }

    /// Writes packets of the past as one message, after [`Self::start_replay`].
    ///
    /// # Panics
    /// When `run` is none of `packets`.
    pub fn replay(&mut self, now: Instant, packets: &[CanonicalPacket], run: &Run, out: &mut SendBatch) -> Written {
        match matches!(self.phase(), Some(Phase::Replaying(_) | Phase::Behind(_))) {
            true => self.write_current(now, MediaKind::Video, packets, run, out),
            false => Written::NotWanted,
        }
    }

    /// From now on the viewer gets the video's past from `keyframe` on, by [`Self::replay`]; `newest` is its end now. False:
    /// it waits for nothing.
    pub fn start_replay(
        &mut self,
        now: Instant,
        rendition: Rendition,
        keyframe: &CanonicalPacket,
        newest: &CanonicalPacket,
        squeeze: Squeeze,
    ) -> bool {
        let Some(track) = &mut self.tracks[MediaKind::Video as usize] else { return false };
        if self.path.is_none() || track.phase != Phase::Waiting || track.target != rendition {
            return false;
        }
        // What it has seen already would turn its time back.
        let is_past = |s: Splice| s.seq(keyframe.seq).is_none_or(|n| n < track.next_seq);
        if track.splice.is_some_and(|s| s.rendition == rendition && is_past(s)) {
            return false;
        }
        let captured = newest.packet.captured + now.since(newest.packet.arrival);
        let present = Moment { captured, timestamp: squeeze.start() };
        track.splice_at(rendition, keyframe, present, Some(squeeze), &mut self.feedback);
        track.phase = Phase::Replaying(keyframe.seq);
        true
    }

    /// The viewer, which gets the video as it comes, has got the beginning of this keyframe: what follows is its past.
    pub fn fall_behind(&mut self, keyframe: u64) {
        if let Some(track) = self.video_mut() {
            track.phase = Phase::Behind(keyframe);
        }
    }

    /// A viewer that has fallen behind goes on with this keyframe.
    pub fn skip_to(&mut self, rendition: Rendition, keyframe: &CanonicalPacket) {
        if let Some(track) = &mut self.tracks[MediaKind::Video as usize] {
            track.splice_at(rendition, keyframe, Moment::of(keyframe), None, &mut self.feedback);
            track.phase = Phase::Behind(keyframe.seq);
        }
    }

    /// The replay has reached what comes now, or else it ends before, and the viewer waits for the next keyframe.
    pub fn end_replay(&mut self, reached: bool) {
        let Some(track) = self.video_mut() else { return };
        track.phase = if reached { Phase::Live } else { Phase::Waiting };
        self.next_report = Instant::ZERO;
    }

    /// Whether the replay that began with this keyframe is still under way.
    pub fn is_replaying(&self, rendition: Rendition, keyframe: u64) -> bool {
        let phases = [Phase::Replaying(keyframe), Phase::Behind(keyframe)].map(Some);
        self.shown() == Some(rendition) && phases.contains(&self.phase())
    }

    /// Whether this keyframe is what the viewer's numbering began with.
    pub fn began_with(&self, keyframe: u64) -> bool {
        self.video().and_then(|t| t.splice).is_some_and(|s| s.from == keyframe)
    }

    /// Whether the viewer has seen later packets than this of the rendition that it is shown.
    pub fn has_passed(&self, canonical: u64) -> bool {
        let Some(track) = self.video() else { return false };
        track.splice.and_then(|s| s.seq(canonical)).is_some_and(|seq| seq < track.next_seq)
    }

    /// Whether nothing of the video passes before the next keyframe of its target.
    pub fn is_waiting(&self) -> bool {
        self.phase() == Some(Phase::Waiting)
    }

    fn video(&self) -> Option<&TrackTx> {
        self.tracks[MediaKind::Video as usize].as_ref()
    }

    fn video_mut(&mut self) -> Option<&mut TrackTx> {
        self.tracks[MediaKind::Video as usize].as_mut()
    }

    fn phase(&self) -> Option<Phase> {
        self.video().map(|t| t.phase)
    }

    /// What of the video is to be shown from its next keyframe on.
    pub fn target(&self) -> Rendition {
        self.video().map(|t| t.target).unwrap_or_default()
    }

    pub fn set_target(&mut self, target: Rendition) {
        if let Some(track) = self.video_mut() {
            track.target = target;
            if track.crossing.reset() {
                track.phase = Phase::Waiting;
            }
        }
    }

    /// Whether the viewer goes down to its target without a keyframe.
    pub fn is_descending(&self) -> bool {
        self.video().is_some_and(TrackTx::is_descending)
    }

    /// Whether the viewer can be told in dependency descriptors what it does not get.
    pub fn reads_descriptors(&self) -> bool {
        self.video().is_some_and(|t| t.extensions.dependency != 0)
    }

    /// What is shown goes no further: the viewer waits for the next keyframe of its target.
    pub fn stop_video(&mut self) {
        if let Some(track) = self.video_mut() {
            track.phase = Phase::Waiting;
        }
    }

    /// What was shown before the switch, once after each.
    #[inline]
    pub fn take_switched(&mut self) -> Option<Rendition> {
        self.video_mut()?.switched_from.take()
    }

    /// What a viewer that asks for a keyframe lacks.
    pub fn awaited(&self) -> Rendition {
        match self.shown() {
            Some(shown) if !self.is_waiting() => shown,
            _ => self.target(),
        }
    }

    /// What of the video is shown now.
    pub fn shown(&self) -> Option<Rendition> {
        self.video()?.splice.map(|s| s.rendition)
    }

    /// In the numbering that the splice gives now.
    fn write_current(
        &mut self,
        now: Instant,
        kind: MediaKind,
        packets: &[CanonicalPacket],
        run: &Run,
        out: &mut SendBatch,
    ) -> Written {
        let (Some((socket, remote)), Some(track)) = (self.path, &mut self.tracks[kind as usize]) else {
            return Written::NotWanted;
        };
        let (first, end) = (run.packets.start, run.packets.end);
        let Some(payload_types) = track.payload_types(packets[first].packet.format, &self.feedback) else {
            return Written::NoPayloadType;
        };
        track.end_squeeze(&packets[first], &mut self.feedback);
        let Some(mut splice) = track.splice else { return Written::NotWanted };
        // Of the run as a whole, whose headers are equally long.
        let squeezed = splice.is_squeezed(&packets[first]);
        let mut bwe = self.bwe.as_deref_mut().filter(|_| track.extensions.transport_cc != 0);
        let tag_bytes = self.sealer.tag_bytes();
        let header_bytes_max = header_bytes_max(&packets[first].packet);
        let room = out.room((end - first) * (header_bytes_max + run.payload_bytes + tag_bytes));
        let (mut at, mut segment, mut sent, mut payload_bytes) = (0, 0, 0, 0);
        let mut newest = None;
        let mut copy = [0; dependency::BYTES_MAX];
        for (index, canonical) in packets.iter().enumerate().take(end).skip(first) {
            let Some(seq) = splice.seq(canonical.seq) else { continue };
            let ahead = seq >= track.next_seq;
            if !track.take(seq) {
                continue;
            }
            let payload = &*canonical.packet.payload;
            let padded = run.padded_bytes(index, payload.len());
            let header = RtpHeader {
                payload_type: payload_types.media,
                marker: canonical.marker,
                seq: seq as u16,
                timestamp: splice.timestamp(canonical),
                ssrc: track.ssrc,
                padding: false,
            };
            let packet = &mut room[at..];
            let mut extensions = canonical.packet.extensions;
            if squeezed {
                // It would not agree with the timestamp.
                extensions.abs_capture_time = None;
            }
            let body_bytes = padded + tag_bytes;
            let counted = |header_bytes| bwe.as_mut().map(|b| b.record(now, (header_bytes + body_bytes) as u16, None));
            let rewrite = canonical.rewrite.plus(splice.rewrite);
            let dependency = track.dependency(canonical, rewrite, &mut copy);
            let header_bytes = track.write_header(packet, &header, &extensions, dependency, track.send_mid, counted);
            let bytes = header_bytes + body_bytes;
            let packet = &mut packet[..bytes];
            let body = &mut packet[header_bytes..header_bytes + payload.len()];
            body.copy_from_slice(payload);
            rewrite.apply(&canonical.packet.descriptor.numbers, body);
            if padded > payload.len() {
                rtp::pad(&mut packet[..header_bytes + padded], header_bytes + payload.len());
            }
            self.sealer.seal_rtp(packet, header_bytes, track.ssrc, seq);
            at += bytes;
            sent += 1;
            if sent == 1 {
                segment = bytes;
            }
            payload_bytes += payload.len() as u32;
            if ahead {
                track.newest_timestamp = header.timestamp;
                newest = Some((canonical, rewrite));
                if !splice.is_squeezed(canonical) {
                    track.newest = Some((header.timestamp, canonical.packet.captured));
                }
            }
        }
        if sent == 0 {
            return Written::BeforeStart;
        }
        if let Some((canonical, rewrite)) = newest {
            let numbers = canonical.packet.descriptor.numbers;
            track.newest_numbers = numbers.plus(rewrite).or(track.newest_numbers);
            track.ends_picture = canonical.marker;
            match splice.is_squeezed(canonical) {
                true => track.crossing.handle_squeezed(),
                false => track.crossing.handle_sent(canonical, track.newest_timestamp, rewrite),
            }
        }
        if let Some(squeeze) = &mut splice.squeeze {
            squeeze.passes(&packets[end - 1]);
            track.splice = Some(splice);
        }
        // A packet has 1500 bytes at most.
        let label = Label { class: class_of(kind), owner: self.owner };
        out.commit(socket, remote, at, (sent > 1).then_some(segment as u16), label);
        track.packets = track.packets.wrapping_add(sent);
        track.octets += u64::from(payload_bytes);
        Written::Sent { packets: sent, payload_bytes }
    }

    /// Writes a sender report and what names us, when a second has passed since the last and media was sent.
    ///
    /// `unix_at_start`: the wall clock at [`Instant::ZERO`].
    #[inline]
    pub fn report_if_due(&mut self, now: Instant, unix_at_start: Duration, out: &mut SendBatch) {
        if now >= self.next_report {
            self.report(now, unix_at_start + (now - Instant::ZERO), out);
        }
    }

    #[cold]
    fn report(&mut self, now: Instant, unix: Duration, out: &mut SendBatch) {
        self.next_report = now + REPORT_INTERVAL;
        let Some((socket, remote)) = self.path else { return };
        let tracks = self.tracks.iter().flatten().filter_map(|t| {
            let (timestamp, captured) = t.newest?;
            Some((t.ssrc, t.clock_rate(), timestamp, captured, t.packets, t.octets as u32))
        });
        if let Some(packet) = self.feedback.sender_reports(now, unix, tracks) {
            out.push(socket, remote, packet, None);
        }
    }

    /// Says BYE for our SSRCs (RFC 3550 §6.6).
    pub fn say_bye(&mut self, out: &mut SendBatch) {
        let Some((socket, remote)) = self.path else { return };
        let ssrcs: Vec<u32> = self.tracks.iter().flatten().map(|t| t.ssrc).collect();
        if let Some(packet) = self.feedback.bye(&ssrcs) {
            out.push(socket, remote, packet, None);
        }
    }

    /// Sends padding on the RTX stream, as a probe of what the path carries. False: there is no RTX, or no path.
    pub fn pad(&mut self, now: Instant, order: ProbeOrder, out: &mut SendBatch) -> bool {
        let (Some((socket, remote)), Some(track), Some(bwe)) =
            (self.path, &self.tracks[MediaKind::Video as usize], &mut self.bwe)
        else {
            return false;
        };
        let payload_type = match track.current {
            Some((_, Some(PayloadTypes { rtx: Some(rtx), .. }))) => rtx,
            _ => return false,
        };
        let Some((ssrc, seq)) = self.feedback.next_rtx(MediaKind::Video) else { return false };
        let timestamp = track.newest_timestamp;
        let header = RtpHeader { payload_type, marker: false, seq: seq as u16, timestamp, ssrc, padding: false };
        let tag_bytes = self.sealer.tag_bytes();
        let padding_bytes = usize::from(order.bytes).saturating_sub(HEADER_BYTES_MAX / 2 + tag_bytes).clamp(1, 255);
        let packet = out.room(HEADER_BYTES_MAX + padding_bytes + tag_bytes);
        let body_bytes = padding_bytes + tag_bytes;
        let counted = |header_bytes| Some(bwe.record(now, (header_bytes + body_bytes) as u16, Some(order.cluster)));
        let header_bytes = track.write_header(packet, &header, &EndToEnd::default(), &[], true, counted);
        let bytes = header_bytes + body_bytes;
        let packet = &mut packet[..bytes];
        rtp::pad(&mut packet[..header_bytes + padding_bytes], header_bytes);
        self.sealer.seal_rtp(packet, header_bytes, ssrc, seq);
        out.commit(socket, remote, bytes, None, Label { class: Class::Video, owner: self.owner });
        true
    }

    /// What the viewer's path carries; `None` where nobody asks.
    pub fn bwe(&mut self) -> Option<&mut Bwe> {
        self.bwe.as_deref_mut()
    }

    /// What the viewer's path is known to carry, by measurement or by its own word; `None`: nothing is known.
    pub fn bound(&self, now: Instant) -> Option<Bitrate> {
        self.bound_if(now, |_| true)
    }

    /// As [`Self::bound`], of a path that has carried `got`: a browser's word (REMB) is at most 1.5 times what it gets, however wide
    /// its path is, and so bounds nothing unless it is well below.
    pub fn burst_bound(&self, now: Instant, got: Bitrate) -> Option<Bitrate> {
        self.bound_if(now, |word| word.as_bps() < got.as_bps().saturating_mul(WORD_PERCENT) / 100)
    }

    fn bound_if(&self, now: Instant, counts: impl Fn(Bitrate) -> bool) -> Option<Bitrate> {
        let measured = self.bwe.as_ref().filter(|bwe| !bwe.round_trip().is_zero());
        let measured = measured.map(|bwe| bwe.estimate());
        measured.into_iter().chain(self.feedback.bound(now, counts)).min()
    }

    /// The publisher sends several layers now, and this viewer was not told to count: then its reports must do, which can
    /// say no more than that `start` was too much.
    pub fn estimate_by_reports(&mut self, start: Bitrate) {
        self.bwe.get_or_insert_with(|| Box::new(Bwe::new(start, false)));
    }

    /// Opens a viewer's SRTCP and gives what it asks for to `ask`. False: replayed, forged or no RTCP at all.
    pub fn handle_rtcp(&mut self, now: Instant, data: &[u8], ask: impl FnMut(Asked)) -> bool {
        let tracks = &mut self.tracks;
        let read = self.feedback.handle_rtcp(
            now,
            data,
            |past, ssrc, seq| locate(tracks, past, ssrc, seq),
            |ssrc| kind_of(tracks, ssrc),
            self.bwe.as_deref_mut(),
            ask,
        );
        // A viewer that has named our SSRC in a report knows which m-line it belongs to.
        for ssrc in self.feedback.acknowledged.drain(..) {
            if let Some(track) = tracks.iter_mut().flatten().find(|t| t.ssrc == ssrc) {
                track.send_mid = false;
            }
        }
        read
    }

    /// The viewer's newest report on its video, once.
    pub fn take_report(&mut self) -> Option<Reported> {
        self.feedback.reported.take()
    }

    /// A number on the RTX stream (RFC 4588) for the stored packet behind `lost`, if it may be sent again now by the limits of
    /// `feedback`.
    pub fn grant_resend(&mut self, now: Instant, lost: Lost, canonical: &CanonicalPacket) -> Option<Granted> {
        let track = self.tracks[lost.kind as usize].as_mut()?;
        let splice = self.feedback.past.splice_of(track.splice?, lost.kind, lost.out_seq)?;
        let payload_types = track.payload_types(canonical.packet.format, &self.feedback);
        let payload_type = payload_types.and_then(|p| p.rtx)?;
        let bytes = canonical.packet.payload.len();
        let (ssrc, seq) = self.feedback.grant_resend(now, lost.kind, lost.out_seq, bytes, track.octets)?;
        let timestamp = splice.timestamp(canonical);
        let (osn, rewrite) = (lost.out_seq as u16, splice.rewrite);
        let squeezed = splice.is_squeezed(canonical);
        Some(Granted { kind: lost.kind, payload_type, ssrc, seq, osn, timestamp, rewrite, squeezed })
    }

    /// The same again on a number of its own: resends are lost like anything else.
    pub fn grant_copy(&mut self, now: Instant, granted: &Granted, canonical: &CanonicalPacket) -> Option<Granted> {
        let seq = self.feedback.grant_copy(now, granted.kind, canonical.packet.payload.len())?;
        Some(Granted { seq, ..*granted })
    }

    /// What a NACK of a canonical packet would ask for.
    #[cfg(test)]
    pub(crate) fn lost(&self, kind: MediaKind, seq: u64) -> Option<Lost> {
        let splice = self.tracks[kind as usize].as_ref()?.splice?;
        Some(Lost { kind, rendition: splice.rendition, seq, out_seq: splice.seq(seq)? })
    }

    /// Sends a stored packet again. False: no path is nominated.
    pub fn resend(&mut self, now: Instant, canonical: &CanonicalPacket, granted: Granted, out: &mut SendBatch) -> bool {
        let Granted { kind, payload_type, ssrc, seq, osn, timestamp, rewrite, squeezed } = granted;
        let (Some((socket, remote)), Some(track)) = (self.path, &self.tracks[kind as usize]) else { return false };
        let payload = &*canonical.packet.payload;
        let header =
            RtpHeader { payload_type, marker: canonical.marker, seq: seq as u16, timestamp, ssrc, padding: false };
        let tag_bytes = self.sealer.tag_bytes();
        let packet = out.room(header_bytes_max(&canonical.packet) + OSN_BYTES + payload.len() + tag_bytes);
        let body_bytes = OSN_BYTES + payload.len() + tag_bytes;
        let bwe = self.bwe.as_deref_mut().filter(|_| track.extensions.transport_cc != 0);
        let counted = |header_bytes| bwe.map(|b| b.record(now, (header_bytes + body_bytes) as u16, None));
        let rewrite = canonical.rewrite.plus(rewrite);
        let mut copy = [0; dependency::BYTES_MAX];
        let dependency = track.dependency(canonical, rewrite, &mut copy);
        // Firefox drops RTX without a mid.
        let mut extensions = canonical.packet.extensions;
        if squeezed {
            extensions.abs_capture_time = None;
        }
        let header_bytes = track.write_header(packet, &header, &extensions, dependency, true, counted);
        let bytes = header_bytes + body_bytes;
        let packet = &mut packet[..bytes];
        rtp::write_osn(&mut packet[header_bytes..], osn);
        let body = &mut packet[header_bytes + OSN_BYTES..bytes - tag_bytes];
        body.copy_from_slice(payload);
        rewrite.apply(&canonical.packet.descriptor.numbers, body);
        self.sealer.seal_rtp(packet, header_bytes, ssrc, seq);
        out.commit(socket, remote, bytes, None, Label { class: class_of(kind), owner: self.owner });
        true
    }

    /// Kinds that this viewer takes.
    pub fn wants(&self, kind: MediaKind) -> bool {
        self.tracks[kind as usize].is_some()
    }
}

/// The same for all packets of a run, whose descriptors are equally long.
fn header_bytes_max(packet: &MediaPacket) -> usize {
    HEADER_BYTES_MAX + packet.dependency_bytes()
}

fn class_of(kind: MediaKind) -> Class {
    match kind {
        MediaKind::Video => Class::Video,
        MediaKind::Audio => Class::Audio,
    }
}

/// The packet behind a 16-bit sequence number that a viewer names: one of the recent past.
fn locate(tracks: &[Option<TrackTx>; 2], past: &Past, ssrc: u32, seq: u16) -> Option<Lost> {
    let kind = kind_of(tracks, ssrc)?;
    let track = tracks[kind as usize].as_ref()?;
    let newest = track.next_seq.checked_sub(1)?;
    let out_seq = newest.checked_sub(u64::from((newest as u16).wrapping_sub(seq)))?;
    let splice = past.splice_of(track.splice?, kind, out_seq)?;
    Some(Lost { kind, rendition: splice.rendition, seq: splice.from + (out_seq - splice.first_seq), out_seq })
}

fn kind_of(tracks: &[Option<TrackTx>; 2], ssrc: u32) -> Option<MediaKind> {
    [MediaKind::Audio, MediaKind::Video]
        .into_iter()
        .find(|k| tracks[*k as usize].as_ref().is_some_and(|t| t.ssrc == ssrc))
}
