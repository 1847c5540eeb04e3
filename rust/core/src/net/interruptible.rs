//! Waits that look now and then whether to go on.

use crate::Result;
use crate::locks::may_wait;
use crate::virtio::transport::Transport;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Between two looks.
const SLICE: Duration = Duration::from_millis(100);

/// A wait of many short ones, which asks the caller's patience every 100 ms.
pub(in crate::net) struct Interruptible<'a> {
    transport: &'a dyn Transport,
    asked: Cell<Instant>,
}

impl<'a> Interruptible<'a> {
    pub(in crate::net) fn new(transport: &'a dyn Transport) -> Self {
        may_wait("the device");
        Self { transport, asked: Cell::new(Instant::now()) }
    }

    /// An error where the caller is to wait no longer.
    pub(in crate::net) fn ask(&self) -> Result<()> {
        if self.asked.get().elapsed() < SLICE {
            return Ok(());
        }
        self.asked.set(Instant::now());
        self.transport.patience()
    }
}
