//! ICE over TCP (RFC 6544): connections are accepted here, on control's thread, and go to the shard of the session that their
//! first frame names.
//!
//! ```text
//!  accept ── place? ── first frame: STUN, authentic, of a session here ── Accepted ──> its shard
//!              │                        │
//!              └── no: closed           └── no, or not within 5 s: closed
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use rustc_hash::FxHashMap;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::control::client_key;
use crate::datagram::SocketId;
use crate::id::ShardId;
use crate::io::{Connection, Doorbell};
use crate::limits;
use crate::shard::message::Command;
use crate::shard::placement::Slot;
use crate::wire::stun::{StunKey, StunRequest};

/// How long to wait when nothing can be accepted: others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection on its way to a shard.
pub(super) struct Accepted {
    pub connection: Connection,
    /// The datagram that decided where it goes.
    pub first: Box<[u8]>,
}

/// Sessions by ufrag, as the shards are told of them.
#[derive(Default)]
pub(super) struct Directory(Mutex<FxHashMap<String, Entry>>);

struct Entry {
    key: StunKey,
    slot: Arc<Slot>,
}

impl Directory {
    /// Overhears what one shard is told; the others are told the same.
    pub fn overhear(&self, command: &Command) {
        match command {
            Command::Announce { ufrag, pwd, slot } => {
                let entry = Entry { key: StunKey::new(pwd), slot: slot.clone() };
                self.lock().insert(ufrag.clone(), entry);
            }
            Command::Forget { ufrag } => {
                self.lock().remove(ufrag);
            }
            _ => {}
        }
    }

    /// The shard of the session that an authentic request is for. One that nobody has adopted gets the same for each
    /// connection; if UDP leads elsewhere meanwhile, the shard passes the connection on.
    fn shard_of(&self, datagram: &[u8], shards: usize) -> Option<ShardId> {
        let request = StunRequest::parse(datagram).ok()?;
        let entries = self.lock();
        let entry = entries.get(request.local_ufrag()).filter(|e| request.verify_with(&e.key))?;
        let anyone = ShardId((entry.slot.session.0 % shards as u64) as u16);
        Some(entry.slot.owner().unwrap_or(anyone))
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<String, Entry>> {
        // Each change is one call: a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts for all shards.
pub(super) struct Acceptor {
    pub directory: Arc<Directory>,
    pub shards: Vec<(Sender<Accepted>, Doorbell)>,
    pub places: Arc<Places>,
}

impl Acceptor {
    /// Accepts at one address for as long as the runtime lives. `socket` stands for it.
    pub async fn run(self: Arc<Acceptor>, listener: TcpListener, socket: SocketId) {
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => match self.places.enter(remote.ip()) {
                    Some(place) => {
                        let acceptor = self.clone();
                        tokio::spawn(async move {
                            if let Err(reason) = acceptor.introduce(stream, socket, remote, place).await {
                                debug!(reason, "a TCP connection is refused");
                            }
                        });
                    }
                    None => debug!("too many TCP connections"),
                },
                Err(e) => {
                    warn!(error = %e, "cannot accept TCP connections for ICE");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Finds out where a connection belongs, and gives it there.
    async fn introduce(
        &self,
        mut stream: TcpStream,
        socket: SocketId,
        remote: SocketAddr,
        place: Place,
    ) -> Result<(), &'static str> {
        let first = timeout(limits::FIRST_FRAME_TIMEOUT, first_frame(&mut stream)).await;
        let first = first.map_err(|_| "no frame in time")?.map_err(|_| "no frame")?;
        let shard = self.directory.shard_of(&first, self.shards.len()).ok_or("its first frame is for no session")?;
        let connection = stream.into_std().and_then(|s| Connection::new(s, socket, remote, place.adopted()));
        let accepted = Accepted { connection: connection.map_err(|_| "it has ended")?, first };
        let (queue, doorbell) = &self.shards[shard.index()];
        queue.try_send(accepted).map_err(|_| "its shard does not take connections")?;
        doorbell.ring();
        Ok(())
    }
}

/// Exactly the first frame, so that the next begins where the shard reads on.
async fn first_frame(stream: &mut TcpStream) -> io::Result<Box<[u8]>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limits::DATAGRAM_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length].into_boxed_slice();
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

/// Who may have how many connections.
#[derive(Default)]
pub(super) struct Places {
    /// Held once by each connection.
    all: Arc<()>,
    /// By client: connections that no session has taken yet.
    unadopted: Mutex<FxHashMap<IpAddr, usize>>,
}

/// One connection's, until it is adopted or refused.
struct Place {
    places: Arc<Places>,
    one_of_all: Arc<()>,
    client: IpAddr,
}

impl Places {
    fn enter(self: &Arc<Places>, remote: IpAddr) -> Option<Place> {
        let client = client_key(remote);
        let mut unadopted = self.lock();
        let of_client = unadopted.get(&client).copied().unwrap_or(0);
        // This is the only thread that makes them more.
        if Arc::strong_count(&self.all) > limits::STREAMS_MAX || of_client >= limits::UNADOPTED_STREAMS_PER_IP_MAX {
            return None;
        }
        unadopted.insert(client, of_client + 1);
        Some(Place { places: self.clone(), one_of_all: self.all.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<IpAddr, usize>> {
        // Plain counts: a panic elsewhere leaves them whole.
        self.unadopted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// It counts among all for as long as what is returned is held.
    fn adopted(self) -> Arc<()> {
        self.one_of_all.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut unadopted = self.places.lock();
        if let Some(count) = unadopted.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                unadopted.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let places = Arc::new(Places::default());
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let of_a: Vec<Place> = (0..limits::UNADOPTED_STREAMS_PER_IP_MAX).map(|_| places.enter(a).unwrap()).collect();
        assert!(places.enter(a).is_none());
        drop(places.enter(b).expect("another client"));
        // Adopted ones count among all, and no longer for their client.
        let adopted: Vec<Arc<()>> = of_a.into_iter().map(Place::adopted).collect();
        assert!(places.lock().is_empty());
        let more = |n: u32| places.enter(IpAddr::from(n.to_be_bytes()));
        let others: Vec<Place> = (0..(limits::STREAMS_MAX - adopted.len()) as u32).map(|n| more(n).unwrap()).collect();
        assert!(more(u32::MAX).is_none(), "{} and {}", adopted.len(), others.len());
        drop(adopted);
        assert!(more(u32::MAX).is_some());
    }
}
