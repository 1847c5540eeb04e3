//! What a pool does when it lacks buffers: whom it asks, who has priority, who is told.

use super::demand::{Demand, Holder};
use super::free::Free;
use super::pool::{BufferId, Pool, lock};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// The fraction of common buffers, and of jumbo buffers, reserved for receiving: one in this many.
const KEPT: usize = 4;

impl Pool {
    /// [`Self::take`] for receiving; at least `least` are needed. If there are too few, holders of
    /// finished ones are asked for them; if that does not help, the demand is unmet until there is
    /// one.
    #[inline]
    pub(crate) fn take_to_receive(
        &self,
        out: &mut Vec<BufferId>,
        wanted: usize,
        least: usize,
        demand: &Demand,
    ) -> usize {
        let got = self.take(out, wanted);
        if got < wanted {
            return got + self.take_scarce(out, wanted - got, least.saturating_sub(got), 0, demand);
        }
        demand.withdraw();
        got
    }

    /// [`Self::take`] for frames to be sent: some buffers are left for receiving.
    #[inline]
    pub(crate) fn take_to_send(
        &self,
        out: &mut Vec<BufferId>,
        wanted: usize,
        demand: &Demand,
    ) -> usize {
        let kept = self.kept.load(Ordering::Relaxed);
        let got = self.lock().take_above(kept, out, wanted);
        if got < wanted {
            return got + self.take_scarce(out, wanted - got, usize::from(got == 0), kept, demand);
        }
        demand.withdraw();
        got
    }

    #[cold]
    fn take_scarce(
        &self,
        out: &mut Vec<BufferId>,
        wanted: usize,
        least: usize,
        kept: usize,
        demand: &Demand,
    ) -> usize {
        let more = self.registry.ask_holders();
        let kept = if kept > 0 { self.settle_kept().0 } else { 0 };
        let mut free = self.lock();
        let got = free.take_above(kept, out, wanted);
        if got >= least {
            demand.withdraw();
            return got;
        }
        free.threshold.want(demand, kept + 1);
        drop(free);
        if more {
            self.registry.watch();
        }
        got
    }

    /// Takes a jumbo buffer to receive into. If none is free, holders of finished ones are asked
    /// first.
    pub fn take_jumbo(&self) -> Option<BufferId> {
        self.take_free_jumbo(0).or_else(|| {
            if self.jumbo.count == 0 {
                return None;
            }
            self.registry.ask_holders();
            self.take_free_jumbo(0)
        })
    }

    /// The same for a frame to be sent: some are left for receiving. If none is free, the demand is
    /// unmet until one is.
    pub(crate) fn take_jumbo_to_send(&self, demand: &Demand) -> Option<BufferId> {
        if self.jumbo.count == 0 {
            return None;
        }
        let taken = self.take_free_jumbo(self.kept_jumbos.load(Ordering::Relaxed));
        if taken.is_some() {
            return taken;
        }
        let more = self.registry.ask_holders();
        let kept = self.settle_kept().1;
        let mut free = lock(&self.free_jumbos);
        if let Some(id) = self.pop_jumbo(&mut free, kept) {
            return Some(id);
        }
        free.threshold.want(demand, kept + 1);
        drop(free);
        if more {
            self.registry.watch();
        }
        None
    }

    /// Number of free common and jumbo buffers beyond those reserved for receiving, for frames that
    /// stay in their buffers and are sent repeatedly.
    pub(crate) fn spare(&self) -> (usize, usize) {
        self.registry.ask_holders();
        let (common, jumbos) = self.settle_kept();
        (self.free().saturating_sub(common), self.jumbo_free().saturating_sub(jumbos))
    }

    /// Takes such buffers.
    pub(crate) fn take_spare(&self, out: &mut Vec<BufferId>, wanted: usize) -> usize {
        let kept = self.kept.load(Ordering::Relaxed);
        self.lock().take_above(kept, out, wanted)
    }

    /// Takes such a jumbo buffer.
    pub(crate) fn take_spare_jumbo(&self) -> Option<BufferId> {
        self.take_free_jumbo(self.kept_jumbos.load(Ordering::Relaxed))
    }

    fn take_free_jumbo(&self, kept: usize) -> Option<BufferId> {
        self.pop_jumbo(&mut lock(&self.free_jumbos), kept)
    }

    fn pop_jumbo(&self, free: &mut Free, kept: usize) -> Option<BufferId> {
        if free.ids.len() <= kept {
            return None;
        }
        let id = free.ids.pop()?;
        #[cfg(debug_assertions)]
        {
            let index = (id - free.first) as usize;
            free.present[index] = false;
        }
        self.jumbos_taken.fetch_add(1, Ordering::Relaxed);
        Some(id)
    }

    /// Registers a holder to be asked for buffers, as long as it exists.
    pub(crate) fn add_holder(&self, holder: Weak<dyn Holder>) {
        self.registry.add_holder(holder);
    }

    /// A transmit queue's demand.
    pub(crate) fn demand_to_send(&self) -> Arc<Demand> {
        self.registry.add_demand(0)
    }

    /// A receive queue's demand. As long as it exists, transmission leaves up to `kept` buffers for
    /// it.
    pub(crate) fn demand_to_receive(&self, kept: usize) -> Arc<Demand> {
        let demand = self.registry.add_demand(kept);
        self.settle_kept();
        demand
    }

    /// Recalculates how many common and jumbo buffers are reserved for the existing receive queues.
    fn settle_kept(&self) -> (usize, usize) {
        let kept = self.registry.kept();
        let common = kept.min(self.count() / KEPT);
        let jumbos = if kept > 0 { self.jumbo_count().div_ceil(KEPT) } else { 0 };
        // A single buffer must serve both.
        let jumbos = jumbos.min(self.jumbo_count().saturating_sub(1));
        self.kept.store(common, Ordering::Relaxed);
        self.kept_jumbos.store(jumbos, Ordering::Relaxed);
        (common, jumbos)
    }

    /// Whether any queue is waiting for buffers.
    #[inline]
    pub(crate) fn starved(&self) -> bool {
        self.registry.starved()
    }
}
