//! The eventfds that interrupts signal, and their MSI-X vectors.

use crate::notify::EventFd;
use std::sync::Arc;

/// The eventfds of the interrupts of one queue pair.
#[derive(Clone, Debug)]
pub struct PairEvents {
    /// Frames were received.
    pub rx: Arc<EventFd>,
    /// Transmitted frames were finished.
    pub tx: Arc<EventFd>,
}

/// The eventfds of the interrupts.
#[derive(Clone, Debug)]
pub struct Events {
    /// Those of each queue pair.
    pub pairs: Vec<PairEvents>,
    /// The device configuration changed.
    pub config: Arc<EventFd>,
}

impl Events {
    pub(in crate::net) fn signal_queues(&self) {
        for pair in &self.pairs {
            pair.rx.signal();
            pair.tx.signal();
        }
    }
    pub(in crate::net) fn signal_all(&self) {
        self.signal_queues();
        self.config.signal();
    }
}

/// MSI-X table entries.
#[derive(Clone, Debug, Default)]
pub struct Vectors {
    /// Of each pair's receive and transmit queue;
    /// [`NO_VECTOR`](crate::virtio::transport::NO_VECTOR) for none.
    pub pairs: Vec<(u16, u16)>,
    /// Of configuration changes.
    pub config: u16,
}
