//! What the UDP port must bear: garbage, forgeries and replays, with a healthy session beside them.

mod common;

use std::net::UdpSocket;
use std::time::Duration;

use common::server::Server;
use common::swarm::{Member, Swarm};
use manycast::limits;
use manycast::sim::client::Source;
use manycast::sim::oracle;
use manycast::wire::classify::{Kind, classify};
use manycast::wire::stun::{write_binding_request, write_binding_success};
use str0m::media::MediaKind;

const PATIENCE: Duration = Duration::from_secs(20);

/// What is sent, and the reason by which it must be counted.
type Row = (&'static str, Vec<u8>, &'static str);

struct Healthy {
    server: Server,
    swarm: Swarm,
    publisher: Member,
    viewer: Member,
}

impl Healthy {
    fn start(io: &str) -> Healthy {
        let server = Server::start(&["--io", io, "--shards", "2"]);
        let mut swarm = Swarm::new(3);
        let publisher = swarm.publish(&format!("{}/whip/a", server.url), Source::default()).member;
        assert!(swarm.run_until(PATIENCE, |s| s.client(publisher).video_packets_sent() > 10));
        let viewer = swarm.watch(&format!("{}/whep/a", server.url)).member;
        let mut healthy = Healthy { server, swarm, publisher, viewer };
        healthy.flows();
        healthy
    }

    /// The viewer gets a hundred packets more.
    fn flows(&mut self) {
        let viewer = self.viewer;
        let before = self.swarm.client(viewer).got().len();
        let more = |s: &Swarm| s.client(viewer).got().len() > before + 100;
        assert!(self.swarm.run_until(PATIENCE, more), "the healthy session has stopped");
    }

    fn drops(&self, reason: &str) -> f64 {
        self.server.metric("manycast_packet_dropped_total", &format!("reason=\"{reason}\""))
    }

    /// The shards report once a second; the media goes on meanwhile.
    fn wait_for_drops(&mut self, reason: &str, wanted: f64) {
        for _ in 0..100 {
            if self.drops(reason) >= wanted {
                return;
            }
            self.swarm.run_for(Duration::from_millis(100));
        }
        panic!("{reason} is {}, not {wanted}", self.drops(reason));
    }

    /// Nothing is wrong with what the viewer got.
    fn is_whole(&self) {
        for kind in [MediaKind::Audio, MediaKind::Video] {
            let judged = oracle::judge(self.swarm.client(self.viewer).got(), kind);
            assert!(judged.faults.is_empty(), "{kind}: {judged:#?}");
            assert_eq!((judged.missing, judged.duplicates), (0, 0), "{kind}: {judged:#?}");
        }
    }
}

fn rtp(payload_type: u8, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0x80, payload_type, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4];
    packet.resize(bytes, 0xaa);
    packet
}

fn strangers_are_counted_and_not_answered(io: &str) {
    let mut healthy = Healthy::start(io);
    let request = write_binding_request("nobody:me", "a password of some length", [9; 12], true);
    let response = write_binding_success([9; 12], "127.0.0.1:9".parse().expect("an address"));
    let mut broken = request.clone();
    broken[30] ^= 0xff;
    let mut dtls = vec![22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200];
    dtls.resize(213, 1);
    let rows: Vec<Row> = vec![
        ("nothing at all", vec![], "unclassified"),
        ("one byte", vec![0x80], "unclassified"),
        ("TURN channel data", vec![0x40; 100], "unclassified"),
        ("ZRTP", vec![16; 100], "unclassified"),
        ("huge", vec![0x80; 2000], "oversize"),
        ("STUN without cookie", vec![0; 28], "stun_malformed"),
        ("STUN cut short", request[..40].to_vec(), "stun_malformed"),
        ("STUN with a bad attribute", broken, "stun_malformed"),
        ("a STUN response", response, "stun_unexpected"),
        ("STUN for nobody", request, "stun_unknown_ufrag"),
        ("a ClientHello", dtls, "dtls_unknown_remote"),
        ("RTP", rtp(96, 1200), "media_unknown_remote"),
        ("RTCP", rtp(200, 60), "media_unknown_remote"),
        ("RTCP that is too short", rtp(200, 12), "rtcp_too_short"),
    ];
    let server = healthy.swarm.server.expect("known");
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mut expected = std::collections::BTreeMap::new();
    for (what, datagram, reason) in rows {
        stranger.send_to(&datagram, server).expect(what);
        *expected.entry(reason).or_insert(0.0) += 1.0;
    }
    for (reason, count) in expected {
        healthy.wait_for_drops(reason, count);
        assert_eq!(healthy.drops(reason), count, "{reason}");
    }
    stranger.set_nonblocking(true).expect("a socket");
    assert!(stranger.recv(&mut [0; 100]).is_err(), "a stranger was answered");
    healthy.flows();
    healthy.is_whole();
}

#[test]
fn strangers_are_counted_and_not_answered_uring() {
    strangers_are_counted_and_not_answered("uring");
}

#[test]
fn strangers_are_counted_and_not_answered_mmsg() {
    strangers_are_counted_and_not_answered("mmsg");
}

/// What authenticates itself is a session's, wherever it comes from: but not from any number of places.
#[test]
fn a_session_comes_from_so_many_addresses_and_no_more() {
    let mut healthy = Healthy::start("auto");
    healthy.swarm.recording = Some(Vec::new());
    let roamer = healthy.swarm.watch(&format!("{}/whep/a", healthy.server.url)).member;
    assert!(healthy.swarm.run_until(PATIENCE, |s| s.client(roamer).got().len() > 100));
    let recorded = healthy.swarm.recording.take().expect("recorded");
    let (_, check) = recorded
        .iter()
        .find(|(member, datagram)| *member == roamer && classify(datagram) == Some(Kind::Stun))
        .expect("it has checked");
    // Some ports will be given out twice.
    let (to_be_dropped, twice) = (100, 200);
    for _ in 0..limits::REMOTES_IN_ALL_MAX + to_be_dropped + twice {
        let elsewhere = UdpSocket::bind("127.0.0.1:0").expect("a port");
        elsewhere.send_to(check, healthy.server.udp()).expect("sent");
        healthy.swarm.run_for(Duration::from_millis(1));
    }
    healthy.wait_for_drops("stun_too_many_remotes", to_be_dropped as f64);
    healthy.flows();
    // One place is its own.
    assert!(healthy.drops("stun_too_many_remotes") <= (to_be_dropped + twice + 1) as f64, "fewer than it may have");
    healthy.is_whole();
}

/// The peers' own addresses are validated: what comes from them must bear authentication of its own.
#[test]
fn forgeries_and_replays_from_a_validated_address_change_nothing() {
    let mut healthy = Healthy::start("auto");
    let (publisher, viewer) = (healthy.publisher, healthy.viewer);
    healthy.swarm.recording = Some(Vec::new());
    healthy.flows();
    let recorded = healthy.swarm.recording.take().expect("recorded");
    let of = |kind: Kind| {
        let matching = recorded.iter().filter(move |(m, d)| *m == publisher && classify(d) == Some(kind));
        matching.map(|(_, d)| d.clone()).collect::<Vec<_>>()
    };
    let (media, reports) = (of(Kind::Rtp), of(Kind::Rtcp));
    assert!(media.len() > 50, "{} packets recorded", media.len());

    // SRTP again, as it was.
    let before = healthy.drops("rtp_discarded");
    media.iter().for_each(|d| healthy.swarm.inject(publisher, d));
    healthy.wait_for_drops("rtp_discarded", before + media.len() as f64);

    // SRTP with a flipped bit, and of nobody's SSRC.
    let before = healthy.drops("rtp_discarded");
    for mut datagram in media.iter().take(20).cloned() {
        let sequence = u16::from_be_bytes([datagram[2], datagram[3]]).wrapping_add(3000).to_be_bytes();
        datagram[2..4].copy_from_slice(&sequence);
        healthy.swarm.inject(publisher, &datagram);
        healthy.swarm.inject(publisher, &rtp(96, 500));
    }
    healthy.wait_for_drops("rtp_discarded", before + 40.0);

    // RTCP: replayed, forged (a BYE among them), cut; media from a viewer; DTLS that is none.
    for datagram in &reports {
        healthy.swarm.inject(publisher, datagram);
        healthy.swarm.inject(publisher, &datagram[..datagram.len() - 1]);
    }
    healthy.swarm.inject(publisher, &[&[0x81, 203, 0, 1][..], &[1; 40]].concat());
    healthy.swarm.inject(viewer, &[&[0x81, 203, 0, 1][..], &[1; 40]].concat());
    healthy.swarm.inject(viewer, &rtp(96, 500));
    // An unauthenticated DTLS alert: fatal, handshake_failure.
    healthy.swarm.inject(publisher, &[21, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 40]);
    healthy.swarm.inject(viewer, &[&[22, 254, 253][..], &[0xff; 100]].concat());
    healthy.flows();
    healthy.flows();
    healthy.is_whole();
    assert!(!healthy.swarm.client(publisher).closed && !healthy.swarm.client(viewer).closed);
}
