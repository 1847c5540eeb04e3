//! Links: what carries a stack's Ethernet frames.

use crate::net::{Burst, Mac, Port, SendStop, Wake};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ops::Deref;
use std::time::Duration;

/// A queue of frames in private memory. It reuses the storage of processed frames.
#[derive(Debug, Default)]
pub struct Frames {
    queue: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Frames {
    /// The number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }
    /// Whether there are no frames.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
    /// Adds a frame of `length` bytes, filled in by `write`.
    pub fn push_with<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut frame = self.spare.pop().unwrap_or_default();
        // `write` may leave gaps; these must not show an earlier frame.
        frame.clear();
        frame.resize(length, 0);
        let result = write(&mut frame);
        self.queue.push_back(frame);
        result
    }
    /// Adds a copy of a frame.
    pub fn push(&mut self, frame: &[u8]) {
        self.push_with(frame.len(), |bytes| bytes.copy_from_slice(frame));
    }
    /// Removes the first frame. Return its storage with [`Self::recycle`].
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.queue.pop_front()
    }
    /// Keeps the storage of a frame for reuse.
    pub fn recycle(&mut self, frame: Vec<u8>) {
        self.spare.push(frame);
    }
    /// The last `count` frames.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.queue.range(self.queue.len().saturating_sub(count)..).map(Vec::as_slice)
    }
    /// The last `count` frames, mutable.
    pub(super) fn last_mut(&mut self, count: usize) -> impl Iterator<Item = &mut Vec<u8>> {
        let first = self.queue.len().saturating_sub(count);
        self.queue.range_mut(first..)
    }
    /// All frames.
    pub(super) fn all(&mut self) -> &[Vec<u8>] {
        self.queue.make_contiguous()
    }
    /// Removes the first `count` frames.
    pub(super) fn done(&mut self, count: usize) {
        let count = count.min(self.queue.len());
        self.spare.extend(self.queue.drain(..count));
    }
}

/// Carries Ethernet frames to and from the stack: a [`Port`] or a fake.
///
/// A call of the stack returns the errors of its link unchanged.
pub trait Link {
    /// The stack's MAC address.
    fn mac(&self) -> Mac;
    /// The longest IP packet in bytes.
    fn mtu(&self) -> u16;
    /// Appends up to `max` received frames. Returns how many; does not wait.
    ///
    /// # Errors
    /// As for [`Port::recv`].
    fn recv(&self, max: usize, frames: &mut Frames) -> Result<usize>;
    /// Waits until [`Self::recv`] may find a frame.
    ///
    /// # Errors
    /// As for [`Port::wait`].
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake>;
    /// Queues as many frames as fit, in order. Returns how many.
    ///
    /// # Errors
    /// As for [`Port::send`], and [`Error::Invalid`] for a frame that can never be sent.
    fn send(&self, frames: &[Vec<u8>]) -> Result<usize>;
}

impl Link for Port {
    fn mac(&self) -> Mac {
        Self::mac(self)
    }
    fn mtu(&self) -> u16 {
        self.config().mtu
    }
    fn recv(&self, max: usize, frames: &mut Frames) -> Result<usize> {
        let mut burst = Burst::new(self.pool().clone());
        let received = Port::recv(self, max, &mut burst)?;
        for index in 0..burst.len() {
            let Some((from, length)) = burst.frame(index) else { continue };
            // The stack reads bytes more than once and shared memory may change in between, so it
            // gets a copy.
            frames.push_with(length, |to| {
                // SAFETY: `from` is a buffer of the burst with `length` bytes, ours until the burst is
                // dropped. `to` has `length` bytes and is private memory, so they do not overlap.
                unsafe {
                    std::ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), length)
                };
                // smoltcp verifies checksums.
                burst.receive_offload(index).finish(to);
            });
        }
        Ok(received)
    }
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        Port::wait(self, timeout)
    }
    fn send(&self, mut frames: &[Vec<u8>]) -> Result<usize> {
        match Port::send(self, &mut frames)? {
            (_, Some(SendStop::BadFrame(why))) => {
                Err(Error::Invalid(format!("a frame of the stack cannot be sent: {why}")))
            }
            (queued, _) => Ok(queued),
        }
    }
}

impl<P: Deref<Target: Link>> Link for P {
    fn mac(&self) -> Mac {
        (**self).mac()
    }
    fn mtu(&self) -> u16 {
        (**self).mtu()
    }
    fn recv(&self, max: usize, frames: &mut Frames) -> Result<usize> {
        (**self).recv(max, frames)
    }
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        (**self).wait(timeout)
    }
    fn send(&self, frames: &[Vec<u8>]) -> Result<usize> {
        (**self).send(frames)
    }
}
