//! The flags of a packed ring (VIRTIO 1.3, section 2.8).

/// Descriptor flags (2.8.1 and 2.8.6), shifted to their place in the second word.
pub(super) const NEXT: u64 = 1 << 48;
pub(super) const WRITE: u64 = 2 << 48;
pub(super) const INDIRECT: u64 = 4 << 48;
pub(super) const AVAIL: u64 = 1 << (48 + 7);
pub(super) const USED: u64 = 1 << (48 + 15);

/// Event suppression flags (2.8.14), above the offset and the wrap counter.
pub(super) const ENABLE: u32 = 0;
pub(super) const DISABLE: u32 = 1 << 16;
pub(super) const DESC: u32 = 2 << 16;
pub(super) const EVENT_FLAGS: u32 = 3 << 16;
pub(super) const EVENT_WRAP: u16 = 1 << 15;
