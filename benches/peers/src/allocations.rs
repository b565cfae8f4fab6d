//! Counts the calls of the allocator and the bytes that are allocated, when told to.
//!
//! The crates that do this always count, and shared counters on every call would slow down just those clients that
//! allocate for each message. Here a measurement of time pays one load of a flag that never changes.
#![expect(unsafe_code, reason = "there is no other way to see the allocator's calls")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// The system's allocator, counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ON: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);
// What was allocated before the counting may be given back during it.
static LIVE: AtomicI64 = AtomicI64::new(0);

/// Counts from now on.
pub(crate) fn count() {
    ON.store(true, Ordering::Relaxed);
}

/// The calls so far that asked for memory: new memory, or more or less of what there is.
pub(crate) fn counted() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// The bytes allocated and not given back, since the counting began.
pub(crate) fn live() -> u64 {
    LIVE.load(Ordering::Relaxed).max(0) as u64
}

/// The allocator was asked for so many bytes instead of so many.
fn called(size: usize, instead_of: usize) {
    if ON.load(Ordering::Relaxed) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(size as i64 - instead_of as i64, Ordering::Relaxed);
    }
}

fn given_back(size: usize) {
    if ON.load(Ordering::Relaxed) {
        LIVE.fetch_sub(size as i64, Ordering::Relaxed);
    }
}

// SAFETY: each method passes its arguments to the same method of the system's allocator and returns what that returns,
// so the system's allocator keeps the contract. Counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        called(layout.size(), 0);
        // SAFETY: the caller keeps this method's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        called(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        called(size, layout.size());
        // SAFETY: as above; `block` came from the system's allocator, as every block does.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}
