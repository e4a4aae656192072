//! The media plane of a peer that sends to us: str0m decrypts and repairs, each packet is parsed once.

use std::time::Duration;

use str0m::Rtc;
use str0m::media::{KeyframeRequestKind, MediaKind, Pt, Rid};
use str0m::rtp::{ExtensionValues, RtpHeader, RtpPacket};

use super::capture::{self, CaptureClock};
use super::negotiate::BoundFormat;
use crate::id::{self, Generation, StreamId};
use crate::limits::LAYERS_MAX;
use crate::units::Instant;
use crate::wire::codec::{Codec, Format};
use crate::wire::dependency::{Carried, Dependencies, Dependency};
use crate::wire::descriptor::{Descriptor, LayerInfo};
use crate::wire::keyframe::{self, KeyframeStart};
use crate::wire::packet::{EndToEnd, MediaPacket};
use crate::wire::{av1, h264, vp8, vp9};

/// A peer that sends one audio and one video track at most.
pub(super) struct Publisher {
    stream: StreamId,
    generation: Generation,
    /// What the answer accepted.
    formats: Vec<BoundFormat>,
    /// Names of the simulcast layers in the order of the offer; empty without simulcast.
    rids: Vec<Rid>,
    /// What is carried now; `None` before the first packet.
    audio: Option<Track>,
    /// By layer.
    video: [Option<Track>; LAYERS_MAX],
    /// Of audio, and of each layer.
    announced: [Announced; 1 + LAYERS_MAX],
    pli: Option<PeriodicPli>,
    clock: CaptureClock,
}

struct Track {
    ssrc: u32,
    payload_type: Pt,
    /// RTP timestamp of the access unit whose parameter sets came last.
    parameters_at: Option<u32>,
    report: Option<capture::Report>,
    dependencies: Dependencies,
}

/// SSRC and payload type that were told last, and when: who takes turns with two of them is not told of with each packet.
#[derive(Clone, Copy, Default)]
struct Announced(Option<(u32, Pt, Instant)>);

impl Announced {
    fn is_news(&mut self, now: Instant, ssrc: u32, payload_type: Pt) -> bool {
        let is_due = |at| now.since(at) >= ANNOUNCE_AGAIN;
        let news = self.0.is_none_or(|(s, pt, at)| (s, pt) != (ssrc, payload_type) && is_due(at));
        if news {
            self.0 = Some((ssrc, payload_type, now));
        }
        news
    }
}

/// What a track carries is told once a second at most.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(1);

struct PeriodicPli {
    interval: Duration,
    next: Instant,
}

/// A track's first packet, or its first one in another format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackStarted {
    pub kind: MediaKind,
    pub format: Format,
    pub payload_type: u8,
    pub ssrc: u32,
}

impl Publisher {
    pub fn new(
        stream: StreamId,
        generation: Generation,
        formats: Vec<BoundFormat>,
        rids: Vec<Rid>,
        pli_interval: Option<Duration>,
    ) -> Publisher {
        let pli = pli_interval.map(|interval| PeriodicPli { interval, next: Instant::FAR_FUTURE });
        Publisher {
            stream,
            generation,
            formats,
            rids,
            audio: None,
            video: Default::default(),
            announced: Default::default(),
            pli,
            clock: CaptureClock::default(),
        }
    }

    /// Turns what str0m decrypted into what the shards share. `None` for a payload type that was not negotiated.
    pub fn handle_rtp(
        &mut self,
        now: Instant,
        rtc: &mut Rtc,
        rtp: RtpPacket,
    ) -> Option<(MediaPacket, Option<TrackStarted>)> {
        let payload_type = rtp.header.payload_type;
        let ssrc = *rtp.header.ssrc;
        let bound = self.formats.iter().find(|f| f.payload_type == payload_type)?;
        let format = bound.format;
        let kind = format.codec.kind();
        let layer = match kind {
            MediaKind::Audio => 0,
            MediaKind::Video => self.layer_of(rtc, ssrc)?,
        };
        let (track, announced) = match kind {
            MediaKind::Audio => (&mut self.audio, &mut self.announced[0]),
            MediaKind::Video => {
                let layer = usize::from(layer);
                (&mut self.video[layer], &mut self.announced[1 + layer])
            }
        };
        let same = track.as_ref().is_some_and(|t| t.ssrc == ssrc && t.payload_type == payload_type);
        let started = announced.is_news(now, ssrc, payload_type).then_some(TrackStarted {
            kind,
            format,
            payload_type: *payload_type,
            ssrc,
        });
        if !same {
            let dependencies = Dependencies::default();
            *track = Some(Track { ssrc, payload_type, parameters_at: None, report: None, dependencies });
            if bound.nack && bound.rtx.is_none() {
                // OBS resends in-band on its only SSRC; str0m asks for nothing without RTX unless told to.
                if let Some(stream) = rtc.direct_api().stream_rx(&ssrc.into()) {
                    stream.suppress_nack(false);
                }
            }
            if kind == MediaKind::Video
                && let Some(pli) = &mut self.pli
            {
                pli.next = now + pli.interval;
            }
        }
        let track = track.as_mut()?;
        let (descriptor, starts_keyframe, dependency) =
            track.read(format.codec, *rtp.seq_no, &rtp.header, &rtp.payload);
        let clock_rate = if kind == MediaKind::Audio { 48_000 } else { 90_000 };
        let times = rtp.last_sender_info.map(|r| (ntp(r.ntp_time), r.rtp_time.numer() as u32));
        let captured = self.clock.captured(&mut track.report, now, rtp.header.timestamp, clock_rate, times);
        let packet = MediaPacket {
            stream: self.stream,
            kind,
            layer,
            generation: self.generation,
            format,
            ssrc,
            seq: *rtp.seq_no,
            timestamp: rtp.header.timestamp,
            marker: rtp.header.marker,
            starts_keyframe,
            descriptor,
            dependency,
            extensions: end_to_end(&rtp.header.ext_vals),
            arrival: now,
            captured,
            payload: rtp.payload,
        };
        Some((packet, started))
    }

    pub fn rids(&self) -> impl Iterator<Item = id::Rid> + use<'_> {
        self.rids.iter().filter_map(|rid| id::Rid::new(rid))
    }

    /// By SSRC, which a layer shows with its rid in the first packets only. `None`: a rid that was not offered.
    fn layer_of(&self, rtc: &mut Rtc, ssrc: u32) -> Option<u8> {
        if self.rids.is_empty() {
            return Some(0);
        }
        let known = self.video.iter().position(|t| t.as_ref().is_some_and(|t| t.ssrc == ssrc));
        let of_rid = || {
            let rid = rtc.direct_api().stream_rx(&ssrc.into())?.rid()?;
            self.rids.iter().position(|r| *r == rid)
        };
        known.or_else(of_rid).map(|layer| layer as u8)
    }

    /// Asks a layer's encoder for a keyframe; false while it sends nothing.
    pub fn request_keyframe(&self, rtc: &mut Rtc, layer: u8) -> bool {
        let Some(track) = &self.video[usize::from(layer)] else {
            return false;
        };
        // PLI wherever it was negotiated, FIR only for those that know nothing else (RFC 4585 §6.3.1, RFC 5104 §4.3.1).
        let bound = self.formats.iter().find(|f| f.payload_type == track.payload_type);
        let kind = match bound {
            Some(f) if f.fir && !f.pli => KeyframeRequestKind::Fir,
            _ => KeyframeRequestKind::Pli,
        };
        let mut direct = rtc.direct_api();
        let Some(stream) = direct.stream_rx(&track.ssrc.into()) else {
            return false;
        };
        stream.request_keyframe(kind);
        true
    }

    /// Whether it is time for the periodic PLI; then the next one is an interval away.
    pub fn pli_due(&mut self, now: Instant) -> bool {
        match &mut self.pli {
            Some(pli) if now >= pli.next => {
                pli.next = now + pli.interval;
                true
            }
            _ => false,
        }
    }

    pub fn next_timeout(&self) -> Instant {
        self.pli.as_ref().map_or(Instant::FAR_FUTURE, |p| p.next)
    }
}

impl Track {
    /// What the packet says of itself, whether it starts a keyframe, and the dependency descriptor that may pass. What that
    /// says holds, for of an encrypted payload nothing else can be read. One that cannot be read does not pass: viewers drop
    /// the packets of such.
    fn read(
        &mut self,
        codec: Codec,
        seq: u64,
        header: &RtpHeader,
        payload: &[u8],
    ) -> (Descriptor, bool, Option<Dependency>) {
        let carried = header.ext_vals.user_values.get::<Carried>().filter(|_| codec == Codec::Av1);
        let read = carried.and_then(|Carried(bytes)| Some((self.dependencies.read(seq, bytes)?, bytes)));
        if let Some((frame, bytes)) = read {
            let dependency = Dependency { bytes: bytes.clone(), targets: frame.targets };
            return (frame.descriptor, frame.starts_keyframe, Some(dependency));
        }
        let starts_keyframe = self.starts_keyframe(codec, header.timestamp, payload);
        (describe(codec, payload, header.marker), starts_keyframe, None)
    }

    /// Whether a decoder can start on this packet. Parameter sets (H264, H265) come first in their access unit and in
    /// packets of their own: who starts on the picture behind them has missed them.
    fn starts_keyframe(&mut self, codec: Codec, timestamp: u32, payload: &[u8]) -> bool {
        match keyframe::keyframe_start(codec, payload) {
            None => false,
            Some(KeyframeStart::Parameters) => self.parameters_at.replace(timestamp) != Some(timestamp),
            Some(KeyframeStart::Picture) => self.parameters_at != Some(timestamp),
        }
    }
}

/// One layer, where the codec has no layers or the packet cannot be read.
fn describe(codec: Codec, payload: &[u8], marker: bool) -> Descriptor {
    let parsed = match codec {
        Codec::Vp8 => vp8::parse(payload, marker),
        Codec::Vp9 => vp9::parse(payload),
        _ => None,
    };
    let sizes = match codec {
        Codec::H264 => h264::sizes(payload),
        Codec::Av1 => av1::sizes(payload),
        _ => None,
    };
    parsed.unwrap_or(Descriptor {
        layer: LayerInfo { ends_frame: marker, sizes, ..LayerInfo::default() },
        ..Descriptor::default()
    })
}

/// Only what is said from end to end passes.
fn end_to_end(from: &ExtensionValues) -> EndToEnd {
    let level = |level: i8, voice: bool| u8::from(voice) << 7 | (level.unsigned_abs() & 0x7f);
    EndToEnd {
        audio_level: from.audio_level.zip(from.voice_activity).map(|(l, v)| level(l, v)),
        video_orientation: from.video_orientation.map(|o| o as u8),
        abs_capture_time: from.abs_capture_time.as_ref().map(|t| ntp(t.capture_time)),
    }
}

/// NTP 32.32, seconds since 1900.
fn ntp(at: std::time::SystemTime) -> u64 {
    let since_1970 = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let fraction = (u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000;
    (since_1970.as_secs() + 2_208_988_800) << 32 | fraction
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::wire::dependency::tests::keyframe;

    /// The aggregation header alone says whether a coded video sequence begins (N).
    const BEGINS: &[u8] = &[0x08, 0];
    const OPAQUE: &[u8] = &[0x80, 0];

    #[test]
    fn who_takes_turns_is_told_of_once_a_second() {
        let mut announced = Announced::default();
        let ms = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        assert!(announced.is_news(ms(0), 1, 96.into()));
        assert!(!announced.is_news(ms(5000), 1, 96.into()));
        let told = (5000..8000).filter(|at| announced.is_news(ms(*at), 1, Pt::from(96 + (at % 2) as u8))).count();
        assert_eq!(told, 3);
    }

    #[test]
    fn a_descriptor_goes_before_the_payload_if_it_can_be_read() {
        let mut track = Track {
            ssrc: 1,
            payload_type: 45.into(),
            parameters_at: None,
            report: None,
            dependencies: Dependencies::default(),
        };
        let mut check = |codec, dependency: Option<&[u8]>, payload: &[u8], expected: (u8, bool, bool)| {
            let mut header = RtpHeader::default();
            if let Some(bytes) = dependency {
                header.ext_vals.user_values.set(Carried(Arc::from(bytes)));
            }
            let (descriptor, starts_keyframe, passed) = track.read(codec, 1, &header, payload);
            assert_eq!((descriptor.layer.temporal, starts_keyframe, passed.is_some()), expected, "{dependency:02x?}");
            assert!(passed.is_none_or(|p| Some(&*p.bytes) == dependency), "as it came");
        };
        let key = keyframe(7);
        let highest: &[u8] = &[0x80 | 13, 0, 8];
        check(Codec::Av1, None, BEGINS, (0, true, false));
        check(Codec::Av1, Some(highest), BEGINS, (0, true, false));
        check(Codec::Av1, Some(&key), OPAQUE, (0, true, true));
        check(Codec::Av1, Some(highest), BEGINS, (2, false, true));
        check(Codec::Av1, Some(&[13]), BEGINS, (0, true, false));
        check(Codec::Vp9, Some(&key), OPAQUE, (0, false, false));
    }
}
