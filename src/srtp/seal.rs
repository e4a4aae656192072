//! What we send to one peer, made SRTP and SRTCP: in place, with keys that were expanded once.
//!
//! With one key, an SSRC and an index may be sealed together once only: two packets under the same keystream give both
//! away, and with AES-GCM the key that authenticates too. SRTCP is safe by construction, since the index is counted
//! here. The index of RTP comes from outside; debug builds watch it, see [`RtpSealer::seal_rtp`].

use super::cipher::{Cipher, RTCP_CLEAR_BYTES, RTCP_E};
use super::keys::{MasterKey, Profile, Purpose};

/// Seals the RTP that we send to one peer, on all SSRCs.
#[derive(Debug)]
pub struct RtpSealer {
    cipher: Cipher,
    #[cfg(debug_assertions)]
    guard: guard::Guard,
}

impl RtpSealer {
    /// `local` is [`MasterKeys::local`](super::keys::MasterKeys). One sealer per key: two would each allow an index.
    pub fn new(local: MasterKey<'_>) -> RtpSealer {
        RtpSealer::with_cipher(Cipher::new(&local.session_key(Purpose::Rtp)))
    }

    fn with_cipher(cipher: Cipher) -> RtpSealer {
        RtpSealer {
            cipher,
            #[cfg(debug_assertions)]
            guard: guard::Guard::default(),
        }
    }

    pub fn profile(&self) -> Profile {
        self.cipher.profile()
    }

    /// Room that `seal_rtp` needs at the end of a packet.
    pub fn tag_bytes(&self) -> usize {
        self.cipher.tag_bytes()
    }

    /// Seals in place and returns the length of the whole, which is that of `packet`. Allocates nothing.
    ///
    /// ```text
    /// | RTP header with extensions | payload, padding | room for the tag |
    /// '----- header_bytes ---------'                  '--- tag_bytes() --'
    /// ```
    ///
    /// `index`: the sequence number of the header with the number of its roll-overs above it, 48 bits in all. The first
    /// one of an SSRC should be below 2¹⁵: receivers take the roll-over counter to be 0 then, and guess wrongly when
    /// the numbers roll over before they have seen enough of them (libsrtp #729).
    ///
    /// # Panics
    ///
    /// When `packet` has no room for header and tag. In debug builds also when the header is of another SSRC or
    /// sequence number, and when one of the last 128 indices of the SSRC is sealed a second time.
    #[inline]
    pub fn seal_rtp(&self, packet: &mut [u8], header_bytes: usize, ssrc: u32, index: u64) -> usize {
        debug_assert!(index >> 48 == 0, "an index has 48 bits: {index:#x}");
        debug_assert_eq!(packet[2..4], (index as u16).to_be_bytes(), "the header's sequence number is the index's");
        debug_assert_eq!(packet[8..12], ssrc.to_be_bytes(), "the header's SSRC is the one sealed under");
        #[cfg(debug_assertions)]
        self.guard.note(ssrc, index);
        self.cipher.seal_rtp(packet, header_bytes, ssrc, index);
        packet.len()
    }
}

/// All 2³¹ indices of SRTCP are used: the session needs new keys, so a new DTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SRTCP indices are used up")]
pub struct IndexExhausted;

/// Seals the RTCP that we send to one peer, with one index for all its SSRCs.
#[derive(Debug)]
pub struct RtcpSealer {
    cipher: Cipher,
    next_index: u32,
}

impl RtcpSealer {
    /// `local` is [`MasterKeys::local`](super::keys::MasterKeys). One sealer per key: two would each count from 0.
    pub fn new(local: MasterKey<'_>) -> RtcpSealer {
        RtcpSealer { cipher: Cipher::new(&local.session_key(Purpose::Rtcp)), next_index: 0 }
    }

    pub fn profile(&self) -> Profile {
        self.cipher.profile()
    }

    /// Seals a compound packet in place; it grows by at most 20 bytes.
    ///
    /// # Errors
    ///
    /// [`IndexExhausted`], after 2³¹ packets; `packet` is then as it was.
    ///
    /// # Panics
    ///
    /// When `packet` is shorter than RTCP's header and SSRC, 8 bytes.
    pub fn seal_rtcp(&mut self, packet: &mut Vec<u8>) -> Result<(), IndexExhausted> {
        if self.next_index >= RTCP_E {
            return Err(IndexExhausted);
        }
        assert!(packet.len() >= RTCP_CLEAR_BYTES, "RTCP begins with a header and an SSRC");
        let index = self.next_index;
        self.next_index += 1;
        let ssrc = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
        self.cipher.seal_rtcp(packet, ssrc, index);
        Ok(())
    }
}

#[cfg(debug_assertions)]
mod guard {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use crate::srtp::window::{Verdict, Window};

    /// The latest indices of each SSRC. A mutex only because `seal_rtp` takes `&self`.
    #[derive(Debug, Default)]
    pub(super) struct Guard(Mutex<HashMap<u32, Window>>);

    impl Guard {
        /// An index that is too old to be judged passes: a packet may be recovered late.
        pub(super) fn note(&self, ssrc: u32, index: u64) {
            let mut windows = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let window = windows.entry(ssrc).or_default();
            let verdict = window.verdict(index);
            assert!(verdict != Verdict::Seen, "index {index} of SSRC {ssrc} is sealed a second time");
            window.insert(index);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::keys::SessionKey;
    use super::super::keys::tests::hex;
    use super::*;

    /// libsrtp's `test/srtp_driver.c`: master key and salt of its reference packets.
    pub const LIBSRTP_CM: (&str, &str) = ("e1f97a0d3e018be0d64fa32c06de4139", "0ec675ad498afeebb6960b3aabe6");
    pub const LIBSRTP_GCM: (&str, &str) = ("000102030405060708090a0b0c0d0e0f", "a0a1a2a3a4a5a6a7a8a9aaab");
    pub const LIBSRTP_RTP: &str = "800f1234 decafbad cafebabe abababab abababab abababab abababab";
    pub const LIBSRTP_RTCP: &str = "81c8000b cafebabe abababab abababab abababab abababab";

    pub const LIBSRTP_CM_RTP: &str = "800f1234 decafbad cafebabe
        4e55dc4c e79978d8 8ca4d215 949d2402 b78d6acc 99ea179b 8dbb";
    pub const LIBSRTP_CM_RTCP: &str = "81c8000b cafebabe
        7128035b e487b9bd bef89041 f977a5a8 80000001 993e08cd 54d6c123 0798";
    pub const LIBSRTP_GCM_RTP: &str = "800f1234 decafbad cafebabe
        c5002ede 04cfdd2e b91159e0 880aa06e d2976826 f796b201 df3131a1 27e8a392";
    pub const LIBSRTP_GCM_RTCP: &str = "81c8000b cafebabe
        c98b8b5d f0392a55 852b6c21 ac8e7025 c52c6fbe a2b3b446 ea31123b a88ce61e 80000001";

    /// RFC 7714 §16, §17.
    const RFC_7714_SALT: &str = "51756964 2070726f 2071756f";
    const RFC_7714_RTP: &str = "8040f17b 8041f8d3 5501a0b2 47616c6c 69612065 7374206f 6d6e6973 20646976 69736120
        696e2070 61727465 73207472 6573";
    const RFC_7714_RTP_128: &str = "8040f17b 8041f8d3 5501a0b2 f24de3a3 fb34de6c acba861c 9d7e4bca be633bd5 0d294e6f
        42a5f47a 51c7d19b 36de3adf 8833899d 7f27beb1 6a9152cf 765ee439 0cce";
    const RFC_7714_RTP_256: &str = "8040f17b 8041f8d3 5501a0b2 32b1de78 a822fe12 ef9f78fa 332e33aa b1801238 9a58e2f3
        b50b2a02 76ffae0f 1ba63799 b87b7aa3 db36dfff d6b0f9bb 7878d7a7 6c13";
    const RFC_7714_RTCP: &str = "81c8000d 4d617273 4e545031 4e545032 52545020 0000042a 0000e930 4c756e61
        deadbeef deadbeef deadbeef deadbeef deadbeef";
    const RFC_7714_RTCP_128: &str = "81c8000d 4d617273 63e94885 dcdab67c a727d766 2f6b7e99 7ff5c0f7 6c06f32d c676a5f1
        730d6fda 4ce09b46 86303ded 0bb9275b c84aa458 96cf4d2f c5abf872 45d9eade 800005d4";

    fn master<T>(profile: Profile, (key, salt): (&str, &str), f: impl FnOnce(MasterKey<'_>) -> T) -> T {
        let (key, salt) = (hex(key), hex(salt));
        f(MasterKey::new(profile, &key, &salt).unwrap())
    }

    fn sealed_rtp(sealer: &RtpSealer, plain: &str, index: u64) -> Vec<u8> {
        let mut packet = hex(plain);
        let ssrc = u32::from_be_bytes(packet[8..12].try_into().unwrap());
        packet.resize(packet.len() + sealer.tag_bytes(), 0);
        let total = sealer.seal_rtp(&mut packet, 12, ssrc, index);
        assert_eq!(total, packet.len());
        packet
    }

    #[test]
    fn libsrtp_reference_packets() {
        for (profile, keys, rtp, rtcp) in [
            (Profile::Aes128CmSha1, LIBSRTP_CM, LIBSRTP_CM_RTP, LIBSRTP_CM_RTCP),
            (Profile::Aes128Gcm, LIBSRTP_GCM, LIBSRTP_GCM_RTP, LIBSRTP_GCM_RTCP),
        ] {
            let sealer = master(profile, keys, RtpSealer::new);
            assert_eq!(sealed_rtp(&sealer, LIBSRTP_RTP, 0x1234), hex(rtp), "{profile:?}");
            let mut sealer = master(profile, keys, RtcpSealer::new);
            sealer.next_index = 1;
            let mut packet = hex(LIBSRTP_RTCP);
            sealer.seal_rtcp(&mut packet).unwrap();
            assert_eq!(packet, hex(rtcp), "{profile:?}");
        }
    }

    #[test]
    fn rfc_7714_packets() {
        let key: Vec<u8> = (0..32).collect();
        for (profile, key, expected) in
            [(Profile::Aes128Gcm, &key[..16], RFC_7714_RTP_128), (Profile::Aes256Gcm, &key[..], RFC_7714_RTP_256)]
        {
            let cipher = Cipher::new(&SessionKey::from_parts(profile, key, &hex(RFC_7714_SALT)));
            assert_eq!(sealed_rtp(&RtpSealer::with_cipher(cipher), RFC_7714_RTP, 0xf17b), hex(expected));
        }
        let cipher = Cipher::new(&SessionKey::from_parts(Profile::Aes128Gcm, &key[..16], &hex(RFC_7714_SALT)));
        let mut packet = hex(RFC_7714_RTCP);
        RtcpSealer { cipher, next_index: 0x5d4 }.seal_rtcp(&mut packet).unwrap();
        assert_eq!(packet, hex(RFC_7714_RTCP_128));
    }

    #[test]
    fn the_last_srtcp_index_is_used_and_no_more() {
        let mut sealer = master(Profile::Aes128Gcm, LIBSRTP_GCM, RtcpSealer::new);
        sealer.next_index = RTCP_E - 1;
        let mut packet = hex(LIBSRTP_RTCP);
        sealer.seal_rtcp(&mut packet).unwrap();
        assert!(packet.ends_with(&[0xff; 4]));
        for _ in 0..2 {
            let mut packet = hex(LIBSRTP_RTCP);
            assert_eq!(sealer.seal_rtcp(&mut packet), Err(IndexExhausted));
            assert_eq!(packet, hex(LIBSRTP_RTCP));
        }
    }

    #[test]
    fn indices_may_go_back_but_not_twice() {
        let sealer = master(Profile::Aes128Gcm, LIBSRTP_GCM, RtpSealer::new);
        for index in [0x1_1234_u64, 0x0_1234] {
            sealed_rtp(&sealer, LIBSRTP_RTP, index);
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "sealed a second time")]
    fn an_index_is_sealed_once() {
        let sealer = master(Profile::Aes128Gcm, LIBSRTP_GCM, RtpSealer::new);
        sealed_rtp(&sealer, LIBSRTP_RTP, 0x1234);
        sealed_rtp(&sealer, LIBSRTP_RTP, 0x1234);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "sequence number")]
    fn the_index_is_that_of_the_header() {
        let sealer = master(Profile::Aes128Gcm, LIBSRTP_GCM, RtpSealer::new);
        sealed_rtp(&sealer, LIBSRTP_RTP, 0x1235);
    }

    #[test]
    fn a_sealer_never_shows_its_key() {
        let shown = master(Profile::Aes128CmSha1, LIBSRTP_CM, |m| format!("{:?}", RtcpSealer::new(m)));
        assert_eq!(shown, "RtcpSealer { cipher: Cipher { profile: Aes128CmSha1, .. }, next_index: 0 }");
    }

    #[test]
    fn a_sealer_is_small_and_moves_between_threads() {
        fn assert_send_sync<T: Send + Sync>() {}
        assert_send_sync::<RtpSealer>();
        assert_send_sync::<RtcpSealer>();
        // A viewer's hot state has 1.5 kB.
        assert!(size_of::<Cipher>() <= 256, "{}", size_of::<Cipher>());
    }
}
