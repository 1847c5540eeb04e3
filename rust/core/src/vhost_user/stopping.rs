//! Stopping the rings of a backend whose QEMU is gone.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The progress of stopping a backend's rings.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) rings: VecDeque<u32>,
    /// Whether a request is not answered yet.
    pub(super) asked: bool,
    /// The end of the wait.
    pub(super) until: Instant,
}

impl Stopping {
    pub(super) fn of(rings: Vec<u32>, timeout: Duration) -> Self {
        Self { rings: rings.into(), asked: false, until: Instant::now() + timeout }
    }

    /// `Some(false)` if the time is over.
    pub(super) fn left(&self) -> Option<bool> {
        (Instant::now() >= self.until).then_some(false)
    }
}
