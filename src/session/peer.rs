//! str0m driven as one sans-IO machine: every input is followed by draining its output, a fault stays in here.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use str0m::net::{Protocol, Receive};
use str0m::{Event, Input, Output, Rtc};

use crate::datagram::{SendBatch, SocketId};
use crate::units::{Epoch, Instant};

/// Our host candidates; index = socket.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    pub udp: Arc<[SocketAddr]>,
    pub tcp: Arc<[SocketAddr]>,
}

impl Candidates {
    fn of(&self, socket: SocketId) -> (Protocol, SocketAddr) {
        match socket.stream_index() {
            Some(index) => (Protocol::Tcp, self.tcp[index]),
            None => (Protocol::Udp, self.udp[usize::from(socket.0)]),
        }
    }

    /// Both kinds may have the same addresses.
    fn find(&self, protocol: Protocol, address: SocketAddr) -> Option<SocketId> {
        let position = |list: &[SocketAddr]| list.iter().position(|c| *c == address);
        match protocol {
            Protocol::Udp => position(&self.udp).map(|index| SocketId(index as u8)),
            Protocol::Tcp => position(&self.tcp).and_then(SocketId::stream),
            Protocol::SslTcp | Protocol::Tls => None,
        }
    }
}

/// One `Rtc` and what is needed to drive it.
pub(super) struct Peer {
    rtc: Box<Rtc>,
    epoch: Epoch,
    candidates: Candidates,
    /// When str0m wants to be called.
    deadline: Instant,
    /// RTP and RTCP of this session are ours: str0m must send none.
    media_is_ours: bool,
    /// What it would have sent. Stays 0.
    suppressed: u64,
    /// Output may be waiting.
    dirty: bool,
    /// str0m has said that DTLS is up.
    connected: bool,
}

/// str0m refused to go on, or panicked. The session must end; others are untouched.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("{0}")]
    Rtc(#[from] str0m::RtcError),
    #[error("str0m panicked")]
    Panicked,
}

impl Peer {
    pub fn new(rtc: Rtc, epoch: Epoch, candidates: Candidates, media_is_ours: bool) -> Peer {
        Peer {
            rtc: Box::new(rtc),
            epoch,
            candidates,
            deadline: Instant::ZERO,
            media_is_ours,
            suppressed: 0,
            dirty: true,
            connected: false,
        }
    }

    /// Feeds a datagram. `Ok(false)`: str0m cannot even parse it.
    pub fn handle_receive(
        &mut self,
        now: Instant,
        socket: SocketId,
        remote: SocketAddr,
        data: &[u8],
    ) -> Result<bool, PeerError> {
        let (protocol, local) = self.candidates.of(socket);
        let now = self.epoch.to_std(now);
        self.with_rtc(|rtc| {
            let Ok(receive) = Receive::new(protocol, remote, local, data) else {
                return Ok(false);
            };
            rtc.handle_input(Input::Receive(now, receive))?;
            Ok(true)
        })
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), PeerError> {
        let now = self.epoch.to_std(now);
        self.with_rtc(|rtc| Ok(rtc.handle_input(Input::Timeout(now))?))
    }

    /// Any other work on the `Rtc`; its output is drained afterwards like that of every input.
    pub fn with_rtc<T>(&mut self, f: impl FnOnce(&mut Rtc) -> Result<T, PeerError>) -> Result<T, PeerError> {
        self.dirty = true;
        // str0m has asserts on paths that input from the network reaches. After a panic its state is unknown; the
        // session is closed without another call into it.
        catch_unwind(AssertUnwindSafe(|| f(&mut self.rtc))).unwrap_or(Err(PeerError::Panicked))
    }

    /// Datagrams go into `out`, which grows beyond a full batch by what one session has to say at a time; events are
    /// returned one at a time; `None` until the next input or [`Peer::deadline`].
    pub fn poll(&mut self, out: &mut SendBatch) -> Result<Option<Event>, PeerError> {
        while self.dirty {
            let output = catch_unwind(AssertUnwindSafe(|| self.rtc.poll_output()));
            match output.map_err(|_| PeerError::Panicked)?? {
                Output::Timeout(at) => {
                    self.deadline = self.epoch.from_std(at);
                    self.dirty = false;
                }
                // Two writers under one key would seal an index twice.
                Output::Transmit(t) if self.media_is_ours && matches!(t.contents.first(), Some(128..=191)) => {
                    self.suppressed += 1;
                }
                Output::Transmit(t) => {
                    // The source is one of our candidates: str0m made the pair from them.
                    if let Some(socket) = self.candidates.find(t.proto, t.source) {
                        out.push(socket, t.destination, &t.contents, None);
                    }
                }
                Output::Event(event) => {
                    self.connected |= matches!(event, Event::Connected);
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// RTP and RTCP datagrams that str0m wanted to send beside us since the last call.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    /// DTLS is up, and the certificate's fingerprint is verified: str0m ends in an error where it is not, before it says
    /// that it is connected.
    pub fn is_connected(&self) -> bool {
        match self.media_is_ours {
            // It has no keys, so it never calls itself connected.
            true => self.connected && self.rtc.is_alive(),
            false => self.rtc.is_connected(),
        }
    }

    pub fn is_alive(&self) -> bool {
        self.rtc.is_alive()
    }
}
