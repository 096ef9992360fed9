//! The allocations of this process. A benchmark that has this module counts every allocation, on all threads.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Counts what is allocated from now on.
pub(crate) struct AllocationCounter(Region<'static, System>);

#[allow(dead_code, reason = "not every benchmark counts both")]
impl AllocationCounter {
    pub(crate) fn new() -> Self {
        Self(Region::new(ALLOCATOR))
    }

    /// The times that memory was asked for, or more of it.
    pub(crate) fn allocations(&self) -> usize {
        let change = self.0.change();
        change.allocations + change.reallocations
    }

    /// Bytes allocated and not freed: less than none if older ones were freed too.
    pub(crate) fn bytes_live(&self) -> i64 {
        let change = self.0.change();
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        signed(change.bytes_allocated) - signed(change.bytes_deallocated)
    }
}
