//! From what DTLS exports to the keys of one direction (RFC 5764 §4.2, RFC 3711 §4.3, RFC 7714 §11).
//!
//! Key bytes lie in one place, [`CapturedKeys`](super::dtls::CapturedKeys), which wipes them; everything here borrows
//! from it, or is wiped itself. Nothing here can be printed.

use std::fmt;

use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use str0m_proto::crypto::dtls::SrtpProfile;
use zeroize::Zeroizing;

/// The longest cipher key that a profile has: AES-256.
const CIPHER_KEY_BYTES_MAX: usize = 32;

/// RFC 3711 §5.2: HMAC-SHA1's key.
const AUTH_KEY_BYTES: usize = 20;

/// AES-CM's salt; AEAD uses 12 of them.
const SALT_BYTES_MAX: usize = 14;

/// How media is encrypted: the profiles that DTLS may negotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// RFC 7714: seals 1100 bytes five times as fast as the one with SHA-1.
    Aes128Gcm,
    Aes256Gcm,
    /// RFC 3711: what every implementation of WebRTC must have (RFC 8827 §6.5).
    Aes128CmSha1,
}

impl Profile {
    pub const ALL: [Profile; 3] = [Profile::Aes128Gcm, Profile::Aes256Gcm, Profile::Aes128CmSha1];

    /// `None` for a profile that dimpl learns after this was written.
    pub fn from_dtls(profile: SrtpProfile) -> Option<Profile> {
        match profile {
            SrtpProfile::AEAD_AES_128_GCM => Some(Profile::Aes128Gcm),
            SrtpProfile::AEAD_AES_256_GCM => Some(Profile::Aes256Gcm),
            SrtpProfile::AES128_CM_SHA1_80 => Some(Profile::Aes128CmSha1),
            _ => None,
        }
    }

    /// What sealing adds to an RTP packet; SRTCP adds 4 bytes more.
    pub const fn tag_bytes(self) -> usize {
        match self {
            Profile::Aes128Gcm | Profile::Aes256Gcm => 16,
            Profile::Aes128CmSha1 => 10,
        }
    }

    const fn key_bytes(self) -> usize {
        match self {
            Profile::Aes128Gcm | Profile::Aes128CmSha1 => 16,
            Profile::Aes256Gcm => 32,
        }
    }

    const fn salt_bytes(self) -> usize {
        match self {
            Profile::Aes128Gcm | Profile::Aes256Gcm => 12,
            Profile::Aes128CmSha1 => 14,
        }
    }
}

/// Keying material that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("unknown SRTP profile {0}")]
    Profile(SrtpProfile),
    #[error("{got} bytes of keying material where the profile has {expected}")]
    Length { expected: usize, got: usize },
}

/// Master key and salt of either direction, borrowed from the keying material.
#[derive(Clone, Copy, Debug)]
pub struct MasterKeys<'a> {
    /// For what we send.
    pub local: MasterKey<'a>,
    /// For what the peer sends.
    pub remote: MasterKey<'a>,
}

impl<'a> MasterKeys<'a> {
    /// `active`: we were the DTLS client.
    ///
    /// ```text
    /// | client key | server key | client salt | server salt |    RFC 5764 §4.2
    /// ```
    ///
    /// # Errors
    ///
    /// When the length of `material` is not the profile's, or the profile is unknown.
    pub fn split(material: &'a [u8], profile: SrtpProfile, active: bool) -> Result<MasterKeys<'a>, KeyError> {
        let profile = Profile::from_dtls(profile).ok_or(KeyError::Profile(profile))?;
        let expected = 2 * (profile.key_bytes() + profile.salt_bytes());
        if material.len() != expected {
            return Err(KeyError::Length { expected, got: material.len() });
        }
        let (keys, salts) = material.split_at(2 * profile.key_bytes());
        let (client_key, server_key) = keys.split_at(profile.key_bytes());
        let (client_salt, server_salt) = salts.split_at(profile.salt_bytes());
        let client = MasterKey { profile, key: client_key, salt: client_salt };
        let server = MasterKey { profile, key: server_key, salt: server_salt };
        Ok(if active {
            MasterKeys { local: client, remote: server }
        } else {
            MasterKeys { local: server, remote: client }
        })
    }
}

/// Master key and salt of one direction.
#[derive(Clone, Copy)]
pub struct MasterKey<'a> {
    profile: Profile,
    key: &'a [u8],
    salt: &'a [u8],
}

/// Never the key.
impl fmt::Debug for MasterKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("profile", &self.profile).finish_non_exhaustive()
    }
}

/// What a session key is for; the number is that of the label for its cipher key (RFC 3711 §4.3.1, §4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Rtp = 0,
    Rtcp = 3,
}

impl<'a> MasterKey<'a> {
    /// # Errors
    ///
    /// When `key` or `salt` are not as long as the profile has them; `expected` and `got` are of both together.
    pub fn new(profile: Profile, key: &'a [u8], salt: &'a [u8]) -> Result<MasterKey<'a>, KeyError> {
        if (key.len(), salt.len()) != (profile.key_bytes(), profile.salt_bytes()) {
            let expected = profile.key_bytes() + profile.salt_bytes();
            return Err(KeyError::Length { expected, got: key.len() + salt.len() });
        }
        Ok(MasterKey { profile, key, salt })
    }

    pub fn profile(&self) -> Profile {
        self.profile
    }

    pub(super) fn session_key(&self, purpose: Purpose) -> SessionKey {
        let mut session = SessionKey {
            profile: self.profile,
            cipher: Zeroizing::default(),
            auth: Zeroizing::default(),
            salt: Zeroizing::default(),
        };
        let label = purpose as u8;
        self.derive(label, &mut session.cipher[..self.profile.key_bytes()]);
        self.derive(label + 1, &mut session.auth[..]);
        self.derive(label + 2, &mut session.salt[..self.profile.salt_bytes()]);
        session
    }

    /// RFC 3711 §4.3.3 with a key derivation rate of 0: the keystream of AES counter mode, which starts at
    ///
    /// ```text
    ///     |          salt, 14 bytes           | 0  0 |
    /// XOR | 0  0  0  0  0  0  0 label 0 ... 0 | 0  0 |
    /// ```
    ///
    /// A salt of AEAD has 12 bytes, to which two zeros are added at the right (RFC 7714 §11). A key of 32 bytes makes
    /// it AES-256 (RFC 6188).
    fn derive(&self, label: u8, out: &mut [u8]) {
        let mut start = [0; 16];
        start[..self.salt.len()].copy_from_slice(self.salt);
        start[7] ^= label;
        let algorithm = if self.key.len() == 16 { &AES_128 } else { &AES_256 };
        out.fill(0);
        UnboundCipherKey::new(algorithm, self.key)
            .and_then(EncryptingKey::ctr)
            .and_then(|key| key.less_safe_encrypt(out, EncryptionContext::Iv128((&start).into())))
            .expect("the profile's key length is AES's, and counter mode takes any length of data");
    }
}

/// What one cipher context is made of. Wiped on drop.
pub(super) struct SessionKey {
    pub(super) profile: Profile,
    cipher: Zeroizing<[u8; CIPHER_KEY_BYTES_MAX]>,
    auth: Zeroizing<[u8; AUTH_KEY_BYTES]>,
    salt: Zeroizing<[u8; SALT_BYTES_MAX]>,
}

impl SessionKey {
    pub(super) fn cipher(&self) -> &[u8] {
        &self.cipher[..self.profile.key_bytes()]
    }

    /// Of no use with AEAD.
    pub(super) fn auth(&self) -> &[u8] {
        &self.auth[..]
    }

    /// AEAD: 12 bytes, then zeros.
    pub(super) fn salt(&self) -> &[u8; SALT_BYTES_MAX] {
        &self.salt
    }

    /// RFC 7714's vectors start at session keys.
    #[cfg(test)]
    pub(super) fn from_parts(profile: Profile, cipher: &[u8], salt: &[u8]) -> SessionKey {
        let mut session = SessionKey {
            profile,
            cipher: Zeroizing::default(),
            auth: Zeroizing::default(),
            salt: Zeroizing::default(),
        };
        session.cipher[..cipher.len()].copy_from_slice(cipher);
        session.salt[..salt.len()].copy_from_slice(salt);
        session
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn rfc_3711_b_3_session_keys() {
        let (key, salt) = (hex("E1F97A0D3E018BE0D64FA32C06DE4139"), hex("0EC675AD498AFEEBB6960B3AABE6"));
        let session = MasterKey::new(Profile::Aes128CmSha1, &key, &salt).unwrap().session_key(Purpose::Rtp);
        assert_eq!(session.cipher(), hex("C61E7A93744F39EE10734AFE3FF7A087"));
        assert_eq!(session.salt().as_slice(), hex("30CBBC08863D8C85D49DB34A9AE1"));
        // The RFC shows 94 bytes of the stream; HMAC-SHA1 takes 20.
        assert_eq!(session.auth(), hex("CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"));
    }

    #[test]
    fn rfc_3711_b_3_the_whole_auth_stream() {
        let (key, salt) = (hex("E1F97A0D3E018BE0D64FA32C06DE4139"), hex("0EC675AD498AFEEBB6960B3AABE6"));
        let mut stream = [0xff; 94];
        MasterKey::new(Profile::Aes128CmSha1, &key, &salt).unwrap().derive(1, &mut stream);
        let expected = hex("CEBE321F6FF7716B6FD4AB49AF256A15 6D38BAA48F0A0ACF3C34E2359E6CDBCE
             E049646C43D9327AD175578EF7227098 6371C10C9A369AC2F94A8C5FBCDDDC25
             6D6E919A48B610EF17C2041E47403576 6B68642C59BBFC2F34DB60DBDFB2");
        assert_eq!(stream.as_slice(), expected);
    }

    #[test]
    fn the_material_is_split_by_role() {
        for (profile, keys, salts) in [
            (SrtpProfile::AES128_CM_SHA1_80, 16, 14),
            (SrtpProfile::AEAD_AES_128_GCM, 16, 12),
            (SrtpProfile::AEAD_AES_256_GCM, 32, 12),
        ] {
            let material = [vec![1; keys], vec![2; keys], vec![3; salts], vec![4; salts]].concat();
            let client = MasterKeys::split(&material, profile, true).unwrap();
            assert_eq!((client.local.key, client.local.salt), (&*vec![1; keys], &*vec![3; salts]));
            assert_eq!((client.remote.key, client.remote.salt), (&*vec![2; keys], &*vec![4; salts]));
            let server = MasterKeys::split(&material, profile, false).unwrap();
            assert_eq!((server.local.key, server.remote.key), (client.remote.key, client.local.key));
            assert_eq!((server.local.salt, server.remote.salt), (client.remote.salt, client.local.salt));

            let short = MasterKeys::split(&material[1..], profile, true).unwrap_err();
            assert_eq!(short, KeyError::Length { expected: material.len(), got: material.len() - 1 });
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        assert!(MasterKey::new(Profile::Aes256Gcm, &[0; 16], &[0; 12]).is_err());
        assert!(MasterKey::new(Profile::Aes128Gcm, &[0; 16], &[0; 14]).is_err());
    }

    /// Whatever is derived: a field of another type does not compile here.
    #[test]
    fn session_keys_are_wiped_on_drop() {
        fn wiped(_: &impl zeroize::ZeroizeOnDrop) {}
        let key = MasterKey::new(Profile::Aes128CmSha1, &[1; 16], &[2; 14]).unwrap().session_key(Purpose::Rtp);
        let SessionKey { profile: _, cipher, auth, salt } = &key;
        wiped(cipher);
        wiped(auth);
        wiped(salt);
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = [0xab; 16];
        let salt = [0xab; 12];
        let shown = format!("{:?}", MasterKey::new(Profile::Aes128Gcm, &key, &salt).unwrap());
        assert_eq!(shown, "MasterKey { profile: Aes128Gcm, .. }");
    }
}
