//! A backend whose QEMU is gone, and what it is told then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rings that a backend is to stop.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) rings: VecDeque<u32>,
    /// Whether it was told to stop one, and has not answered.
    pub(super) asked: bool,
    /// It has no longer.
    pub(super) until: Instant,
}

impl Stopping {
    pub(super) fn of(rings: Vec<u32>, patience: Duration) -> Self {
        Self { rings: rings.into(), asked: false, until: Instant::now() + patience }
    }

    /// `Some(false)` when the time is over.
    pub(super) fn left(&self) -> Option<bool> {
        (Instant::now() >= self.until).then_some(false)
    }
}
