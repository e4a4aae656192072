//! What sealing and opening cost: one packet in place, keys expanded beforehand, per profile.
//!
//! - `seal`: SRTP, a header of 20 bytes (one extension) and 200 or 1100 bytes of payload. ns a packet.
//! - `open`: the same, sealed beforehand with indices that follow one another, copied in and opened with the replay
//!   window. ns a packet; the copy is about 10 ns of it.
//! - `rtcp`: a sender report with SDES, 44 bytes, written, sealed, and in `rtcp/open` opened too. ns a packet.
//! - `header`: an RTP header with two extensions, written and parsed. ns a packet.
//!
//! One session and one buffer, so everything lies in the nearest cache; a shard with 1000 viewers is `forward`'s
//! matter. Random numbers, allocation and system calls there are none.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use manycast::srtp::keys::{MasterKey, Profile};
use manycast::srtp::open::{RtcpOpener, RtpOpener};
use manycast::srtp::seal::{RtcpSealer, RtpSealer};
use manycast::wire::rtcp::{self, SenderInfo};
use manycast::wire::rtp::{self, ExtensionForms, RtpHeader, RtpView};

const SSRC: u32 = 0x1234_5678;
const PAYLOAD_BYTES: [usize; 2] = [200, 1100];

/// Sealed beforehand for `open`, and gone through again and again, each time with a new opener: below 2¹⁶, so that no
/// index is guessed.
const SEALED_PACKETS: u64 = 4096;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = bench_seal, bench_open, bench_rtcp, bench_header
}
criterion_main!(benches);

fn bench_seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for profile in Profile::ALL {
        for payload_bytes in PAYLOAD_BYTES {
            let sealer = with_key(profile, RtpSealer::new);
            let (mut packet, header_bytes) = packet(&sealer, payload_bytes);
            let mut index = 0;
            group.throughput(Throughput::Bytes(payload_bytes as u64));
            group.bench_function(BenchmarkId::new(format!("{profile:?}"), payload_bytes), |b| {
                b.iter(|| {
                    index += 1;
                    number(&mut packet, index);
                    black_box(sealer.seal_rtp(&mut packet, header_bytes, SSRC, index))
                });
            });
        }
    }
}

fn bench_open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    for profile in Profile::ALL {
        for payload_bytes in PAYLOAD_BYTES {
            let sealer = with_key(profile, RtpSealer::new);
            let sealed: Vec<_> = (0..SEALED_PACKETS).map(|index| sealed(&sealer, payload_bytes, index)).collect();
            let mut buf = sealed[0].clone();
            group.throughput(Throughput::Bytes(payload_bytes as u64));
            group.bench_function(BenchmarkId::new(format!("{profile:?}"), payload_bytes), |b| {
                let mut opener = with_key(profile, RtpOpener::new);
                let mut packets = sealed.iter();
                b.iter(|| {
                    let packet = packets.next().unwrap_or_else(|| {
                        opener = with_key(profile, RtpOpener::new);
                        packets = sealed.iter();
                        packets.next().expect("there are some")
                    });
                    buf.copy_from_slice(packet);
                    black_box(opener.open_rtp(&mut buf).expect("authentic"))
                });
            });
        }
    }
}

fn bench_rtcp(c: &mut Criterion) {
    let mut group = c.benchmark_group("rtcp");
    for profile in Profile::ALL {
        let mut sealer = with_key(profile, RtcpSealer::new);
        let mut packet = Vec::with_capacity(128);
        group.bench_function(BenchmarkId::new("seal", format!("{profile:?}")), |b| {
            b.iter(|| {
                report(&mut packet);
                sealer.seal_rtcp(black_box(&mut packet)).expect("indices are left");
            });
        });
        let (mut sealer, mut opener) = with_key(profile, |key| (RtcpSealer::new(key), RtcpOpener::new(key)));
        group.bench_function(BenchmarkId::new("open", format!("{profile:?}")), |b| {
            b.iter(|| {
                report(&mut packet);
                sealer.seal_rtcp(&mut packet).expect("indices are left");
                let length = opener.open_rtcp(&mut packet).expect("authentic");
                black_box(rtcp::parse(&packet[..length]).filter(Result::is_ok).count())
            });
        });
    }
}

fn bench_header(c: &mut Criterion) {
    let mut group = c.benchmark_group("header");
    let header = RtpHeader { payload_type: 96, seq: 7, timestamp: 90_000, ssrc: SSRC, ..RtpHeader::default() };
    let extensions: [(u8, &[u8]); 2] = [(1, b"0"), (3, &[0x12, 0x34])];
    let mut buf = [0; 1200];
    group.bench_function("write", |b| {
        b.iter(|| rtp::write_header(&mut buf, black_box(&header), black_box(&extensions), ExtensionForms::OneByte));
    });
    group.bench_function("parse", |b| {
        b.iter(|| RtpView::parse(black_box(&buf)).map(|view| view.extensions().count()));
    });
}

fn with_key<T>(profile: Profile, f: impl FnOnce(MasterKey<'_>) -> T) -> T {
    let bytes: Vec<u8> = (0..32).collect();
    let (key, salt) = match profile {
        Profile::Aes128Gcm => (16, 12),
        Profile::Aes256Gcm => (32, 12),
        Profile::Aes128CmSha1 => (16, 14),
    };
    f(MasterKey::new(profile, &bytes[..key], &bytes[..salt]).expect("the profile's lengths"))
}

fn packet(sealer: &RtpSealer, payload_bytes: usize) -> (Vec<u8>, usize) {
    let mut packet = vec![0; 64];
    let header = RtpHeader { payload_type: 96, ssrc: SSRC, ..RtpHeader::default() };
    let header_bytes = rtp::write_header(&mut packet, &header, &[(1, b"0")], ExtensionForms::OneByte);
    packet.truncate(header_bytes);
    packet.resize(header_bytes + payload_bytes + sealer.tag_bytes(), 0x5a);
    (packet, header_bytes)
}

fn number(packet: &mut [u8], index: u64) {
    packet[2..4].copy_from_slice(&(index as u16).to_be_bytes());
}

fn sealed(sealer: &RtpSealer, payload_bytes: usize, index: u64) -> Vec<u8> {
    let (mut packet, header_bytes) = packet(sealer, payload_bytes);
    number(&mut packet, index);
    sealer.seal_rtp(&mut packet, header_bytes, SSRC, index);
    packet
}

fn report(packet: &mut Vec<u8>) {
    packet.clear();
    rtcp::write_sender_report(packet, SSRC, &SenderInfo::default());
    rtcp::write_sdes_cname(packet, SSRC, "cname");
}
