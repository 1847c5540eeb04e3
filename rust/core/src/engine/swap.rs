//! Changes of MAC addresses in forwarded frames.

use crate::memory;
use crate::net::{Burst, Mac};

/// Bytes of the two addresses. Shorter frames are not changed.
const ADDRESSES: usize = 12;

/// Prefetches the first cache line of each frame.
#[inline]
pub(super) fn prefetch(burst: &Burst) {
    for &id in burst.ids() {
        memory::prefetch(burst.pool().data_ptr(id));
    }
}

/// Swaps source and destination address of each frame.
#[inline]
pub(super) fn swap_addresses(burst: &Burst) {
    for (&id, &length) in burst.ids().iter().zip(burst.lengths()) {
        if (length as usize) < ADDRESSES {
            continue;
        }
        let data = burst.pool().data_ptr(id);
        // SAFETY: the buffer is the burst's, its data is 64-byte aligned, and a buffer holds at
        // least 64 bytes. Volatile, because other processes may access shared memory.
        unsafe {
            let low = u64::from_le(data.cast::<u64>().read_volatile());
            let high = u32::from_le(data.add(8).cast::<u32>().read_volatile());
            let destination = low & 0xffff_ffff_ffff;
            let source = low >> 48 | u64::from(high) << 16;
            data.cast::<u64>().write_volatile((source | destination << 48).to_le());
            data.add(8).cast::<u32>().write_volatile(((destination >> 16) as u32).to_le());
        }
    }
}

/// Sets the source address of each frame.
#[inline]
pub(super) fn set_source(burst: &Burst, mac: Mac) {
    let [a, b, c, d, e, f] = mac.0;
    let low = u16::from_le_bytes([a, b]);
    let high = u32::from_le_bytes([c, d, e, f]);
    for (&id, &length) in burst.ids().iter().zip(burst.lengths()) {
        if (length as usize) < ADDRESSES {
            continue;
        }
        let data = burst.pool().data_ptr(id);
        // SAFETY: as in `swap_addresses`; offsets 6 and 8 are aligned for u16 and u32.
        unsafe {
            data.add(6).cast::<u16>().write_volatile(low.to_le());
            data.add(8).cast::<u32>().write_volatile(high.to_le());
        }
    }
}
