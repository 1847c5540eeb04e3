//! What the stack stands on: something that carries Ethernet frames.

use crate::net::{Burst, Mac, Port, SendStop, Wake};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ops::Deref;
use std::time::Duration;

/// Frames in private memory, in order. The storage of frames that are done with is used again.
#[derive(Debug, Default)]
pub struct Frames {
    queue: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Frames {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
    /// Adds a frame of `length` bytes, which `write` writes.
    pub fn push_with<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut frame = self.spare.pop().unwrap_or_default();
        // Never the bytes of an earlier frame, should `write` leave some out.
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
    /// Takes the first frame out; [`Self::recycle`] takes its storage back.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.queue.pop_front()
    }
    /// Keeps the storage of a frame for another.
    pub fn recycle(&mut self, frame: Vec<u8>) {
        self.spare.push(frame);
    }
    /// The last `count` frames.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.queue.range(self.queue.len().saturating_sub(count)..).map(Vec::as_slice)
    }
    /// The last `count` frames, to be changed.
    pub(super) fn last_mut(&mut self, count: usize) -> impl Iterator<Item = &mut Vec<u8>> {
        let first = self.queue.len().saturating_sub(count);
        self.queue.range_mut(first..)
    }
    /// All frames, side by side.
    pub(super) fn all(&mut self) -> &[Vec<u8>] {
        self.queue.make_contiguous()
    }
    /// Forgets the first `count` frames.
    pub(super) fn done(&mut self, count: usize) {
        let count = count.min(self.queue.len());
        self.spare.extend(self.queue.drain(..count));
    }
}

/// Carries Ethernet frames to and from the stack: a [`Port`], or whatever stands in for one.
///
/// Errors of a link end the call of the stack that met them, unchanged.
pub trait Link {
    /// The address that frames for the stack have.
    fn mac(&self) -> Mac;
    /// The longest IP packet, bytes.
    fn mtu(&self) -> u16;
    /// Appends up to `max` received frames; 0 when there is none now.
    ///
    /// # Errors
    /// As for [`Port::recv`].
    fn recv(&self, max: usize, frames: &mut Frames) -> Result<usize>;
    /// Waits until [`Self::recv`] may find a frame.
    ///
    /// # Errors
    /// As for [`Port::wait`].
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake>;
    /// Queues frames, in order, as many as fit now; says how many.
    ///
    /// # Errors
    /// As for [`Port::send`], and [`Error::Invalid`] for a frame that the link never takes.
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
            // The stack looks at bytes more than once, and the packet memory may change between
            // two looks: it gets a copy.
            // SAFETY: `from` is a buffer of the burst with `length` bytes; it is ours until the
            // burst is dropped. `to` has `length` bytes and is private, so it is no part of it.
            frames.push_with(length, |to| unsafe {
                std::ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), length);
                // A checksum outside the frame: the stack will not find a right one.
                let _ = burst.offload(index).map(|left| left.complete(to.as_mut_ptr(), length));
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
