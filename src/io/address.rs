//! Socket addresses in the kernel's layout.
//!
//! ```text
//!  sockaddr_in    family(2, host) port(2, network) address(4)
//!  sockaddr_in6   family(2, host) port(2, network) flowinfo(4) address(16) scope(4, host)
//! ```

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The longest address that a UDP socket can name: `sockaddr_in6`.
pub(super) const NAME_BYTES_MAX: usize = mem::size_of::<libc::sockaddr_in6>();

/// An address buffer for `msg_name`; aligned as `sockaddr_in6` is.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub(super) struct Name(pub [u8; NAME_BYTES_MAX]);

impl Name {
    pub(super) const ZERO: Name = Name([0; NAME_BYTES_MAX]);

    /// Writes `address` and returns how many bytes of the buffer it takes.
    pub(super) fn write(&mut self, address: SocketAddr) -> u32 {
        let name = &mut self.0;
        *name = [0; NAME_BYTES_MAX];
        name[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                name[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                name[4..8].copy_from_slice(&v4.ip().octets());
                mem::size_of::<libc::sockaddr_in>() as u32
            }
            SocketAddr::V6(v6) => {
                name[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                name[8..24].copy_from_slice(&v6.ip().octets());
                name[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                NAME_BYTES_MAX as u32
            }
        }
    }
}

/// Reads the address that the kernel wrote. The flow label is left out: it does not tell remotes apart.
pub(super) fn parse(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match i32::from(family) {
        libc::AF_INET => {
            let octets: [u8; 4] = *name.get(4..)?.first_chunk()?;
            Some(SocketAddr::from((Ipv4Addr::from(octets), port)))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = *name.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk()?);
            Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_kernels_layout() {
        for address in ["192.0.2.7:3478", "[2001:db8::1]:9", "[fe80::1%3]:65535"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut name = Name::ZERO;
            let len = name.write(address);
            assert_eq!(parse(&name.0[..len as usize]), Some(address));
        }
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0; NAME_BYTES_MAX]), None);
    }
}
