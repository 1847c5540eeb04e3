//! Sleeping until an interrupt: drain, check, wait.

use crate::Result;
use std::time::{Duration, Instant};

/// What an interrupt signals.
///
/// [`super::EventFd`] is the real one; the loom model below has an abstract one.
pub trait Wake {
    /// Forgets the signals so far; says how many there were.
    fn drain(&self) -> u64;
    /// Waits until there is a signal; `false` after the timeout.
    ///
    /// # Errors
    /// [`crate::Error::Os`], with errno EINTR when a signal of the system's kind came.
    fn wait(&self, timeout: Option<Duration>) -> Result<bool>;
}

/// Waits until `check` finds something; `None` after the deadline.
///
/// The order is what keeps an interrupt from being lost: signals are forgotten
/// *before* `check` looks, so one that comes during or after the look is still
/// there when the wait begins. Where the device may suppress interrupts, `check`
/// itself must ask for them first, with a full fence between asking and looking
/// (VIRTIO 1.3, sections 2.7.7 and 2.7.10); the loom model below does so.
///
/// # Errors
/// What `check` and [`Wake::wait`] return.
pub fn wait_until<T>(
    event: &impl Wake,
    deadline: Option<Instant>,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    loop {
        event.drain();
        if let Some(found) = check()? {
            return Ok(Some(found));
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) || !event.wait(left)? {
            return check();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::notify::EventFd;
    use std::cell::Cell;

    #[test]
    fn looks_once_more_at_the_deadline() {
        let event = EventFd::new().unwrap();
        let looks = Cell::new(0);
        let found = wait_until(&event, Some(Instant::now()), || {
            looks.set(looks.get() + 1);
            Ok((looks.get() == 2).then_some(7))
        });
        assert_eq!(found.unwrap(), Some(7));
    }

    #[test]
    fn a_stale_signal_does_not_end_the_wait() {
        let event = EventFd::new().unwrap();
        event.signal();
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(wait_until(&event, Some(deadline), || Ok(None::<()>)).unwrap(), None);
        assert!(Instant::now() >= deadline);
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p virtnic --release --lib loom`
#[cfg(all(test, loom))]
mod loom_tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    use loom::sync::{Condvar, Mutex};
    use std::sync::Arc;

    /// An eventfd as the kernel does it: a count under a lock, and sleepers.
    #[derive(Default)]
    struct AbstractEventFd {
        count: Mutex<u64>,
        readers: Condvar,
    }

    impl AbstractEventFd {
        fn signal(&self) {
            *self.count.lock().unwrap() += 1;
            self.readers.notify_all();
        }
    }

    impl Wake for AbstractEventFd {
        fn drain(&self) -> u64 {
            std::mem::take(&mut *self.count.lock().unwrap())
        }
        fn wait(&self, _: Option<Duration>) -> Result<bool> {
            let mut count = self.count.lock().unwrap();
            while *count == 0 {
                count = self.readers.wait(count).unwrap();
            }
            Ok(true)
        }
    }

    /// The device uses two buffers, one interrupt each; the driver takes both.
    /// A lost wake-up would leave the driver asleep: loom reports a deadlock.
    #[test]
    fn loom_no_wake_up_is_lost() {
        loom::model(|| {
            let event = Arc::new(AbstractEventFd::default());
            let used = Arc::new(AtomicUsize::new(0));
            let device = {
                let (event, used) = (Arc::clone(&event), Arc::clone(&used));
                loom::thread::spawn(move || {
                    for index in 1..=2 {
                        used.store(index, Ordering::Release);
                        event.signal();
                    }
                })
            };
            let mut seen = 0;
            while seen < 2 {
                let found = wait_until(&*event, None, || {
                    let now = used.load(Ordering::Acquire);
                    Ok((now != seen).then_some(now))
                });
                seen = found.unwrap().unwrap();
            }
            device.join().unwrap();
        });
    }

    /// The same with suppression: the device signals only where the driver asked.
    #[test]
    fn loom_no_wake_up_is_lost_with_suppression() {
        loom::model(|| {
            let event = Arc::new(AbstractEventFd::default());
            let used = Arc::new(AtomicUsize::new(0));
            let wanted = Arc::new(AtomicBool::new(false));
            let device = {
                let (event, used, wanted) =
                    (Arc::clone(&event), Arc::clone(&used), Arc::clone(&wanted));
                loom::thread::spawn(move || {
                    used.store(1, Ordering::Release);
                    fence(Ordering::SeqCst);
                    if wanted.load(Ordering::Relaxed) {
                        event.signal();
                    }
                })
            };
            let found = wait_until(&*event, None, || {
                wanted.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                Ok((used.load(Ordering::Acquire) == 1).then_some(()))
            });
            found.unwrap().unwrap();
            device.join().unwrap();
        });
    }
}
