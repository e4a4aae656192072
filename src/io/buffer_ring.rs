//! The buffers that the kernel fills on its own: a provided-buffer ring for multishot receives.
//!
//! ```text
//!  one allocation, page aligned
//!  ├─ ring: COUNT entries of 16 bytes (address, length, buffer id; entry 0 also holds the tail)
//!  └─ COUNT buffers of STRIDE bytes: io_uring_recvmsg_out (16) │ name (28) │ control (24) │ payload (65535) │ pad
//! ```
//!
//! The kernel writes into a buffer only within our own `io_uring_enter` (DEFER_TASKRUN), and only into one that has
//! been published; from its completion until it is recycled a buffer is ours alone.

use std::alloc::{self, Layout};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::address::NAME_BYTES_MAX;
use super::gro;
use crate::limits;

/// The ring is a first-in-first-out, so every buffer is touched before one is used again: what 64 single datagrams fill
/// stays in the L2 cache (of 1024 it did not: 529 ns per datagram instead of 302). What nobody fills is never in memory.
pub(super) const COUNT: u16 = 64;

/// `struct io_uring_recvmsg_out`: namelen, controllen, payloadlen, flags.
const HEADER_BYTES: usize = 16;

/// What one buffer holds: whatever the kernel may have merged.
pub(super) const BUFFER_BYTES: usize = HEADER_BYTES + NAME_BYTES_MAX + gro::CONTROL_BYTES + limits::MERGED_BYTES_MAX;

/// Distance of two buffers: whole cache lines, and not a multiple of 64 kB, which would put the beginnings of all of them,
/// and most datagrams need no more, into the same few sets of the cache.
const STRIDE: usize = BUFFER_BYTES.next_multiple_of(64) + limits::DATAGRAM_BYTES_MAX;

const ENTRIES_BYTES: usize = COUNT as usize * size_of::<BufRingEntry>();

/// The kernel wants the ring page aligned; 4 KiB is the smallest page, and 64 KiB pages (some arm64) are covered too.
const ALIGN: usize = 65536;

#[derive(Debug)]
pub(super) struct BufferRing {
    memory: NonNull<u8>,
    /// Where the next entry goes; published by [`BufferRing::publish`].
    tail: u16,
}

impl BufferRing {
    /// All buffers are in the ring and published.
    pub(super) fn new() -> io::Result<BufferRing> {
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc::alloc_zeroed(layout()) };
        let memory = NonNull::new(memory).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut ring = BufferRing { memory, tail: 0 };
        for id in 0..COUNT {
            ring.recycle(id);
        }
        ring.publish();
        Ok(ring)
    }

    /// The address to register.
    pub(super) fn address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }

    /// What the kernel wrote into buffer `id`, `len` bytes of it.
    ///
    /// # Panics
    /// If there is no such buffer, or it is not that long.
    pub(super) fn filled(&self, id: u16, len: usize) -> &[u8] {
        assert!(len <= BUFFER_BYTES);
        // SAFETY: `buffer` checks `id`, so the range lies in our allocation, which is initialised (zeroed) memory.
        // The caller holds the completion of this buffer and has not recycled it (that needs `&mut self`), so the
        // kernel does not write here.
        unsafe { std::slice::from_raw_parts(self.buffer(id).as_ptr(), len) }
    }

    /// Puts a buffer back at the end of the ring; the kernel sees it after [`BufferRing::publish`].
    pub(super) fn recycle(&mut self, id: u16) {
        let address = self.buffer(id).as_ptr() as u64;
        let slot = usize::from(self.tail & (COUNT - 1));
        // SAFETY: `slot` < COUNT, so the entry lies in the ring part of our allocation, which is aligned and zeroed.
        // The kernel only reads entries before the published tail; this one is behind it.
        let entry = unsafe { &mut *self.entries().add(slot) };
        entry.set_addr(address);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what has been recycled.
    pub(super) fn publish(&mut self) {
        // SAFETY: `entries` points at the first entry of a zeroed, live ring, as `tail` asks; the field is two-byte
        // aligned, and no reference to it exists (`recycle` writes the other fields of an entry).
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn entries(&self) -> *mut BufRingEntry {
        self.memory.as_ptr().cast()
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        assert!(id < COUNT);
        // SAFETY: `id` < COUNT, so the offset is within the allocation.
        unsafe { self.memory.add(ENTRIES_BYTES + usize::from(id) * STRIDE) }
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout. Whoever registered the ring has unregistered it before
        // (`UringBackend::drop`, which leaks it otherwise).
        unsafe { alloc::dealloc(self.memory.as_ptr(), layout()) }
    }
}

const fn layout() -> Layout {
    const { assert!(COUNT.is_power_of_two()) };
    match Layout::from_size_align(ENTRIES_BYTES + COUNT as usize * STRIDE, ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("a constant layout"),
    }
}
