//! What a viewer's media plane may never do, and what it owes: the rules of RFC 3711 and RFC 3550 seen from the wire.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use str0m::media::{MediaKind, Pt};

use super::egress::{Asked, Egress, Written};
use super::negotiate::BoundFormat;
use super::squeeze::Squeeze;
use super::track::{ExtensionIds, TrackSetup};
use crate::datagram::{SendBatch, SocketId};
use crate::id::{Generation, StreamId};
use crate::srtp::keys::{MasterKey, MasterKeys, Profile};
use crate::srtp::open::{RtcpOpener, RtpOpener};
use crate::srtp::seal::RtcpSealer;
use crate::units::{Bitrate, Instant};
use crate::wire::classify::{Kind, classify};
use crate::wire::codec::{Codec, Format};
use crate::wire::dependency::Dependency;
use crate::wire::descriptor::{Descriptor, Rewrite};
use crate::wire::packet::{CanonicalPacket, EndToEnd, MediaPacket, Rendition, Run};
use crate::wire::rtcp::{self, NtpTime, Rtcp};
use crate::wire::rtp::{ExtensionForms, OSN_BYTES, RtpView, parse_rtx};

const VIDEO: u32 = 0x1111;
const VIDEO_RTX: u32 = 0x2222;
const AUDIO: u32 = 0x3333;
const AUDIO_RTX: u32 = 0x5555;
const VIEWER: u32 = 0x4444;
const VIDEO_PT: u8 = 96;
const RTX_PT: u8 = 97;
const PAYLOAD_BYTES: usize = 1000;
/// 4 packets a frame of 33 ms.
const PACKET_INTERVAL: Duration = Duration::from_millis(8);
const UNIX_AT_START: Duration = Duration::from_secs(1_800_000_000);

fn home() -> SocketAddr {
    "192.0.2.7:5000".parse().expect("an address")
}

/// An egress and its viewer, who opens what comes with the same key, and refuses replays as each of them does.
struct Scene {
    egress: Egress,
    rtp: RtpOpener,
    rtcp: RtcpOpener,
    viewer: RtcpSealer,
    out: SendBatch,
    now: Instant,
    /// Of the audio, then of the video.
    next_seq: [u64; 2],
    sent: Vec<CanonicalPacket>,
}

/// A packet as the viewer reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Opened {
    ssrc: u32,
    payload_type: u8,
    index: u64,
    timestamp: u32,
    payload: Vec<u8>,
}

fn keys<T>(f: impl FnOnce(&MasterKeys<'_>) -> T) -> T {
    let (local, remote, salt) = ([1; 16], [2; 16], [3; 12]);
    let key = |key| MasterKey::new(Profile::Aes128Gcm, key, &salt).expect("the profile's lengths");
    f(&MasterKeys { local: key(&local), remote: key(&remote) })
}

fn track(kind: MediaKind, ssrc: u32, rtx_ssrc: Option<u32>, format: Format, payload_type: u8) -> TrackSetup {
    let rtx = rtx_ssrc.map(|_| Pt::new_with_value(RTX_PT));
    let payload_type = Pt::new_with_value(payload_type);
    TrackSetup {
        kind,
        mid: kind.to_string(),
        ssrc,
        rtx_ssrc,
        formats: vec![BoundFormat { payload_type, format, rtx, nack: true, pli: true, fir: true }],
        extensions: ExtensionIds { mid: 4, ..ExtensionIds::default() },
    }
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let tracks = vec![
            track(MediaKind::Video, VIDEO, Some(VIDEO_RTX), Format::VP8, VIDEO_PT),
            track(MediaKind::Audio, AUDIO, None, Format::OPUS, 111),
        ];
        let path = Some((SocketId(0), home()));
        let mut rng = StdRng::seed_from_u64(seed);
        keys(|keys| Scene {
            egress: Egress::new(keys, tracks, "manycast".into(), path, &mut rng),
            rtp: RtpOpener::new(keys.local),
            rtcp: RtcpOpener::new(keys.local),
            viewer: RtcpSealer::new(keys.remote),
            out: SendBatch::new(),
            now: Instant::from_nanos(5_000_000_000),
            next_seq: [0, 10_000],
            sent: Vec::new(),
        })
    }

    /// `seq` is canonical.
    fn packet(&self, kind: MediaKind, seq: u64) -> CanonicalPacket {
        let (codec, clock_rate) = match kind {
            MediaKind::Audio => (Codec::Opus, 48_000),
            MediaKind::Video => (Codec::Vp8, 90_000),
        };
        let packet = MediaPacket {
            stream: StreamId(1),
            kind,
            layer: 0,
            generation: Generation(1),
            format: Format { codec, ..Format::VP8 },
            ssrc: 7,
            seq,
            timestamp: 0,
            marker: false,
            starts_keyframe: true,
            descriptor: Descriptor::default(),
            dependency: None,
            extensions: EndToEnd::default(),
            arrival: self.now,
            captured: self.now,
            payload: vec![seq as u8; PAYLOAD_BYTES].into(),
        };
        let timestamp = (self.now.as_nanos() / 1_000 * clock_rate / 1_000_000) as u32;
        CanonicalPacket { packet: Arc::new(packet), seq, timestamp, marker: false, rewrite: Rewrite::default() }
    }

    /// The next packets of a kind, which leave as one message.
    fn send(&mut self, kind: MediaKind, count: u64) -> Vec<Opened> {
        let first = self.next_seq[kind as usize];
        self.next_seq[kind as usize] += count;
        let packets: Vec<_> = (first..first + count).map(|seq| self.packet(kind, seq)).collect();
        let run = Run { packets: 0..packets.len(), payload_bytes: PAYLOAD_BYTES };
        let written = self.egress.write(self.now, kind, Rendition::default(), &packets, &run, &mut self.out);
        assert!(matches!(written, Written::Sent { packets, .. } if u64::from(packets) == count), "{written:?}");
        self.sent.extend(packets);
        self.now += PACKET_INTERVAL;
        self.take_rtp()
    }

    fn resend(&mut self, seq: u64) -> Vec<Opened> {
        let packet = self.sent.iter().find(|p| p.seq == seq && p.packet.kind == MediaKind::Video).expect("was sent");
        let packet = packet.clone();
        self.resend_if_granted(&packet);
        self.take_rtp()
    }

    fn resend_if_granted(&mut self, packet: &CanonicalPacket) -> bool {
        let Some(lost) = self.egress.lost(packet.packet.kind, packet.seq) else { return false };
        let granted = self.egress.grant_resend(self.now, lost, packet);
        granted.is_some_and(|granted| self.egress.resend(self.now, packet, granted, &mut self.out))
    }

    /// All RTP that was sent, opened; a replayed index would not open.
    fn take_rtp(&mut self) -> Vec<Opened> {
        let mut opened = Vec::new();
        for data in self.take() {
            assert_eq!(classify(&data), Some(Kind::Rtp));
            let mut packet = data;
            let got = self.rtp.open_rtp(&mut packet).expect("authentic and new");
            let view = RtpView::parse(&packet[..got.plain_bytes]).expect("RTP");
            opened.push(Opened {
                ssrc: view.header.ssrc,
                payload_type: view.header.payload_type,
                index: got.index,
                timestamp: view.header.timestamp,
                payload: view.payload.to_vec(),
            });
        }
        opened
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        for message in self.out.iter() {
            let segment = message.segment.map_or(message.data.len(), usize::from);
            datagrams.extend(message.data.chunks(segment).map(<[u8]>::to_vec));
        }
        self.out.clear();
        datagrams
    }

    /// What is due now: its index, and the compound in the clear.
    fn report(&mut self) -> Option<(u32, Vec<u8>)> {
        self.egress.report_if_due(self.now, UNIX_AT_START, &mut self.out);
        self.take_rtcp()
    }

    fn take_rtcp(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut packet = self.take().pop()?;
        let trailer = packet[packet.len() - 4..].try_into().expect("four bytes");
        let bytes = self.rtcp.open_rtcp(&mut packet).expect("authentic and new");
        packet.truncate(bytes);
        Some((u32::from_be_bytes(trailer) & 0x7fff_ffff, packet))
    }

    fn nack(&mut self, seqs: &[u16]) -> Vec<u8> {
        let mut packet = Vec::new();
        rtcp::write_receiver_report(&mut packet, VIEWER, &[]);
        rtcp::write_nack(&mut packet, VIEWER, VIDEO, seqs);
        self.viewer.seal_rtcp(&mut packet).expect("indices are left");
        packet
    }

    /// The viewer says what it lost of the video, in 1/256.
    fn report_loss(&mut self, fraction_lost: u8) {
        let block = rtcp::ReportBlock { ssrc: VIDEO, fraction_lost, ..rtcp::ReportBlock::default() };
        let mut packet = Vec::new();
        rtcp::write_receiver_report(&mut packet, VIEWER, &[block]);
        self.viewer.seal_rtcp(&mut packet).expect("indices are left");
        assert!(self.hear(&packet).0);
    }

    fn hear(&mut self, datagram: &[u8]) -> (bool, Vec<Asked>) {
        let mut asked = Vec::new();
        let authentic = self.egress.handle_rtcp(self.now, datagram, |ask| asked.push(ask));
        (authentic, asked)
    }
}

/// Canonical numbers of the packets that are asked for.
fn resends(asked: &[Asked]) -> Vec<u64> {
    let seq = |asked: &Asked| match asked {
        Asked::Resend(lost) => lost.seq,
        Asked::Keyframe => panic!("a NACK asks for packets"),
    };
    asked.iter().map(seq).collect()
}

/// SSRC, NTP, RTP time, packets, octets of each sender report.
fn sender_reports(compound: &[u8]) -> Vec<(u32, rtcp::SenderInfo)> {
    let reports = rtcp::parse(compound).filter_map(|p| match p.expect("well-formed") {
        Rtcp::SenderReport { ssrc, info, .. } => Some((ssrc, info)),
        _ => None,
    });
    reports.collect()
}

// ---------------------------------------------------------------------------------------------------------- indices

#[test]
fn the_first_indices_are_random_and_far_from_a_roll_over() {
    let mut firsts = HashSet::new();
    for seed in 0..200 {
        let mut scene = Scene::new(seed);
        let video = scene.send(MediaKind::Video, 1)[0].index;
        let audio = scene.send(MediaKind::Audio, 1)[0].index;
        let rtx = scene.resend(10_000)[0].index;
        for index in [video, audio, rtx] {
            assert!(index < 1 << 15, "seed {seed}: {index}");
            firsts.insert(index);
        }
    }
    assert!(firsts.len() > 500, "{}", firsts.len());
}

#[test]
fn a_stream_passes_its_roll_overs_without_a_gap() {
    let mut scene = Scene::new(1);
    let mut expected = scene.send(MediaKind::Video, 1)[0].index + 1;
    while expected < 2 * 65_536 + 100 {
        scene.sent.clear();
        for packet in scene.send(MediaKind::Video, 16) {
            assert_eq!((packet.ssrc, packet.index), (VIDEO, expected));
            expected += 1;
        }
    }
    // What a viewer then lacks is found behind the roll-over.
    let lost = expected - 5;
    let datagram = scene.nack(&[lost as u16]);
    let (authentic, asked) = scene.hear(&datagram);
    let canonical = scene.next_seq[MediaKind::Video as usize] - 5;
    assert!(authentic);
    assert_eq!(resends(&asked), [canonical]);
    assert_eq!(parse_rtx(&scene.resend(canonical)[0].payload).expect("RTX").0, lost as u16);
}

#[test]
fn a_packet_that_is_asked_for_twice_gets_two_indices_of_the_rtx_stream_and_none_of_its_own() {
    let mut scene = Scene::new(2);
    let sent = scene.send(MediaKind::Video, 8);
    scene.now += Duration::from_millis(100);
    let first = scene.resend(10_003);
    scene.now += Duration::from_millis(100);
    let second = scene.resend(10_003);
    for (resent, nth) in [(&first, 0), (&second, 1)] {
        let [packet] = &resent[..] else { panic!("{resent:?}") };
        assert_eq!((packet.ssrc, packet.payload_type), (VIDEO_RTX, RTX_PT));
        assert_eq!(packet.index, first[0].index + nth);
        assert_eq!(packet.timestamp, sent[3].timestamp);
        let (original, payload) = parse_rtx(&packet.payload).expect("RTX");
        assert_eq!((original, payload), (sent[3].index as u16, &sent[3].payload[..]));
    }
}

#[test]
fn a_packet_is_sent_again_at_intervals_and_ten_times_at_most() {
    let mut scene = Scene::new(3);
    scene.send(MediaKind::Video, 8);
    let first = scene.resend(10_003)[0].index;
    assert_eq!(scene.resend(10_003).len(), 0, "a NACK that crossed the first resend");
    for _ in 0..50 {
        scene.now += Duration::from_secs(1);
        scene.send(MediaKind::Video, 8);
        scene.resend(10_003);
    }
    // 10 times the one packet, and no hole in the RTX stream for what was refused.
    assert_eq!(scene.resend(10_004)[0].index, first + 10);
}

#[test]
fn a_long_list_is_not_answered_twice() {
    let mut scene = Scene::new(29);
    scene.send(MediaKind::Video, 60);
    scene.send(MediaKind::Video, 60);
    let answered = |scene: &mut Scene| (10_000..10_120).filter(|seq| !scene.resend(*seq).is_empty()).count();
    assert_eq!([answered(&mut scene), answered(&mut scene)], [120, 0]);
}

#[test]
fn what_a_viewer_asks_for_leaves_twice_unless_its_link_is_full() {
    let mut scene = Scene::new(27);
    scene.send(MediaKind::Video, 16);
    let copies = |scene: &mut Scene, seq| {
        let packet = scene.packet(MediaKind::Video, seq);
        let lost = scene.egress.lost(MediaKind::Video, seq).expect("was sent");
        let first = scene.egress.grant_resend(scene.now, lost, &packet).expect("granted");
        let second = scene.egress.grant_copy(scene.now, &first, &packet);
        for granted in [Some(first), second].into_iter().flatten() {
            assert!(scene.egress.resend(scene.now, &packet, granted, &mut scene.out));
        }
        let sent = scene.take_rtp();
        let numbers: Vec<u16> = sent.iter().map(|p| parse_rtx(&p.payload).expect("RTX").0).collect();
        assert!(numbers.iter().all(|osn| *osn == numbers[0]) && sent.windows(2).all(|p| p[0].index + 1 == p[1].index));
        sent.len()
    };
    assert_eq!(copies(&mut scene, 10_001), 2);
    scene.report_loss(25);
    assert_eq!(copies(&mut scene, 10_002), 2);
    scene.report_loss(26);
    assert_eq!(copies(&mut scene, 10_003), 1, "a tenth is lost");
    assert_eq!(scene.egress.bound(scene.now), Some(Bitrate::from_bps(0)));
    scene.report_loss(0);
    assert_eq!(copies(&mut scene, 10_004), 2);
}

#[test]
fn second_copies_leave_half_of_what_may_be_sent_again_to_first_answers() {
    let mut scene = Scene::new(30);
    for _ in 0..60 {
        scene.send(MediaKind::Video, 16);
    }
    let (mut firsts, mut copies) = (0, 0);
    for packet in scene.sent.iter().rev().take(400) {
        let lost = scene.egress.lost(MediaKind::Video, packet.seq).expect("was sent");
        let Some(first) = scene.egress.grant_resend(scene.now, lost, packet) else { break };
        firsts += 1;
        copies += usize::from(scene.egress.grant_copy(scene.now, &first, packet).is_some());
    }
    // Of 262 packets: 65 twice, then the other half once.
    assert_eq!((firsts, copies), (262 - 65, 65));
}

#[test]
fn what_a_viewer_says_of_its_path_counts_for_seconds() {
    let mut scene = Scene::new(28);
    scene.send(MediaKind::Video, 8);
    assert_eq!(scene.egress.bound(scene.now), None);
    // 2^2 times 250,000 bit/s.
    let remb =
        [0x8f, 206, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, b'R', b'E', b'M', b'B', 1, 2 << 2 | 3, 0xd0, 0x90, 0, 0, 0, 11];
    let mut compound = Vec::new();
    rtcp::write_receiver_report(&mut compound, VIEWER, &[]);
    compound.extend(remb);
    scene.viewer.seal_rtcp(&mut compound).expect("indices are left");
    assert!(scene.hear(&compound).0);
    assert_eq!(scene.egress.bound(scene.now), Some(Bitrate::from_bps(1_000_000)));
    scene.now += Duration::from_secs(6);
    assert_eq!(scene.egress.bound(scene.now), None);
}

#[test]
fn packets_from_before_a_viewers_first_are_never_sent() {
    let mut scene = Scene::new(4);
    scene.send(MediaKind::Video, 4);
    let older = [scene.packet(MediaKind::Video, 9_999)];
    let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
    assert_eq!(
        scene.egress.write(scene.now, MediaKind::Video, Rendition::default(), &older, &run, &mut scene.out),
        Written::BeforeStart
    );
    assert!(!scene.resend_if_granted(&older[0]));
    assert!(scene.take().is_empty());
}

#[test]
fn a_late_packet_is_sent_under_its_own_index() {
    let mut scene = Scene::new(5);
    let first = scene.send(MediaKind::Video, 1)[0].index;
    scene.next_seq[MediaKind::Video as usize] = 10_003;
    assert_eq!(scene.send(MediaKind::Video, 1)[0].index, first + 3);
    scene.next_seq[MediaKind::Video as usize] = 10_001;
    assert_eq!(scene.send(MediaKind::Video, 2).iter().map(|p| p.index - first).collect::<Vec<_>>(), [1, 2]);
}

// ------------------------------------------------------------------------------------------------------ what we report

#[test]
fn a_sender_report_tells_the_moment_of_capture() {
    let mut scene = Scene::new(10);
    let captured = scene.now;
    let timestamps = [scene.send(MediaKind::Video, 4)[0].timestamp, scene.send(MediaKind::Audio, 1)[0].timestamp];
    // The report leaves 350 ms after the video was captured, 342 ms after the audio.
    scene.now = captured + Duration::from_millis(350);
    let (_, compound) = scene.report().expect("the first media brings the first report");
    let reports = sender_reports(&compound);
    let of = |ssrc| reports.iter().find(|(s, _)| *s == ssrc).expect("a report on each track").1;
    let ntp = NtpTime::from_unix(UNIX_AT_START + (scene.now - Instant::ZERO));
    for (ssrc, timestamp, ticks) in
        [(VIDEO, timestamps[0], 350 * 90), (AUDIO, timestamps[1], (350 - PACKET_INTERVAL.as_millis() as u32) * 48)]
    {
        let info = of(ssrc);
        assert_eq!(info.ntp, ntp, "one moment for both: that is lip sync");
        assert_eq!(info.rtp_timestamp.wrapping_sub(timestamp), ticks, "{ssrc:#x}");
    }
}

/// What the publisher's clock says is `captured`; that a packet was long on its way does not show.
#[test]
fn a_sender_report_is_about_the_publishers_clock_and_not_about_arrival() {
    let report = |delay: Duration| {
        let mut scene = Scene::new(11);
        let mut canonical = scene.packet(MediaKind::Video, 10_000);
        let packet = Arc::get_mut(&mut canonical.packet).expect("the only one");
        packet.arrival = packet.captured + delay;
        let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
        scene.egress.write(scene.now, MediaKind::Video, Rendition::default(), &[canonical], &run, &mut scene.out);
        scene.take_rtp();
        scene.now += Duration::from_millis(500);
        sender_reports(&scene.report().expect("due").1)[0].1
    };
    assert_eq!(report(Duration::ZERO), report(Duration::from_millis(400)));
}

#[test]
fn a_sender_report_counts_what_was_sent_once() {
    let mut scene = Scene::new(12);
    scene.send(MediaKind::Video, 8);
    scene.now += Duration::from_millis(100);
    assert_eq!(scene.resend(10_001).len() + scene.resend(10_002).len(), 2);
    let (_, compound) = scene.report().expect("due");
    let [(ssrc, info)] = &sender_reports(&compound)[..] else { panic!("audio has sent nothing") };
    assert_eq!((*ssrc, info.packets, info.octets), (VIDEO, 8, 8 * PAYLOAD_BYTES as u32));
}

#[test]
fn reports_come_once_a_second_and_only_with_media() {
    let mut scene = Scene::new(13);
    assert_eq!(scene.report(), None, "nothing was sent");
    let mut reports = 0;
    let start = scene.now;
    while scene.now < start + Duration::from_secs(10) {
        scene.send(MediaKind::Video, 1);
        reports += usize::from(scene.report().is_some());
    }
    assert!((9..=11).contains(&reports), "{reports}");
    scene.now += Duration::from_secs(60);
    let last = scene.report();
    scene.now += Duration::from_secs(60);
    assert!(scene.report().is_none(), "{last:?}");
}

/// A viewer brings audio and video together when it has a report on each (RFC 3550 §6.4.1).
#[test]
fn the_first_packet_of_each_track_brings_a_report() {
    let mut scene = Scene::new(16);
    scene.send(MediaKind::Audio, 1);
    assert_eq!(sender_reports(&scene.report().expect("audio").1).len(), 1);
    scene.send(MediaKind::Audio, 1);
    assert_eq!(scene.report(), None);
    // It had to wait for a keyframe.
    scene.send(MediaKind::Video, 1);
    assert_eq!(sender_reports(&scene.report().expect("video").1).len(), 2);
    scene.send(MediaKind::Video, 1);
    assert_eq!(scene.report(), None);
}

#[test]
fn every_compound_names_us_and_the_last_says_bye() {
    let mut scene = Scene::new(14);
    scene.send(MediaKind::Video, 1);
    let cname = [&[1, 8][..], b"manycast"].concat();
    let names_us = |compound: &[u8]| {
        let sdes = rtcp::parse(compound).filter(|p| matches!(p, Ok(Rtcp::Other { packet_type: 202 }))).count();
        sdes == 1 && compound.windows(cname.len()).any(|w| w == cname)
    };
    let (_, report) = scene.report().expect("due");
    assert!(names_us(&report), "{report:?}");
    scene.egress.say_bye(&mut scene.out);
    let (_, goodbye) = scene.take_rtcp().expect("a goodbye");
    assert!(names_us(&goodbye), "{goodbye:?}");
    let first = rtcp::parse(&goodbye).next().expect("RFC 3550 §6.1: a report first").expect("well-formed");
    assert!(matches!(first, Rtcp::ReceiverReport { .. }));
    let bye = rtcp::parse(&goodbye).find_map(|p| match p.expect("well-formed") {
        Rtcp::Bye { ssrcs } => Some(ssrcs.collect::<HashSet<_>>()),
        _ => None,
    });
    assert_eq!(bye, Some(HashSet::from([VIDEO, AUDIO])));
}

#[test]
fn srtcp_indices_count_by_one_whatever_is_said() {
    let mut scene = Scene::new(15);
    let mut indices = Vec::new();
    for kind in [MediaKind::Video, MediaKind::Audio, MediaKind::Audio, MediaKind::Video] {
        scene.send(kind, 1);
        scene.now += Duration::from_secs(1);
        indices.push(scene.report().expect("due").0);
    }
    scene.egress.say_bye(&mut scene.out);
    indices.push(scene.take_rtcp().expect("a goodbye").0);
    assert_eq!(indices, [0, 1, 2, 3, 4]);
}

// -------------------------------------------------------------------------------------------------------- what we hear

#[test]
fn a_replayed_request_is_not_heard_again() {
    let mut scene = Scene::new(20);
    let first = scene.send(MediaKind::Video, 8)[0].index;
    let datagram = scene.nack(&[first as u16 + 2]);
    let (authentic, asked) = scene.hear(&datagram);
    assert_eq!((authentic, resends(&asked)), (true, vec![10_002]));
    assert_eq!(scene.hear(&datagram), (false, vec![]));
}

#[test]
fn a_forged_request_is_not_heard_and_leaves_no_trace() {
    let mut scene = Scene::new(21);
    let first = scene.send(MediaKind::Video, 8)[0].index;
    let datagram = scene.nack(&[first as u16 + 2]);
    for bit in 0..datagram.len() * 8 {
        let mut forged = datagram.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(scene.hear(&forged), (false, vec![]), "bit {bit}");
    }
    // In the clear, as a stranger would, and under our own key, which the viewer does not send with.
    let mut clear = Vec::new();
    rtcp::write_nack(&mut clear, VIEWER, VIDEO, &[first as u16 + 2]);
    assert_eq!(scene.hear(&clear), (false, vec![]));
    keys(|keys| RtcpSealer::new(keys.local).seal_rtcp(&mut clear)).expect("indices are left");
    assert_eq!(scene.hear(&clear), (false, vec![]));
    assert!(scene.hear(&datagram).0, "the real one still counts");
}

#[test]
fn numbers_that_were_never_sent_are_not_looked_for() {
    let mut scene = Scene::new(22);
    let first = scene.send(MediaKind::Video, 8)[0].index as u16;
    // The next one, one far ahead, and the one before the first.
    for seq in [first.wrapping_add(8), first.wrapping_add(20_000), first.wrapping_sub(1)] {
        let datagram = scene.nack(&[seq]);
        let (authentic, asked) = scene.hear(&datagram);
        let looked_for = resends(&asked);
        assert!(authentic && looked_for.iter().all(|s| (10_000..10_008).contains(s)), "{seq}: {looked_for:?}");
    }
}

#[test]
fn a_viewer_that_claims_to_lose_everything_gets_half_as_much_again_at_most() {
    let mut scene = Scene::new(23);
    let (mut sent, mut resent) = (0, 0);
    for _ in 0..400 {
        let opened = scene.send(MediaKind::Video, 16);
        sent += opened.len() * PAYLOAD_BYTES;
        // All of the last second, over and over.
        let seqs: Vec<u16> = (0..500).map(|back| (opened[15].index as u16).wrapping_sub(back)).collect();
        let datagram = scene.nack(&seqs);
        for seq in resends(&scene.hear(&datagram).1) {
            resent += scene.resend(seq).iter().map(|p| p.payload.len() - OSN_BYTES).sum::<usize>();
        }
        scene.sent.drain(..scene.sent.len().saturating_sub(1024));
    }
    assert!(resent > sent / 4, "honest losses are repaired: {resent} of {sent}");
    // And what had been saved up at the start.
    assert!(resent <= sent / 2 + 135_000, "{resent} of {sent}");
}

/// One NACK of many numbers, or many of few.
#[test]
fn a_datagram_asks_for_512_packets_at_most() {
    let mut scene = Scene::new(25);
    let mut newest = 0;
    for _ in 0..80 {
        newest = scene.send(MediaKind::Video, 16)[15].index as u16;
    }
    for numbers in [1, 17, 1200] {
        let mut packet = Vec::new();
        let seqs: Vec<u16> = (0..1200).map(|back| newest.wrapping_sub(back)).collect();
        for seqs in seqs.chunks(numbers) {
            rtcp::write_nack(&mut packet, VIEWER, VIDEO, seqs);
        }
        scene.viewer.seal_rtcp(&mut packet).expect("indices are left");
        let (authentic, asked) = scene.hear(&packet);
        assert_eq!((authentic, resends(&asked).len()), (true, 512), "{numbers} in a NACK");
    }
}

/// RTX for audio too: what was sent of the one track is not counted again for the other.
#[test]
fn two_tracks_do_not_get_twice_as_much() {
    let mut scene = Scene::new(24);
    let tracks = vec![
        track(MediaKind::Video, VIDEO, Some(VIDEO_RTX), Format::VP8, VIDEO_PT),
        track(MediaKind::Audio, AUDIO, Some(AUDIO_RTX), Format::OPUS, 111),
    ];
    let path = Some((SocketId(0), home()));
    scene.egress = keys(|keys| Egress::new(keys, tracks, "manycast".into(), path, &mut StdRng::seed_from_u64(24)));
    for _ in 0..60 {
        scene.send(MediaKind::Video, 16);
    }
    scene.send(MediaKind::Audio, 16);
    // From here on no media is sent.
    let (mut granted, sent) = (0, std::mem::take(&mut scene.sent));
    for round in 0..20 {
        for packet in &sent {
            scene.now += Duration::from_millis(1);
            for packet in [packet, &sent[sent.len() - 1 - round % 16]] {
                scene.resend_if_granted(packet);
            }
            granted += scene.take_rtp().len() * PAYLOAD_BYTES;
        }
    }
    assert!((200_000..300_000).contains(&granted), "{granted}");
}

#[test]
fn the_mid_is_sent_until_the_viewer_knows_the_stream() {
    let mut scene = Scene::new(26);
    let bytes = |scene: &mut Scene| {
        scene.send(MediaKind::Video, 1);
        let packets = [scene.packet(MediaKind::Video, scene.next_seq[MediaKind::Video as usize])];
        scene.next_seq[MediaKind::Video as usize] += 1;
        let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
        scene.egress.write(scene.now, MediaKind::Video, Rendition::default(), &packets, &run, &mut scene.out);
        scene.take()[0].len()
    };
    let with_mid = bytes(&mut scene);
    let report = |scene: &mut Scene, ssrcs: &[u32]| {
        let block = |ssrc: &u32| rtcp::ReportBlock { ssrc: *ssrc, ..rtcp::ReportBlock::default() };
        let mut packet = Vec::new();
        rtcp::write_receiver_report(&mut packet, VIEWER, &ssrcs.iter().map(block).collect::<Vec<_>>());
        scene.viewer.seal_rtcp(&mut packet).expect("indices are left");
        assert!(scene.hear(&packet).0);
    };
    report(&mut scene, &[VIDEO_RTX, AUDIO, AUDIO, 1]);
    assert_eq!(bytes(&mut scene), with_mid, "a report on others");
    report(&mut scene, &[VIDEO_RTX, AUDIO_RTX, AUDIO, VIDEO]);
    assert_eq!(bytes(&mut scene), with_mid - 12, "the extension's head, its own, and `video` with its padding");
}

// ---------------------------------------------------------------------------------------------- dependency descriptors

/// The id that the viewer gave to it.
const DEPENDENCY: u8 = 12;

/// A scene whose viewer takes AV1, with or without its descriptors.
fn av1_scene(seed: u64, dependency: u8) -> Scene {
    let mut scene = Scene::new(seed);
    let av1 = Format::parse(Codec::Av1, "").expect("a format");
    let mut video = track(MediaKind::Video, VIDEO, Some(VIDEO_RTX), av1, VIDEO_PT);
    video.extensions = ExtensionIds { dependency, forms: ExtensionForms::Mixed, ..video.extensions };
    let path = Some((SocketId(0), home()));
    let mut rng = StdRng::seed_from_u64(seed);
    scene.egress = keys(|keys| Egress::new(keys, vec![video], "manycast".into(), path, &mut rng));
    scene
}

/// An AV1 packet of frame `number` of a layer whose descriptor has `bytes`.
fn av1(scene: &Scene, seq: u64, layer: u8, number: u16, bytes: usize) -> CanonicalPacket {
    let canonical = scene.packet(MediaKind::Video, seq);
    let mut packet = Arc::into_inner(canonical.packet).expect("the only one");
    packet.format = Format::parse(Codec::Av1, "").expect("a format");
    packet.layer = layer;
    packet.descriptor.numbers.frame_number = Some(number);
    packet.dependency = Some(Dependency::of(described(number, bytes)));
    CanonicalPacket { packet: Arc::new(packet), ..canonical }
}

fn described(number: u16, bytes: usize) -> Vec<u8> {
    let mut descriptor: Vec<u8> = (0..bytes as u8).map(|i| 0x80 | i).collect();
    descriptor[1..3].copy_from_slice(&number.to_be_bytes());
    descriptor
}

impl Scene {
    fn send_av1(&mut self, layer: u8, packets: &[CanonicalPacket]) -> Vec<Option<Vec<u8>>> {
        let run = Run { packets: 0..packets.len(), payload_bytes: PAYLOAD_BYTES };
        let rendition = Rendition { layer, ..Rendition::default() };
        self.egress.set_target(rendition);
        self.egress.write(self.now, MediaKind::Video, rendition, packets, &run, &mut self.out);
        self.take_descriptors()
    }

    fn take_descriptors(&mut self) -> Vec<Option<Vec<u8>>> {
        let mut descriptors = Vec::new();
        for mut packet in self.take() {
            let got = self.rtp.open_rtp(&mut packet).expect("authentic and new");
            let view = RtpView::parse(&packet[..got.plain_bytes]).expect("RTP");
            descriptors.push(view.extensions().find(|(id, _)| *id == DEPENDENCY).map(|(_, value)| value.to_vec()));
        }
        descriptors
    }
}

#[test]
fn descriptors_come_with_frame_numbers_that_go_on() {
    let mut scene = av1_scene(40, DEPENDENCY);
    let seen = |number, bytes| Some(described(number, bytes));
    // The publisher is the second one: what is canonical is 3 more than what it says.
    let restarted = |mut packet: CanonicalPacket| {
        packet.rewrite.frame_number = 3;
        packet
    };
    let key = restarted(av1(&scene, 1, 0, 65_530, 255));
    assert_eq!(scene.send_av1(0, &[key]), [seen(65_533, 255)]);
    let run = [restarted(av1(&scene, 2, 0, 65_531, 5)), restarted(av1(&scene, 3, 0, 65_532, 5))];
    assert_eq!(scene.send_av1(0, &run), [seen(65_534, 5), seen(65_535, 5)]);
    // Another layer goes on where this one ends.
    let layer = [av1(&scene, 70, 1, 900, 90), av1(&scene, 71, 1, 900, 90), av1(&scene, 72, 1, 901, 90)];
    assert_eq!(scene.send_av1(1, &layer), [seen(0, 90), seen(0, 90), seen(1, 90)]);
    scene.resend_if_granted(&layer[2]);
    assert_eq!(scene.take_descriptors(), [seen(1, 90)], "a resend has its own");
}

#[test]
fn a_replay_that_a_keyframe_ends_leaves_no_gap() {
    let mut scene = av1_scene(42, DEPENDENCY);
    let past: Vec<_> = (0..5).map(|i| av1(&scene, 100 + i, 0, 10 + i as u16, 90)).collect();
    let now = past[4].packet.arrival;
    let squeeze = Squeeze::new(now, &past[0], &past[4], Duration::from_millis(10));
    assert!(scene.egress.start_replay(now, Rendition::default(), &past[0], &past[4], squeeze));
    let run = Run { packets: 0..2, payload_bytes: PAYLOAD_BYTES };
    scene.egress.replay(scene.now, &past, &run, &mut scene.out);
    let seen = |number| Some(described(number, 90));
    assert_eq!(scene.take_descriptors(), [seen(10), seen(11)]);
    scene.egress.end_replay(false);
    let next = [av1(&scene, 107, 0, 17, 90), av1(&scene, 108, 0, 18, 90)];
    assert_eq!(scene.send_av1(0, &next), [seen(12), seen(13)]);
    scene.resend_if_granted(&next[1]);
    assert_eq!(scene.take_descriptors(), [seen(13)]);
}

/// A viewer that comes a minute after a publisher's only packet, which this returns with what it gets of it.
fn begun_a_minute_late(seed: u64) -> (Scene, Opened, CanonicalPacket) {
    let mut scene = Scene::new(seed);
    let past = [CanonicalPacket { timestamp: 3000, ..scene.packet(MediaKind::Video, 100) }];
    scene.now += Duration::from_secs(60);
    let squeeze = Squeeze::new(scene.now, &past[0], &past[0], Duration::ZERO);
    assert!(scene.egress.start_replay(scene.now, Rendition::default(), &past[0], &past[0], squeeze));
    let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
    scene.egress.replay(scene.now, &past, &run, &mut scene.out);
    scene.egress.end_replay(true);
    let first = scene.take_rtp()[0].clone();
    assert_eq!(first.timestamp, 3000 + 60 * 90_000);
    let [past] = past;
    (scene, first, past)
}

/// GStreamer that is paused, or FFmpeg without input: their clocks go on where they stopped.
#[test]
fn a_clock_that_stood_still_while_a_viewer_came_goes_on_from_what_it_was_shown() {
    let (mut scene, first, past) = begun_a_minute_late(44);
    scene.now += Duration::from_secs(5);
    // Pictures of two packets. What follows a loss is no place to go on at: who knows which picture is missing.
    let rest = [1, 2, 4, 5, 6, 7, 8].map(|n: u32| {
        let next = scene.packet(MediaKind::Video, past.seq + u64::from(n));
        let timestamp = past.timestamp + 3000 * n.div_ceil(2);
        let next = [CanonicalPacket { timestamp, marker: n.is_multiple_of(2), ..next }];
        let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
        scene.egress.write(scene.now, MediaKind::Video, Rendition::default(), &next, &run, &mut scene.out);
        let got = scene.take_rtp()[0].clone();
        (got.index - first.index, got.timestamp - first.timestamp)
    });
    let [picture, cut] = [rest[0].1, rest[2].1];
    assert!(picture <= 64 && cut <= 64, "{rest:?}");
    let went_on = [5, 6, 7, 8].map(|n: u32| (u64::from(n), cut + 90 + 3000 * (n.div_ceil(2) - 3)));
    assert_eq!(rest, [&[(1, picture), (2, picture), (4, cut)][..], &went_on].concat()[..]);
}

#[test]
fn another_layer_that_follows_a_replay_is_shown_when_it_was_captured() {
    let (mut scene, first, _) = begun_a_minute_late(45);
    scene.now += Duration::from_secs(5);
    let other = Rendition { layer: 1, ..Rendition::default() };
    scene.egress.set_target(other);
    let next = [CanonicalPacket { timestamp: 7, ..scene.packet(MediaKind::Video, 900) }];
    let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
    scene.egress.write(scene.now, MediaKind::Video, other, &next, &run, &mut scene.out);
    let got = scene.take_rtp()[0].clone();
    assert_eq!((got.index - first.index, got.timestamp - first.timestamp), (1, 5 * 90_000));
}

/// A repair upstream may take a round trip, in which a large stream sends hundreds of packets.
#[test]
fn what_comes_late_is_sent_once_as_long_as_it_is_stored() {
    let mut scene = Scene::new(43);
    let mut offer = |seqs: &[u64]| {
        let packets: Vec<_> = seqs.iter().map(|seq| scene.packet(MediaKind::Video, *seq)).collect();
        let run = Run { packets: 0..packets.len(), payload_bytes: PAYLOAD_BYTES };
        let written =
            scene.egress.write(scene.now, MediaKind::Video, Rendition::default(), &packets, &run, &mut scene.out);
        scene.out.clear();
        match written {
            Written::Sent { packets, .. } => packets,
            _ => 0,
        }
    };
    assert_eq!(offer(&[2000]), 1);
    assert_eq!(offer(&[2001, 2900, 2899]), 3);
    assert_eq!(offer(&[2002, 2001, 2900, 2002]), 1, "each once");
    assert_eq!(offer(&[3500]), 1);
    assert_eq!(offer(&[2476, 2477]), 1, "1024 behind");
    assert_eq!(offer(&[9000, 3500, 8999]), 2, "a gap that is wider than the window");
    assert_eq!(offer(&[8998, 9001, 8999]), 2);
}

#[test]
fn who_did_not_ask_for_descriptors_gets_none() {
    let mut scene = av1_scene(41, 0);
    let key = av1(&scene, 1, 0, 1, 90);
    assert_eq!(scene.send_av1(0, std::slice::from_ref(&key)), [None]);
    scene.resend_if_granted(&key);
    assert_eq!(scene.take_descriptors(), [None]);
}

// ------------------------------------------------------------------------------------------------------------ the path

#[test]
fn media_follows_the_nominated_pair() {
    let mut scene = Scene::new(30);
    let targets = |scene: &mut Scene| {
        let packets = [scene.packet(MediaKind::Video, 10_000 + scene.next_seq[0])];
        scene.next_seq[0] += 1;
        let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
        scene.egress.write(scene.now, MediaKind::Video, Rendition::default(), &packets, &run, &mut scene.out);
        scene.now += Duration::from_secs(1);
        scene.egress.report_if_due(scene.now, UNIX_AT_START, &mut scene.out);
        scene.resend_if_granted(&packets[0]);
        scene.egress.say_bye(&mut scene.out);
        let targets: Vec<_> = scene.out.iter().map(|m| (m.socket, m.remote)).collect();
        scene.out.clear();
        targets
    };
    assert_eq!(targets(&mut scene), [(SocketId(0), home()); 4], "packet, report, resend, goodbye");
    let other = "198.51.100.3:6000".parse().expect("an address");
    scene.egress.set_path(SocketId(1), other);
    assert_eq!(targets(&mut scene), [(SocketId(1), other); 4]);
}

#[test]
fn without_a_nominated_pair_nothing_is_sent() {
    let tracks = vec![track(MediaKind::Video, VIDEO, Some(VIDEO_RTX), Format::VP8, VIDEO_PT)];
    let mut rng = StdRng::seed_from_u64(31);
    let mut scene = Scene::new(31);
    scene.egress = keys(|keys| Egress::new(keys, tracks, "manycast".into(), None, &mut rng));
    let packets = [scene.packet(MediaKind::Video, 10_000)];
    let run = Run { packets: 0..1, payload_bytes: PAYLOAD_BYTES };
    assert_eq!(
        scene.egress.write(scene.now, MediaKind::Video, Rendition::default(), &packets, &run, &mut scene.out),
        Written::NotWanted
    );
    scene.egress.say_bye(&mut scene.out);
    assert!(scene.out.is_empty());
}

#[test]
fn a_report_on_the_video_tells_loss_and_round_trip_once() {
    let mut scene = Scene::new(27);
    scene.send(MediaKind::Video, 1);
    let (_, compound) = scene.report().expect("media was sent");
    let last_sr = sender_reports(&compound)[0].1.ntp.middle();
    scene.now += Duration::from_millis(130);
    let block = rtcp::ReportBlock {
        ssrc: VIDEO,
        fraction_lost: 26,
        last_sr,
        // 50 ms in 1/65,536 s.
        delay_since_last_sr: 3277,
        ..rtcp::ReportBlock::default()
    };
    let other = rtcp::ReportBlock { ssrc: AUDIO, fraction_lost: 255, ..block };
    let mut packet = Vec::new();
    rtcp::write_receiver_report(&mut packet, VIEWER, &[block, other]);
    scene.viewer.seal_rtcp(&mut packet).expect("indices are left");
    assert!(scene.hear(&packet).0);
    let report = scene.egress.take_report().expect("one came");
    assert_eq!((report.fraction_lost, report.round_trip.map(|r| r.as_millis())), (26, Some(79)));
    assert_eq!(scene.egress.take_report(), None);
}
