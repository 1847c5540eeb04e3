//! The driver side of virtqueues (VIRTIO 1.3, sections 2.7 and 2.8).
//!
//! [`SplitRing`] and [`PackedRing`] implement the trait [`Ring`]. The data path is generic over it, so
//! its calls and closures are inlined.
//!
//! The caller adds each buffer or chain with a *token* and gets the token back once the device has used
//! it. The driver's records (free identifiers, tokens, chain lengths, capacities) are in private memory
//! (`slots`, `fifo`). Everything the device writes is checked against them; a device that breaks a rule
//! poisons the ring with a [`Violation`]. Only `shared` accesses shared memory: with atomics and masked
//! indices.

mod event;
mod fifo;
mod flags;
mod follower;
mod indirect;
mod packed;
mod reoffer;
mod shared;
mod slots;
mod split;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod violation;

pub use follower::Follower;
pub use packed::PackedRing;
pub use split::SplitRing;
pub use violation::Violation;

use crate::memory::{Iova, Region};
use crate::{Error, Result};
use std::sync::Arc;

/// The largest queue there can be (sections 2.7 and 2.8).
pub const MAX_SIZE: u16 = 32_768;

/// Properties of a ring: its size and negotiated features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Descriptors: a power of two for a split ring, any number for a packed one; up to 32,768.
    pub size: u16,
    /// `VIRTIO_F_EVENT_IDX`: notifications are requested by position.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`: a chain can use one descriptor and a table.
    pub indirect: bool,
    /// `VIRTIO_F_IN_ORDER`: the device uses buffers in the order in which they were made available.
    pub in_order: bool,
}

impl RingOptions {
    /// A ring of this size without features.
    #[must_use]
    pub fn new(size: u16) -> Self {
        Self { size, event_idx: false, indirect: false, in_order: false }
    }

    fn check(&self, power_of_two: bool) -> Result<()> {
        let fits = (1..=MAX_SIZE).contains(&self.size);
        if fits && (!power_of_two || self.size.is_power_of_two()) {
            return Ok(());
        }
        let wanted = if power_of_two { "a power of two from 1" } else { "from 1" };
        Err(Error::Invalid(format!("queue size {} is not {wanted} to {MAX_SIZE}", self.size)))
    }
}

/// The driver side of a virtqueue.
///
/// Interrupts of a new ring are disabled. The memory of a buffer belongs to the device from
/// [`Ring::publish`] until [`Ring::pop`] or [`Ring::reset`] returns its token. Lengths must not be
/// zero, as devices reject empty descriptors.
pub trait Ring: Sized {
    /// Allocates an empty ring in the region.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an invalid size, [`Error::MemoryUnavailable`] if the region has no room.
    fn new(region: &Arc<Region>, options: &RingOptions) -> Result<Self>;

    /// The number of descriptors.
    fn size(&self) -> u16;

    /// The addresses of the descriptors, the driver area and the device area.
    fn addresses(&self) -> (Iova, Iova, Iova);

    /// The number of free descriptors; 0 if the ring is poisoned.
    fn free(&self) -> usize;

    /// The number of buffers and chains that are with the device: published and not popped.
    fn in_flight(&self) -> usize;

    /// Adds up to `count` buffers of one descriptor each: `buffer(i)` returns the token, address and
    /// length of the `i`th. Stops when the ring is full. Returns the number of added buffers. The
    /// device sees them after [`Ring::publish`].
    fn add(
        &mut self,
        writable: bool,
        count: usize,
        buffer: impl FnMut(usize) -> (u32, Iova, u32),
    ) -> usize;

    /// Adds one chain: the parts that the device reads, then those that it writes. Uses an indirect
    /// table if negotiated. Returns false, without changes, if the chain is empty or does not fit.
    fn add_chain(&mut self, token: u32, readable: &[(Iova, u32)], writable: &[(Iova, u32)])
    -> bool;

    /// Publishes everything added, with one release store. Returns whether the device wants a kick.
    ///
    /// That check needs a full fence per call, as the device may be about to sleep.
    /// [`Ring::publish_quiet`] leaves the check to a later [`Ring::wants_kick`].
    #[inline]
    fn publish(&mut self) -> bool {
        self.publish_quiet();
        self.wants_kick()
    }

    /// Publishes everything added without checking whether the device wants a kick.
    ///
    /// A sleeping device is not woken until [`Ring::wants_kick`] is called, which must happen before
    /// the caller waits for anything.
    fn publish_quiet(&mut self);

    /// Whether the device wants a kick for what was published since the last call. Returns false,
    /// without a fence, if nothing was.
    fn wants_kick(&mut self) -> bool;

    /// The position of the next buffer for a notification (section 2.9, `VIRTIO_F_NOTIFICATION_DATA`):
    /// the available index of a split ring, or the offset of a packed ring's next descriptor with the
    /// wrap counter in bit 15.
    fn next_available(&self) -> u16;

    /// Takes up to `max` used buffers or chains in the order of use, and calls `used(token, written)`
    /// for each. `written` is the number of bytes that the device reports as written, at most the
    /// writable length of the chain. With `VIRTIO_F_IN_ORDER`, a device may report a whole batch by its
    /// last buffer; the others count as completely written (sections 2.7.9 and 2.8.9).
    ///
    /// # Errors
    /// The rule that the device broke. Tokens already passed to `used` are valid. The ring is poisoned:
    /// until [`Ring::reset`], nothing can be added and this returns the same violation.
    fn pop(&mut self, max: usize, used: impl FnMut(u32, u32)) -> Result<usize, Violation>;

    /// Whether [`Ring::pop`] would find something now. Cheap.
    fn has_used(&self) -> bool;

    /// The number of used and unpopped buffers, which have one descriptor each, including unused ones
    /// before the last used one. Not for a packed ring with `VIRTIO_F_IN_ORDER`.
    fn used(&self) -> usize;

    /// Enables an interrupt for the next used buffer. Returns true if one may be used already: then pop
    /// again before waiting, as no interrupt may come for it.
    fn enable_interrupts(&mut self) -> bool;

    /// Enables an interrupt after `n` more used buffers (at most all in flight); without
    /// `VIRTIO_F_EVENT_IDX`, for the next. Returns true if they may be used already: then pop again
    /// before waiting.
    fn enable_interrupts_after(&mut self, n: u16) -> bool;

    /// Disables interrupts. The device may still send some.
    fn disable_interrupts(&mut self);

    /// Empties the ring, at the same addresses, and passes every token that it held to `returned`. Only
    /// after a reset of the device or the queue, when the device does not access the ring.
    fn reset(&mut self, returned: impl FnMut(u32));

    /// Prepares the ring for a new device, which starts after the last used buffer, so that it finds
    /// exactly the unused buffers there. The old device must be gone.
    ///
    /// Without `VIRTIO_F_IN_ORDER`, a device may use buffers out of order. The next device, which
    /// assumes order, would get used buffers again and miss unused ones. Used descriptors of a packed
    /// ring overwrite available ones, so for some unused buffers only the id is known: these are
    /// returned as used, with `length`. So are descriptors of which the device had written the id and
    /// the length but not the flags. `posted` returns the address of a token's buffer, if known.
    ///
    /// Only for rings whose buffers have one descriptor each. Does nothing if the device broke a rule,
    /// which [`Ring::pop`] reports.
    fn reoffer(&mut self, length: u32, posted: impl Fn(u32) -> Option<Iova>);

    /// The violation that poisoned the ring.
    fn poisoned(&self) -> Option<Violation>;

    /// Observes the device's progress from another thread.
    fn follower(&self) -> Follower;
}
