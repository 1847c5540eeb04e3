//! Virtqueues as the driver sees them (VIRTIO 1.3, sections 2.7 and 2.8).
//!
//! [`SplitRing`] and [`PackedRing`] implement one trait, [`Ring`], that costs
//! nothing at run time: the data path is generic over it and the closures that
//! name buffers and take completions are inlined.
//!
//! A ring moves *tokens*: the caller gives one with each buffer or chain and
//! gets it back when the device has used it. What the driver must remember
//! (free identifiers, tokens, chain lengths, capacities) lives in private
//! memory (`slots`, `fifo`); whatever the device writes is checked against
//! it, and a device that breaks a rule poisons the ring with a [`Violation`].
//! Shared memory is reached through `shared` alone: atomics, indices masked.

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

/// What a ring shall be; the features are those that were negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Descriptors: a power of two for a split ring, any number for a packed one; up to 32,768.
    pub size: u16,
    /// `VIRTIO_F_EVENT_IDX`: notifications are asked for by position.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`: a chain may take one descriptor and a table.
    pub indirect: bool,
    /// `VIRTIO_F_IN_ORDER`: the device uses buffers in the order they were made available.
    pub in_order: bool,
}

impl RingOptions {
    /// A ring of this size with no feature negotiated.
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

/// The driver's side of a virtqueue.
///
/// A new ring asks for no interrupts. Memory that a buffer names stays the
/// device's from [`Ring::publish`] until its token comes back from
/// [`Ring::pop`] or [`Ring::reset`]. Lengths must not be zero: devices reject
/// empty descriptors.
pub trait Ring: Sized {
    /// Allocates an empty ring in the region.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size the format cannot have, [`Error::MemoryUnavailable`]
    /// when the region has no room for it.
    fn new(region: &Arc<Region>, options: &RingOptions) -> Result<Self>;

    /// Descriptors in all.
    fn size(&self) -> u16;

    /// Where the descriptors, the driver area and the device area lie, as the
    /// transport tells the device.
    fn addresses(&self) -> (Iova, Iova, Iova);

    /// Descriptors that may still be added; 0 when the ring is poisoned.
    fn free(&self) -> usize;

    /// Buffers and chains that are with the device: published and not yet popped.
    fn in_flight(&self) -> usize;

    /// Adds up to `count` buffers of one descriptor each: `buffer(i)` is the
    /// token, address and length of the `i`th. Stops when the ring is full and
    /// says how many were added. The device sees none of them before [`Ring::publish`].
    fn add(
        &mut self,
        writable: bool,
        count: usize,
        buffer: impl FnMut(usize) -> (u32, Iova, u32),
    ) -> usize;

    /// Adds one chain: the parts that the device reads, then those it writes.
    /// Takes an indirect table where that was negotiated and saves descriptors.
    /// False, and nothing changed, when it is empty or does not fit now.
    fn add_chain(&mut self, token: u32, readable: &[(Iova, u32)], writable: &[(Iova, u32)])
    -> bool;

    /// Makes everything added visible, with one release store, and says whether
    /// the device wants a kick for it.
    ///
    /// The question needs a full fence, once per call: the device may be about
    /// to sleep. [`Ring::publish_quiet`] leaves the question to a later
    /// [`Ring::wants_kick`].
    #[inline]
    fn publish(&mut self) -> bool {
        self.publish_quiet();
        self.wants_kick()
    }

    /// Makes everything added visible and asks nothing.
    ///
    /// Until [`Ring::wants_kick`] has been called afterwards, a device that
    /// sleeps is not woken: call that at the latest before waiting for anything.
    fn publish_quiet(&mut self);

    /// Whether the device wants a kick for what was published since this was
    /// last asked. False, without a fence, when nothing was.
    fn wants_kick(&mut self) -> bool;

    /// Where the next buffer goes, as notifications say it (section 2.9, `VIRTIO_F_NOTIFICATION_DATA`):
    /// the available index of a split ring; the offset of the next descriptor of a packed one, and
    /// in bit 15 the wrap counter.
    fn next_available(&self) -> u16;

    /// Takes up to `max` used buffers or chains, in the order the device used
    /// them: `used(token, written)` each. `written` is the number of bytes that
    /// the device says it wrote, at most the writable length of that chain; 0
    /// where it had none. With `VIRTIO_F_IN_ORDER` a device may report a whole
    /// batch by its last buffer; the others count as written completely
    /// (sections 2.7.9 and 2.8.9).
    ///
    /// # Errors
    /// The rule that the device broke. Tokens handed to `used` before that were
    /// used rightly. The ring is poisoned: from then on nothing can be added
    /// and this returns the same violation, until [`Ring::reset`].
    fn pop(&mut self, max: usize, used: impl FnMut(u32, u32)) -> Result<usize, Violation>;

    /// Whether [`Ring::pop`] would find something now; a cheap look.
    fn has_used(&self) -> bool;

    /// How many buffers of one descriptor each the device has used that were not popped; those that
    /// it left out before others count as well. Not with `VIRTIO_F_IN_ORDER` in a packed ring.
    fn used(&self) -> usize;

    /// Asks for an interrupt on the next used buffer. True when there may be one
    /// already: pop again before waiting, or its interrupt never comes.
    fn enable_interrupts(&mut self) -> bool;

    /// Asks for an interrupt once `n` more (at most all in flight) have been
    /// used, where `VIRTIO_F_EVENT_IDX` makes that possible; else on the next.
    /// True when that may have happened already: pop again before waiting.
    fn enable_interrupts_after(&mut self, n: u16) -> bool;

    /// Asks for no interrupts; a hint, some may still come.
    fn disable_interrupts(&mut self);

    /// Starts over with an empty ring, at the same addresses; every token that
    /// the ring held goes to `returned`. Only after the device or the queue was
    /// reset, because the device must no longer look at the ring.
    fn reset(&mut self, returned: impl FnMut(u32));

    /// The device is gone, and another will go on behind the last buffer that it has used: has it find
    /// there what it has not used, and nothing else.
    ///
    /// A device need not use buffers in order, without `VIRTIO_F_IN_ORDER`. Then the next, which
    /// counts on order, would get again what was used, and miss the rest. The descriptors of a
    /// packed ring are overwritten by used ones, so that some of the rest may be known by their ids
    /// only: these come back as used, with this length. So do those of which the device had
    /// written the id and the length, but not yet the flags: what is available there is too short, or
    /// nothing. `posted` says where the buffer of a token lies, as far as that is known.
    ///
    /// For rings whose buffers are of one descriptor each. Changes nothing where the device broke a
    /// rule, for [`Ring::pop`] to find.
    fn reoffer(&mut self, length: u32, posted: impl Fn(u32) -> Option<Iova>);

    /// The violation that poisoned the ring.
    fn poisoned(&self) -> Option<Violation>;

    /// What tells another thread how far the device has come.
    fn follower(&self) -> Follower;
}
