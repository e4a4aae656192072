//! UDP_GRO: datagrams of one sender that arrived side by side come as one message, with their size beside it.
//!
//! A publisher that sends with UDP_SEGMENT, or a network card's driver that merges what it polls at once, then costs one
//! message for a burst: 165 ns per datagram of a burst of ten instead of 580 in the ring, 148 instead of 610 with recvmmsg, and
//! single datagrams cost what they did (`benches/io.rs`, loopback, 2-core EPYC guest, Linux 6.18, November 2026). Kernels
//! before 5.0 refuse the option, and everything comes one by one as before.

use std::io;
use std::mem::offset_of;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::limits;

/// Room for the one control message that a socket of ours can get: an `int`.
// SAFETY: pure arithmetic on the length.
pub(super) const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) } as usize;

/// A control buffer, aligned as the kernel likes it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub [u8; CONTROL_BYTES]);

/// Asks for merged datagrams.
///
/// # Errors
/// The kernel does not know the option.
pub(super) fn enable(socket: &UdpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` lives for the call and its size is what is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The size of the datagrams in a message, from what the kernel wrote beside it; `None`: it is one datagram.
#[inline]
pub(super) fn segment(control: &[u8]) -> Option<u16> {
    let int = |at: usize| Some(libc::c_int::from_ne_bytes(*control.get(at..)?.first_chunk()?));
    let level = int(offset_of!(libc::cmsghdr, cmsg_level))?;
    let kind = int(offset_of!(libc::cmsghdr, cmsg_type))?;
    if (level, kind) != (libc::SOL_UDP, libc::UDP_GRO) {
        return None;
    }
    u16::try_from(int(size_of::<libc::cmsghdr>())?).ok().filter(|bytes| *bytes > 0)
}

/// How many datagrams of a message are too long to be taken: all of them or none.
#[inline]
pub(super) fn oversize(bytes: usize, segment: Option<u16>) -> u64 {
    let each = segment.map_or(bytes, usize::from).min(bytes);
    if each <= limits::DATAGRAM_BYTES_MAX { 0 } else { bytes.div_ceil(each) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_own_message_gives_a_size() {
        let mut control = [0; CONTROL_BYTES];
        assert_eq!(segment(&control), None);
        assert_eq!(segment(&[]), None);
        let mut int = |at: usize, value: libc::c_int| control[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        int(offset_of!(libc::cmsghdr, cmsg_level), libc::SOL_UDP);
        int(offset_of!(libc::cmsghdr, cmsg_type), libc::UDP_GRO);
        int(size_of::<libc::cmsghdr>(), 1200);
        assert_eq!(segment(&control), Some(1200));
        assert_eq!(segment(&control[..17]), None);
    }

    #[test]
    fn datagrams_that_are_too_long_are_counted_one_by_one() {
        let max = limits::DATAGRAM_BYTES_MAX;
        assert_eq!(oversize(max, None), 0);
        assert_eq!(oversize(max + 1, None), 1);
        assert_eq!(oversize(10 * max, Some(max as u16)), 0);
        assert_eq!(oversize(7000, Some(3000)), 3);
        // One datagram can be said to be a segment that is not full.
        assert_eq!(oversize(100, Some(3000)), 0);
    }
}
