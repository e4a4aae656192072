//! The media plane of a peer that we send to.
//!
//! What happens to a packet on its way to one viewer is behind [`Viewer::forward`]; today str0m writes, seals and
//! resends it.

use rand::Rng;
use rand::rngs::StdRng;
use str0m::Rtc;
use str0m::media::{MediaKind, Mid, Pt};
use str0m::rtp::{RtpWrite, Ssrc};

use super::negotiate::BoundFormat;
use crate::wire::codec::Format;
use crate::wire::packet::CanonicalPacket;

/// Packets kept for one viewer's NACKs: 1 s of 4 Mbit/s.
const RTX_CACHE_PACKETS: usize = 512;
const RTX_CACHE_AGE: std::time::Duration = std::time::Duration::from_secs(1);
/// Resent bytes of all bytes sent, at most.
const RTX_RATIO_CAP: f32 = 0.5;

/// A peer that receives one audio and one video track at most.
pub(super) struct Viewer {
    tracks: [Option<ViewerTrack>; 2],
}

struct ViewerTrack {
    mid: Mid,
    /// Ours, fixed for the life of the session.
    ssrc: Option<Ssrc>,
    /// What the viewer accepted, in its order.
    formats: Vec<BoundFormat>,
    /// The stream's format now and the viewer's payload type for it.
    current: Option<(Format, Option<Pt>)>,
    /// Where the viewer's numbering starts.
    start: Start,
}

enum Start {
    /// Nothing sent: the next packet that a decoder can start on gets `first_seq`.
    Waiting { first_seq: u64 },
    /// Canonical `from` is the viewer's `first_seq`.
    Running { from: u64, first_seq: u64 },
}

/// What became of a packet for one viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    Sent,
    /// The viewer has not negotiated this kind.
    NotWanted,
    /// The viewer has no payload type for the stream's codec.
    NoPayloadType,
    /// The viewer waits for a keyframe.
    AwaitingKeyframe,
    /// Older than the first packet that the viewer got.
    BeforeStart,
}

impl Viewer {
    /// `tracks`: the m-lines that we send on, with the formats that the answer accepted.
    pub fn new(tracks: Vec<(MediaKind, Mid, Vec<BoundFormat>)>, rng: &mut StdRng) -> Viewer {
        let mut viewer = Viewer { tracks: [None, None] };
        for (kind, mid, formats) in tracks {
            viewer.tracks[kind as usize] = Some(ViewerTrack {
                mid,
                ssrc: None,
                formats,
                current: None,
                // Random (RFC 3550 §5.1), but a fresh SRTP receiver takes the roll-over counter for 0: stay clear of
                // the first wrap (RFC 3711 §3.3.1).
                start: Start::Waiting { first_seq: u64::from(rng.random::<u16>() & 0x7fff) },
            });
        }
        viewer
    }

    /// Kinds that this viewer takes.
    pub fn wants(&self, kind: MediaKind) -> bool {
        self.tracks[kind as usize].is_some()
    }

    pub fn kind_of(&self, mid: Mid) -> Option<MediaKind> {
        [MediaKind::Audio, MediaKind::Video]
            .into_iter()
            .find(|k| self.tracks[*k as usize].as_ref().is_some_and(|t| t.mid == mid))
    }

    /// Writes one packet for this viewer. Drain the `Rtc` afterwards; several writes may come before that.
    pub fn forward(&mut self, wallclock: std::time::Instant, rtc: &mut Rtc, canonical: &CanonicalPacket) -> Forwarded {
        let packet = canonical.packet;
        let Some(track) = &mut self.tracks[packet.kind as usize] else {
            return Forwarded::NotWanted;
        };
        let Some(pt) = track.payload_type_for(packet.format) else {
            return Forwarded::NoPayloadType;
        };
        let (from, first_seq) = match track.start {
            Start::Running { from, first_seq } => (from, first_seq),
            // A decoder cannot start on a delta frame; audio can start anywhere.
            Start::Waiting { .. } if packet.kind == MediaKind::Video && !packet.starts_keyframe => {
                return Forwarded::AwaitingKeyframe;
            }
            Start::Waiting { first_seq } => {
                track.start = Start::Running { from: canonical.seq, first_seq };
                (canonical.seq, first_seq)
            }
        };
        let Some(offset) = canonical.seq.checked_sub(from) else {
            return Forwarded::BeforeStart;
        };
        let mut direct = rtc.direct_api();
        let stream = match track.ssrc {
            Some(ssrc) => direct.stream_tx(&ssrc),
            None => direct.stream_tx_by_mid(track.mid, None),
        };
        let Some(stream) = stream else {
            return Forwarded::NotWanted;
        };
        if track.ssrc.is_none() {
            track.ssrc = Some(stream.ssrc());
            stream.set_rtx_cache(RTX_CACHE_PACKETS, RTX_CACHE_AGE, Some(RTX_RATIO_CAP));
        }
        let seq_no = (first_seq + offset).into();
        let mut write = RtpWrite::new(pt, seq_no, canonical.timestamp, wallclock, packet.payload.clone())
            .marker(packet.marker)
            .ext_vals(packet.extensions.clone())
            .nackable(packet.kind == MediaKind::Video);
        if let Some(patch) = canonical.vp8_patch {
            write = write.vp8_patch(patch);
        }
        stream.write_rtp(write);
        Forwarded::Sent
    }

    /// Whether a keyframe is what this viewer's video waits for.
    pub fn awaits_keyframe(&self) -> bool {
        self.tracks[MediaKind::Video as usize].as_ref().is_some_and(|t| matches!(t.start, Start::Waiting { .. }))
    }
}

impl ViewerTrack {
    fn payload_type_for(&mut self, format: Format) -> Option<Pt> {
        match self.current {
            Some((current, pt)) if current == format => pt,
            _ => {
                let offered: Vec<Format> = self.formats.iter().map(|f| f.format).collect();
                let pt = Format::pick(&offered, format).map(|i| self.formats[i].payload_type);
                self.current = Some((format, pt));
                pt
            }
        }
    }
}
