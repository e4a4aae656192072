//! Whose datagram is this? By first byte (RFC 7983), then by 4-tuple, and STUN by its ufrag.
//!
//! Only an authenticated STUN request makes a 4-tuple known; DTLS and media are taken from known ones alone. A stranger
//! gets no answer and costs no memory, only a count.

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::placement::Slot;
use crate::datagram::{Received, SocketId};
use crate::id::{SessionId, ShardId};
use crate::limits;
use crate::metrics::DropReason;
use crate::wire::classify::{Kind, classify};
use crate::wire::stun::{self, StunKey, StunRequest};

/// One end of a 4-tuple; the other one is the socket's address.
pub(super) type Remote = (SocketId, SocketAddr);

/// Who may talk to this shard.
#[derive(Debug)]
pub(super) struct Demux {
    shard: ShardId,
    /// By our ufrag: sessions of all shards, since nobody knows where the kernel will put their first packet.
    credentials: FxHashMap<String, Credential>,
    /// 4-tuples that authenticated STUN has validated.
    remotes: FxHashMap<Remote, Route>,
    /// Validated 4-tuples of sessions on other shards, oldest first.
    foreign: FxHashMap<SessionId, Vec<Remote>>,
}

#[derive(Debug)]
struct Credential {
    key: StunKey,
    slot: Arc<Slot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Key of the session on this shard.
    Local(usize),
    Foreign(ShardId, SessionId),
}

/// What to do with a datagram.
#[derive(Debug)]
pub(super) enum Gate {
    /// For the session behind this key; its 4-tuple is validated.
    Session {
        key: usize,
        kind: Kind,
    },
    /// Authenticated STUN of a session that is or may become this shard's.
    Stun {
        slot: Arc<Slot>,
        nominated: bool,
        /// To be fed instead of the datagram.
        repaired: Option<Vec<u8>>,
    },
    /// For a session of another shard.
    HandOver(ShardId),
    Drop(DropReason),
}

impl Demux {
    pub fn new(shard: ShardId) -> Demux {
        Demux { shard, credentials: FxHashMap::default(), remotes: FxHashMap::default(), foreign: FxHashMap::default() }
    }

    pub fn announce(&mut self, ufrag: String, pwd: &str, slot: Arc<Slot>) {
        self.credentials.insert(ufrag, Credential { key: StunKey::new(pwd), slot });
    }

    pub fn forget(&mut self, ufrag: &str) {
        let Some(credential) = self.credentials.remove(ufrag) else { return };
        let session = credential.slot.session;
        if !self.foreign.contains_key(&session) {
            return; // Nothing to look for among the ufrags of all sessions.
        }
        if self.credentials.values().any(|c| c.slot.session == session) {
            return; // One ufrag of an ICE restart; the session goes on.
        }
        self.forget_foreign(session);
    }

    fn forget_foreign(&mut self, session: SessionId) {
        for remote in self.foreign.remove(&session).unwrap_or_default() {
            self.unlearn_foreign(remote, session);
        }
    }

    pub fn credentials(&self) -> usize {
        self.credentials.len()
    }

    pub fn remotes(&self) -> usize {
        self.remotes.len() + self.foreign.len()
    }

    /// Says where a datagram belongs. `handed_over`: another shard has sent it here.
    pub fn gate(&mut self, datagram: &Received, handed_over: bool) -> Gate {
        let remote = (datagram.socket, datagram.remote);
        let Some(kind) = classify(datagram.data) else {
            return Gate::Drop(DropReason::Unclassified);
        };
        match kind {
            Kind::Stun => self.gate_stun(remote, datagram.data),
            _ if datagram.data.len() > limits::MEDIA_DATAGRAM_BYTES_MAX => Gate::Drop(DropReason::Oversize),
            Kind::Rtcp if datagram.data.len() < limits::SRTCP_BYTES_MIN => Gate::Drop(DropReason::RtcpTooShort),
            _ => match self.remotes.get(&remote) {
                Some(Route::Local(key)) => Gate::Session { key: *key, kind },
                Some(Route::Foreign(..)) if handed_over => Gate::Drop(DropReason::Misrouted),
                Some(Route::Foreign(shard, _)) => Gate::HandOver(*shard),
                None if kind == Kind::Dtls => Gate::Drop(DropReason::DtlsUnknownRemote),
                None => Gate::Drop(DropReason::MediaUnknownRemote),
            },
        }
    }

    fn gate_stun(&mut self, remote: Remote, data: &[u8]) -> Gate {
        use crate::wire::stun::StunError;
        let request = match StunRequest::parse(data) {
            Ok(request) => request,
            Err(StunError::Type) => return Gate::Drop(DropReason::StunUnexpected),
            Err(_) => return Gate::Drop(DropReason::StunMalformed),
        };
        let Some(credential) = self.credentials.get(request.local_ufrag()) else {
            return Gate::Drop(DropReason::StunUnknownUfrag);
        };
        if !request.verify_with(&credential.key) {
            return Gate::Drop(DropReason::StunBadIntegrity);
        }
        let slot = credential.slot.clone();
        match slot.owner() {
            Some(owner) if owner != self.shard => {
                self.learn_foreign(slot.session, remote, owner);
                Gate::HandOver(owner)
            }
            _ => {
                let repaired = match request.priority() {
                    Some(_) => None,
                    // RFC 8445 §7.1.1 demands it, and so does str0m; FFmpeg 8.0 leaves it out.
                    None => stun::with_priority(&request, &credential.key),
                };
                Gate::Stun { slot, nominated: request.use_candidate(), repaired }
            }
        }
    }

    /// A validated 4-tuple of a session of this shard.
    pub fn knows(&self, remote: Remote) -> bool {
        self.remotes.contains_key(&remote)
    }

    pub fn learn(&mut self, remote: Remote, key: usize) {
        self.remotes.insert(remote, Route::Local(key));
    }

    /// A 4-tuple is no longer used; false: by now it is another session's.
    pub fn unlearn(&mut self, remote: Remote, key: usize) -> bool {
        self.unlearn_if(remote, |route| *route == Route::Local(key))
    }

    fn unlearn_foreign(&mut self, remote: Remote, session: SessionId) -> bool {
        self.unlearn_if(remote, |route| matches!(route, Route::Foreign(_, owner) if *owner == session))
    }

    /// Unless it has become that of another session: NATs give ports out again.
    fn unlearn_if(&mut self, remote: Remote, is_its_own: impl FnOnce(&Route) -> bool) -> bool {
        self.remotes.get(&remote).is_some_and(is_its_own) && self.remotes.remove(&remote).is_some()
    }

    fn learn_foreign(&mut self, session: SessionId, remote: Remote, owner: ShardId) {
        let route = Route::Foreign(owner, session);
        if self.remotes.insert(remote, route) == Some(route) {
            return;
        }
        let remotes = self.foreign.entry(session).or_default();
        if remotes.contains(&remote) {
            return;
        }
        let oldest = (remotes.len() >= limits::REMOTES_PER_SESSION_MAX).then(|| remotes.remove(0));
        remotes.push(remote);
        if let Some(oldest) = oldest {
            self.unlearn_foreign(oldest, session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NATs give ports out again.
    #[test]
    fn whoever_leaves_takes_no_others_address_along() {
        let remote = (SocketId(0), SocketAddr::from(([192, 0, 2, 1], 5000)));
        let mut demux = Demux::new(ShardId(0));
        demux.learn(remote, 1);
        demux.learn(remote, 2);
        assert!(!demux.unlearn(remote, 1) && demux.knows(remote));
        assert!(demux.unlearn(remote, 2) && !demux.knows(remote));
        demux.learn_foreign(SessionId(1), remote, ShardId(1));
        demux.learn(remote, 3);
        for port in 1..10 {
            demux.learn_foreign(SessionId(1), (SocketId(0), SocketAddr::from(([192, 0, 2, 1], port))), ShardId(1));
        }
        assert!(demux.knows(remote), "it was the oldest of the other session's");
        assert_eq!(demux.remotes.len(), 1 + limits::REMOTES_PER_SESSION_MAX);
        let taken = (SocketId(0), SocketAddr::from(([192, 0, 2, 1], 9)));
        demux.learn_foreign(SessionId(2), taken, ShardId(1));
        demux.forget_foreign(SessionId(1));
        assert!(demux.knows(taken), "it is the second one's");
        assert_eq!(demux.remotes.len(), 2);
    }
}
