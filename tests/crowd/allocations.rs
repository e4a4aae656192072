//! Nothing is allocated for a copy: a publisher's packet costs the same number of allocations whoever watches.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::room::Room;

/// The system's allocator, which counts for each thread what it is asked for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.get()
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// 1 s of the stream, and with it one sender report to each viewer.
const PACKETS: u64 = 300;

fn per_packet(viewers: u64) -> f64 {
    let mut room = Room::playing(allocations, viewers, true);
    let spent = room.spend(PACKETS);
    spent.amount as f64 / spent.packets as f64
}

#[test]
fn a_packet_costs_as_many_allocations_for_a_thousand_viewers_as_for_one() {
    let (one, thousand) = (per_packet(1), per_packet(1000));
    println!("allocations per publisher packet: {one} for one viewer, {thousand} for a thousand");
    assert!(one >= 1.0, "{one}: str0m's own are counted");
    assert!(one < 12.0, "{one}");
    assert!((one - thousand).abs() < 0.05, "{one} for one viewer, {thousand} for a thousand");
}
