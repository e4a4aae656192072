//! Waiting for many descriptors at once: one epoll instance, with deadlines of nanoseconds where the kernel has them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

pub(super) struct Epoll {
    fd: OwnedFd,
    /// epoll_pwait2 (5.11) is there; else deadlines are rounded up to milliseconds.
    nanoseconds: bool,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Epoll> {
        // SAFETY: takes no pointers; the result is checked.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: just opened, and nobody else knows it.
        let mut epoll = Epoll { fd: unsafe { OwnedFd::from_raw_fd(fd) }, nanoseconds: true };
        // Nothing is watched yet: it only tells whether the kernel has the call.
        epoll.wait(&mut [libc::epoll_event { events: 0, u64: 0 }], Some(Duration::ZERO))?;
        Ok(epoll)
    }

    /// Deadlines are kept to the nanosecond; else they are late by up to a millisecond.
    pub(super) fn is_precise(&self) -> bool {
        self.nanoseconds
    }

    /// From now on a wait reports `token` while `source` can be read (level-triggered).
    pub(super) fn watch(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, source, libc::EPOLLIN, token)
    }

    /// As [`Epoll::watch`], for a source that is watched already; with `writable` also while it can be written.
    pub(super) fn rewatch(&self, source: impl AsFd, token: u64, writable: bool) -> io::Result<()> {
        let events = if writable { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        self.control(libc::EPOLL_CTL_MOD, source, events, token)
    }

    /// A source that stays open is no longer watched; one that closes need not be told.
    pub(super) fn unwatch(&self, source: impl AsFd) {
        // It can only fail for a source that is not watched.
        let _ = self.control(libc::EPOLL_CTL_DEL, source, 0, 0);
    }

    fn control(&self, operation: libc::c_int, source: impl AsFd, events: libc::c_int, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        let (epoll, source) = (self.fd.as_raw_fd(), source.as_fd().as_raw_fd());
        // SAFETY: `event` lives for the call; both descriptors are open.
        check(unsafe { libc::epoll_ctl(epoll, operation, source, &raw mut event) }).map(|_| ())
    }

    /// Waits for as many events as there is room for and returns how many came; a signal ends it with none. `None` has no
    /// deadline.
    pub(super) fn wait(&mut self, events: &mut [libc::epoll_event], timeout: Option<Duration>) -> io::Result<usize> {
        match self.wait_once(events, timeout) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }

    fn wait_once(&mut self, events: &mut [libc::epoll_event], timeout: Option<Duration>) -> io::Result<usize> {
        if self.nanoseconds {
            let timespec = timeout.map(|t| libc::timespec {
                tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: t.subsec_nanos().into(),
            });
            // SAFETY: `events` and `timespec` live for the call, and `events` has as many entries as are announced. By
            // number because glibc has the wrapper only since 2.35.
            let ready = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.fd.as_raw_fd(),
                    events.as_mut_ptr(),
                    events.len() as libc::c_int,
                    timespec.as_ref().map_or(ptr::null(), ptr::from_ref),
                    ptr::null::<libc::sigset_t>(),
                    0usize,
                )
            };
            match check(ready as libc::c_int) {
                // EPERM: a seccomp profile that is older than the call.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => self.nanoseconds = false,
                result => return result.map(|ready| ready as usize),
            }
        }
        // Up, not down: a wait that ends before the deadline would be repeated until it has passed.
        let millis = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        // SAFETY: as above.
        let ready =
            unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, millis) };
        check(ready).map(|ready| ready as usize)
    }
}

/// An epoll instance can be watched itself: it can be read while it has events.
impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a system call returned, or why it failed.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
