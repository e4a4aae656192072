//! str0m reads what we seal, and we read what it seals: a second opinion, for every profile.
//!
//! The viewer is str0m's alone. The SFU has str0m for SDP, ICE and DTLS; media and reports are ours.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::media::{Direction, KeyframeRequestKind};
use str0m::rtp::rtcp::Rtcp as Str0mRtcp;
use str0m::rtp::{Extension, RawPacket};
use str0m::{Event, RtcConfig};
use str0m_proto::crypto::dtls::*;
use str0m_proto::crypto::{CryptoError, CryptoProvider, DtlsVersion};

use super::dtls::{CapturedKeys, Packets, Peer, crypto_provider, negotiate, shake_hands, start};
use super::open::{OpenError, RtcpOpener};
use super::seal::{RtcpSealer, RtpSealer};
use crate::wire::classify::{Kind, classify};
use crate::wire::rtcp::{self, NtpTime, Rtcp, SenderInfo};
use crate::wire::rtp::{self, ExtensionForms, OSN_BYTES, RtpHeader};

/// Below the wrap, and 10 above it.
const FIRST: u64 = 65_530;
const LAST: u64 = 65_545;
const LOST: u64 = 65_535;

#[test]
fn str0m_and_we_understand_each_other_with_aes_128_gcm() {
    static DTLS: Coercing = Coercing(SrtpProfile::AEAD_AES_128_GCM);
    a_viewer_is_served(&DTLS);
}

#[test]
fn str0m_and_we_understand_each_other_with_aes_256_gcm() {
    static DTLS: Coercing = Coercing(SrtpProfile::AEAD_AES_256_GCM);
    a_viewer_is_served(&DTLS);
}

#[test]
fn str0m_and_we_understand_each_other_with_aes_cm() {
    static DTLS: Coercing = Coercing(SrtpProfile::AES128_CM_SHA1_80);
    a_viewer_is_served(&DTLS);
}

fn a_viewer_is_served(dtls: &'static Coercing) {
    let mut scene = Scene::new(dtls);

    for index in (FIRST..=LAST).filter(|i| *i != LOST) {
        scene.send_media(index);
    }
    let expected: Vec<_> = (FIRST..=LAST).filter(|i| *i != LOST).map(|i| (i, payload(i))).collect();
    assert_eq!(scene.received_media(), expected);

    // What was lost is asked for, and comes on the RTX stream.
    scene.run(Duration::from_millis(200));
    let nacks = scene.take_rtcp(|packet| match packet {
        Rtcp::Nack { media, lost, .. } => Some((media, lost.collect::<Vec<_>>())),
        _ => None,
    });
    assert_eq!(nacks.first(), Some(&(scene.ssrc, vec![LOST as u16])));
    scene.send_rtx(7, LOST);
    assert_eq!(scene.received_media(), [(LOST, payload(LOST))]);

    scene.viewer.rtc.direct_api().stream_rx(&scene.ssrc.into()).unwrap().request_keyframe(KeyframeRequestKind::Pli);
    scene.run(Duration::from_millis(10));
    let plis = scene.take_rtcp(|packet| match packet {
        Rtcp::Pli { media, .. } => Some(media),
        _ => None,
    });
    assert_eq!(plis, [scene.ssrc]);

    let ntp = NtpTime::from_unix(Duration::from_millis(1_800_000_000_250));
    let info = SenderInfo { ntp, rtp_timestamp: 90_000, packets: 16, octets: 16 * 100 };
    scene.send_reports(&info);
    let Some(Event::SenderFeedback(feedback)) =
        scene.viewer.events.iter().find(|e| matches!(e, Event::SenderFeedback(_)))
    else {
        panic!("no sender report arrived")
    };
    let read = &feedback.sender_info;
    assert_eq!((*read.ssrc, read.rtp_time.numer()), (scene.ssrc, 90_000));
    assert_eq!((read.sender_packet_count, read.sender_octet_count), (16, 1600));
    let unix = read.ntp_time.duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(unix.abs_diff(Duration::from_millis(1_800_000_000_250)) < Duration::from_micros(1), "{unix:?}");
    let kinds: Vec<_> = scene.viewer.events.iter().filter_map(rtcp_kind).collect();
    assert_eq!(kinds, ["SR", "SDES", "BYE"]);

    // The report that follows names ours. str0m puts it into a sender report, though it sends nothing.
    scene.run(Duration::from_secs(3));
    let blocks = scene.take_rtcp(|packet| match packet {
        Rtcp::SenderReport { blocks, .. } | Rtcp::ReceiverReport { blocks, .. } => Some(blocks.collect::<Vec<_>>()),
        _ => None,
    });
    let block = blocks.iter().flatten().rfind(|b| b.ssrc == scene.ssrc).expect("a report on our stream");
    assert_eq!(u64::from(block.highest_seq), LAST);
    assert_eq!(block.last_sr, ntp.middle());
}

fn rtcp_kind(event: &Event) -> Option<&'static str> {
    let Event::RawPacket(packet) = event else { return None };
    match &**packet {
        RawPacket::RtcpRx(Str0mRtcp::SenderReport(_)) => Some("SR"),
        RawPacket::RtcpRx(Str0mRtcp::SourceDescription(_)) => Some("SDES"),
        RawPacket::RtcpRx(Str0mRtcp::Goodbye(_)) => Some("BYE"),
        RawPacket::RtcpRx(_) => Some("another"),
        _ => None,
    }
}

fn payload(index: u64) -> Vec<u8> {
    vec![index as u8; 100]
}

/// A viewer that is connected and has received nothing.
struct Scene {
    now: Instant,
    viewer: Peer,
    sfu: Peer,
    sealer: RtpSealer,
    rtcp_sealer: RtcpSealer,
    rtcp_opener: RtcpOpener,
    ssrc: u32,
    rtx_ssrc: u32,
    payload_type: u8,
    rtx_payload_type: u8,
    mid: String,
    mid_id: u8,
    /// What the viewer has sent and nobody read.
    rtcp: VecDeque<Vec<u8>>,
}

impl Scene {
    fn new(dtls: &'static Coercing) -> Scene {
        let start = start();
        let provider = Arc::new(CryptoProvider { dtls_provider: dtls, ..(*crypto_provider()).clone() });
        let config = || RtcConfig::new().set_rtp_mode(true).enable_raw_packets(true);
        let mut viewer = Peer::with_provider(config(), provider.clone(), 1, start);
        let mut sfu = Peer::with_provider(config().set_ice_lite(true), provider, 2, start);
        let mid = negotiate(&mut viewer, &mut sfu, Direction::RecvOnly);
        let now = start + shake_hands(&mut viewer, &mut sfu, start, 0);
        viewer.events.clear();

        let keys: CapturedKeys = sfu.keys.take_keys().unwrap().coerced(dtls.0);
        let master = keys.master_keys().unwrap();
        let (ssrc, rtx_ssrc) = {
            let mut api = sfu.rtc.direct_api();
            let stream = api.stream_tx_by_mid(mid, None).unwrap();
            (*stream.ssrc(), *stream.rtx().unwrap())
        };
        let vp8 = sfu.rtc.codec_config().find(|p| p.spec().codec == str0m::format::Codec::Vp8).unwrap();
        let (payload_type, rtx_payload_type) = (*vp8.pt(), *vp8.resend().unwrap());
        let mid_id = sfu.rtc.media(mid).unwrap().remote_extmap().id_of(Extension::RtpMid).unwrap();
        Scene {
            now,
            sealer: RtpSealer::new(master.local),
            rtcp_sealer: RtcpSealer::new(master.local),
            rtcp_opener: RtcpOpener::new(master.remote),
            viewer,
            sfu,
            ssrc,
            rtx_ssrc,
            payload_type,
            rtx_payload_type,
            mid: mid.to_string(),
            mid_id,
            rtcp: VecDeque::new(),
        }
    }

    fn send_media(&mut self, index: u64) {
        let header = RtpHeader { payload_type: self.payload_type, ssrc: self.ssrc, ..header(index, index) };
        self.send_rtp(header, index, &payload(index));
    }

    fn send_rtx(&mut self, index: u64, lost: u64) {
        let header = RtpHeader { payload_type: self.rtx_payload_type, ssrc: self.rtx_ssrc, ..header(index, lost) };
        let mut front = [0; OSN_BYTES];
        rtp::write_osn(&mut front, lost as u16);
        self.send_rtp(header, index, &[&front[..], &payload(lost)].concat());
    }

    /// With three bytes of padding.
    fn send_rtp(&mut self, header: RtpHeader, index: u64, payload: &[u8]) {
        let mut packet = vec![0; 1500];
        let extensions = [(self.mid_id, self.mid.as_bytes())];
        let header_bytes = rtp::write_header(&mut packet, &header, &extensions, ExtensionForms::OneByte);
        packet.truncate(header_bytes);
        packet.extend_from_slice(payload);
        let unpadded_bytes = packet.len();
        packet.resize(unpadded_bytes + 3, 0);
        rtp::pad(&mut packet, unpadded_bytes);
        packet.resize(packet.len() + self.sealer.tag_bytes(), 0);
        self.sealer.seal_rtp(&mut packet, header_bytes, header.ssrc, index);
        // Twice: str0m takes one of them.
        for _ in 0..2 {
            self.deliver(&packet);
        }
    }

    fn send_reports(&mut self, info: &SenderInfo) {
        let mut packet = Vec::new();
        rtcp::write_sender_report(&mut packet, self.ssrc, info);
        rtcp::write_sdes_cname(&mut packet, self.ssrc, "cname");
        // Of another stream: this one goes on.
        rtcp::write_bye(&mut packet, &[self.ssrc ^ 1]);
        self.rtcp_sealer.seal_rtcp(&mut packet).unwrap();
        self.viewer.events.clear();
        self.deliver(&packet);
    }

    fn deliver(&mut self, datagram: &[u8]) {
        let mut sent = Packets::new();
        self.viewer.receive(self.now, self.sfu.addr, datagram, &mut sent);
        self.carry(sent);
    }

    /// To the SFU; RTCP waits for `take_rtcp`.
    fn carry(&mut self, mut sent: Packets) {
        while let Some(packet) = sent.pop_front() {
            let to: SocketAddr = packet.destination;
            if to == self.viewer.addr {
                // The SFU's str0m is left to itself, so its reports come too. They may not get out.
                if classify(&packet.contents) != Some(Kind::Rtcp) {
                    self.viewer.handle(self.now, Some(&packet), &mut sent);
                }
            } else if classify(&packet.contents) == Some(Kind::Rtcp) {
                self.rtcp.push_back(packet.contents.to_vec());
            } else {
                self.sfu.handle(self.now, Some(&packet), &mut sent);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(5);
            let mut sent = Packets::new();
            self.viewer.handle(self.now, None, &mut sent);
            self.sfu.handle(self.now, None, &mut sent);
            self.carry(sent);
        }
    }

    fn received_media(&mut self) -> Vec<(u64, Vec<u8>)> {
        let events = std::mem::take(&mut self.viewer.events);
        let media = events.into_iter().filter_map(|event| match event {
            Event::RtpPacket(packet) => Some((*packet.seq_no, packet.payload.to_vec())),
            _ => None,
        });
        media.collect()
    }

    /// What the viewer has sent, opened by us; all of it must open, and once only.
    fn take_rtcp<T>(&mut self, mut pick: impl FnMut(Rtcp<'_>) -> Option<T>) -> Vec<T> {
        let mut picked = Vec::new();
        for mut packet in std::mem::take(&mut self.rtcp) {
            let mut replay = packet.clone();
            let length = self.rtcp_opener.open_rtcp(&mut packet).unwrap();
            assert_eq!(self.rtcp_opener.open_rtcp(&mut replay), Err(OpenError::Replayed));
            picked.extend(rtcp::parse(&packet[..length]).filter_map(|p| pick(p.expect("well-formed"))));
        }
        picked
    }
}

fn header(index: u64, media_index: u64) -> RtpHeader {
    RtpHeader { seq: index as u16, timestamp: (media_index as u32).wrapping_mul(450), ..RtpHeader::default() }
}

/// dimpl's servers prefer GCM with 256 bits. This one makes both peers take the front of the keying material for that
/// of another profile.
#[derive(Debug)]
struct Coercing(SrtpProfile);

impl DtlsProvider for Coercing {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        crypto_provider().dtls_provider.generate_certificate()
    }

    fn new_dtls(
        &self,
        cert: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let inner = crypto_provider().dtls_provider.new_dtls(cert, now, version, mtu)?;
        Ok(Box::new(Coerced { inner, profile: self.0 }))
    }
}

struct Coerced {
    inner: Box<dyn DtlsInstance>,
    profile: SrtpProfile,
}

impl fmt::Debug for Coerced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl DtlsInstance for Coerced {
    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        match self.inner.poll_output(buf) {
            DtlsOutput::KeyingMaterial(material, _) => {
                let front = &material[..self.profile.keying_material_len()];
                DtlsOutput::KeyingMaterial(KeyingMaterial::new(front), self.profile)
            }
            other => other,
        }
    }

    fn set_active(&mut self, active: bool) {
        self.inner.set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.inner.handle_packet(packet)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.inner.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.inner.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.inner.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.inner.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.inner.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.inner.close()
    }
}
