//! When a queue interrupts: arm, drain, enable, check.
//!
//! A queue's eventfd has two kinds of readers: holders of its descriptor ([`Wakeup::arm`]), which
//! wait by their own means, and sleepers in our calls. All read the same eventfd, so draining it
//! may consume another reader's signal. The rule against lost wake-ups: after every drain, in the
//! same critical section, the next interrupt is enabled and the queue checked again, as long as
//! there are other readers; if it is ready, the eventfd is signalled by hand (sections 2.7.7 and
//! 2.7.10). The loom models below run this code.

use crate::notify::EventFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// What determines whether the waiters of a queue continue.
pub(crate) trait Interrupts {
    /// Whether there is no reason to wait any more.
    fn ready(&mut self) -> bool;
    /// Enables the interrupt; true if the queue is ready already.
    fn enable(&mut self) -> bool;
    /// Disables the interrupt.
    fn disable(&mut self);
}

/// What interrupts signal.
pub(crate) trait Bell {
    /// Clears earlier signals; whether there were any.
    fn quiet(&self) -> bool;
    /// Wakes all waiters, until [`Bell::quiet`].
    fn ring(&self);
}

impl Bell for EventFd {
    fn quiet(&self) -> bool {
        self.drain() > 0
    }
    fn ring(&self) {
        self.signal();
    }
}

/// The waiters of one queue. Every method except [`Wakeup::leave`] is called with that queue
/// locked. `over` returns whether waiting is over: the port is stopped, broken, or its QEMU dead;
/// it becomes true before the bell is rung for it.
#[derive(Debug, Default)]
pub(crate) struct Wakeup {
    /// The descriptor has been handed out: interrupts stay enabled between calls.
    armed: AtomicBool,
    sleepers: AtomicUsize,
}

impl Wakeup {
    /// Whether there are, or may be, waiters.
    #[inline]
    pub(crate) fn wanted(&self) -> bool {
        self.armed.load(Relaxed) || self.sleepers.load(Relaxed) > 0
    }

    /// From now on the bell can be read whenever the queue is ready.
    pub(crate) fn arm(
        &self,
        queue: &mut impl Interrupts,
        bell: &impl Bell,
        over: impl FnOnce() -> bool,
    ) {
        if !self.armed.swap(true, Relaxed) {
            self.settle(queue, bell, over);
        }
    }

    /// Before a sleep. True: there is no reason to sleep. Otherwise call [`Wakeup::leave`]
    /// afterwards.
    pub(crate) fn enter(&self, queue: &mut impl Interrupts, over: bool) -> bool {
        if over {
            return true;
        }
        if queue.enable() {
            if !self.wanted() {
                queue.disable();
            }
            return true;
        }
        self.sleepers.fetch_add(1, Relaxed);
        false
    }

    /// After a sleep, however it ended; followed by [`Wakeup::awake`] unless the queue is claimed.
    pub(crate) fn leave(&self) {
        self.sleepers.fetch_sub(1, Relaxed);
    }

    /// The second half of the end of a sleep.
    pub(crate) fn awake(
        &self,
        queue: &mut impl Interrupts,
        bell: &impl Bell,
        over: impl FnOnce() -> bool,
    ) {
        bell.quiet();
        self.settle(queue, bell, over);
    }

    /// After a call that found the queue not, or no longer, ready. Returns whether there had been a
    /// signal.
    #[inline]
    pub(crate) fn exhausted(
        &self,
        queue: &mut impl Interrupts,
        bell: &impl Bell,
        over: impl FnOnce() -> bool,
    ) -> bool {
        if !self.wanted() {
            return false;
        }
        let signalled = bell.quiet();
        self.settle(queue, bell, over);
        signalled
    }

    fn settle(&self, queue: &mut impl Interrupts, bell: &impl Bell, over: impl FnOnce() -> bool) {
        if !self.wanted() {
            queue.disable();
        } else if over() || queue.enable() {
            bell.ring();
        }
    }
}

#[cfg(all(test, loom))]
#[path = "wakeup_loom.rs"]
mod loom_tests;
