//! Frames sent with offload metadata.
//!
//! A received frame is forwarded with its metadata; others are sent with the caller's. All are
//! checked before the device sees them.

use crate::net::packet::burst::Burst;
use crate::net::packet::frame::Described;
use crate::net::packet::header;
use crate::net::packet::offload::{Offload, Refusal};
use crate::net::queue::pair::QueuePair;
use crate::net::queue::{SendStop, TxQueue};
use crate::virtio::Features;
use crate::{Error, Result};
use std::sync::Arc;

/// The caller's metadata for a frame, by index.
pub type Says<'a> = &'a dyn Fn(usize) -> Offload;

impl TxQueue {
    /// Forwards a burst's received frames, as many as fit. A frame that cannot be sent is dropped
    /// and counted. All these leave the burst; returns how many were queued.
    #[cold]
    #[inline(never)]
    pub(in crate::net) fn send_on(&mut self, burst: &mut Burst) -> Result<usize> {
        let sent = self.send_adapted(burst, burst.headers())?;
        self.common.stats.ring_full.add(burst.len() as u64);
        Ok(sent)
    }

    /// Sends frames whose headers were written without the lock, for a device with these features;
    /// returns how many are done. If it came back with fewer features since, they are checked
    /// again, so that no header uses a feature that was not negotiated.
    pub(in crate::net) fn send_described(
        &mut self,
        burst: &mut Burst,
        features: Features,
    ) -> Result<usize> {
        if self.can == features {
            let sent = self.send_ready(burst.ids(), burst.lengths())?;
            burst.moved(sent);
            return Ok(sent);
        }
        let before = burst.len();
        self.send_adapted(burst, self.common.header_len)?;
        Ok(before - burst.len())
    }

    fn send_adapted(&mut self, burst: &mut Burst, from: usize) -> Result<usize> {
        self.release()?;
        let room = self.room()?;
        let to = self.common.header_len;
        let mut ready = Burst::new(self.common.pool.clone());
        let mut refused = Vec::new();
        let (mut taken, mut missing) = (0, 0);
        for (&id, &length) in burst.ids().iter().zip(burst.lengths()) {
            if ready.len() == room {
                break;
            }
            taken += 1;
            let data = self.common.pool.data_ptr(id);
            // SAFETY: the buffer is the burst's and holds `length` bytes; its data is 64-byte
            // aligned and has DATA_OFFSET (64) bytes in front, more than either header.
            match unsafe { header::read(data, from).adapted(data, length as usize, self.can) } {
                Ok(offload) => {
                    // SAFETY: as above.
                    unsafe { header::write(data, to, offload) };
                    ready.push(id, length);
                }
                Err(why) => {
                    missing += usize::from(why.is_missing());
                    refused.push(id);
                }
            }
        }
        burst.moved(taken);
        if !refused.is_empty() {
            self.common.pool.give(&refused);
            self.count_refused(missing, refused.len() - missing);
        }
        let sent = self.send_ready(ready.ids(), ready.lengths())?;
        ready.moved(sent);
        Ok(sent)
    }

    /// Sends a burst's frames with the caller's metadata, as many as fit; these leave the burst.
    /// Stops at the first that cannot be sent.
    fn send_as(&mut self, burst: &mut Burst, says: Says<'_>) -> Result<(usize, Option<Refusal>)> {
        self.release()?;
        let room = self.room()?.min(burst.len());
        let mut stop = None;
        let mut count = 0;
        while count < room && stop.is_none() {
            let Some((data, length)) = burst.frame(count) else { break };
            // SAFETY: as in `send_on`.
            match unsafe { says(count).checked(data, length, self.can) } {
                Ok(offload) => {
                    // SAFETY: as in `send_on`.
                    unsafe { header::write(data, self.common.header_len, offload) };
                    count += 1;
                }
                Err(why) => {
                    self.count_refused(0, 1);
                    stop = Some(why);
                }
            }
        }
        let sent = self.send_ready(&burst.ids()[..count], &burst.lengths()[..count])?;
        burst.moved(sent);
        if stop.is_none() {
            self.common.stats.ring_full.add(burst.len() as u64);
        }
        Ok((sent, stop))
    }

    fn count_refused(&self, missing: usize, wrong: usize) {
        // Shared: a copying send counts without the queue's lock.
        self.common.stats.no_offload.add_shared(missing as u64);
        self.common.stats.bad_offload.add_shared(wrong as u64);
    }

    /// Frames dropped so far for their offload metadata.
    #[inline]
    pub(crate) fn refused(&self) -> u64 {
        self.common.stats.no_offload.get() + self.common.stats.bad_offload.get()
    }
}

impl QueuePair {
    /// Queues a burst's frames with the caller's metadata, in order, until one does not fit or
    /// cannot be sent; queued ones leave the burst. The burst's own metadata is ignored.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn send_burst_as(
        &self,
        burst: &mut Burst,
        says: Says<'_>,
    ) -> Result<(usize, Option<SendStop>)> {
        self.device.alive()?;
        if burst.is_empty() {
            return Ok((0, None));
        }
        if !Arc::ptr_eq(burst.pool(), &self.device.pool) {
            let frames: Vec<_> = (0..burst.len())
                .filter_map(|index| Some((burst.copy_out(index)?, says(index))))
                .collect();
            let (sent, stop) = self.send(&mut Described::new(&frames))?;
            burst.clear_front(sent);
            self.stats.tx.copied.add_shared(sent as u64);
            return Ok((sent, stop));
        }
        if self.device.pool.any_exported() && !self.replace_exported(burst) {
            self.sent_in_part(&mut *self.transmit()?);
            return Ok((0, Some(SendStop::NoBuffer)));
        }
        let mut tx = self.transmit()?;
        let sent = tx.send_as(burst, says);
        let in_part = sent.as_ref().is_ok_and(|(_, stop)| stop.is_none()) && !burst.is_empty();
        if in_part {
            self.sent_in_part(&mut tx);
        }
        drop(tx);
        let (sent, stop) = sent.map_err(|error| self.device.note(error))?;
        if in_part {
            return Ok((sent, Some(SendStop::RingFull)));
        }
        Ok((sent, stop.map(|why| SendStop::BadFrame(why.to_string()))))
    }

    /// Forwards copies of received frames of another memory, with their metadata.
    #[cold]
    pub(in crate::net) fn send_foreign_on(&self, burst: &mut Burst) -> Result<usize> {
        let mut frames = Vec::with_capacity(burst.len());
        let mut places = Vec::with_capacity(burst.len());
        let mut refused = Vec::new();
        let can = self.device.accepted();
        for index in 0..burst.len() {
            let Some(mut frame) = burst.copy_out(index) else { continue };
            let offload = burst.offload(index).unwrap_or_default();
            // SAFETY: these are the bytes of `frame`.
            match unsafe { offload.adapted(frame.as_mut_ptr(), frame.len(), can) } {
                Ok(offload) => {
                    frames.push((frame, offload));
                    places.push(index);
                }
                Err(why) => refused.push((index, why)),
            }
        }
        let (sent, stop) = self.send(&mut Described::new(&frames))?;
        // Those after the last queued one are checked again next time.
        let gone = places.get(sent).copied().unwrap_or(burst.len());
        for (_, why) in refused.iter().filter(|(index, _)| *index < gone) {
            let stats = &self.stats.tx;
            let counter = if why.is_missing() { &stats.no_offload } else { &stats.bad_offload };
            counter.add_shared(1);
        }
        burst.clear_front(gone);
        self.stats.tx.copied.add_shared(sent as u64);
        match stop {
            Some(SendStop::BadFrame(why)) => Err(Error::Invalid(why)),
            _ => Ok(sent),
        }
    }
}
