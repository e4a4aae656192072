//! Typed keys: what names a shard, a session, a stream and one publisher's turn on it.

use std::fmt;

use rand::Rng;
use rand::rngs::StdRng;

/// Position of a shard, `0..shards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One peer connection, counted up from 1 by the controller. Fit for logs; never in a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One named stream, counted up from 1 by the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One publisher's turn on a stream. A later offer has a higher generation; the highest whose media has been
/// authenticated is the one that viewers see. Zero means nobody yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Characters of a session's URL: 22 of base64url carry 128 bits (RFC 9725 §5 wants them unguessable).
pub const SESSION_TOKEN_CHARS: usize = 22;

/// What names a session in its URL. It is a capability: never logged whole.
pub fn session_token(rng: &mut StdRng) -> String {
    random_chars(rng, BASE64URL, SESSION_TOKEN_CHARS)
}

/// `chars` characters of the RFC 8839 `ice-char` set, for ufrags and passwords.
pub fn ice_chars(rng: &mut StdRng, chars: usize) -> String {
    random_chars(rng, ICE_CHARS, chars)
}

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const ICE_CHARS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn random_chars(rng: &mut StdRng, alphabet: &[u8; 64], chars: usize) -> String {
    // 64 letters: six random bits choose one without bias.
    (0..chars).map(|_| char::from(alphabet[usize::from(rng.random::<u8>() & 63)])).collect()
}

/// A simulcast layer's name (RFC 8851): at most eight characters of ASCII; empty without simulcast.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rid([u8; 8]);

impl Rid {
    /// `None`: too long, or not ASCII.
    pub fn new(name: &str) -> Option<Rid> {
        let mut bytes = [0; 8];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        name.is_ascii().then_some(Rid(bytes))
    }

    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(8);
        // Made of ASCII only.
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }

    /// For an atomic.
    pub fn to_bits(self) -> u64 {
        u64::from_be_bytes(self.0)
    }

    pub fn from_bits(bits: u64) -> Rid {
        Rid(bits.to_be_bytes())
    }
}

impl std::fmt::Debug for Rid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rid({})", self.as_str())
    }
}
