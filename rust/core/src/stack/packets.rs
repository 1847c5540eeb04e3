//! Queues of frames between a wire and the stack, with their offload metadata.

use crate::net::{FrameBuffer, FrameSource, Offload};
use std::collections::VecDeque;

/// The storage of this many frames is kept for reuse.
const SPARE: usize = 128;
/// The longest headers. The payload after them is always written completely.
const HEADERS: usize = 128;

/// A frame in private memory.
#[derive(Debug, Default)]
pub struct Packet {
    /// The frame, starting with the Ethernet header.
    pub bytes: Vec<u8>,
    /// Its offload metadata.
    pub offload: Offload,
}

/// A queue of frames. It reuses the storage of processed frames.
#[derive(Debug, Default)]
pub struct Packets {
    queue: VecDeque<Packet>,
    spare: Vec<Vec<u8>>,
}

impl Packets {
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
    pub fn push_with<R>(
        &mut self,
        length: usize,
        offload: Offload,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut bytes = self.spare.pop().unwrap_or_default();
        if bytes.len() < length {
            bytes.resize(length, 0);
        } else {
            bytes.truncate(length);
        }
        // `write` may leave gaps in the headers; these must not show an earlier frame.
        bytes[..length.min(HEADERS)].fill(0);
        let result = write(&mut bytes);
        self.queue.push_back(Packet { bytes, offload });
        result
    }
    /// Adds a copy of a frame.
    pub fn push(&mut self, frame: &[u8]) {
        self.push_with(frame.len(), Offload::NONE, |bytes| bytes.copy_from_slice(frame));
    }
    /// The last frame.
    pub(super) fn last_mut(&mut self) -> Option<&mut Packet> {
        self.queue.back_mut()
    }
    /// Removes the first frame. Return its storage with [`Self::recycle`].
    pub fn pop(&mut self) -> Option<Packet> {
        self.queue.pop_front()
    }
    /// Keeps the storage of a frame for reuse.
    pub fn recycle(&mut self, packet: Packet) {
        if self.spare.len() < SPARE {
            self.spare.push(packet.bytes);
        }
    }
    /// The frames in order.
    pub fn iter(&self) -> impl Iterator<Item = &Packet> {
        self.queue.iter()
    }
    /// Removes the first `count` frames.
    pub(super) fn done(&mut self, count: usize) {
        for _ in 0..count {
            let Some(packet) = self.queue.pop_front() else { break };
            self.recycle(packet);
        }
    }
    /// Moves all frames of `other` to the end of this queue, and gives it spare storage in exchange.
    pub(super) fn append(&mut self, other: &mut Self) {
        self.queue.append(&mut other.queue);
        while other.spare.len() < SPARE
            && let Some(bytes) = self.spare.pop()
        {
            other.spare.push(bytes);
        }
    }
}

/// A [`FrameSource`] of queued frames.
#[derive(Debug)]
pub(super) struct Source<'a> {
    packets: std::collections::vec_deque::Iter<'a, Packet>,
    last: Offload,
    describes: bool,
}

impl<'a> Source<'a> {
    /// `describes`: whether the device gets the offload metadata.
    pub(super) fn new(packets: &'a Packets, describes: bool) -> Self {
        Self { packets: packets.queue.iter(), last: Offload::NONE, describes }
    }
}

impl FrameSource for Source<'_> {
    fn more(&mut self) -> bool {
        self.packets.len() > 0
    }
    fn next(&mut self, buffer: &mut FrameBuffer<'_>) -> Result<usize, String> {
        let Some(packet) = self.packets.next() else {
            return Err("no frame is left".to_owned());
        };
        self.last = packet.offload;
        buffer.fill(&packet.bytes)
    }
    fn describes(&self) -> bool {
        self.describes
    }
    fn offload(&self) -> Offload {
        self.last
    }
}
