//! The device side of virtqueues in this process, for tests and benchmarks.
//!
//! [`SplitDevice`] and [`PackedDevice`] share no code with the driver, only the ring's memory. They take
//! chains in the order in which they were made available, use them in any order, control kicks and
//! report whether an interrupt is due. [`View`] and [`Device::fields`] allow writing invalid values.
//!
//! A bug of the driver, such as an address outside the region or an endless chain, panics with the
//! reason.

mod packed;
mod split;
mod view;

pub use packed::PackedDevice;
pub use split::SplitDevice;
pub use view::{Field, View, Width};

use super::RingOptions;
use crate::memory::{Iova, Region};
use std::sync::Arc;

/// One part of a chain: memory that the device reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its address.
    pub iova: Iova,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A chain that the driver made available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its head descriptor (split) or buffer id (packed).
    pub id: u16,
    /// Its number of descriptors in the ring.
    pub descriptors: u16,
    /// Its parts, those of an indirect table included.
    pub parts: Vec<Part>,
}

impl Chain {
    /// Bytes that the device may write.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.parts.iter().filter(|part| part.writable).map(|part| part.len).sum()
    }
}

/// The device side of a virtqueue.
pub trait Device: Sized {
    /// Creates a device for an empty ring. Kicks are enabled.
    fn new(region: &Arc<Region>, addresses: (Iova, Iova, Iova), options: &RingOptions) -> Self;

    /// Takes the next available chain.
    fn take(&mut self) -> Option<Chain>;

    /// Adds a used chain; the driver sees it after [`Device::flush`].
    fn put(&mut self, chain: &Chain, written: u32) {
        self.put_raw(chain.id.into(), written, chain.descriptors);
    }

    /// Adds several used chains, in the order in which they were taken, as one batch of which only the
    /// last is reported (`VIRTIO_F_IN_ORDER`).
    fn put_batch(&mut self, chains: &[Chain], written: u32);

    /// Adds a used entry with any id and length; advances by `descriptors` (packed) or one entry (split).
    fn put_raw(&mut self, id: u32, len: u32, descriptors: u16);

    /// Publishes the used entries. Returns whether the driver wants an interrupt for them.
    fn flush(&mut self) -> bool;

    /// Takes up to `max` chains of one descriptor, uses each at once and in order, writable ones to
    /// their full length, then flushes, like a fast device. Returns their number.
    fn echo(&mut self, max: usize) -> usize;

    /// Enables a kick for the next available chain. Returns true if one is available already.
    fn enable_kicks(&mut self) -> bool;

    /// Disables kicks.
    fn disable_kicks(&mut self);

    /// Access to any byte of the region.
    fn view(&self) -> &View;

    /// Every field that a device may write: the device area, and the descriptors of a packed ring.
    fn fields(&self) -> Vec<Field>;

    /// Takes all available chains.
    fn take_all(&mut self) -> Vec<Chain> {
        std::iter::from_fn(|| self.take()).collect()
    }
}
