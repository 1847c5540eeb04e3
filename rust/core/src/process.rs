//! Processes: children, forks, and threads that leave signals to the program.
//!
//! A process that forks without exec (such as Python's `multiprocessing`) has a copy of every object but
//! none of the threads, and shares resources outside the process: sockets, eventfds, packet memory,
//! QEMU. The owner of such a resource keeps a [`Home`] and does nothing in a forked child.

mod child;
mod lifeline;
mod signals;

pub use child::{Child, Environment, spawn};

use crate::{Error, Result};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{JoinHandle, Scope, ScopedJoinHandle};

/// The number of forks that led to this process.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Call in a forked child, before anything else of this crate.
///
/// From then on, the calls of objects from before the fork return [`Error::Closed`], and dropping them
/// does not affect the parent's resources.
pub fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    lifeline::let_go();
}

/// The process that created an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(u32);

impl Home {
    /// This process.
    #[must_use]
    pub fn here() -> Self {
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this is that process and not a forked child. One load and one comparison.
    #[inline]
    #[must_use]
    pub fn is_here(self) -> bool {
        // Relaxed, as it changes before the child has a second thread.
        self.0 == GENERATION.load(Ordering::Relaxed)
    }

    /// Fails in a forked child; `what` is the object in the message.
    ///
    /// # Errors
    /// [`Error::Closed`].
    #[inline]
    pub fn check(self, what: &str) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(in_child(what)) }
    }
}

/// Starts a background thread with all signals blocked, as they are for the program's threads.
pub(crate) fn background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    let _inherited = signals::Blocked::all();
    std::thread::Builder::new().name(name.into()).spawn(work)
}

/// The same for a scoped thread.
pub(crate) fn background_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    let _inherited = signals::Blocked::all();
    std::thread::Builder::new().name(name).spawn_scoped(scope, work)
}

#[cold]
fn in_child(what: &str) -> Error {
    Error::Closed(format!("{what} belongs to the process that opened it; this is a forked child"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TERMINATE: u64 = 1 << (libc::SIGTERM - 1);

    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn background_threads_block_signals() {
        let before = blocked();
        let inside = background("test", blocked).unwrap().join().unwrap();
        assert_eq!(inside & TERMINATE, TERMINATE);
        assert_eq!(blocked(), before);
    }
}
