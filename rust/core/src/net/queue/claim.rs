//! A queue behind a lock, which a loop can claim.

use crate::locks::{self, may_wait, this_thread};
use crate::{Error, Result};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How often a contended queue is tried again without a pause.
const TRIES: usize = 200;
/// After that the other thread is probably not running: yield the processor, whatever our priority.
const PAUSE: Duration = Duration::from_micros(20);

/// The pause between two attempts to borrow a queue.
const BORROW: Duration = Duration::from_micros(50);

/// The fate of a queue whose port was closed while a loop had it.
pub(crate) trait Reclaim {
    /// Takes every buffer back, after the device was reset.
    fn reclaim_all(&mut self);
    /// The same for a closed port: nothing moves any more. Frees the ring's memory if the device is
    /// known not to access it any more.
    fn end(&mut self, reset: bool);
}

/// What the end of a claim has to do: nothing, or [`Reclaim::end`].
const GOES_ON: u8 = 0;
const ENDS: u8 = 1;
const ENDS_RESET: u8 = 2;

/// A queue: locked for the duration of a burst, or claimed by a loop.
///
/// Nobody waits for QEMU, a peer or the interpreter with the lock held: see [`crate::locks`]. The
/// owner of a claim may wait, and nobody who holds the interpreter waits for a claim.
#[derive(Debug)]
pub(crate) struct Slot<Q: Reclaim> {
    queue: Mutex<Q>,
    /// The thread that has claimed it; 0 for none.
    claimed: AtomicUsize,
    /// Whether a thread waits for the claimed queue.
    wanted: AtomicBool,
    /// Whether the port was closed by the thread that has claimed the queue.
    over: AtomicU8,
    name: &'static str,
}

/// A queue that is locked.
#[derive(Debug)]
pub(crate) struct Locked<'a, Q> {
    queue: MutexGuard<'a, Q>,
    _held: locks::Held,
}

impl<'a, Q> Locked<'a, Q> {
    #[inline]
    fn new(queue: MutexGuard<'a, Q>) -> Self {
        Self { queue, _held: locks::Held::new() }
    }
}

impl<Q> Deref for Locked<'_, Q> {
    type Target = Q;
    #[inline]
    fn deref(&self) -> &Q {
        &self.queue
    }
}

impl<Q> DerefMut for Locked<'_, Q> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Q {
        &mut self.queue
    }
}

impl<Q: Reclaim> Slot<Q> {
    pub(crate) fn new(queue: Q, name: &'static str) -> Self {
        let (claimed, wanted, over) = Default::default();
        Self { queue: Mutex::new(queue), claimed, wanted, over, name }
    }

    /// Locks it for one burst. [`Error::Busy`] while it is claimed, as the caller may hold the
    /// interpreter and must not wait long. Other holders have it only for microseconds, without
    /// waiting.
    #[inline]
    pub(crate) fn lock(&self) -> Result<Locked<'_, Q>> {
        match self.try_lock() {
            Some(queue) => Ok(queue),
            None => self.lock_soon(),
        }
    }

    /// Without blocking: it may be claimed at any moment, which only this notices.
    #[cold]
    fn lock_soon(&self) -> Result<Locked<'_, Q>> {
        for tried in 0.. {
            if self.claimed.load(Ordering::Relaxed) != 0 {
                break;
            }
            if tried < TRIES {
                std::thread::yield_now();
            } else {
                std::thread::sleep(PAUSE);
            }
            if let Some(queue) = self.try_lock() {
                return Ok(queue);
            }
        }
        Err(self.busy())
    }

    /// Locks the queue unless it is in use.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Locked<'_, Q>> {
        match self.queue.try_lock() {
            Ok(queue) => Some(Locked::new(queue)),
            Err(TryLockError::Poisoned(poisoned)) => Some(Locked::new(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Locks the queue, however long that takes.
    pub(crate) fn wait_for_it(&self) -> Locked<'_, Q> {
        may_wait("a queue that may be claimed");
        Locked::new(self.wait())
    }

    fn wait(&self) -> MutexGuard<'_, Q> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the queue for a moment: a loop that has claimed it [lends](Claim::lend) it. For one
    /// caller at a time, who must not hold another queue.
    pub(crate) fn borrow(&self) -> Locked<'_, Q> {
        self.wanted.store(true, Ordering::Release);
        let queue = self.wait_for_it();
        self.wanted.store(false, Ordering::Release);
        queue
    }

    /// As [`Self::borrow`], with a time limit.
    pub(crate) fn borrow_within(&self, limit: Duration) -> Option<Locked<'_, Q>> {
        may_wait("a queue that may be claimed");
        let start = Instant::now();
        loop {
            // Set it again each time, because another borrower clears it.
            self.wanted.store(true, Ordering::Release);
            let queue = self.try_lock();
            if queue.is_some() || start.elapsed() > limit {
                self.wanted.store(false, Ordering::Release);
                return queue;
            }
            std::thread::sleep(BORROW);
        }
    }

    /// Claims the queue as long as the claim exists.
    pub(crate) fn claim(&self) -> Result<Claim<'_, Q>> {
        may_wait("a queue");
        let (none, this) = (0, this_thread());
        if self.claimed.compare_exchange(none, this, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return Err(self.busy());
        }
        Ok(Claim { guard: ManuallyDrop::new(self.wait()), slot: self })
    }

    /// An error if a loop of this thread has it, which called us.
    pub(crate) fn not_ours(&self) -> Result<()> {
        if self.claimed.load(Ordering::Relaxed) == this_thread() {
            Err(self.busy())
        } else {
            Ok(())
        }
    }

    /// Takes every buffer back, after the queue was reset; waits for its holder.
    pub(crate) fn take_back(&self, before: impl FnOnce(&mut Q)) {
        let mut queue = self.wait_for_it();
        before(&mut queue);
        queue.reclaim_all();
    }

    /// [`Reclaim::end`] for a queue whose port was closed; waits for its holder. If that is a loop
    /// of this thread, which called us, it is done at the end of its claim.
    pub(crate) fn end(&self, reset: bool, before: impl FnOnce(&mut Q)) {
        if self.not_ours().is_err() {
            self.over.store(if reset { ENDS_RESET } else { ENDS }, Ordering::Relaxed);
            return;
        }
        let mut queue = self.wait_for_it();
        before(&mut queue);
        queue.end(reset);
    }

    #[cold]
    fn busy(&self) -> Error {
        Error::Busy(format!(
            "the {} queue is in use by a running loop (forward, reflect, generate, drop)",
            self.name
        ))
    }
}

/// A claimed queue.
#[derive(Debug)]
pub(crate) struct Claim<'a, Q: Reclaim> {
    /// Always present except inside [`Self::give_way`].
    guard: ManuallyDrop<MutexGuard<'a, Q>>,
    slot: &'a Slot<Q>,
}

impl<Q: Reclaim> Claim<'_, Q> {
    /// Lends the queue to a waiting thread; a loop does so in every iteration.
    #[inline]
    pub(crate) fn lend(&mut self) {
        if self.slot.wanted.load(Ordering::Relaxed) {
            self.give_way();
        }
    }

    #[cold]
    fn give_way(&mut self) {
        // SAFETY: the guard is there, and is not used before there is another: nothing in
        // between touches it or panics.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        while self.slot.wanted.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        self.guard = ManuallyDrop::new(self.slot.wait());
    }
}

impl<Q: Reclaim> Drop for Claim<'_, Q> {
    fn drop(&mut self) {
        // Its own thread closed the port: nobody else sets this.
        match self.slot.over.swap(GOES_ON, Ordering::Relaxed) {
            GOES_ON => {}
            over => self.guard.end(over == ENDS_RESET),
        }
        // SAFETY: the guard is there, and this is its end.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        self.slot.claimed.store(0, Ordering::Relaxed);
    }
}

impl<Q: Reclaim> Deref for Claim<'_, Q> {
    type Target = Q;
    #[inline]
    fn deref(&self) -> &Q {
        &self.guard
    }
}

impl<Q: Reclaim> DerefMut for Claim<'_, Q> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Q {
        &mut self.guard
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Debug, Default)]
    struct Queue {
        reclaimed: bool,
    }
    impl Reclaim for Queue {
        fn reclaim_all(&mut self) {
            self.reclaimed = true;
        }
        fn end(&mut self, _: bool) {
            self.reclaim_all();
        }
    }

    #[test]
    fn a_claimed_queue_is_busy_at_once() {
        let slot = Slot::new(Queue::default(), "receive");
        let claim = slot.claim().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(matches!(slot.lock(), Err(Error::Busy(_))))).join().unwrap();
        });
        drop(claim);
        slot.lock().unwrap();
    }

    /// What a loop calls may close the port: its own claim is not waited for.
    #[test]
    fn a_claim_taken_back_by_its_own_thread_ends_empty() {
        let slot = Slot::new(Queue::default(), "receive");
        let claim = slot.claim().unwrap();
        assert!(slot.not_ours().is_err());
        slot.end(true, |_| {});
        assert!(!claim.reclaimed);
        drop(claim);
        assert!(slot.lock().unwrap().reclaimed);
    }
}
