//! A ring of either format, or none.

use crate::Result;
use crate::memory::{Iova, Region};
use crate::virtio::ring::{Follower, PackedRing, Ring, RingOptions, SplitRing, Violation};
use std::sync::Arc;

/// Either ring. One branch per burst selects the code compiled for it.
/// The layout of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFormat {
    /// Section 2.7.
    Split,
    /// Section 2.8.
    Packed,
}

#[derive(Debug)]
pub(in crate::net) enum AnyRing {
    Split(SplitRing),
    Packed(PackedRing),
    /// Its port was closed, and its memory freed.
    Ended(NoRing),
}

/// A ring without memory: nothing goes in, and nothing comes out.
#[derive(Debug)]
pub(in crate::net) struct NoRing {
    size: u16,
}

macro_rules! each {
    ($any:expr, $ring:ident => $body:expr) => {
        match $any {
            AnyRing::Split($ring) => $body,
            AnyRing::Packed($ring) => $body,
            AnyRing::Ended($ring) => $body,
        }
    };
}

impl AnyRing {
    pub(in crate::net) fn new(
        packed: bool,
        region: &Arc<Region>,
        options: &RingOptions,
    ) -> Result<Self> {
        Ok(if packed {
            Self::Packed(PackedRing::new(region, options)?)
        } else {
            Self::Split(SplitRing::new(region, options)?)
        })
    }
    /// Frees its memory, which no device accesses any more. It must be empty.
    pub(in crate::net) fn end(&mut self) {
        *self = Self::Ended(NoRing { size: self.size() });
    }
    pub(in crate::net) fn addresses(&self) -> (Iova, Iova, Iova) {
        each!(self, ring => ring.addresses())
    }
    pub(in crate::net) fn size(&self) -> u16 {
        each!(self, ring => ring.size())
    }
    pub(super) fn follower(&self) -> Follower {
        each!(self, ring => ring.follower())
    }
    pub(super) fn free(&self) -> usize {
        each!(self, ring => ring.free())
    }
    pub(in crate::net) fn has_used(&self) -> bool {
        each!(self, ring => ring.has_used())
    }
    pub(super) fn in_flight(&self) -> usize {
        each!(self, ring => ring.in_flight())
    }
    /// See [`Ring::used`].
    pub(super) fn used(&self) -> usize {
        each!(self, ring => ring.used())
    }
    pub(super) fn enable_interrupts(&mut self) -> bool {
        each!(self, ring => ring.enable_interrupts())
    }
    pub(super) fn enable_interrupts_after(&mut self, n: u16) -> bool {
        each!(self, ring => ring.enable_interrupts_after(n))
    }
    pub(in crate::net) fn disable_interrupts(&mut self) {
        each!(self, ring => ring.disable_interrupts());
    }
    #[inline]
    pub(super) fn add(
        &mut self,
        writable: bool,
        count: usize,
        buffer: impl FnMut(usize) -> (u32, Iova, u32),
    ) -> usize {
        each!(self, ring => ring.add(writable, count, buffer))
    }
    #[inline]
    pub(in crate::net) fn pop(
        &mut self,
        max: usize,
        used: impl FnMut(u32, u32),
    ) -> Result<usize, Violation> {
        each!(self, ring => ring.pop(max, used))
    }
    #[inline]
    pub(in crate::net) fn add_chain(
        &mut self,
        token: u32,
        readable: &[(Iova, u32)],
        writable: &[(Iova, u32)],
    ) -> bool {
        each!(self, ring => ring.add_chain(token, readable, writable))
    }
    /// See [`Ring::next_available`].
    pub(in crate::net) fn next_available(&self) -> u16 {
        each!(self, ring => ring.next_available())
    }
    pub(in crate::net) fn publish(&mut self) -> bool {
        each!(self, ring => ring.publish())
    }
    /// See [`Ring::reoffer`].
    pub(super) fn reoffer(&mut self, length: u32, posted: impl Fn(u32) -> Option<Iova>) {
        each!(self, ring => ring.reoffer(length, posted));
    }
    pub(in crate::net) fn reset(&mut self, returned: impl FnMut(u32)) {
        each!(self, ring => ring.reset(returned));
    }
}

impl NoRing {
    fn addresses(&self) -> (Iova, Iova, Iova) {
        (Iova(0), Iova(0), Iova(0))
    }
    fn size(&self) -> u16 {
        self.size
    }
    fn follower(&self) -> Follower {
        Follower::of_none()
    }
    fn free(&self) -> usize {
        0
    }
    fn has_used(&self) -> bool {
        false
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn used(&self) -> usize {
        0
    }
    fn enable_interrupts(&self) -> bool {
        false
    }
    fn enable_interrupts_after(&self, _: u16) -> bool {
        false
    }
    fn disable_interrupts(&self) {}
    fn add(&self, _: bool, _: usize, _: impl FnMut(usize) -> (u32, Iova, u32)) -> usize {
        0
    }
    fn pop(&self, _: usize, _: impl FnMut(u32, u32)) -> Result<usize, Violation> {
        Ok(0)
    }
    fn add_chain(&self, _: u32, _: &[(Iova, u32)], _: &[(Iova, u32)]) -> bool {
        false
    }
    fn next_available(&self) -> u16 {
        0
    }
    fn publish(&self) -> bool {
        false
    }
    fn reoffer(&self, _: u32, _: impl Fn(u32) -> Option<Iova>) {}
    fn reset(&self, _: impl FnMut(u32)) {}
}
