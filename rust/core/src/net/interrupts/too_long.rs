//! Received frames that fit no buffer, reported once.

use crate::net::stats::LiveQueueStats;
use crate::notify::EventFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether such frames were dropped; the first one is reported.
#[derive(Debug, Default)]
pub(in crate::net) struct TooLong {
    seen: AtomicBool,
    bell: Option<Arc<EventFd>>,
}

impl TooLong {
    pub(in crate::net) fn new(bell: Option<Arc<EventFd>>) -> Self {
        Self { seen: AtomicBool::new(false), bell }
    }

    /// Whether there were any.
    pub(in crate::net) fn seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    #[cold]
    pub(in crate::net) fn drop_one(&self, stats: &LiveQueueStats) {
        stats.bad_length.add(1);
        if !self.seen.swap(true, Ordering::Relaxed)
            && let Some(bell) = &self.bell
        {
            bell.signal();
        }
    }
}
