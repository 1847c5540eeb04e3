//! A ring without a backend: its vhost-user backend stopped or died, and the next has not come.

use crate::net::stats::LiveQueueStats;
use crate::virtio::ring::Follower;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// No outage.
const NONE: u32 = u32::MAX;

/// The time in which a ring has no backend.
///
/// What moves during that time was not processed by a backend. QEMU, which takes over the rings,
/// empties a transmit ring when it is kicked while the link is down: nobody receives these frames
/// (`virtio_net_drop_tx_queue_data` in QEMU's `hw/net/virtio-net.c`).
///
/// The interposer's thread reports the start, when the backend is gone but QEMU does not know yet,
/// and the end, when another one is about to come.
#[derive(Debug)]
pub struct Outage {
    /// Locked for a moment only, and no other lock is taken meanwhile.
    follower: Mutex<Follower>,
    /// The position of the ring at its start.
    began: AtomicU32,
    /// Where frames are counted; none for a receive queue.
    stats: Option<Arc<LiveQueueStats>>,
    reoffer: OnceLock<Reoffer>,
    /// That was not done: the queue was in use.
    owed: AtomicBool,
}

/// Has the driver put what the last backend left where the next finds it; whether it did.
struct Reoffer(Box<dyn Fn() -> bool + Send + Sync>);

impl std::fmt::Debug for Reoffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reoffer")
    }
}

impl Outage {
    pub(in crate::net) fn new(follower: Follower, stats: Option<Arc<LiveQueueStats>>) -> Self {
        Self {
            follower: Mutex::new(follower),
            began: AtomicU32::new(NONE),
            stats,
            reoffer: OnceLock::new(),
            owed: AtomicBool::new(false),
        }
    }

    /// What is done as soon as the backend writes to the ring no more; once more before the next
    /// comes, where it says that it could not.
    pub(in crate::net) fn first(&self, reoffer: impl Fn() -> bool + Send + Sync + 'static) {
        // The first stays: there is one for each queue.
        let _ = self.reoffer.set(Reoffer(Box::new(reoffer)));
    }

    /// The backend no longer writes to the ring, and QEMU does not yet. Whether it is a packed
    /// ring.
    pub fn begin(&self) -> bool {
        let (place, packed) = {
            let follower = self.follower();
            (u32::from(follower.position()), follower.is_packed())
        };
        // A current outage continues.
        let _ = self.began.compare_exchange(NONE, place, AcqRel, Acquire);
        if let Some(Reoffer(reoffer)) = self.reoffer.get() {
            self.owed.store(!reoffer(), Release);
        }
        packed
    }

    /// Another backend is about to start; returns its position in a packed ring.
    pub fn end(&self) -> Option<u16> {
        if self.owed.swap(false, AcqRel)
            && let Some(Reoffer(reoffer)) = self.reoffer.get()
            && !reoffer()
        {
            log::warn!(
                "a queue whose vhost-user backend went was in use until the next came: where the last \
                 did not keep the order, or ended within a write, the next may be given frames \
                 twice, or not at all"
            );
        }
        let position = {
            let follower = self.follower();
            let position = follower.close_gaps();
            follower.enable_kicks();
            position
        };
        self.settle();
        position
    }

    /// The device is gone for good, with what it had in the ring. Ends a current outage.
    pub(in crate::net) fn close(&self) {
        // Nobody comes to this ring; and the caller has the queue.
        self.owed.store(false, Release);
        if self.began.load(Acquire) != NONE {
            self.end();
        }
    }

    /// There is another ring, with no backend yet.
    pub(in crate::net) fn follow(&self, follower: Follower) {
        self.close();
        *self.follower() = follower;
    }

    /// The port was closed: there is no ring any more.
    pub(super) fn retire(&self) {
        self.began.store(NONE, Release);
        *self.follower() = Follower::of_none();
    }

    fn follower(&self) -> MutexGuard<'_, Follower> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what has moved since its start.
    fn settle(&self) {
        let Ok(began) = u16::try_from(self.began.swap(NONE, AcqRel)) else { return };
        if let Some(stats) = &self.stats {
            let follower = self.follower();
            let moved = follower.distance(began, follower.position());
            drop(follower);
            stats.no_backend.add_shared(moved.into());
        }
    }
}
