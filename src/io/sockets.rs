//! The UDP sockets of all shards: one per shard and local address, opened together and never added to.
//!
//! The kernel spreads 4-tuples over a REUSEPORT group by a hash scaled by the group's size: one socket more or less
//! moves half of all 4-tuples to another shard. So the number stays as it was at start.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// What a socket may queue either way. The kernel counts its own overhead (2304 bytes for 1200), so 4 MB hold 3640
/// datagrams; the default of 212,992 holds 92.
pub const BUFFER_BYTES: usize = 4 << 20;

/// The sockets of every shard.
#[derive(Debug)]
pub struct SocketGroup {
    /// `[shard][address]`; the inner index is the [`SocketId`](crate::datagram::SocketId).
    pub shards: Vec<Vec<UdpSocket>>,
    /// Where they are bound, with the port that port 0 became.
    pub locals: Vec<SocketAddr>,
    /// The smallest buffers that the kernel granted to any of them.
    pub buffers: Buffers,
}

/// Socket buffers as granted, in the units of [`BUFFER_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    pub receive_bytes: usize,
    pub send_bytes: usize,
}

impl Buffers {
    /// What an operator should run when the kernel gave less than was asked for.
    pub fn advice(&self) -> Option<String> {
        // Doubled, so that the limit is not the one thing that a later, larger setting runs into.
        let wanted = 2 * BUFFER_BYTES;
        let receive = (self.receive_bytes < BUFFER_BYTES).then(|| format!(" net.core.rmem_max={wanted}"));
        let send = (self.send_bytes < BUFFER_BYTES).then(|| format!(" net.core.wmem_max={wanted}"));
        let settings = receive.into_iter().chain(send).collect::<String>();
        (!settings.is_empty()).then(|| format!("sysctl -w{settings}"))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another socket has the port: another process, or an overlapping address of our own list.
    #[error("UDP {address} is in use")]
    InUse { address: SocketAddr, source: io::Error },
    #[error("UDP {address}: cannot {step}")]
    Failed { address: SocketAddr, step: &'static str, source: io::Error },
}

/// Opens a socket for each of `shards` shards at each address. A port 0 becomes any free port, the same for all
/// shards. An IPv6 socket takes IPv6 only.
///
/// # Errors
/// The first address that failed, and why.
pub fn open_group(addresses: &[SocketAddr], shards: usize) -> Result<SocketGroup, SocketError> {
    assert!(!addresses.is_empty() && shards > 0, "a group has an address and a shard");
    let mut group = SocketGroup {
        shards: (0..shards).map(|_| Vec::with_capacity(addresses.len())).collect(),
        locals: Vec::with_capacity(addresses.len()),
        buffers: Buffers { receive_bytes: usize::MAX, send_bytes: usize::MAX },
    };
    for &address in addresses {
        group.open(address)?;
    }
    Ok(group)
}

impl SocketGroup {
    fn open(&mut self, address: SocketAddr) -> Result<(), SocketError> {
        let failed = |step| move |source| SocketError::Failed { address, step, source };
        let mut local = address;
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
                .map_err(failed("open a socket"))?;
            if address.is_ipv6() {
                socket.set_only_v6(true).map_err(failed("set IPV6_V6ONLY"))?;
            }
            // With SO_REUSEPORT a second server of the same user would silently share the port and take half of the
            // clients. So the first socket binds alone, which fails if anyone has the port, and turns it on
            // afterwards; the kernel makes the group when the second one joins. Nobody can slip in between.
            if index > 0 {
                socket.set_reuse_port(true).map_err(failed("set SO_REUSEPORT"))?;
            }
            socket.bind(&local.into()).map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => SocketError::InUse { address, source },
                _ => SocketError::Failed { address, step: "bind", source },
            })?;
            socket.set_reuse_port(true).map_err(failed("set SO_REUSEPORT"))?;
            let granted = grow(&socket).map_err(failed("size its buffers"))?;
            self.buffers.receive_bytes = self.buffers.receive_bytes.min(granted.receive_bytes);
            self.buffers.send_bytes = self.buffers.send_bytes.min(granted.send_bytes);
            let socket = UdpSocket::from(socket);
            local = socket.local_addr().map_err(failed("read its address"))?;
            shard.push(socket);
        }
        self.locals.push(local);
        Ok(())
    }
}

/// Asks for [`BUFFER_BYTES`] both ways and reports what the kernel gave.
fn grow(socket: &Socket) -> io::Result<Buffers> {
    // As root the sysctl limits can be passed; as anyone else the plain option takes what they allow.
    if force(socket, libc::SO_RCVBUFFORCE).is_err() {
        SockRef::from(socket).set_recv_buffer_size(BUFFER_BYTES)?;
    }
    if force(socket, libc::SO_SNDBUFFORCE).is_err() {
        SockRef::from(socket).set_send_buffer_size(BUFFER_BYTES)?;
    }
    // The kernel reports twice what was asked for, to cover its overhead.
    Ok(Buffers { receive_bytes: socket.recv_buffer_size()? / 2, send_bytes: socket.send_buffer_size()? / 2 })
}

fn force(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let bytes = BUFFER_BYTES as libc::c_int;
    // SAFETY: `bytes` lives for the call and its size is what is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_group_shares_one_port_per_address() {
        let addresses = [loopback(), "[::1]:0".parse().unwrap()];
        let group = open_group(&addresses, 3).unwrap();
        assert_eq!(group.shards.len(), 3);
        for shard in &group.shards {
            let locals: Vec<_> = shard.iter().map(|s| s.local_addr().unwrap()).collect();
            assert_eq!(locals, group.locals);
        }
        assert!(group.locals.iter().all(|local| local.port() != 0));
    }

    #[test]
    fn a_busy_port_is_named() {
        let group = open_group(&[loopback()], 2).unwrap();
        let busy = group.locals[0];
        let error = open_group(&[busy], 2).unwrap_err();
        assert!(matches!(error, SocketError::InUse { address, .. } if address == busy), "{error}");
        assert_eq!(error.to_string(), format!("UDP {busy} is in use"));
    }

    #[test]
    fn capped_buffers_come_with_a_command() {
        let capped = Buffers { receive_bytes: 212_992, send_bytes: BUFFER_BYTES };
        assert_eq!(capped.advice().unwrap(), "sysctl -w net.core.rmem_max=8388608");
        assert_eq!(Buffers { receive_bytes: BUFFER_BYTES, send_bytes: BUFFER_BYTES }.advice(), None);
    }
}
