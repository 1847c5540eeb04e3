//! Waits that regularly check whether to continue.

use crate::Result;
use crate::locks::may_wait;
use crate::virtio::transport::Transport;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time between two checks.
const SLICE: Duration = Duration::from_millis(100);

/// A wait consisting of many short ones, which checks for signals every 100 ms.
pub(in crate::net) struct Interruptible<'a> {
    transport: &'a dyn Transport,
    checked: Cell<Instant>,
}

impl<'a> Interruptible<'a> {
    pub(in crate::net) fn new(transport: &'a dyn Transport) -> Self {
        may_wait("the device");
        Self { transport, checked: Cell::new(Instant::now()) }
    }

    /// An error if the caller should stop waiting.
    pub(in crate::net) fn check(&self) -> Result<()> {
        if self.checked.get().elapsed() < SLICE {
            return Ok(());
        }
        self.checked.set(Instant::now());
        self.transport.check_signals()
    }
}
