//! One track of a viewer: which of the stream's packets are its, under which numbers, with which header.

use std::ops::Range;

use rand::Rng;
use rand::rngs::StdRng;
use str0m::media::MediaKind;

use super::crossing::{Crossing, Found};
use super::feedback::Feedback;
use super::negotiate::BoundFormat;
use super::squeeze::Squeeze;
use crate::limits;
use crate::units::Instant;
use crate::wire::codec::Format;
use crate::wire::dependency;
use crate::wire::descriptor::{Numbers, Rewrite};
use crate::wire::packet::{CanonicalPacket, EndToEnd, Rendition, Run};
use crate::wire::rtp::{self, ExtensionForms, RtpHeader};

/// What the hot path needs of one track.
pub(super) struct TrackTx {
    pub(super) ssrc: u32,
    /// The stream's format now, and the viewer's payload types for it.
    pub(super) current: Option<(Format, Option<PayloadTypes>)>,
    pub(super) phase: Phase,
    /// `None` before the first packet.
    pub(super) splice: Option<Splice>,
    /// One more than the highest number sent.
    pub(super) next_seq: u64,
    /// Apart, for its size: a copy touches one word of it.
    pub(super) sent: Box<Sent>,
    /// What is to be shown from its next keyframe on.
    pub(super) target: Rendition,
    /// What was shown before, until the shard has taken note.
    pub(super) switched_from: Option<Rendition>,
    pub(super) extensions: ExtensionIds,
    pub(super) mid: Mid,
    /// Until the viewer's first report names our SSRC, it may not know which m-line it belongs to.
    pub(super) send_mid: bool,
    /// The newest packet sent as it came: its timestamp, and when it was captured.
    pub(super) newest: Option<(u32, Instant)>,
    /// The same of the present, when the replay that numbers come from began.
    replayed: Option<(u32, Instant)>,
    pub(super) crossing: Crossing,
    /// Of the highest number sent: its timestamp, whether it ends a picture, and the codec's own numbers.
    pub(super) newest_timestamp: u32,
    pub(super) ends_picture: bool,
    pub(super) newest_numbers: Numbers,
    /// For sender reports.
    pub(super) packets: u32,
    pub(super) octets: u64,
}

/// Which of the newest numbers were sent, one bit each: as many as packets are stored, so that a repair passes however late.
#[derive(Default)]
pub(super) struct Sent([u64; limits::STORE_PACKETS / 64]);

impl Sent {
    const NUMBERS: u64 = limits::STORE_PACKETS as u64;

    fn place(seq: u64) -> (usize, u64) {
        let at = seq % Sent::NUMBERS;
        ((at / 64) as usize, 1 << (at % 64))
    }

    /// False: it was already.
    fn mark(&mut self, seq: u64) -> bool {
        let (word, bit) = Sent::place(seq);
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn clear(&mut self, seq: u64) {
        let (word, bit) = Sent::place(seq);
        self.0[word] &= !bit;
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PayloadTypes {
    pub(super) media: u8,
    pub(super) rtx: Option<u8>,
}

/// The ids that the viewer gave to header extensions; 0: it does not want it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtensionIds {
    pub mid: u8,
    pub audio_level: u8,
    pub video_orientation: u8,
    pub abs_capture_time: u8,
    pub transport_cc: u8,
    /// Only where the two-byte form is understood: without the long descriptors of keyframes the others mean nothing.
    pub dependency: u8,
    pub forms: ExtensionForms,
}

/// A mid, in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mid {
    bytes: [u8; 16],
    len: u8,
}

/// Where a viewer's numbers come from: canonical packet `from` of a rendition became `first_seq`, and those behind it follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splice {
    pub(super) rendition: Rendition,
    pub(super) from: u64,
    pub(super) first_seq: u64,
    /// To add to canonical timestamps.
    pub(super) timestamp_offset: u32,
    /// To add to canonical picture numbers.
    pub(super) rewrite: Rewrite,
    /// It began with a replay.
    pub(super) squeeze: Option<Squeeze>,
}

/// A moment of a rendition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) captured: Instant,
    /// Canonical.
    pub(super) timestamp: u32,
}

impl Moment {
    pub(super) fn of(canonical: &CanonicalPacket) -> Moment {
        Moment { captured: canonical.packet.captured, timestamp: canonical.timestamp }
    }
}

impl Splice {
    /// In the viewer's numbering; `None`: from before the splice.
    pub(super) fn seq(&self, canonical: u64) -> Option<u64> {
        Some(self.first_seq + canonical.checked_sub(self.from)?)
    }

    pub(super) fn timestamp(&self, canonical: &CanonicalPacket) -> u32 {
        let timestamp = match &self.squeeze {
            Some(squeeze) if squeeze.holds(canonical) => squeeze.timestamp(canonical),
            _ => canonical.timestamp,
        };
        timestamp.wrapping_add(self.timestamp_offset)
    }

    /// Whether the packet's time is not that of its capture.
    pub(super) fn is_squeezed(&self, canonical: &CanonicalPacket) -> bool {
        self.squeeze.is_some_and(|s| s.holds(canonical))
    }
}

/// What a track's viewer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing before the next packet that a decoder can start on.
    Waiting,
    /// The recent past since this keyframe, by canonical number, by [`Egress::replay`].
    Replaying(u64),
    /// As it comes, but slower, since this keyframe: by [`Egress::replay`](super::egress::Egress::replay) too.
    Behind(u64),
    /// Everything as it comes.
    Live,
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

impl TrackTx {
    pub(super) fn new(setup: &TrackSetup, rng: &mut StdRng) -> TrackTx {
        let mut mid = Mid { bytes: [0; 16], len: 0 };
        let name = setup.mid.as_bytes();
        mid.len = name.len().min(16) as u8;
        mid.bytes[..usize::from(mid.len)].copy_from_slice(&name[..usize::from(mid.len)]);
        TrackTx {
            ssrc: setup.ssrc,
            current: None,
            phase: Phase::Waiting,
            splice: None,
            // Random (RFC 3550 §5.1), but a fresh SRTP receiver takes the roll-over counter for 0: stay clear of the
            // first wrap (RFC 3711 §3.3.1).
            next_seq: u64::from(rng.random::<u16>() & 0x7fff),
            sent: Box::default(),
            target: Rendition::default(),
            switched_from: None,
            extensions: setup.extensions,
            mid,
            send_mid: true,
            newest: None,
            replayed: None,
            crossing: Crossing::default(),
            newest_timestamp: 0,
            ends_picture: false,
            newest_numbers: Numbers::default(),
            packets: 0,
            octets: 0,
        }
    }

    /// Gives the number out, each once, or an index would be sealed twice. False: it was, or it is older than what NACKs may
    /// still mean.
    #[inline]
    pub(super) fn take(&mut self, seq: u64) -> bool {
        if seq < self.next_seq {
            return self.next_seq - seq <= Sent::NUMBERS && self.sent.mark(seq);
        }
        // What is passed over may still come.
        let passed = (seq - self.next_seq).min(Sent::NUMBERS);
        (seq - passed..=seq).for_each(|seq| self.sent.clear(seq));
        self.next_seq = seq + 1;
        self.sent.mark(seq)
    }

    pub(super) fn is_descending(&self) -> bool {
        self.phase != Phase::Waiting && self.splice.is_some_and(|s| s.rendition.descends_to(&self.target))
    }

    /// The target is another rendition of the layer that is shown.
    pub(super) fn is_crossing(&self) -> bool {
        let rendition = self.splice.map(|s| s.rendition);
        rendition.is_some_and(|shown| shown != self.target && shown.layer == self.target.layer)
    }

    /// What of a run is still the viewer's, which is crossing.
    pub(super) fn stop_in(&mut self, packets: &[CanonicalPacket], run: &Run) -> Range<usize> {
        let run = run.packets.clone();
        match (self.crossing.is_stopped(), self.is_descending()) {
            (true, _) => run.start..run.start,
            (false, true) => self.crossing.stop_at_picture(packets, run, &self.target),
            (false, false) => self.crossing.stop_at_keyframe(packets, run),
        }
    }

    /// Splices in the first packet of `run` that a decoder can start on, or go on with: what comes begins there.
    pub(super) fn start_in(
        &mut self,
        kind: MediaKind,
        rendition: Rendition,
        packets: &[CanonicalPacket],
        run: &Run,
        feedback: &mut Feedback,
    ) -> bool {
        let found = match self.is_descending() || self.crossing.is_stopped() {
            true => self.crossing.find(packets, run.packets.clone()),
            false => Found::NotYet,
        };
        match found {
            Found::At(index) => {
                self.go_on_with(rendition, &packets[index], feedback);
                return true;
            }
            // Now nothing but a keyframe will do.
            Found::Missed => self.phase = Phase::Waiting,
            Found::NotYet => {}
        }
        let packets = &packets[run.packets.clone()];
        // A replay has begun with a keyframe that may also be under way, and may have passed one that comes late: only a later
        // one ends it.
        let known = self.splice.filter(|s| s.rendition == rendition);
        if known.is_some() && matches!(self.phase, Phase::Behind(_)) {
            // It comes to that by itself.
            return false;
        }
        let is_later = |p: &CanonicalPacket| {
            let is_known = known.is_some_and(|s| p.seq <= s.from || s.seq(p.seq).is_none_or(|seq| seq < self.next_seq));
            !is_known && !self.crossing.has_passed(&p.packet)
        };
        let startable = |p: &&CanonicalPacket| kind == MediaKind::Audio || p.packet.starts_keyframe;
        let Some(first) = packets.iter().filter(|p| is_later(p)).find(startable) else { return false };
        if self.is_crossing() && self.crossing.goes_on_with(first) {
            self.go_on_with(rendition, first, feedback);
            return true;
        }
        self.splice_at(rendition, first, Moment::of(first), None, feedback);
        self.phase = Phase::Live;
        true
    }

    /// As if the rendition had not changed.
    fn go_on_with(&mut self, rendition: Rendition, first: &CanonicalPacket, feedback: &mut Feedback) {
        let (timestamp_offset, rewrite) = self.crossing.offsets(first);
        let (from, first_seq) = (first.seq, self.next_seq);
        let splice = Splice { rendition, from, first_seq, timestamp_offset, rewrite, squeeze: None };
        self.replace_splice(splice, first, feedback);
        self.phase = Phase::Live;
    }

    /// `first` gets the next number. `present`: whose timestamp is to be right now.
    pub(super) fn splice_at(
        &mut self,
        rendition: Rendition,
        first: &CanonicalPacket,
        present: Moment,
        squeeze: Option<Squeeze>,
        feedback: &mut Feedback,
    ) {
        let (timestamp_offset, rewrite) = match self.splice {
            None => (0, Rewrite::default()),
            Some(before) => {
                // Of the same rendition too: what was left out between the two leaves no gap.
                let numbers = first.packet.descriptor.numbers.plus(first.rewrite);
                let rewrite = Rewrite::following(&self.newest_numbers, &numbers);
                let timestamp_offset = match before.rendition == rendition {
                    true => before.timestamp_offset,
                    false => self.next_timestamp(present.captured).wrapping_sub(present.timestamp),
                };
                (timestamp_offset, rewrite)
            }
        };
        let (from, first_seq) = (first.seq, self.next_seq);
        let mut splice = Splice { rendition, from, first_seq, timestamp_offset, rewrite, squeeze };
        if self.splice.is_some() {
            // A replay that a keyframe ends may be ahead of it by the publisher's jitter.
            self.put_forward(&mut splice, first);
        }
        self.replace_splice(splice, first, feedback);
        // Of the packets of a replay none is shown when it was captured.
        self.replayed = squeeze.map(|_| (present.timestamp.wrapping_add(splice.timestamp_offset), present.captured));
    }

    /// A clock that stood still while the publisher sent nothing does not bring the viewer to the present. So from the beginning
    /// of the picture `next` on, time goes on from what was shown last; numbers do as ever.
    #[inline]
    pub(super) fn end_squeeze(&mut self, next: &CanonicalPacket, feedback: &mut Feedback) {
        let Some(mut splice) = self.splice.filter(|s| s.squeeze.is_some_and(|s| s.is_overdue(next))) else { return };
        let goes_on = self.ends_picture && splice.seq(next.seq) == Some(self.next_seq);
        if self.phase == Phase::Live && goes_on {
            (splice.from, splice.first_seq, splice.squeeze) = (next.seq, self.next_seq, None);
            self.put_forward(&mut splice, next);
            self.replace_splice(splice, next, feedback);
        }
    }

    /// Time goes forward from what was sent last to `first`.
    fn put_forward(&self, splice: &mut Splice, first: &CanonicalPacket) {
        let behind = self.least_timestamp().wrapping_sub(splice.timestamp(first)).cast_signed();
        splice.timestamp_offset = splice.timestamp_offset.wrapping_add(behind.max(0).cast_unsigned());
    }

    fn replace_splice(&mut self, splice: Splice, first: &CanonicalPacket, feedback: &mut Feedback) {
        self.crossing.reset();
        self.replayed = None;
        if let Some(past) = self.splice.replace(splice) {
            if past.rendition != splice.rendition {
                self.switched_from = Some(past.rendition);
            }
            feedback.past.remember(first.packet.kind, past);
        }
    }

    /// 1 ms after what was sent last.
    fn least_timestamp(&self) -> u32 {
        self.newest_timestamp.wrapping_add(90)
    }

    /// For what is captured then in another rendition: what lies between the two captures, but forward at least.
    fn next_timestamp(&self, capture: Instant) -> u32 {
        let newest = self.newest.into_iter().chain(self.replayed).max_by_key(|(_, captured)| *captured);
        let shown = newest.map(|(timestamp, captured)| {
            let elapsed = capture.since(captured).as_nanos() * 90_000 / 1_000_000_000;
            timestamp.wrapping_add(elapsed as u32)
        });
        let least = self.least_timestamp();
        match shown {
            Some(shown) if shown.wrapping_sub(least) < u32::MAX / 2 => shown,
            _ => least,
        }
    }

    #[inline]
    pub(super) fn payload_types(&mut self, format: Format, feedback: &Feedback) -> Option<PayloadTypes> {
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

    pub(super) fn clock_rate(&self) -> u32 {
        match self.current {
            Some((format, _)) if format.codec.kind() == MediaKind::Audio => 48_000,
            _ => 90_000,
        }
    }

    /// What the viewer gets of the packet's dependency descriptor.
    #[inline]
    pub(super) fn dependency<'a>(
        &self,
        canonical: &CanonicalPacket,
        rewrite: Rewrite,
        copy: &'a mut [u8; dependency::BYTES_MAX],
    ) -> &'a [u8] {
        let passed = canonical.packet.dependency.as_ref().filter(|_| self.extensions.dependency != 0);
        passed.map_or(&[], |d| dependency::renumber(&d.bytes, rewrite.frame_number, copy))
    }

    /// `counted`: from the header's length to the packet's transport-wide number.
    #[inline]
    pub(super) fn write_header(
        &self,
        packet: &mut [u8],
        header: &RtpHeader,
        values: &EndToEnd,
        dependency: &[u8],
        with_mid: bool,
        counted: impl FnOnce(usize) -> Option<u16>,
    ) -> usize {
        let ids = &self.extensions;
        let mut extensions: [(u8, &[u8]); 6] = [(0, &[]); 6];
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
        if !dependency.is_empty() {
            add(ids.dependency, dependency);
        }
        if self.extensions.transport_cc == 0 {
            return rtp::write_header(packet, header, &extensions[..count], ids.forms);
        }
        // Its number is given out when the length is known, which the number does not change.
        extensions[count] = (ids.transport_cc, &[0; 2]);
        let bytes = rtp::write_header(packet, header, &extensions[..=count], ids.forms);
        if let Some(number) = counted(bytes) {
            let number = number.to_be_bytes();
            extensions[count] = (ids.transport_cc, &number);
            rtp::write_header(packet, header, &extensions[..=count], ids.forms);
        }
        bytes
    }
}
