//! From a client's offer to a session and its answer.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;

use crate::id::{Generation, SessionId, StreamId};
use crate::units::{Epoch, Instant};
use crate::wire::codec::Format;
use crate::wire::sdp::Offer;

/// What all sessions of a node have in common.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    pub epoch: Epoch,
    /// Host candidates, in the order of the answer (IPv4 first). Index = `SocketId`.
    pub candidates: Vec<SocketAddr>,
}

/// What a publisher's session is for.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    pub session: SessionId,
    pub stream: StreamId,
    pub generation: Generation,
    /// A PLI so often, whoever watches (the legacy endpoint: 3 s).
    pub pli_interval: Option<Duration>,
    /// Bind only these video codecs; empty means all that we pass through.
    pub video_codecs: Vec<crate::wire::codec::Codec>,
}

/// What a viewer's session is for.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    pub session: SessionId,
    pub stream: StreamId,
    /// What the publisher sends now, audio and video; empty while there is none. It only orders the answer: a
    /// viewer accepts all of its formats that we pass through, so that a later publisher may use another codec.
    pub published: Vec<Format>,
}

/// A session that has not met its client yet.
pub struct Negotiated {
    pub session: Box<Session>,
    /// str0m's answer, not yet finished by [`crate::wire::sdp`].
    pub answer: String,
    pub local_ufrag: String,
    pub local_pwd: String,
    /// What the answer accepted.
    pub formats: Vec<Format>,
}

/// Placeholder until the session module is filled in.
pub struct Session;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    #[error("no codec in common: {0}")]
    NoCommonCodec(String),
    #[error("the offer cannot be answered: {0}")]
    Unusable(String),
}

/// Builds a publisher's session (we receive).
///
/// # Errors
/// [`NegotiationError`]: answered 422 by control.
pub fn publish(
    _now: Instant,
    _config: &PeerConfig,
    _offer: &Offer,
    _request: PublishRequest,
    _rng: &mut StdRng,
) -> Result<Negotiated, NegotiationError> {
    Err(NegotiationError::Unusable("not built yet".into()))
}

/// Builds a viewer's session (we send).
///
/// # Errors
/// [`NegotiationError`]: answered 422 by control.
pub fn watch(
    _now: Instant,
    _config: &PeerConfig,
    _offer: &Offer,
    _request: WatchRequest,
    _rng: &mut StdRng,
) -> Result<Negotiated, NegotiationError> {
    Err(NegotiationError::Unusable("not built yet".into()))
}
