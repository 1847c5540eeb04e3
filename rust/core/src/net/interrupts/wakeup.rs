//! When a queue shall interrupt: arm, drain, enable, check.
//!
//! A queue's eventfd has readers of two kinds: those that are [`Wakeup::arm`]ed hold its
//! descriptor and wait by means of their own; sleepers wait in a call of ours. All of them
//! read the same eventfd, so whoever drains it may take what another waits for. The rule
//! that keeps a wake-up from being lost: after every drain, in the same critical section,
//! the queue is asked for its next interrupt and looked at again, as long as anybody else is
//! interested; what is there already is signalled by hand (sections 2.7.7 and 2.7.10). The
//! loom models below run this very code.

use crate::notify::EventFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// What of a queue decides whether somebody who waits for it goes on.
pub(crate) trait Interrupts {
    /// Whether there is something to wait for no longer.
    fn ready(&mut self) -> bool;
    /// Asks for an interrupt; true when the queue is ready as it is.
    fn enable(&mut self) -> bool;
    /// Asks for none.
    fn disable(&mut self);
}

/// What interrupts signal.
pub(crate) trait Bell {
    /// Forgets the signals so far; whether there were any.
    fn quiet(&self) -> bool;
    /// Wakes all who wait, until [`Bell::quiet`].
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

/// Who waits for one queue. Every method is called with that queue locked, except
/// [`Wakeup::leave`]. `over` says whether there is nothing to wait for any more: the port
/// is stopped, broken, or its QEMU dead; it becomes true before the bell is struck for it.
#[derive(Debug, Default)]
pub(crate) struct Wakeup {
    /// Somebody holds the descriptor: interrupts stay enabled between calls.
    armed: AtomicBool,
    sleepers: AtomicUsize,
}

impl Wakeup {
    /// Whether anybody waits, or may.
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

    /// Before a sleep. True: there is no reason to sleep. Else [`Wakeup::leave`] must follow.
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

    /// After a sleep, however it ended; [`Wakeup::awake`] follows unless the queue is another's.
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

    /// After a call that found the queue not, or no longer, ready. Whether there had been a
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
