//! Two sessions of str0m on our provider shake hands in memory; and what the handles of each learn.

use std::collections::VecDeque;
use std::net::SocketAddr;

use str0m::media::{Direction, MediaKind, Mid};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

use super::*;
use crate::wire::classify::{Kind, classify};

/// One end of an in-memory path without delay or loss.
pub struct Peer {
    pub rtc: Rtc,
    pub observed: Observed,
    pub keys: KeySlot,
    pub addr: SocketAddr,
    pub timeout: Instant,
    pub events: Vec<Event>,
}

pub type Packets = VecDeque<str0m::net::Transmit>;

impl Peer {
    pub fn new(config: RtcConfig, port: u16, now: Instant) -> Peer {
        Peer::with_provider(config, crypto_provider(), port, now)
    }

    pub fn with_provider(config: RtcConfig, provider: Arc<CryptoProvider>, port: u16, now: Instant) -> Peer {
        let config = config.set_crypto_provider(provider);
        let (mut rtc, observed, keys) = capture(|| config.build(now));
        let addr = SocketAddr::from(([10, 0, 0, 1], port));
        rtc.add_local_candidate(Candidate::host(addr, "udp").unwrap()).unwrap();
        Peer { rtc, observed, keys, addr, timeout: now, events: Vec::new() }
    }

    pub fn drain(&mut self, out: &mut Packets) {
        loop {
            match self.rtc.poll_output().unwrap() {
                Output::Transmit(t) => out.push_back(t),
                Output::Event(event) => self.events.push(event),
                Output::Timeout(at) => break self.timeout = at,
            }
        }
    }

    pub fn handle(&mut self, now: Instant, packet: Option<&str0m::net::Transmit>, out: &mut Packets) {
        match packet {
            None => {
                self.rtc.handle_input(Input::Timeout(now)).unwrap();
                self.drain(out);
            }
            Some(t) => self.receive(now, t.source, &t.contents, out),
        }
    }

    pub fn receive(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], out: &mut Packets) {
        let receive = Receive::new(Protocol::Udp, from, self.addr, datagram).unwrap();
        self.rtc.handle_input(Input::Receive(now, receive)).unwrap();
        self.drain(out);
    }
}

impl CapturedKeys {
    /// For peers that were both made to take the front of the material for that of another profile.
    pub fn coerced(mut self, profile: SrtpProfile) -> CapturedKeys {
        self.material = Zeroizing::new(Box::from(&self.material[..profile.keying_material_len()]));
        self.profile = profile;
        self
    }
}

#[expect(clippy::disallowed_methods, reason = "str0m wants a std instant to count virtual time from")]
pub fn start() -> Instant {
    Instant::now()
}

/// Returns how long it takes. Virtual time stands still while packets are on their way, and jumps to the next
/// timeout when none are. The first `lost` datagrams of the DTLS server are dropped.
fn connect(offerer: &mut Peer, answerer: &mut Peer, start: Instant, lost: usize) -> Duration {
    negotiate(offerer, answerer, Direction::SendOnly);
    shake_hands(offerer, answerer, start, lost)
}

/// One video m-line, whose direction is the offerer's.
pub fn negotiate(offerer: &mut Peer, answerer: &mut Peer, direction: Direction) -> Mid {
    let mut changes = offerer.rtc.sdp_api();
    let mid = changes.add_media(MediaKind::Video, direction, None, None, None);
    let (offer, pending) = changes.apply().unwrap();
    let answer = answerer.rtc.sdp_api().accept_offer(offer).unwrap();
    offerer.rtc.sdp_api().accept_answer(pending, answer).unwrap();
    mid
}

/// See `connect`.
pub fn shake_hands(offerer: &mut Peer, answerer: &mut Peer, start: Instant, mut lost: usize) -> Duration {
    let mut now = start;
    let mut packets = Packets::new();
    offerer.drain(&mut packets);
    answerer.drain(&mut packets);
    while !(offerer.rtc.is_connected() && answerer.rtc.is_connected()) {
        if let Some(packet) = packets.pop_front() {
            if lost > 0 && packet.source == answerer.addr && classify(&packet.contents) == Some(Kind::Dtls) {
                lost -= 1;
                continue;
            }
            let to = if packet.destination == offerer.addr { &mut *offerer } else { &mut *answerer };
            to.handle(now, Some(&packet), &mut packets);
            continue;
        }
        now = now.max(offerer.timeout.min(answerer.timeout));
        assert!(now < start + Duration::from_secs(10), "not connected in 10 s of virtual time");
        offerer.handle(now, None, &mut packets);
        answerer.handle(now, None, &mut packets);
    }
    now - start
}

#[test]
fn two_peers_connect_and_both_observe_an_aead_profile() {
    let start = start();
    let certificate = Certificate::generate().unwrap();
    let mut offerer = Peer::new(RtcConfig::new(), 1, start);
    let lite = RtcConfig::new().set_ice_lite(true).set_dtls_cert(certificate.to_str0m());
    let mut answerer = Peer::new(lite, 2, start);
    assert_eq!(answerer.observed.profile(), None);
    assert_eq!(answerer.observed.version(), None);

    connect(&mut offerer, &mut answerer, start, 0);

    for peer in [&offerer, &answerer] {
        assert_eq!(peer.observed.profile(), Some(SrtpProfile::AEAD_AES_256_GCM));
        assert_eq!(peer.observed.version(), Some(ProtocolVersion::DTLS1_2));
    }
}

#[test]
fn both_peers_capture_the_same_keys_once() {
    let start = start();
    let mut offerer = Peer::new(RtcConfig::new(), 1, start);
    let mut answerer = Peer::new(RtcConfig::new().set_ice_lite(true), 2, start);
    assert!(answerer.keys.take_keys().is_none(), "no handshake yet");

    connect(&mut offerer, &mut answerer, start, 0);

    let [ours, theirs] = [&answerer, &offerer].map(|peer| peer.keys.take_keys().unwrap());
    assert_eq!((ours.active(), theirs.active()), (false, true));
    assert_eq!(ours.material, theirs.material);
    assert!(ours.material.iter().any(|b| *b != 0));
    assert!(answerer.keys.take_keys().is_none(), "taken already");
    let shown = format!("{ours:?}");
    assert_eq!(shown, "CapturedKeys { profile: AEAD_AES_256_GCM, active: false, .. }");
}

/// And nothing is left where they were taken from.
#[test]
fn captured_keys_are_wiped_on_drop() {
    fn wiped(_: &impl zeroize::ZeroizeOnDrop) {}
    let material = Zeroizing::new(Box::from([1; 56]));
    let keys = CapturedKeys { profile: SrtpProfile::AEAD_AES_128_GCM, material, active: false };
    let CapturedKeys { profile: _, material, active: _ } = &keys;
    wiped(material);
    let slot = KeySlot(Arc::new(Mutex::new(Some(keys))));
    assert!(slot.take_keys().is_some());
    assert!(lock(&slot.0).is_none());
}

#[test]
fn keys_are_copied_only_for_whoever_asks() {
    let build = || RtcConfig::new().set_crypto_provider(crypto_provider()).build(start());
    let (_rtc, _, slot) = capture(build);
    assert_eq!(Arc::strong_count(&slot.0), 2, "held by its session");
    let ((_rtc, _), _, outer) = capture(|| observe(build));
    assert_eq!(Arc::strong_count(&outer.0), 1, "the inner session did not ask");
}

#[test]
fn a_lost_flight_is_repaired_within_half_a_second() {
    let start = start();
    let time_with = |lost| {
        let mut offerer = Peer::new(RtcConfig::new(), 1, start);
        let mut answerer = Peer::new(RtcConfig::new().set_ice_lite(true), 2, start);
        connect(&mut offerer, &mut answerer, start, lost)
    };
    let repair = time_with(1).saturating_sub(time_with(0));
    assert!(repair > Duration::ZERO, "something was lost");
    assert!(repair < Duration::from_millis(500), "{repair:?}");
}

/// str0m has 2000 bytes for it. Without the certificate's fingerprint nobody is connected, whoever asks again.
#[test]
fn a_client_whose_certificate_is_too_long_to_be_shown_fails_for_good() {
    let names: Vec<_> = (0..100).map(|n| format!("{n}.a-long-name.example")).collect();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let long = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    assert!(long.der().len() > 2000);
    let long = DtlsCert { certificate: long.der().to_vec(), private_key: key.serialize_der() };
    let start = start();
    let mut offerer = Peer::new(RtcConfig::new().set_dtls_cert(long), 1, start);
    let mut answerer = Peer::new(RtcConfig::new().set_ice_lite(true), 2, start);
    negotiate(&mut offerer, &mut answerer, Direction::SendOnly);
    let (mut now, mut packets, mut said) = (start, Packets::new(), Vec::new());
    offerer.drain(&mut packets);
    while now < start + Duration::from_secs(3) {
        let Some(packet) = packets.pop_front() else {
            now = now.max(offerer.timeout.min(now + Duration::from_millis(100)));
            offerer.handle(now, None, &mut packets);
            answerer.rtc.handle_input(Input::Timeout(now)).unwrap();
            continue;
        };
        if packet.destination == offerer.addr {
            offerer.handle(now, Some(&packet), &mut packets);
            continue;
        }
        let receive = Receive::new(Protocol::Udp, packet.source, answerer.addr, &packet.contents).unwrap();
        let _ = answerer.rtc.handle_input(Input::Receive(now, receive));
        let mut again = 10;
        while again > 0 {
            match answerer.rtc.poll_output() {
                Ok(Output::Transmit(t)) => packets.push_back(t),
                Ok(Output::Event(event)) => said.push(format!("{event:?}")),
                Ok(Output::Timeout(_)) => break,
                Err(error) => {
                    said.push(error.to_string());
                    again -= 1;
                }
            }
        }
    }
    assert!(said.iter().any(|s| s.contains("BufferTooSmall")), "{said:?}");
    assert!(!answerer.rtc.is_connected() && !said.contains(&"Connected".into()), "{said:?}");
    assert!(answerer.observed.profile().is_none() && answerer.keys.take_keys().is_none());
}

#[test]
fn all_sessions_of_a_role_share_one_configuration() {
    let dtls = SharedConfigDtls::new(None);
    assert!(Arc::ptr_eq(&dtls.server().unwrap(), &dtls.server().unwrap()));
    assert!(Arc::ptr_eq(&dtls.client().unwrap(), &dtls.client().unwrap()));
}

#[test]
fn the_answer_shows_the_fingerprint_of_the_certificate() {
    let start = start();
    let certificate = Certificate::generate().unwrap();
    let mut offerer = Peer::new(RtcConfig::new(), 1, start);
    let lite = RtcConfig::new().set_ice_lite(true).set_dtls_cert(certificate.to_str0m());
    let mut answerer = Peer::new(lite, 2, start);
    let mut changes = offerer.rtc.sdp_api();
    changes.add_media(MediaKind::Audio, Direction::SendOnly, None, None, None);
    let (offer, _pending) = changes.apply().unwrap();
    let answer = answerer.rtc.sdp_api().accept_offer(offer).unwrap().to_sdp_string();
    assert!(answer.contains(&format!("a=fingerprint:sha-256 {}", certificate.fingerprint())), "{answer}");
}

#[test]
fn each_session_has_a_handle_of_its_own_even_when_nested() {
    let start = start();
    let build = || RtcConfig::new().set_crypto_provider(crypto_provider()).build(start);
    let ((_inner, inner), outer) = observe(|| observe(build));
    assert_eq!(Arc::strong_count(&inner.0), 2, "held by its session");
    assert_eq!(Arc::strong_count(&outer.0), 1, "built no session");
    assert!(BUILDING.take().is_none());
}

#[test]
fn a_build_that_panics_leaves_no_handle_behind() {
    let result = std::panic::catch_unwind(|| observe(|| panic!("on purpose")));
    assert!(result.is_err());
    assert!(BUILDING.take().is_none());
}

#[test]
fn a_certificate_never_shows_its_key() {
    let certificate = Certificate::generate().unwrap();
    assert_eq!(format!("{certificate:?}"), format!("Certificate({:?})", certificate.fingerprint()));
}

#[test]
fn a_handle_moves_between_threads() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Observed>();
}
