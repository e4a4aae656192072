//! Sessions that wait for their client: built by control, adopted by the shard on which the first authenticated
//! STUN request lands.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use crate::forward::table::Stream;
use crate::id::{SessionId, ShardId};
use crate::session::Session;

const UNPLACED: u16 = u16::MAX;

/// One session's place. Every shard and control hold it by reference count from the answer to the end.
pub struct Slot {
    pub session: SessionId,
    pub stream: Arc<Stream>,
    owner: AtomicU16,
    /// Taken at adoption. The lock is held at control rate only.
    waiting: Mutex<Option<Box<Session>>>,
}

impl Slot {
    pub fn new(session: SessionId, stream: Arc<Stream>, waiting: Box<Session>) -> Slot {
        Slot { session, stream, owner: AtomicU16::new(UNPLACED), waiting: Mutex::new(Some(waiting)) }
    }

    /// The shard that has adopted the session.
    pub fn owner(&self) -> Option<ShardId> {
        match self.owner.load(Ordering::Acquire) {
            UNPLACED => None,
            shard => Some(ShardId(shard)),
        }
    }

    /// Takes the session for `shard`. `None` when another one was first (ask [`Slot::owner`]) or when the session
    /// ended before anyone came.
    pub fn adopt(&self, shard: ShardId) -> Option<Box<Session>> {
        let mut waiting = self.lock();
        let session = waiting.take()?;
        self.owner.store(shard.0, Ordering::Release);
        Some(session)
    }

    /// Works on a session that nobody has adopted yet; `None` once it is adopted or gone.
    pub fn with_waiting<T>(&self, f: impl FnOnce(&mut Session) -> T) -> Option<T> {
        self.lock().as_deref_mut().map(f)
    }

    /// Ends a session that nobody has adopted; returns whether there was one.
    pub fn discard(&self) -> bool {
        self.lock().take().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Box<Session>>> {
        // A panic elsewhere leaves an Option, whole either way.
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("session", &self.session).field("owner", &self.owner()).finish()
    }
}
