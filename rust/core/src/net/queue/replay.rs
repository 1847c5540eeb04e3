//! Frames that are sent repeatedly.

use super::Common;
use crate::memory::{BufferId, Iova, Pool};
use crate::net::packet::header;
use crate::net::stats::classes::Class;
use std::collections::VecDeque;

/// Marks a ring's token as an index into the replay.
const FROM_MAGAZINE: u32 = 1 << 31;

/// Buffers with frames that are sent repeatedly.
#[derive(Debug)]
pub(crate) struct Replay {
    ids: Vec<BufferId>,
    lengths: Vec<u32>,
    /// The device only reads them, so that their classes stay.
    classes: Vec<Class>,
    /// Indices of those that are not with the device, longest first.
    ready: VecDeque<u32>,
    /// Set when no more are to be sent: returned buffers go to the pool.
    ended: bool,
    /// Number of its buffers that have not gone to the pool.
    kept: usize,
}

impl Replay {
    /// Buffers of the pool that the caller owned, and the lengths of the frames in them.
    pub(crate) fn new(pool: &Pool, ids: Vec<BufferId>, lengths: Vec<u32>) -> Self {
        let each = ids.iter().zip(&lengths);
        let classes = each.map(|(&id, &length)| Class::of(pool, id, length)).collect();
        let ready = (0..ids.len() as u32).collect();
        let kept = ids.len();
        Self { ids, lengths, classes, ready, ended: false, kept }
    }

    /// Clears the offload metadata of all frames.
    pub(super) fn clear_headers(&self, common: &Common) {
        for &id in &self.ids {
            // SAFETY: the replay owns its buffers; their data is 64-byte aligned and has
            // DATA_OFFSET (64) bytes in front.
            unsafe { header::clear(common.pool.data_ptr(id), common.header_len) };
        }
    }

    /// Sends up to `most` frames; returns their number and bytes.
    #[inline]
    pub(super) fn send(&mut self, common: &mut Common, most: usize) -> (usize, u64) {
        self.post(common, most, true)
    }

    /// Sends up to `most` frames, each written into its buffer before: `write` gets the buffer's
    /// index among the replay's, and says how long the frame is, which is at most what it holds.
    /// It is called for frames that are sent, and no others. Returns their number and bytes.
    #[inline]
    pub(super) fn send_written(
        &mut self,
        common: &mut Common,
        most: usize,
        mut write: impl FnMut(usize, *mut u8) -> u32,
    ) -> (usize, u64) {
        let Self { ids, lengths, ready, .. } = self;
        // The ring takes as many buffers as it has free descriptors.
        let most = most.min(ready.len()).min(common.ring.free());
        let pool = &common.pool;
        // A loop of its own, with little else in registers: the frames first, the ring after them.
        for &index in ready.iter().take(most) {
            let index = index as usize;
            let (Some(&id), Some(length)) = (ids.get(index), lengths.get_mut(index)) else {
                break;
            };
            let (data, _) = pool.data(id);
            *length = write(index, data);
        }
        self.post(common, most, false)
    }

    /// Gives up to `most` buffers to the device; `classed` says whether their frames are those that
    /// they were loaded with.
    #[inline]
    fn post(&mut self, common: &mut Common, most: usize, classed: bool) -> (usize, u64) {
        let Self { ids, lengths, classes, ready, .. } = self;
        let pool = &common.pool;
        let header_len = common.header_len;
        let most = most.min(ready.len());
        let mut bytes = 0u64;
        let added = common.ring.add(false, most, |i| {
            let index = ready[i];
            let length = lengths[index as usize];
            bytes += u64::from(length);
            let header = pool.data_iova(ids[index as usize]).0.wrapping_sub(header_len as u64);
            (index | FROM_MAGAZINE, Iova(header), length + header_len as u32)
        });
        if added > 0 {
            common.publish();
            if common.stats.watch.on() {
                let frame = |i: usize| {
                    let index = ready[i] as usize;
                    (ids[index], lengths[index])
                };
                let class = |i: usize| classes[ready[i] as usize];
                let known: Option<&dyn Fn(usize) -> Class> =
                    if classed { Some(&class) } else { None };
                common.stats.watch.see(&common.pool, added, frame, known);
            }
            ready.drain(..added);
            common.stats.packets.add(added as u64);
            common.stats.bytes.add(bytes);
            common.show_use();
        }
        (added, bytes)
    }

    /// How many of its frames are not with the device.
    #[inline]
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Whether a ring's token is of a replay's buffer.
    #[inline]
    pub(super) fn issued(token: u32) -> bool {
        token & FROM_MAGAZINE != 0
    }

    /// Takes a buffer back from the device.
    #[inline]
    pub(super) fn take_back(&mut self, token: u32) {
        self.ready.push_back(token & !FROM_MAGAZINE);
    }

    /// Ends sending.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Once ended, returns buffers to the pool; whether none are left.
    pub(super) fn retire(&mut self, pool: &Pool) -> bool {
        if !self.ended {
            return false;
        }
        let back: Vec<BufferId> =
            self.ready.drain(..).map(|index| self.ids[index as usize]).collect();
        pool.give(&back);
        self.kept -= back.len();
        self.kept == 0
    }
}
