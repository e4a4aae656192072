//! The handle that ends a backend's wait from another thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Ends the wait of the backend that it came from. Any thread may hold a copy and ring it; rings that come before
/// the backend wakes up count as one. One that comes while the backend is busy ends its next wait.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<Bell>);

#[derive(Debug)]
struct Bell {
    event: File,
    /// A second descriptor of the backend's ring. Owning it means that the number never names another file, even
    /// after the backend is gone; the backend releases its sockets and buffers itself, not by closing the ring.
    ring: Option<OwnedFd>,
}

impl Doorbell {
    pub(super) fn new(ring: Option<OwnedFd>) -> io::Result<Doorbell> {
        // SAFETY: takes no pointers; the result is checked below.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `event` was just opened and nobody else knows it.
        let event = unsafe { File::from_raw_fd(event) };
        Ok(Doorbell(Arc::new(Bell { event, ring })))
    }

    /// Wakes the backend; costs one system call, and a wake-up of another core if it sleeps.
    pub fn ring(&self) {
        // It can only fail with EAGAIN, at 2^64 - 2 rings that nobody heard: then the bell is ringing already.
        let _ = (&self.0.event).write(&1u64.to_ne_bytes());
    }

    /// Whether `other` is a copy of this one.
    pub fn is(&self, other: &Doorbell) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    pub(super) fn ring_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.ring.as_ref().map(OwnedFd::as_fd)
    }

    /// Takes the rings that are waiting in the eventfd; true if there were any.
    pub(super) fn silence(&self) -> bool {
        (&self.0.event).read(&mut [0; 8]).is_ok()
    }
}
