//! All locks, and the order in which they are taken.
//!
//! There are two classes. A lock of the first may be held while waiting for QEMU, a peer or
//! Python's interpreter; one of the second never is. A thread takes locks in the order of this
//! list:
//!
//! | | lock | held while waiting? |
//! |---|---|---|
//! | 1 | `Qemu`'s and `Port`'s own (Python: attaching, closing, the PCI bus) | yes |
//! | 2 | a port's `changing`, then `asking` ([`Exclusive`](crate::net): one change, one command at a time); the control queue's; the INTx dispatcher's; the threads of a QTest connection | yes |
//! | 3 | a [claim](crate::engine) of a queue: no lock, others get [`Error::Busy`](crate::Error::Busy) at once | yes |
//! | 4 | a `Burst`'s (Python: waited for without the interpreter only) | for the interpreter |
//! | 5 | **the interpreter lock** | by Python, as it likes |
//! | 6 | **a queue's**: of one pair the receive queue's first, then the transmit queue's | **never** |
//! | 7 | a [host's](crate::stack) state: frames are taken from the wire and given to it with the state let go of | **never** |
//! | 8 | all others: the pool's lists, settings, counters, the places in a QTest connection, an eventfd that is exchanged | **never** |
//!
//! So a holder of the interpreter lock may block on a queue's lock, whose holder does a bounded
//! amount of work in memory. This holds because:
//!
//! - A doorbell never waits: a kick that the QTest socket does not take is kept by the connection
//!   ([`QTest::kick`](crate::qtest::QTest::kick)). It is rung with the queue's lock held, so that
//!   no kick overtakes another.
//! - Round trips to QEMU (resetting or setting up a queue, a command) are made by marking the pair
//!   under its locks, releasing them, asking QEMU with only `changing` held, and locking again to
//!   take buffers back.
//! - Waits of the first class that may run in a Python thread call
//!   [`SignalCheck`](crate::qtest::SignalCheck), which runs signal handlers. A handler may call the
//!   object that is being waited for: `changing` and `asking` know their owner and return `Busy`,
//!   and a port closed in this way, or by a loop's progress function, is closed at the end of the
//!   interrupted change or claim.
//! - Threads that restore devices (the loop, a supervisor) never wait for one: a callback of the
//!   program that calls the device there gets `Busy` ([`brings_devices_back`]).
//! - Threads of the core (`virtnic-qtest`, `virtnic-intx`, `virtnic-buffers`, …) never take the
//!   interpreter lock.
//!
//! Builds with debug assertions check the boundary: [`may_wait`] fails if a queue's lock is held.
//! All tests of the core run with them.

/// Exists while a lock of the second class is held. Free in a release build.
#[derive(Debug)]
pub(crate) struct Held {
    /// Not `Send`: it concerns the current thread.
    _here: std::marker::PhantomData<*const ()>,
}

#[cfg(debug_assertions)]
thread_local! {
    static HELD: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Held {
    #[inline]
    pub(crate) fn new() -> Self {
        #[cfg(debug_assertions)]
        HELD.set(HELD.get() + 1);
        Self { _here: std::marker::PhantomData }
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
    }
}

/// Call before every wait for QEMU, a peer, the interpreter or a lock of the first class.
#[inline]
pub fn may_wait(what: &str) {
    #[cfg(debug_assertions)]
    assert!(HELD.get() == 0, "{what} is waited for while a queue's lock is held");
    #[cfg(not(debug_assertions))]
    let _ = what;
}

thread_local!(static BRINGS_BACK: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });

/// Declares that this thread restores devices, or has what their restoration needs: it never waits
/// for one. For as long as this is not taken back once for each call.
pub fn brings_devices_back() {
    BRINGS_BACK.set(BRINGS_BACK.get() + 1);
}

/// Takes it back.
pub fn no_longer_brings_devices_back() {
    BRINGS_BACK.set(BRINGS_BACK.get().saturating_sub(1));
}

/// Whether this thread must not wait for a device, as it would wait for itself.
pub(crate) fn must_not_await_devices() -> bool {
    BRINGS_BACK.get() > 0
}

/// A number that no other running thread has; never 0.
#[inline]
pub(crate) fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

#[cfg(all(test, not(loom), debug_assertions))]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "QEMU is waited for while a queue's lock is held")]
    fn nobody_waits_with_a_queues_lock() {
        let _held = Held::new();
        may_wait("QEMU");
    }

    #[test]
    fn whoever_let_go_may_wait() {
        drop(Held::new());
        may_wait("QEMU");
    }
}
