//! A device that comes back with fewer features: what a port can do without.
//!
//! Most features say what may be asked of the device, and are simply asked of it no more. Some say
//! how the queues lie in memory: these are set aside and empty by then, and are made anew. What
//! remains is what the driver is built on.

use crate::memory::JUMBO_SIZE;
use crate::net::lifecycle::bring_up::{check_mtu, frame_ring, make_ring};
use crate::net::port::Port;
use crate::net::queue::AnyRing;
use crate::virtio::Features;
use crate::virtio::features::{consistent, prerequisites};
use crate::{Error, Result};

/// How a ring lies in memory, and how both sides move in it.
const RINGS: Features = Features(
    Features::RING_PACKED.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | Features::IN_ORDER.0,
);

/// What a port may be able to do without. Not what says how the device is driven (VERSION_1,
/// CTRL_*, MQ, RING_RESET), what it was told by (RSS, HASH_REPORT, NOTF_COAL), or what others rely
/// on (STATUS, MTU).
const DISPENSABLE: Features = Features(
    RINGS.0
        | Features::SEND_OFFLOADS.0
        | Features::RECEIVE_OFFLOADS.0
        | Features::MRG_RXBUF.0
        | Features::ANY_LAYOUT.0
        | Features::GUEST_ANNOUNCE.0
        | Features::NOTIFICATION_DATA.0,
);

impl Port {
    /// The features in force that the next device may lack: the port goes on without them.
    ///
    /// None that was insisted on, or that such a one needs. None by the legacy interface, where
    /// the length of the header depends on them.
    pub fn dispensable(&self) -> Features {
        if self.is_legacy() {
            return Features::NONE;
        }
        let insisted = self.setup.insisted;
        let mut spare = (self.device.accepted() & DISPENSABLE) - insisted - prerequisites(insisted);
        if check_mtu(self.setup.config.mtu, false, self.pool()).is_err()
            || (insisted & Features::LARGE_RECEIVE != Features::NONE && !self.holds_large())
        {
            spare = spare - Features::MRG_RXBUF;
        }
        spare
    }

    /// Whether a buffer holds the longest frame there is.
    fn holds_large(&self) -> bool {
        self.pool().capacity() >= JUMBO_SIZE
    }

    /// Goes on with what the device offers, if that is enough; says what is in force then. In a
    /// [`Self::change`], with the queues set aside.
    ///
    /// # Errors
    /// [`Error::Device`] where something is missing that cannot be done without,
    /// [`Error::MemoryUnavailable`] for other rings. Nothing has changed then.
    pub(in crate::net) fn renegotiate(&self, offered: Features) -> Result<Features> {
        let before = self.device.accepted();
        let mut kept = consistent(before & offered);
        if !kept.contains(Features::MRG_RXBUF) && before.contains(Features::MRG_RXBUF) {
            // What is left of the large frames' features needs buffers that hold one.
            kept = if self.holds_large() { kept } else { kept - Features::LARGE_RECEIVE };
            kept = consistent(kept);
        }
        let lost = before - kept;
        if lost == Features::NONE {
            return Ok(before);
        }
        let needed = lost - self.dispensable();
        if needed != Features::NONE {
            return Err(Error::Device(format!("the device came back without {needed}")));
        }
        if lost & RINGS != Features::NONE {
            self.replace_rings(kept)?;
        }
        for pair in &self.pairs {
            if lost.contains(Features::MRG_RXBUF) {
                pair.rx.borrow().stop_merging();
            }
            // What says how received frames' headers are read stays: a header that says nothing
            // is read as one.
            pair.tx.borrow().can = kept;
        }
        self.journal().renegotiate(kept);
        self.device.set_accepted(kept);
        for outcome in self.all_outcomes().iter_mut() {
            let feature = Features::bit(outcome.bit);
            if lost.contains(feature) {
                outcome.offered = offered.contains(feature);
                outcome.accepted = false;
                "the device came back without it".clone_into(&mut outcome.why);
            }
        }
        log::warn!("the device came back without {lost}: the port goes on without");
        Ok(kept)
    }

    /// Makes the rings anew; none where there is no memory for all.
    fn replace_rings(&self, accepted: Features) -> Result<()> {
        let pool = self.pool();
        let rings = self.pairs.iter().map(|pair| {
            let [rx, tx] = pair.addresses().map(|queue| queue.size);
            let ring = |size| make_ring(pool, frame_ring(accepted), size);
            Ok([ring(rx)?, ring(tx)?])
        });
        let rings = rings.collect::<Result<Vec<[AnyRing; 2]>>>()?;
        if let Some(control) = &self.control {
            control.replace_ring(make_ring(pool, accepted, control.addresses().size)?);
        }
        for (pair, rings) in self.pairs.iter().zip(rings) {
            pair.replace_rings(rings);
        }
        Ok(())
    }
}
