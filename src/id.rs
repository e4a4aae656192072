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
