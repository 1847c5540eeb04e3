//! The device's side of a virtqueue, in this process: for tests and benchmarks.
//!
//! [`SplitDevice`] and [`PackedDevice`] follow the specification from the
//! device's side, with code of their own: they share nothing with the driver
//! but the ring's memory. They take chains in the order they were made
//! available, use them in any order, ask for kicks and answer whether an
//! interrupt is due. [`View`] and [`Device::fields`] are for telling lies.
//!
//! They are test tools: what would be a driver's bug, an address outside the
//! region or an endless chain, panics with the reason.

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
    /// Where it lies.
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
    /// Descriptors of the ring that it takes.
    pub descriptors: u16,
    /// Its parts; those of an indirect table in its place.
    pub parts: Vec<Part>,
}

impl Chain {
    /// Bytes that the device may write.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.parts.iter().filter(|part| part.writable).map(|part| part.len).sum()
    }
}

/// The device's side of a virtqueue.
pub trait Device: Sized {
    /// A device that starts at an empty ring. It asks for every kick.
    fn new(region: &Arc<Region>, addresses: (Iova, Iova, Iova), options: &RingOptions) -> Self;

    /// Takes the next available chain.
    fn take(&mut self) -> Option<Chain>;

    /// Puts a used chain after those used so far; the driver sees it after [`Device::flush`].
    fn put(&mut self, chain: &Chain, written: u32) {
        self.put_raw(chain.id.into(), written, chain.descriptors);
    }

    /// Puts several chains, in the order they were taken, as one batch: only
    /// the last is reported (`VIRTIO_F_IN_ORDER`).
    fn put_batch(&mut self, chains: &[Chain], written: u32);

    /// Puts a used entry with any id and length; goes on by `descriptors` (packed)
    /// or one entry (split).
    fn put_raw(&mut self, id: u32, len: u32, descriptors: u16);

    /// Makes what was put visible. True when the driver wants an interrupt for it.
    fn flush(&mut self) -> bool;

    /// Takes up to `max` chains of one descriptor and uses each at once, in
    /// order, writable ones to their full length, then flushes: what a fast
    /// device does to the ring. Says how many there were.
    fn echo(&mut self, max: usize) -> usize;

    /// Asks for a kick when the next chain becomes available. True when one is already.
    fn enable_kicks(&mut self) -> bool;

    /// Asks for no kicks.
    fn disable_kicks(&mut self);

    /// Access to any byte of the region.
    fn view(&self) -> &View;

    /// Every field that a device may write, as far as memory protects it from others: all of
    /// the device area, and in a packed ring the descriptors.
    fn fields(&self) -> Vec<Field>;

    /// Takes everything that is available.
    fn take_all(&mut self) -> Vec<Chain> {
        std::iter::from_fn(|| self.take()).collect()
    }
}
