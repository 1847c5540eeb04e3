//! A device that comes back with fewer features.
//!
//! Most features allow requests to the device, which are then no longer made. Some determine the
//! layout of the queues: these are suspended and empty at that time, and are created again. The
//! driver depends on the remaining ones.

use crate::memory::JUMBO_SIZE;
use crate::net::lifecycle::bring_up::{check_mtu, frame_ring, make_ring};
use crate::net::port::Port;
use crate::net::queue::AnyRing;
use crate::virtio::Features;
use crate::virtio::negotiation::{consistent, prerequisites};
use crate::{Error, Result};

/// Layout and operation of a ring.
const RINGS: Features = Features(
    Features::RING_PACKED.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | Features::IN_ORDER.0,
);

/// Features that a port may be able to do without: not those that determine how the device is
/// driven (VERSION_1, CTRL_*, MQ, RING_RESET), its settings (RSS, HASH_REPORT, NOTF_COAL), or what
/// others rely on (STATUS, MTU).
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
    /// The negotiated features that the next device may lack.
    ///
    /// Not those that were required, or that these depend on. None with the legacy interface, where
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

    /// Whether a buffer holds the longest possible frame.
    fn holds_large(&self) -> bool {
        self.pool().capacity() >= JUMBO_SIZE
    }

    /// Continues with what the device offers, if that is enough; returns the negotiated features.
    /// In a [`Self::change`], with the queues suspended.
    ///
    /// # Errors
    /// [`Error::Device`] if an indispensable feature is missing, [`Error::MemoryUnavailable`] for
    /// other rings. Nothing has changed in that case.
    pub(in crate::net) fn renegotiate(&self, offered: Features) -> Result<Features> {
        let before = self.device.accepted();
        let mut kept = consistent(before & offered);
        if !kept.contains(Features::MRG_RXBUF) && before.contains(Features::MRG_RXBUF) {
            // The remaining features for large frames need buffers that hold one.
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
            // How headers of received frames are read is kept: an empty header reads as no offload.
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

    /// Creates the rings again; none if there is not enough memory for all.
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
