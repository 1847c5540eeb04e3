//! Received frames that are spread over several buffers (`VIRTIO_NET_F_MRG_RXBUF`,
//! sections 5.1.6.3 and 5.1.6.4).
//!
//! The first buffer of a frame has the header, with the number of buffers in `num_buffers`; the
//! others contain only data. The pieces of such a frame are copied into one jumbo buffer as they
//! arrive, so that an incomplete frame does not keep common buffers from the device.
//!
//! A frame that fits no buffer is dropped here, counted, and reported once. Without the feature the
//! device would silently drop it.

use crate::memory::{BufferId, Pool, prefetch};
use crate::net::interrupts::too_long::TooLong;
use crate::net::packet::burst::Burst;
use crate::net::packet::header;
use crate::net::queue::Common;
use crate::{Error, Result};
use std::sync::Arc;

/// The number of headers prefetched before they are read.
const AHEAD: usize = 8;

/// Assembles frames from received buffers.
#[derive(Debug)]
pub(in crate::net) struct Merger {
    /// What the ring returned last; never grows beyond it.
    popped: Vec<(BufferId, u32)>,
    /// How many of them have been handled. The others wait for jumbo buffers.
    sorted: usize,
    /// The incomplete frame.
    partial: Option<Partial>,
    /// After how many more buffers the device ended of which they are: no frame goes on behind.
    end: Option<usize>,
    too_long: Arc<TooLong>,
}

/// An incomplete frame.
#[derive(Debug)]
struct Partial {
    /// The destination of its pieces; none if it is dropped, which has been counted.
    into: Option<BufferId>,
    /// Bytes so far, including the header.
    filled: usize,
    /// Missing buffers.
    missing: u16,
}

impl Merger {
    pub(in crate::net) fn new(ring_size: u16) -> Self {
        let popped = Vec::with_capacity(ring_size.into());
        Self { popped, sorted: 0, partial: None, end: None, too_long: Arc::default() }
    }

    /// The device is gone, and left so many buffers in the ring; the next knows nothing of a frame
    /// that it had begun.
    pub(in crate::net) fn end_behind(&mut self, buffers: usize) {
        self.end = Some(buffers);
    }

    /// Sets who is told of frames that fit no buffer.
    pub(in crate::net) fn tell(&mut self, too_long: Arc<TooLong>) {
        self.too_long = too_long;
    }

    /// Whether there are buffers from the ring that are not in a frame yet.
    #[inline]
    pub(in crate::net) fn has_more(&self) -> bool {
        self.sorted < self.popped.len()
    }

    /// Appends up to `max` frames to the burst; the buffers of merged ones go to the stash.
    ///
    /// One call takes at most half of the jumbo buffers, because the caller may still hold those of
    /// the previous call; further frames wait. A frame is dropped only if a call finds none free at
    /// the start: otherwise holding all of them would stop everything.
    #[inline(never)]
    pub(in crate::net) fn recv(
        &mut self,
        common: &mut Common,
        max: usize,
        burst: &mut Burst,
    ) -> Result<usize> {
        let mut jumbos = (common.pool.jumbo_count() / 2).max(1);
        let mut taken = self.sort(common, max, &mut jumbos, burst)?;
        while taken < max && !self.has_more() {
            if self.end == Some(0) {
                self.cut_off(common);
            }
            // No more than the requested frames need: the rest stays in the ring.
            let first = self.partial.as_ref().map_or(1, |partial| usize::from(partial.missing));
            let wanted = (first + (max - taken - 1)).min(self.end.unwrap_or(usize::MAX));
            self.popped.clear();
            self.sorted = 0;
            let popped = &mut self.popped;
            let result = common.ring.pop(wanted, |id, written| popped.push((id, written)));
            self.end = self.end.map(|end| end.saturating_sub(popped.len()));
            let sorted = self.sort(common, max - taken, &mut jumbos, burst);
            // Errors of the ring first, as they explain others.
            let popped = result?;
            taken += sorted?;
            if popped < wanted {
                break;
            }
        }
        Ok(taken)
    }

    /// Assembles up to `max` frames, up to `jumbos` of them merged, from what was popped; returns
    /// their number.
    fn sort(
        &mut self,
        common: &mut Common,
        max: usize,
        jumbos: &mut usize,
        burst: &mut Burst,
    ) -> Result<usize> {
        let Common { ring, pool, stats, stash, header_len, .. } = common;
        let header_len = *header_len;
        let (mut packets, mut bytes, mut empty) = (0, 0, 0);
        let mut fault = None;
        while packets < max
            && let Some(&(id, written)) = self.popped.get(self.sorted)
        {
            self.sorted += 1;
            if let Some(&(later, _)) = self.popped.get(self.sorted + AHEAD) {
                prefetch(pool.data_ptr(later).wrapping_sub(header_len));
            }
            let partial = match &mut self.partial {
                // The start of the next frame is unknown now.
                _ if fault.is_some() => {
                    stash.push(id);
                    continue;
                }
                Some(partial) => partial,
                None => {
                    let Some(length) = (written as usize).checked_sub(header_len) else {
                        stash.push(id);
                        fault = Some(short(written, header_len));
                        continue;
                    };
                    // SAFETY: the buffer came back from the device and is ours; its data is
                    // 64-byte aligned and has DATA_OFFSET (64) bytes in front.
                    match unsafe { header::num_buffers(pool.data_ptr(id), header_len) } {
                        1 => {
                            if length > 0 {
                                burst.push(id, length as u32);
                                packets += 1;
                                bytes += length as u64;
                            } else {
                                stash.push(id);
                                empty += 1;
                            }
                            continue;
                        }
                        count if count == 0 || count > ring.size() => {
                            stash.push(id);
                            fault = Some(impossible(count, ring.size()));
                            continue;
                        }
                        // A device that died may leave out the first buffer.
                        count if length == 0 => {
                            empty += 1;
                            self.partial.insert(Partial { into: None, filled: 0, missing: count })
                        }
                        count => {
                            let into = if *jumbos > 0 { pool.take_jumbo() } else { None };
                            match into {
                                Some(_) => *jumbos -= 1,
                                None if pool.jumbo_count() == 0 => self.too_long.drop_one(stats),
                                None if *jumbos == 0 || packets > 0 => {
                                    self.sorted -= 1;
                                    break;
                                }
                                None => stats.no_buffer.add(1),
                            }
                            self.partial.insert(Partial { into, filled: 0, missing: count })
                        }
                    }
                }
            };
            if !partial.append(pool, id, written as usize, header_len) {
                self.too_long.drop_one(stats);
            }
            stash.push(id);
            if partial.missing == 0 {
                let (into, length) = (partial.into, partial.filled.saturating_sub(header_len));
                self.partial = None;
                match into {
                    Some(into) if length > 0 => {
                        burst.push(into, length as u32);
                        packets += 1;
                        bytes += length as u64;
                    }
                    Some(into) => {
                        pool.give(&[into]);
                        empty += 1;
                    }
                    None => {}
                }
            }
        }
        if packets > 0 {
            stats.packets.add(packets as u64);
            stats.bytes.add(bytes);
        }
        if empty > 0 {
            stats.bad_length.add(empty);
        }
        fault.map_or(Ok(packets), Err)
    }

    /// Gives up a frame that its device has not finished, and never will.
    #[cold]
    fn cut_off(&mut self, common: &Common) {
        self.end = None;
        if let Some(into) = self.partial.take().and_then(|partial| partial.into) {
            common.pool.give(&[into]);
            common.stats.bad_chain.add(1);
        }
    }

    /// Drops buffers that are in no frame, and the incomplete frame: their buffers go to the stash.
    pub(in crate::net) fn reset(&mut self, stash: &mut Vec<BufferId>) {
        stash.extend(self.popped.drain(..).skip(self.sorted).map(|(id, _)| id));
        (self.sorted, self.end) = (0, None);
        stash.extend(self.partial.take().and_then(|partial| partial.into));
    }
}

impl Partial {
    /// Adds the device's next buffer; false if the frame no longer fits and is dropped.
    fn append(&mut self, pool: &Pool, id: BufferId, written: usize, header_len: usize) -> bool {
        self.missing -= 1;
        let Some(into) = self.into else { return true };
        if self.filled + written > header_len + pool.capacity_of(into) {
            pool.give(&[into]);
            self.into = None;
            return false;
        }
        // SAFETY: both buffers are ours and differ. The device wrote from the header's place,
        // `header_len` before the data, and the ring checked that `written` bytes fit there; that
        // they fit `into` behind what it has was checked above.
        unsafe {
            let from = pool.data_ptr(id).sub(header_len);
            let to = pool.data_ptr(into).sub(header_len).add(self.filled);
            std::ptr::copy_nonoverlapping(from, to, written);
        }
        self.filled += written;
        true
    }
}

/// The error for a device that wrote less than a header.
#[cold]
pub(in crate::net) fn short(written: u32, header_len: usize) -> Error {
    Error::Device(format!(
        "the device wrote {written} bytes into a receive buffer, less than the \
         {header_len} of the header (section 5.1.6)"
    ))
}

#[cold]
fn impossible(count: u16, size: u16) -> Error {
    Error::Device(format!(
        "the device says that a frame is spread over {count} buffers (num_buffers, section \
         5.1.6.4); it can be 1 to the {size} of the receive queue"
    ))
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
