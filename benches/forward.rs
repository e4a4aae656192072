//! What one packet costs between the kernel and the kernel: classify, demux, route, and the whole shard.
//!
//! - `classify`: one datagram of each kind, by its first bytes. ns a datagram.
//! - `gate`: a stranger's datagram through `Shard::handle_datagram`, until it is counted and forgotten: RTP from an
//!   unknown 4-tuple (1200 bytes), STUN for an unknown ufrag, STUN with a wrong MESSAGE-INTEGRITY (92 bytes each). ns
//!   a datagram.
//! - `track`: what one packet costs once per shard: its canonical number, its place in the store; and what it costs to
//!   find it there for a NACK. ns a packet.
//! - `fanout`: one or ten VP8 packets of 1100 bytes, decrypted, to 10, 100 or 1000 viewers: numbered, stored, cut into
//!   runs, and for each viewer rewritten and sealed (AES-256-GCM) into the send batch. "elem" is a copy.
//! - `shard`: one SRTP packet with 1100 bytes of VP8 from its publisher through a whole shard to 1, 10 or 100 viewers,
//!   until the sealed copies lie in the send batch: demux, open (str0m), and `fanout` one by one. ns a packet; "elem" is
//!   a copy. Sealed with AES-256-GCM, the profile that str0m's clients and ours agree on.
//!
//! Not measured: system calls, and whatever a core pays for waiting and being woken. In `shard` the clients' own work
//! is outside the clock, and so is what they say back (reports, NACK, STUN), and timers. It does evict our caches, as
//! the kernel's would.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use manycast::datagram::{Received, SendBatch};
use manycast::forward::burst::Segmenting;
use manycast::forward::canonical::Canonical;
use manycast::forward::fanout::{Fanout, Quantum};
use manycast::forward::store::Store;
use manycast::forward::table::Stream;
use manycast::id::Generation;
use manycast::session::egress::{Egress, Written};
use manycast::session::negotiate::BoundFormat;
use manycast::session::track::{ExtensionIds, TrackSetup};
use manycast::srtp::dtls::SrtpProfile;
use manycast::srtp::keys::MasterKeys;
use manycast::units::Instant;
use manycast::wire::classify::classify;
use manycast::wire::codec::Format;
use manycast::wire::packet::{CanonicalPacket, EndToEnd, MediaPacket, Rendition};
use manycast::wire::vp8;
use rand::SeedableRng;
use rand::rngs::StdRng;
use str0m::media::MediaKind;

#[path = "../tests/crowd/room.rs"]
mod room;

use room::{Room, SHARD, SOCKET, STREAM};

criterion_group! {
    name = benches;
    // 22 figures: a minute and a half in all. Its default of 100,000 resamples would double that and change no digit.
    config = Criterion::default()
        .sample_size(50)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(2500));
    targets = bench_classify, bench_gate, bench_track, bench_fanout, bench_shard
}
criterion_main!(benches);

fn bench_classify(c: &mut Criterion) {
    let mut group = c.benchmark_group("classify");
    for (name, first, second) in
        [("stun", 0, 1), ("dtls", 22, 254), ("rtp", 0x80, 96), ("rtcp", 0x81, 200), ("unknown", 64, 0)]
    {
        let datagram = datagram(first, second, 1200);
        group.bench_function(name, |b| b.iter(|| classify(black_box(&datagram))));
    }
    group.finish();
}

fn bench_gate(c: &mut Criterion) {
    let mut room = Room::new(nanoseconds);
    let ufrag = room.watch();
    let mut shard = room.shard;
    let mut out = SendBatch::new();
    let remote = SocketAddr::from(([198, 51, 100, 7], 40_000));
    let mut group = c.benchmark_group("gate");
    for (name, data) in [
        ("rtp from a stranger", datagram(0x80, 96, 1200)),
        ("stun for an unknown ufrag", binding_request("AbCdEfGhIjKlMnOp")),
        ("stun with a wrong integrity", binding_request(&ufrag)),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let datagram = Received { socket: SOCKET, remote, data: black_box(&data) };
                shard.handle_datagram(Instant::ZERO, datagram, &mut out);
            });
        });
    }
    group.finish();
    assert!(out.is_empty(), "a stranger gets no answer");
}

fn bench_track(c: &mut Criterion) {
    let mut group = c.benchmark_group("track");
    let mut source = Burst::new();
    let mut canonical = Canonical::default();
    let mut packet = source.next();
    // A keyframe, without which none of the others has a place.
    canonical.place(&packet).expect("a place");
    group.bench_function("number", |b| {
        b.iter_batched(
            || {
                packet = source.next();
                packet.clone()
            },
            |packet| canonical.place(black_box(&packet)).expect("a place"),
            BatchSize::SmallInput,
        );
    });
    let mut store = Store::default();
    let placed: Vec<CanonicalPacket> = (0..4096).map(|_| canonical.place(&source.next()).expect("a place")).collect();
    let mut next = (0..).map(|i: usize| &placed[i % placed.len()]);
    group.bench_function("store", |b| {
        b.iter_batched(|| next.next().expect("endless").clone(), |packet| store.insert(packet), BatchSize::SmallInput);
    });
    let newest = placed.iter().map(|p| p.seq).max().expect("stored");
    for packet in &placed {
        store.insert(packet.clone());
    }
    group.bench_function("look up for a NACK", |b| b.iter(|| store.get(black_box(newest - 100)).expect("stored")));
    group.finish();
}

fn bench_fanout(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    for (burst, counted) in [(1, false), (10, false), (10, true)] {
        for viewers in [10, 100, 1000] {
            let stream = Arc::new(Stream::new(STREAM, "bench"));
            let mut fanout = Fanout::new(SHARD, Segmenting::default());
            let mut table: Vec<Egress> = (0..viewers).map(|number| viewer(number, counted)).collect();
            for viewer in 0..viewers {
                fanout.join(&stream, MediaKind::Video, Rendition::default(), viewer);
            }
            let mut source = Burst::new();
            let mut out = SendBatch::new();
            group.throughput(Throughput::Elements((viewers * burst) as u64));
            let name = format!("bursts of {burst}{}", if counted { " with transport-cc" } else { "" });
            group.bench_function(BenchmarkId::new(name, viewers), |b| {
                b.iter_batched(
                    || (0..burst).map(|_| source.next()).collect::<Vec<_>>(),
                    |packets| {
                        for packet in &packets {
                            fanout.handle(Instant::ZERO, packet, |not| panic!("{not:?}"));
                        }
                        while let Some(quantum) = fanout.poll(Instant::ZERO) {
                            let Quantum { viewer, kind, rendition, packets, run } = quantum;
                            let written = table[viewer].write(Instant::ZERO, kind, rendition, packets, run, &mut out);
                            assert!(matches!(written, Written::Sent { .. }));
                            if out.is_full() {
                                black_box(&out);
                                out.clear();
                            }
                        }
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

/// A publisher's VP8 packets of 1100 bytes.
struct Burst {
    seq: u64,
}

impl Burst {
    fn new() -> Burst {
        Burst { seq: 0 }
    }

    fn next(&mut self) -> Arc<MediaPacket> {
        self.seq += 1;
        let payload: Vec<u8> = [0x90, 0xe0, 0x80, 1, 1, 0x20, 0].into_iter().chain([0; 1093]).collect();
        Arc::new(MediaPacket {
            stream: STREAM,
            kind: MediaKind::Video,
            layer: 0,
            generation: Generation(1),
            format: Format::VP8,
            ssrc: 1,
            seq: self.seq,
            timestamp: (self.seq * 300) as u32,
            marker: false,
            starts_keyframe: self.seq == 1,
            descriptor: vp8::parse(&payload, false).unwrap_or_default(),
            dependency: None,
            extensions: EndToEnd::default(),
            arrival: Instant::ZERO,
            captured: Instant::ZERO,
            payload: Arc::from(payload),
        })
    }
}

/// A connected viewer's media plane. `counted`: each packet has a transport-wide number and is remembered.
fn viewer(number: usize, counted: bool) -> Egress {
    let material = [number as u8; 88];
    let keys = MasterKeys::split(&material, SrtpProfile::AEAD_AES_256_GCM, false).expect("as long as it must be");
    let track = TrackSetup {
        kind: MediaKind::Video,
        mid: "0".to_owned(),
        ssrc: number as u32 + 1,
        rtx_ssrc: Some(number as u32 + 100_000),
        formats: vec![BoundFormat {
            payload_type: 96.into(),
            format: Format::VP8,
            rtx: Some(97.into()),
            nack: true,
            pli: true,
            fir: false,
        }],
        extensions: ExtensionIds { mid: 4, transport_cc: if counted { 3 } else { 0 }, ..ExtensionIds::default() },
    };
    let remote = SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 5000));
    Egress::new(&keys, vec![track], "bench".to_owned(), Some((SOCKET, remote)), &mut StdRng::seed_from_u64(1))
}

fn bench_shard(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard");
    for viewers in [1, 10, 100] {
        let mut room = Room::playing(nanoseconds, viewers, false);
        group.throughput(Throughput::Elements(viewers));
        group.bench_function(BenchmarkId::new("viewers", viewers), |b| {
            b.iter_custom(|packets| {
                // A frame comes at once, so up to nine packets too many may be timed: the mean is scaled.
                let spent = room.spend(packets);
                Duration::from_nanos(spent.amount).mul_f64(packets as f64 / spent.packets as f64)
            });
        });
        let lost = room.clients[1..].iter().any(|c| c.got().windows(2).any(|w| w[1].seq != w[0].seq + 1));
        assert!(!lost, "a viewer missed packets: the figures are not of what they claim");
    }
    group.finish();
}

#[expect(clippy::disallowed_methods, reason = "a bench is about wall-clock time")]
fn nanoseconds() -> u64 {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    START.elapsed().as_nanos() as u64
}

fn datagram(first: u8, second: u8, bytes: usize) -> Vec<u8> {
    let mut datagram = vec![0; bytes];
    datagram[..2].copy_from_slice(&[first, second]);
    datagram
}

/// A Binding request of ICE's (RFC 8445 §7.2.2), as Chromium writes it, whose MESSAGE-INTEGRITY nobody has computed.
fn binding_request(ufrag: &str) -> Vec<u8> {
    let mut attributes = Vec::new();
    let mut add = |kind: u16, value: &[u8]| {
        attributes.extend_from_slice(&kind.to_be_bytes());
        attributes.extend_from_slice(&(value.len() as u16).to_be_bytes());
        attributes.extend_from_slice(value);
        attributes.resize(attributes.len().next_multiple_of(4), 0);
    };
    add(0x0006, format!("{ufrag}:aBcD").as_bytes()); // USERNAME
    add(0x0024, &[0x6e, 0, 0x1e, 0xff]); // PRIORITY
    add(0x802a, &[7; 8]); // ICE-CONTROLLING
    add(0x0008, &[9; 20]); // MESSAGE-INTEGRITY
    let mut message = vec![0, 1];
    message.extend_from_slice(&(attributes.len() as u16).to_be_bytes());
    message.extend_from_slice(&0x2112_a442_u32.to_be_bytes());
    message.extend_from_slice(&[5; 12]);
    message.extend(attributes);
    message
}
