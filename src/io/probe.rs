//! Whether the ring backend works on this host, found out by using it.
//!
//! A kernel that has the calls may still not work: containers filter io_uring by seccomp, a sysctl forbids it, and
//! 5.19 to 6.0 know some of the flags but not all. So after the cheap questions a real backend receives real datagrams.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};

use super::uring::UringBackend;
use super::{Backend, SendPath};
use crate::datagram::RecvBatch;

/// Loopback takes microseconds; this is for a host that is busy starting everything else.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("io_uring_setup is refused by kernel.io_uring_disabled or by the container's seccomp profile")]
    Forbidden { source: io::Error },
    #[error("io_uring_setup failed")]
    Setup { source: io::Error },
    #[error("the kernel does not have {operation}")]
    Operation { operation: &'static str },
    #[error("a ring with deferred task work and provided buffers cannot be opened (needs Linux 6.1)")]
    Open { source: io::Error },
    #[error("loopback sockets for the test cannot be used")]
    Loopback { source: io::Error },
    #[error("the ring failed in the test")]
    Receive { source: io::Error },
    #[error("a multishot receive got {received} of {sent} datagrams and was armed {rearms} times more")]
    Multishot { received: usize, sent: usize, rearms: u64 },
    #[error("a message from ring to ring did not arrive")]
    Doorbell,
}

/// Opens a ring, receives two datagrams by one multishot receive, rings its own doorbell, and closes everything.
///
/// # Errors
/// The first thing that did not work, for the start-up log.
pub fn probe_uring() -> Result<(), ProbeError> {
    probe_operations()?;
    let loopback = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let setup = || -> io::Result<_> {
        let (receiver, sender) = (loopback()?, loopback()?);
        receiver.set_nonblocking(true)?;
        sender.connect(receiver.local_addr()?)?;
        Ok((receiver, sender))
    };
    let (receiver, sender) = setup().map_err(|source| ProbeError::Loopback { source })?;
    let mut backend =
        UringBackend::new(vec![receiver], SendPath::Ring).map_err(|source| ProbeError::Open { source })?;
    probe_multishot(&mut backend, &sender)?;
    probe_doorbell(&mut backend)
}

fn probe_operations() -> Result<(), ProbeError> {
    let ring = IoUring::new(4).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => ProbeError::Forbidden { source },
        _ => ProbeError::Setup { source },
    })?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|source| ProbeError::Setup { source })?;
    let operations = [
        (opcode::RecvMsg::CODE, "recvmsg"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::PollAdd::CODE, "poll"),
        (opcode::AsyncCancel::CODE, "cancel"),
        (opcode::MsgRingData::CODE, "msg_ring"),
    ];
    match operations.into_iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, operation)) => Err(ProbeError::Operation { operation }),
        None => Ok(()),
    }
}

fn probe_multishot(backend: &mut UringBackend, sender: &UdpSocket) -> Result<(), ProbeError> {
    const SENT: usize = 2;
    let mut batch = RecvBatch::new();
    // One after the other: the second must come by the same receive as the first (F_MORE).
    let mut received = 0;
    for _ in 0..SENT {
        sender.send(b"probe").map_err(|source| ProbeError::Loopback { source })?;
        batch.clear();
        backend.receive(Some(PATIENCE), &mut batch).map_err(|source| ProbeError::Receive { source })?;
        received += batch.iter().filter(|datagram| datagram.data == b"probe").count();
    }
    let rearms = backend.stats().rearms;
    if received < SENT || rearms > 0 {
        return Err(ProbeError::Multishot { received, sent: SENT, rearms });
    }
    Ok(())
}

fn probe_doorbell(backend: &mut UringBackend) -> Result<(), ProbeError> {
    let own = backend.doorbell();
    backend.ring(&own);
    backend.receive(Some(PATIENCE), &mut RecvBatch::new()).map_err(|source| ProbeError::Receive { source })?;
    let stats = backend.stats();
    if stats.doorbells == 0 || stats.bells_failed > 0 { Err(ProbeError::Doorbell) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_behind_and_can_be_repeated() {
        // On a host without io_uring the reason is all there is to see.
        let first = probe_uring().map_err(|e| e.to_string());
        let second = probe_uring().map_err(|e| e.to_string());
        assert_eq!(first, second);
        println!("io_uring: {first:?}");
    }
}
