//! The header in front of each packet, `struct virtio_net_hdr` (section 5.1.6).
//!
//! ```text
//!  0 flags  1 gso_type  2 hdr_len  4 gso_size  6 csum_start  8 csum_offset  10 num_buffers
//!  and with HASH_REPORT negotiated: 12 hash_value  16 hash_report  18 padding
//! ```
//! The device writes it directly in front of the packet, so its start depends on its length.

use crate::net::packet::offload::Offload;
use crate::virtio::Features;

/// Bytes of the header with VERSION_1 (`num_buffers` is always there).
pub const HEADER_LEN: usize = 12;
/// Bytes of the header with HASH_REPORT as well.
pub const HASH_HEADER_LEN: usize = 20;

/// Clears the header in front of `data`: no offload, and `num_buffers` 0 as section 5.1.6.2
/// requires for transmitted packets.
///
/// # Safety
/// The `length` (12 or 20) bytes before `data` must be valid for writes, and `data` aligned to 8
/// bytes.
#[inline]
pub(crate) unsafe fn clear(data: *mut u8, length: usize) {
    // SAFETY: the caller vouches for these bytes; data - 8 is aligned to 8,
    // the others to 4.
    unsafe {
        let (tail, head) = (data.sub(8).cast::<u64>(), data.sub(12).cast::<u32>());
        // It is usually zero already, and an unwritten cache line stays in both caches.
        if tail.read_volatile() != 0 {
            tail.write_volatile(0);
        }
        if head.read_volatile() != 0 {
            head.write_volatile(0);
        }
        if length > HEADER_LEN {
            data.sub(16).cast::<u32>().write_volatile(0);
            data.sub(20).cast::<u32>().write_volatile(0);
        }
    }
}

/// Reads the front of the header: the offload metadata.
///
/// # Safety
/// The `length` (10, 12 or 20) bytes before `data` must be valid for reads, and `data` aligned to
/// 2 bytes.
pub(in crate::net) unsafe fn read(data: *const u8, length: usize) -> Offload {
    // SAFETY: the caller vouches for these bytes; each is read once, whatever the device does.
    let word = |at: usize| unsafe { data.sub(length).add(at).cast::<u16>().read_volatile() };
    let [flags, gso_type] = word(0).to_ne_bytes();
    let [hdr_len, gso_size, csum_start, csum_offset] =
        [2, 4, 6, 8].map(|at| u16::from_le(word(at)));
    Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset }
}

/// Writes a whole header: this front, and zeros.
///
/// # Safety
/// The `length` (10, 12 or 20) bytes before `data` must be valid for writes, and `data` aligned to
/// 2 bytes.
pub(in crate::net) unsafe fn write(data: *mut u8, length: usize, offload: Offload) {
    let Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = offload;
    let first = u16::from_ne_bytes([flags, gso_type]);
    let fields = [hdr_len, gso_size, csum_start, csum_offset].map(u16::to_le);
    // SAFETY: the caller vouches for these bytes.
    unsafe {
        let words = data.sub(length).cast::<u16>();
        words.write_volatile(first);
        for (at, field) in (1..).zip(fields) {
            words.add(at).write_volatile(field);
        }
        for at in 5..length / 2 {
            words.add(at).write_volatile(0);
        }
    }
}

/// `num_buffers`: the number of buffers of a received packet (section 5.1.6.4).
///
/// # Safety
/// The `length` (12 or 20) bytes before `data` must be valid for reads, and `data` aligned to 2
/// bytes.
#[inline]
pub(crate) unsafe fn num_buffers(data: *const u8, length: usize) -> u16 {
    // SAFETY: the caller vouches for these bytes; one volatile read, whatever the device does meanwhile.
    u16::from_le(unsafe { data.sub(length - 10).cast::<u16>().read_volatile() })
}

/// `hash_value` and `hash_report`: the hash of a received packet, and what it covers (section
/// 5.1.6.4.4).
///
/// # Safety
/// The [`HASH_HEADER_LEN`] bytes before `data` must be valid for reads, and `data` aligned to 4
/// bytes.
pub(crate) unsafe fn hash(data: *const u8) -> (u32, u16) {
    // SAFETY: the caller vouches for these bytes; volatile reads, whatever the device does.
    unsafe {
        let value = data.sub(8).cast::<u32>().read_volatile();
        let report = data.sub(4).cast::<u16>().read_volatile();
        (u32::from_le(value), u16::from_le(report))
    }
}

/// Copies the offload metadata from one of a frame's buffers to another.
///
/// # Safety
/// Both must be the caller's buffers.
pub(in crate::net) unsafe fn copy_header(from: *const u8, to: *mut u8, headers: usize) {
    if headers > 0 {
        // SAFETY: the data of a buffer is 64-byte aligned and has DATA_OFFSET (64) bytes in front.
        unsafe { write(to, headers, read(from, headers)) };
    }
}

/// What is in front of a burst's frames: nothing, or headers, with negotiated offload metadata or
/// without. In one byte, because every burst that is received compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::net) struct Front(u8);

impl Front {
    /// No header.
    pub(in crate::net) const NONE: Self = Self(0);
    const OFFLOADS: u8 = 0x80;

    /// Headers of this length (10, 12 or 20), with offload metadata.
    pub(in crate::net) fn with_offloads(length: usize) -> Self {
        Self(length as u8 | Self::OFFLOADS)
    }
    /// The headers of received frames.
    pub(in crate::net) fn of(accepted: Features, length: usize) -> Self {
        let any = accepted & Features::RECEIVE_OFFLOADS != Features::NONE;
        if any { Self::with_offloads(length) } else { Self(length as u8) }
    }
    /// Bytes of each header; 0 if there is none.
    #[inline]
    pub(in crate::net) fn len(self) -> usize {
        (self.0 & !Self::OFFLOADS).into()
    }
    /// Whether the headers have offload metadata.
    #[inline]
    pub(in crate::net) fn has_offloads(self) -> bool {
        self.0 & Self::OFFLOADS != 0
    }
}
