//! libsrtp, which Chromium and most SFUs use, opens what we seal, and we what it seals.

use std::time::Duration;

use manycast::srtp::keys::{MasterKey, Profile};
use manycast::srtp::open::{RtcpOpener, RtpOpener};
use manycast::srtp::seal::{RtcpSealer, RtpSealer};
use manycast::wire::rtcp::{self, NtpTime, SenderInfo};
use manycast::wire::rtp::{self, ExtensionForms, OSN_BYTES, RtpHeader};
use serde_json::{Value, json};

use crate::peer::{self, Peer};

const PATIENCE: Duration = Duration::from_secs(20);

const SSRC: u32 = 0x1234_5678;
const RTX_SSRC: u32 = 0x8765_4321;

struct LibSrtp {
    python: Peer,
    profile: Profile,
    key: Vec<u8>,
    salt: Vec<u8>,
}

impl LibSrtp {
    fn new(profile: Profile) -> LibSrtp {
        let (key, salt) = match profile {
            Profile::Aes128Gcm => (16, 12),
            Profile::Aes256Gcm => (32, 12),
            Profile::Aes128CmSha1 => (16, 14),
        };
        let (key, salt) = ((1..=key).collect(), (101..=100 + salt).collect());
        LibSrtp { python: peer::python("libsrtp", &[]), profile, key, salt }
    }

    fn master(&self) -> MasterKey<'_> {
        MasterKey::new(self.profile, &self.key, &self.salt).expect("the profile's lengths")
    }

    /// Has it do all of these with one session, in order.
    fn run(&mut self, what: &str, packets: &[Vec<u8>]) -> Vec<Result<Vec<u8>, String>> {
        let name = match self.profile {
            Profile::Aes128Gcm => "AEAD_AES_128_GCM",
            Profile::Aes256Gcm => "AEAD_AES_256_GCM",
            Profile::Aes128CmSha1 => "AES_CM_128_HMAC_SHA1_80",
        };
        let key = to_hex(&[&self.key[..], &self.salt].concat());
        let mut answers = Vec::new();
        for packet in packets {
            self.python
                .tell(&json!({ "session": "one", "profile": name, "key": key, "do": what, "data": to_hex(packet) }));
            let answer = self.python.hear(PATIENCE);
            answers.push(match &answer["ok"] {
                Value::String(hex) => Ok(from_hex(hex)),
                _ => Err(answer["error"].as_str().unwrap_or("no answer").to_owned()),
            });
        }
        answers
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|d| std::str::from_utf8(d).ok().and_then(|d| u8::from_str_radix(d, 16).ok()).expect("hex"))
        .collect()
}

/// With an extension and a payload of its own length; on RTX with the original's number in front.
fn plain(ssrc: u32, index: u64) -> (Vec<u8>, usize) {
    let mut packet = vec![0; 64];
    let header = RtpHeader {
        payload_type: 96,
        marker: index.is_multiple_of(3),
        seq: index as u16,
        timestamp: (index as u32).wrapping_mul(3000),
        ssrc,
        padding: false,
    };
    let header_bytes = rtp::write_header(&mut packet, &header, &[(4, b"video")], ExtensionForms::OneByte);
    packet.truncate(header_bytes);
    if ssrc == RTX_SSRC {
        let mut osn = [0; OSN_BYTES];
        rtp::write_osn(&mut osn, 65_535);
        packet.extend_from_slice(&osn);
    }
    packet.resize(packet.len() + 1 + (index % 1100) as usize, index as u8);
    (packet, header_bytes)
}

/// Up to the first roll-over, over it in each order that a network makes, and over the next.
fn indices() -> Vec<u64> {
    let first = 0x7fff;
    let mut indices: Vec<u64> = (first..65_500).step_by(1009).collect();
    indices.extend([65_533, 65_536, 65_534, 65_537, 65_535, 65_538]);
    indices.extend((65_539..2 * 65_536 - 3).step_by(5003));
    indices.extend(2 * 65_536 - 3..2 * 65_536 + 3);
    indices
}

fn sealed(sealer: &RtpSealer, ssrc: u32, index: u64) -> Vec<u8> {
    let (mut packet, header_bytes) = plain(ssrc, index);
    packet.resize(packet.len() + sealer.tag_bytes(), 0);
    sealer.seal_rtp(&mut packet, header_bytes, ssrc, index);
    packet
}

/// What a viewer gets once a second, and at the end.
fn reports() -> Vec<Vec<u8>> {
    let mut report = Vec::new();
    let ntp = NtpTime::from_unix(Duration::from_millis(1_800_000_000_250));
    rtcp::write_sender_report(&mut report, SSRC, &SenderInfo { ntp, rtp_timestamp: 1, packets: 2, octets: 3 });
    rtcp::write_sdes_cname(&mut report, SSRC, "manycast");
    let mut bye = Vec::new();
    rtcp::write_receiver_report(&mut bye, SSRC, &[]);
    rtcp::write_sdes_cname(&mut bye, SSRC, "manycast");
    rtcp::write_bye(&mut bye, &[SSRC, RTX_SSRC]);
    vec![report.clone(), report, bye]
}

fn check(profile: Profile) {
    let mut libsrtp = LibSrtp::new(profile);
    let sealer = RtpSealer::new(libsrtp.master());
    for ssrc in [SSRC, RTX_SSRC] {
        let packets: Vec<Vec<u8>> = indices().into_iter().map(|index| sealed(&sealer, ssrc, index)).collect();
        let opened = libsrtp.run("open_rtp", &packets);
        for (index, opened) in indices().into_iter().zip(opened) {
            assert_eq!(opened.as_ref(), Ok(&plain(ssrc, index).0), "{profile:?} {ssrc:#x} {index}");
        }
        let again = libsrtp.run("open_rtp", &packets[packets.len() - 1..]);
        assert_eq!(again, [Err("replay check failed (bad index)".to_owned())], "it does check");
    }

    let mut sealer = RtcpSealer::new(libsrtp.master());
    let packets: Vec<Vec<u8>> = reports()
        .into_iter()
        .map(|mut packet| {
            sealer.seal_rtcp(&mut packet).expect("indices are left");
            packet
        })
        .collect();
    let opened: Vec<_> = libsrtp.run("open_rtcp", &packets).into_iter().map(|o| o.expect("authentic")).collect();
    assert_eq!(opened, reports(), "{profile:?}");

    let first = 0x7fff..0x8100;
    let plain_packets: Vec<Vec<u8>> = first.clone().map(|index| plain(SSRC, index).0).collect();
    let mut opener = RtpOpener::new(libsrtp.master());
    for (index, sealed) in first.zip(libsrtp.run("seal_rtp", &plain_packets)) {
        let mut packet = sealed.expect("sealed");
        // Theirs, not a replay: the opener is another key's owner.
        let opened = opener.open_rtp(&mut packet).expect("authentic");
        assert_eq!((opened.index, &packet[..opened.plain_bytes]), (index, &*plain(SSRC, index).0), "{profile:?}");
    }
    let mut opener = RtcpOpener::new(libsrtp.master());
    for (plain, sealed) in reports().into_iter().zip(libsrtp.run("seal_rtcp", &reports())) {
        let mut packet = sealed.expect("sealed");
        let bytes = opener.open_rtcp(&mut packet).expect("authentic");
        assert_eq!(packet[..bytes], plain, "{profile:?}");
    }
}

#[test]
fn libsrtp_and_we_open_each_others_packets_with_aes_128_gcm() {
    check(Profile::Aes128Gcm);
}

#[test]
fn libsrtp_and_we_open_each_others_packets_with_aes_256_gcm() {
    check(Profile::Aes256Gcm);
}

#[test]
fn libsrtp_and_we_open_each_others_packets_with_aes_cm_and_sha1() {
    check(Profile::Aes128CmSha1);
}
