//! The media plane of one viewer, ours alone: header, SRTP, and what of a packet differs from viewer to viewer.
//!
//! This is the hot part, one per viewer in the shard's dense table; what RTCP needs stands apart, in `feedback`. str0m
//! keeps ICE and DTLS of the session. No function here allocates: copies are written straight into the send batch.

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use str0m::media::MediaKind;

use super::feedback::{Feedback, REPORT_INTERVAL, Resend};
use super::negotiate::BoundFormat;
use crate::datagram::{Class, Label, SendBatch, SocketId};
use crate::srtp::keys::MasterKeys;
use crate::srtp::seal::RtpSealer;
use crate::units::Instant;
use crate::wire::codec::Format;
use crate::wire::packet::{CanonicalPacket, EndToEnd, Run};
use crate::wire::rtp::{self, ExtensionForms, OSN_BYTES, RtpHeader};

/// Header, extensions (mid of 16 bytes, capture time, level, orientation, their heads) and padding to a word.
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
    feedback: Box<Feedback>,
}

/// Never the keys.
impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").finish_non_exhaustive()
    }
}

/// What the hot path needs of one track.
struct TrackTx {
    ssrc: u32,
    /// The stream's format now, and the viewer's payload types for it.
    current: Option<(Format, Option<PayloadTypes>)>,
    start: Start,
    extensions: ExtensionIds,
    mid: Mid,
    /// Until the viewer's first report names our SSRC, it may not know which m-line it belongs to.
    send_mid: bool,
    /// The newest canonical packet sent: number and (timestamp, when it was captured).
    newest_seq: u64,
    newest: Option<(u32, Instant)>,
    /// For sender reports.
    packets: u32,
    octets: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PayloadTypes {
    media: u8,
    rtx: Option<u8>,
}

/// The ids that the viewer gave to header extensions; 0: it does not want it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtensionIds {
    pub mid: u8,
    pub audio_level: u8,
    pub video_orientation: u8,
    pub abs_capture_time: u8,
}

/// A mid, in place.
#[derive(Clone, Copy, Debug)]
struct Mid {
    bytes: [u8; 16],
    len: u8,
}

#[derive(Clone, Copy, Debug)]
enum Start {
    /// Nothing sent: the next packet that a decoder can start on gets `first_seq`.
    Waiting { first_seq: u64 },
    /// Canonical `from` is the viewer's `first_seq`.
    Running { from: u64, first_seq: u64 },
}

/// What negotiation settled for one track.
#[derive(Clone, Debug)]
pub struct TrackSetup {
    pub kind: MediaKind,
    pub mid: String,
    pub ssrc: u32,
    pub rtx_ssrc: Option<u32>,
    /// What the viewer accepted, in its order.
    pub formats: Vec<BoundFormat>,
    pub extensions: ExtensionIds,
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
    /// Older than the first packet that the viewer got.
    BeforeStart,
}

/// What a viewer's RTCP asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Keyframe,
    /// Canonical numbers to send again, if they are still stored: see [`Egress::resend`].
    Resend {
        kind: MediaKind,
        seqs: Vec<u64>,
    },
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
            let mut mid = Mid { bytes: [0; 16], len: 0 };
            let name = track.mid.as_bytes();
            mid.len = name.len().min(16) as u8;
            mid.bytes[..usize::from(mid.len)].copy_from_slice(&name[..usize::from(mid.len)]);
            hot[track.kind as usize] = Some(TrackTx {
                ssrc: track.ssrc,
                current: None,
                // Random (RFC 3550 §5.1), but a fresh SRTP receiver takes the roll-over counter for 0: stay clear of the
                // first wrap (RFC 3711 §3.3.1).
                start: Start::Waiting { first_seq: u64::from(rng.random::<u16>() & 0x7fff) },
                extensions: track.extensions,
                mid,
                send_mid: true,
                newest_seq: 0,
                newest: None,
                packets: 0,
                octets: 0,
            });
            cold.push(track);
        }
        let feedback = Box::new(Feedback::new(keys, cold, cname, rng));
        let sealer = RtpSealer::new(keys.local);
        Egress { sealer, path, owner: None, tracks: hot, next_report: Instant::ZERO, feedback }
    }

    /// The client has nominated this pair; STUN has authenticated that.
    pub fn set_path(&mut self, socket: SocketId, remote: SocketAddr) {
        self.path = Some((socket, remote));
    }

    pub fn set_owner(&mut self, owner: u32) {
        self.owner = Some(owner);
    }

    /// Writes the packets of `run` as one message.
    ///
    /// # Panics
    /// When `run` is none of `packets`.
    pub fn write(&mut self, kind: MediaKind, packets: &[CanonicalPacket], run: &Run, out: &mut SendBatch) -> Written {
        let (Some((socket, remote)), Some(track)) = (self.path, &mut self.tracks[kind as usize]) else {
            return Written::NotWanted;
        };
        let Some(payload_types) = track.payload_types(packets[run.packets.start].packet.format, &self.feedback) else {
            return Written::NoPayloadType;
        };
        let (mut first, end) = (run.packets.start, run.packets.end);
        let (from, first_seq) = match track.start {
            Start::Running { from, first_seq } => (from, first_seq),
            Start::Waiting { first_seq } => {
                // A decoder cannot start on a delta frame; audio can start anywhere.
                let startable = |p: &CanonicalPacket| kind == MediaKind::Audio || p.packet.starts_keyframe;
                let Some(skip) = packets[first..end].iter().position(startable) else {
                    return Written::AwaitingKeyframe;
                };
                first += skip;
                let from = packets[first].seq;
                track.start = Start::Running { from, first_seq };
                // A viewer brings audio and video together when it has a report on each.
                self.next_report = Instant::ZERO;
                (from, first_seq)
            }
        };
        let tag_bytes = self.sealer.tag_bytes();
        let room = out.room((end - first) * (HEADER_BYTES_MAX + run.payload_bytes + tag_bytes));
        let (mut at, mut segment, mut sent, mut payload_bytes) = (0, 0, 0, 0);
        for (index, canonical) in packets.iter().enumerate().take(end).skip(first) {
            let Some(offset) = canonical.seq.checked_sub(from) else { continue };
            let payload = &*canonical.packet.payload;
            let padded = run.padded_bytes(index, payload.len());
            let seq = first_seq + offset;
            let header = RtpHeader {
                payload_type: payload_types.media,
                marker: canonical.packet.marker,
                seq: seq as u16,
                timestamp: canonical.timestamp,
                ssrc: track.ssrc,
                padding: false,
            };
            let packet = &mut room[at..];
            let header_bytes = track.write_header(packet, &header, &canonical.packet.extensions, track.send_mid);
            let bytes = header_bytes + padded + tag_bytes;
            let packet = &mut packet[..bytes];
            let body = &mut packet[header_bytes..header_bytes + payload.len()];
            body.copy_from_slice(payload);
            canonical.rewrite.apply(&canonical.packet.descriptor.numbers, body);
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
            if canonical.seq >= track.newest_seq {
                track.newest_seq = canonical.seq;
                track.newest = Some((canonical.timestamp, canonical.packet.captured));
            }
        }
        if sent == 0 {
            return Written::BeforeStart;
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

    /// Opens a viewer's SRTCP and gives what it asks for to `ask`. False: replayed, forged or no RTCP at all.
    pub fn handle_rtcp(&mut self, now: Instant, data: &[u8], ask: impl FnMut(Asked)) -> bool {
        let tracks = &mut self.tracks;
        self.feedback.handle_rtcp(now, data, |ssrc, seq| locate(tracks, ssrc, seq), |ssrc| kind_of(tracks, ssrc), ask)
    }

    /// The viewer has named our SSRC in a report: it knows which m-line it belongs to.
    pub fn take_acknowledged(&mut self) {
        for ssrc in self.feedback.acknowledged.drain(..) {
            if let Some(track) = self.tracks.iter_mut().flatten().find(|t| t.ssrc == ssrc) {
                track.send_mid = false;
            }
        }
    }

    /// Sends a stored packet again, on the RTX stream (RFC 4588). False: not now, by the limits of `feedback`.
    pub fn resend(&mut self, now: Instant, kind: MediaKind, canonical: &CanonicalPacket, out: &mut SendBatch) -> bool {
        let (Some((socket, remote)), Some(track)) = (self.path, &mut self.tracks[kind as usize]) else { return false };
        let Start::Running { from, first_seq } = track.start else { return false };
        let Some(offset) = canonical.seq.checked_sub(from) else { return false };
        let payload_types = track.payload_types(canonical.packet.format, &self.feedback);
        let Some(payload_type) = payload_types.and_then(|p| p.rtx) else { return false };
        let payload = &*canonical.packet.payload;
        let Some(Resend { ssrc, seq }) =
            self.feedback.grant_resend(now, kind, canonical.seq, payload.len(), track.octets)
        else {
            return false;
        };
        let header = RtpHeader {
            payload_type,
            marker: canonical.packet.marker,
            seq: seq as u16,
            timestamp: canonical.timestamp,
            ssrc,
            padding: false,
        };
        let tag_bytes = self.sealer.tag_bytes();
        let packet = out.room(HEADER_BYTES_MAX + OSN_BYTES + payload.len() + tag_bytes);
        // Firefox drops RTX without a mid.
        let header_bytes = track.write_header(packet, &header, &canonical.packet.extensions, true);
        let bytes = header_bytes + OSN_BYTES + payload.len() + tag_bytes;
        let packet = &mut packet[..bytes];
        rtp::write_osn(&mut packet[header_bytes..], (first_seq + offset) as u16);
        let body = &mut packet[header_bytes + OSN_BYTES..bytes - tag_bytes];
        body.copy_from_slice(payload);
        canonical.rewrite.apply(&canonical.packet.descriptor.numbers, body);
        self.sealer.seal_rtp(packet, header_bytes, ssrc, seq);
        out.commit(socket, remote, bytes, None, Label { class: class_of(kind), owner: self.owner });
        true
    }

    /// Kinds that this viewer takes.
    pub fn wants(&self, kind: MediaKind) -> bool {
        self.tracks[kind as usize].is_some()
    }

    /// Fraction lost of the video as the viewer's last report has it, in 1/256.
    pub fn reported_loss(&self) -> u8 {
        self.feedback.fraction_lost
    }
}

fn class_of(kind: MediaKind) -> Class {
    match kind {
        MediaKind::Video => Class::Video,
        MediaKind::Audio => Class::Audio,
    }
}

/// The canonical number behind a 16-bit sequence number that a viewer names: one of the recent past.
fn locate(tracks: &[Option<TrackTx>; 2], ssrc: u32, seq: u16) -> Option<(MediaKind, u64)> {
    let kind = kind_of(tracks, ssrc)?;
    let track = tracks[kind as usize].as_ref()?;
    let Start::Running { from, first_seq } = track.start else { return None };
    let newest = track.newest_seq - from + first_seq;
    let behind = u64::from((newest as u16).wrapping_sub(seq));
    let canonical = newest.checked_sub(behind)?.checked_sub(first_seq)? + from;
    Some((kind, canonical))
}

fn kind_of(tracks: &[Option<TrackTx>; 2], ssrc: u32) -> Option<MediaKind> {
    [MediaKind::Audio, MediaKind::Video]
        .into_iter()
        .find(|k| tracks[*k as usize].as_ref().is_some_and(|t| t.ssrc == ssrc))
}

impl TrackTx {
    #[inline]
    fn payload_types(&mut self, format: Format, feedback: &Feedback) -> Option<PayloadTypes> {
        match self.current {
            Some((current, types)) if current == format => types,
            _ => {
                let offered = feedback.formats(self.ssrc);
                let formats: Vec<Format> = offered.iter().map(|f| f.format).collect();
                let types = Format::pick(&formats, format)
                    .map(|i| PayloadTypes { media: *offered[i].payload_type, rtx: offered[i].rtx.map(|pt| *pt) });
                self.current = Some((format, types));
                types
            }
        }
    }

    fn clock_rate(&self) -> u32 {
        match self.current {
            Some((format, _)) if format.codec.kind() == MediaKind::Audio => 48_000,
            _ => 90_000,
        }
    }

    #[inline]
    fn write_header(&self, packet: &mut [u8], header: &RtpHeader, values: &EndToEnd, with_mid: bool) -> usize {
        let ids = &self.extensions;
        let mut extensions: [(u8, &[u8]); 4] = [(0, &[]); 4];
        let mut count = 0;
        let mut add = |id: u8, value| {
            if id != 0 {
                extensions[count] = (id, value);
                count += 1;
            }
        };
        let level = values.audio_level.map(|l| [l]);
        let orientation = values.video_orientation.map(|o| [o]);
        let captured = values.abs_capture_time.map(u64::to_be_bytes);
        if with_mid {
            add(ids.mid, &self.mid.bytes[..usize::from(self.mid.len)]);
        }
        if let Some(level) = &level {
            add(ids.audio_level, level);
        }
        if let Some(orientation) = &orientation {
            add(ids.video_orientation, orientation);
        }
        if let Some(captured) = &captured {
            add(ids.abs_capture_time, captured);
        }
        rtp::write_header(packet, header, &extensions[..count], ExtensionForms::OneByte)
    }
}
