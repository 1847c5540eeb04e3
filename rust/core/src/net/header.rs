//! The header in front of each packet, `struct virtio_net_hdr` (section 5.1.6).
//!
//! ```text
//!  0 flags  1 gso_type  2 hdr_len  4 gso_size  6 csum_start  8 csum_offset  10 num_buffers
//! ```

/// Bytes of the header with VERSION_1 (`num_buffers` is always there).
pub const HEADER_LEN: usize = 12;

/// Clears the header in front of `data`: no offload, and `num_buffers` 0 as
/// section 5.1.6.2 demands of transmitted packets.
///
/// # Safety
/// The [`HEADER_LEN`] bytes before `data` must be valid for writes, and `data` aligned to 8 bytes.
#[inline]
pub(crate) unsafe fn clear(data: *mut u8) {
    // SAFETY: the caller vouches for these bytes; data - 8 and data - 12 are aligned to 8 and 4.
    unsafe {
        let (tail, head) = (data.sub(8).cast::<u64>(), data.sub(12).cast::<u32>());
        // Mostly it is zero already, and a line that nobody writes stays in both caches.
        if tail.read_volatile() != 0 {
            tail.write_volatile(0);
        }
        if head.read_volatile() != 0 {
            head.write_volatile(0);
        }
    }
}

/// Asks the cache for the header in front of `data`.
#[inline]
pub(crate) fn prefetch(data: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the cache, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(data.wrapping_sub(HEADER_LEN).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// `num_buffers`: over how many buffers a received packet is spread (section 5.1.6.4).
///
/// # Safety
/// The [`HEADER_LEN`] bytes before `data` must be valid for reads, and `data` aligned to 2 bytes.
#[inline]
pub(crate) unsafe fn num_buffers(data: *const u8) -> u16 {
    // SAFETY: the caller vouches for these bytes; one volatile read, whatever the device does meanwhile.
    u16::from_le(unsafe { data.sub(2).cast::<u16>().read_volatile() })
}
