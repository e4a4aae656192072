//! The transforms behind sealing and opening: AES-GCM (RFC 7714) and AES counter mode with HMAC-SHA1 (RFC 3711).
//!
//! Keys are expanded once, in [`Cipher::new`]. Per packet nothing is allocated: aws-lc copies the prepared HMAC state
//! on the stack, and takes the AES key schedule as it is.

use std::fmt;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::{constant_time, hmac};
use zeroize::Zeroizing;

use super::keys::{Profile, SessionKey};

/// SRTCP leaves this much in the clear: header and SSRC of the first packet (RFC 3711 §3.4).
pub(super) const RTCP_CLEAR_BYTES: usize = 8;

/// What SRTCP adds besides the tag: E and the index.
pub(super) const RTCP_INDEX_BYTES: usize = 4;

/// "This packet is encrypted", above the 31-bit index.
pub(super) const RTCP_E: u32 = 1 << 31;

/// Not authentic, or not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forged;

/// The cipher of one direction, for either RTP or RTCP.
pub(super) struct Cipher {
    profile: Profile,
    salt: Zeroizing<[u8; 14]>,
    suite: Suite,
}

enum Suite {
    Gcm(LessSafeKey),
    /// Twice the size of GCM's and used by few, so apart.
    CmSha1(Box<CmSha1>),
}

struct CmSha1 {
    aes: EncryptingKey,
    hmac: hmac::Key,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Cipher {
    pub(super) fn new(key: &SessionKey) -> Cipher {
        const LENGTH: &str = "the session key has the length of its profile";
        let gcm = |algorithm| Suite::Gcm(LessSafeKey::new(UnboundKey::new(algorithm, key.cipher()).expect(LENGTH)));
        let suite = match key.profile {
            Profile::Aes128Gcm => gcm(&AES_128_GCM),
            Profile::Aes256Gcm => gcm(&AES_256_GCM),
            Profile::Aes128CmSha1 => Suite::CmSha1(Box::new(CmSha1 {
                aes: UnboundCipherKey::new(&AES_128, key.cipher()).and_then(EncryptingKey::ctr).expect(LENGTH),
                hmac: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.auth()),
            })),
        };
        Cipher { profile: key.profile, salt: Zeroizing::new(*key.salt()), suite }
    }

    pub(super) fn profile(&self) -> Profile {
        self.profile
    }

    pub(super) fn tag_bytes(&self) -> usize {
        self.profile.tag_bytes()
    }

    /// `packet` ends with room for the tag.
    pub(super) fn seal_rtp(&self, packet: &mut [u8], header_bytes: usize, ssrc: u32, index: u64) {
        let plain_bytes = packet.len() - self.tag_bytes();
        match &self.suite {
            Suite::Gcm(key) => {
                let (header, rest) = packet.split_at_mut(header_bytes);
                let (payload, tag) = rest.split_at_mut(plain_bytes - header_bytes);
                seal_gcm(key, self.gcm_nonce(ssrc, index), header, payload, tag);
            }
            Suite::CmSha1(suite) => {
                suite.keystream(self.cm_start(ssrc, index), &mut packet[header_bytes..plain_bytes]);
                // The HMAC goes over the packet and the roll-over counter, which stands for the moment where the tag
                // will be (RFC 3711 §4.2.1), so that one call reads both.
                packet[plain_bytes..][..4].copy_from_slice(&roll_overs(index));
                let tag = hmac::sign(&suite.hmac, &packet[..plain_bytes + 4]);
                packet[plain_bytes..].copy_from_slice(&tag.as_ref()[..Profile::Aes128CmSha1.tag_bytes()]);
            }
        }
    }

    /// Decrypts in place; the length of header and payload. A forged packet is left with unspecified payload.
    pub(super) fn open_rtp(
        &self,
        packet: &mut [u8],
        header_bytes: usize,
        ssrc: u32,
        index: u64,
    ) -> Result<usize, Forged> {
        let plain_bytes = packet.len().checked_sub(self.tag_bytes()).filter(|n| *n >= header_bytes).ok_or(Forged)?;
        match &self.suite {
            Suite::Gcm(key) => {
                let (header, rest) = packet.split_at_mut(header_bytes);
                open_gcm(key, self.gcm_nonce(ssrc, index), header, rest)?;
            }
            Suite::CmSha1(suite) => {
                let (signed, tag) = packet.split_at_mut(plain_bytes);
                suite.verify(&[signed, &roll_overs(index)], tag)?;
                suite.keystream(self.cm_start(ssrc, index), &mut signed[header_bytes..]);
            }
        }
        Ok(plain_bytes)
    }

    /// `packet` grows by tag, E and index. `index` has 31 bits.
    ///
    /// ```text
    /// AES-GCM   | header, SSRC | encrypted | tag, 16 | E, index |     RFC 7714 §9.1
    /// AES-CM    | header, SSRC | encrypted | E, index | tag, 10 |     RFC 3711 §3.4
    /// ```
    pub(super) fn seal_rtcp(&self, packet: &mut Vec<u8>, ssrc: u32, index: u32) {
        let plain_bytes = packet.len();
        let trailer = (RTCP_E | index).to_be_bytes();
        match &self.suite {
            Suite::Gcm(key) => {
                packet.resize(plain_bytes + self.tag_bytes(), 0);
                let (clear, rest) = packet.split_at_mut(RTCP_CLEAR_BYTES);
                let (body, tag) = rest.split_at_mut(plain_bytes - RTCP_CLEAR_BYTES);
                seal_gcm(key, self.gcm_nonce(ssrc, index.into()), &rtcp_aad(clear, trailer), body, tag);
                packet.extend_from_slice(&trailer);
            }
            Suite::CmSha1(suite) => {
                suite.keystream(self.cm_start(ssrc, index.into()), &mut packet[RTCP_CLEAR_BYTES..]);
                packet.extend_from_slice(&trailer);
                let tag = hmac::sign(&suite.hmac, packet);
                packet.extend_from_slice(&tag.as_ref()[..self.tag_bytes()]);
            }
        }
    }

    /// E and index, not yet known to be authentic. `None`: too short for SRTCP.
    pub(super) fn rtcp_trailer(&self, packet: &[u8]) -> Option<u32> {
        let overhead = self.tag_bytes() + RTCP_INDEX_BYTES;
        let plain_bytes = packet.len().checked_sub(overhead).filter(|n| *n >= RTCP_CLEAR_BYTES)?;
        let at = match self.suite {
            Suite::Gcm(_) => plain_bytes + self.tag_bytes(),
            Suite::CmSha1(_) => plain_bytes,
        };
        Some(u32::from_be_bytes(packet[at..at + RTCP_INDEX_BYTES].try_into().ok()?))
    }

    /// Decrypts in place a packet whose `trailer` was read with `rtcp_trailer` and has E; the length of the plain one.
    pub(super) fn open_rtcp(&self, packet: &mut [u8], ssrc: u32, trailer: u32) -> Result<usize, Forged> {
        let plain_bytes = packet.len() - self.tag_bytes() - RTCP_INDEX_BYTES;
        let index = trailer & !RTCP_E;
        match &self.suite {
            Suite::Gcm(key) => {
                let (clear, rest) = packet.split_at_mut(RTCP_CLEAR_BYTES);
                let aad = rtcp_aad(clear, trailer.to_be_bytes());
                let sealed_bytes = rest.len() - RTCP_INDEX_BYTES;
                open_gcm(key, self.gcm_nonce(ssrc, index.into()), &aad, &mut rest[..sealed_bytes])?;
            }
            Suite::CmSha1(suite) => {
                let (signed, tag) = packet.split_at_mut(plain_bytes + RTCP_INDEX_BYTES);
                suite.verify(&[signed], tag)?;
                suite.keystream(self.cm_start(ssrc, index.into()), &mut signed[RTCP_CLEAR_BYTES..plain_bytes]);
            }
        }
        Ok(plain_bytes)
    }

    /// RFC 7714 §8.1 and §9.1. `index`: 48 bits of SRTP, or 31 of SRTCP; both then stand at the right.
    ///
    /// ```text
    ///     | 0  0 | SSRC, 4 | index, 6 |
    /// XOR |         salt, 12          |
    /// ```
    fn gcm_nonce(&self, ssrc: u32, index: u64) -> Nonce {
        let mut salt = [0; 16];
        salt[4..].copy_from_slice(&self.salt[..12]);
        let nonce = u128::from_be_bytes(salt) ^ u128::from(ssrc) << 48 ^ u128::from(index);
        let bytes = nonce.to_be_bytes();
        Nonce::assume_unique_for_key(std::array::from_fn(|i| bytes[i + 4]))
    }

    /// RFC 3711 §4.1.1: where the counter of a packet starts.
    ///
    /// ```text
    ///     | 0  0  0  0 | SSRC, 4 | index, 6 | 0  0 |
    /// XOR |             salt, 14            | 0  0 |
    /// ```
    fn cm_start(&self, ssrc: u32, index: u64) -> [u8; 16] {
        let mut salt = [0; 16];
        salt[..14].copy_from_slice(&self.salt[..]);
        (u128::from_be_bytes(salt) ^ u128::from(ssrc) << 64 ^ u128::from(index) << 16).to_be_bytes()
    }
}

impl CmSha1 {
    fn keystream(&self, start: [u8; 16], data: &mut [u8]) {
        self.aes
            .less_safe_encrypt(data, EncryptionContext::Iv128((&start).into()))
            .expect("counter mode takes any length of data");
    }

    fn verify(&self, signed: &[&[u8]], tag: &[u8]) -> Result<(), Forged> {
        let mut context = hmac::Context::with_key(&self.hmac);
        for part in signed {
            context.update(part);
        }
        constant_time::verify_slices_are_equal(&context.sign().as_ref()[..tag.len()], tag).map_err(|_| Forged)
    }
}

fn seal_gcm(key: &LessSafeKey, nonce: Nonce, aad: &[u8], data: &mut [u8], tag: &mut [u8]) {
    let computed = key
        .seal_in_place_separate_tag(nonce, Aad::from(aad), data)
        .expect("a datagram is far below the 64 GiB of AES-GCM");
    tag.copy_from_slice(computed.as_ref());
}

fn open_gcm(key: &LessSafeKey, nonce: Nonce, aad: &[u8], data_and_tag: &mut [u8]) -> Result<(), Forged> {
    key.open_in_place(nonce, Aad::from(aad), data_and_tag).map(|_| ()).map_err(|_| Forged)
}

fn rtcp_aad(clear: &[u8], trailer: [u8; 4]) -> [u8; RTCP_CLEAR_BYTES + RTCP_INDEX_BYTES] {
    let mut aad = [0; RTCP_CLEAR_BYTES + RTCP_INDEX_BYTES];
    aad[..RTCP_CLEAR_BYTES].copy_from_slice(clear);
    aad[RTCP_CLEAR_BYTES..].copy_from_slice(&trailer);
    aad
}

fn roll_overs(index: u64) -> [u8; 4] {
    ((index >> 16) as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::keys::{MasterKey, Purpose};
    use super::*;

    /// aws-lc wipes what it expands; this is all that is ours.
    #[test]
    fn the_salt_is_wiped_on_drop() {
        fn wiped(_: &impl zeroize::ZeroizeOnDrop) {}
        for (profile, key, salt) in [(Profile::Aes256Gcm, 32, 12), (Profile::Aes128CmSha1, 16, 14)] {
            let (key, salt) = (vec![1; key], vec![2; salt]);
            let master = MasterKey::new(profile, &key, &salt).expect("the profile's lengths");
            let Cipher { profile: _, salt, suite: _ } = &Cipher::new(&master.session_key(Purpose::Rtp));
            wiped(salt);
        }
    }
}
