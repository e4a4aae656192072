//! Memory for what one recvmmsg takes off a socket.

use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use super::address::{self, NAME_BYTES_MAX, Name};
use super::epoll::check;
use super::gro;

/// Where one recvmmsg puts its messages. The headers point into the other boxes, which never move.
pub(super) struct Room {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[gro::Control]>,
    /// Mostly never touched, and so never in memory.
    data: Box<[u8]>,
    message_bytes: usize,
    /// From the beginning of one message's memory to the next one's.
    stride: usize,
}

/// One entry of the last recvmmsg.
pub(super) struct Message<'a> {
    /// `None`: of a family that we do not know.
    pub remote: Option<SocketAddr>,
    pub data: &'a mut [u8],
    /// The size of each datagram in `data` when there are several.
    pub segment: Option<u16>,
    /// It was longer than there was room for.
    pub cut: bool,
}

// SAFETY: its pointers lead into its own boxes, which move with it, and each recvmmsg sets them anew before they are used.
unsafe impl Send for Room {}

impl Room {
    /// Room for `messages` of `message_bytes` each, which begin `stride` bytes apart.
    pub(super) fn new(messages: usize, message_bytes: usize, stride: usize) -> Room {
        debug_assert!(message_bytes <= stride);
        // SAFETY: for both types all zeroes is a valid value: null pointers, zero lengths and flags.
        let (header, iovec) = unsafe { mem::zeroed::<(libc::mmsghdr, libc::iovec)>() };
        Room {
            headers: vec![header; messages].into(),
            iovecs: vec![iovec; messages].into(),
            names: vec![Name::ZERO; messages].into(),
            controls: vec![gro::Control([0; gro::CONTROL_BYTES]); messages].into(),
            data: vec![0; messages * stride].into(),
            message_bytes,
            stride,
        }
    }

    /// Takes what is there, as far as there is room; returns how many messages. Never waits.
    pub(super) fn recvmmsg(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for (i, data) in self.data.chunks_exact_mut(self.stride).enumerate() {
            self.iovecs[i] = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: self.message_bytes };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = NAME_BYTES_MAX as u32;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[i]).cast();
            header.msg_controllen = gro::CONTROL_BYTES as _;
        }
        // SAFETY: every header points at a name, a control buffer, an iovec and through it a part of `data`, all as long as
        // is said, and `self` is borrowed exclusively for the call; the kernel is done with all of them when it returns.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        check(count).map(|count| count as usize)
    }

    /// Message `index` of the last call.
    pub(super) fn message(&mut self, index: usize) -> Message<'_> {
        let header = &self.headers[index];
        // Nothing was written: what is there is an older message's.
        let control = if header.msg_hdr.msg_controllen == 0 { &[][..] } else { &self.controls[index].0 };
        let name = &self.names[index].0[..(header.msg_hdr.msg_namelen as usize).min(NAME_BYTES_MAX)];
        let start = index * self.stride;
        let bytes = (header.msg_len as usize).min(self.message_bytes);
        Message {
            remote: address::parse(name),
            data: &mut self.data[start..start + bytes],
            segment: gro::segment(control),
            cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}
