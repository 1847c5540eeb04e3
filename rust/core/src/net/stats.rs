//! Counters. Each has one writer, the holder of its queue's lock, so counting is
//! a load and a store; reading takes no lock and never stops traffic.

use std::iter::Sum;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter with one writer at a time.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// For the counters that several threads write.
    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $live:ident, $snapshot:ident: $($(#[$field_doc:meta])* $field:ident,)*) => {
        #[derive(Debug, Default)]
        pub(crate) struct $live { $(pub(crate) $field: Counter,)* }

        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot { $($(#[$field_doc])* pub $field: u64,)* }

        impl $live {
            pub(crate) fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.get(),)* }
            }
        }

        impl $snapshot {
            /// Adds another queue's.
            fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.wrapping_add(other.$field);)*
            }

            /// Each counter with its name.
            #[must_use]
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field),)*]
            }
        }
    };
}

counters! {
    /// What happened on one queue since the port started.
    LiveQueueStats, QueueStats:
    /// Frames received or queued for transmission.
    packets,
    /// Their bytes, without the virtio header.
    bytes,
    /// Frames that the device has taken and given back (transmit only).
    completed,
    /// Frames offered to `send` that did not fit the ring.
    ring_full,
    /// Frames that could not be sent, or buffers that could not be posted, for want of a free buffer.
    no_buffer,
    /// Frames refused for their length (empty, or longer than a buffer).
    bad_length,
    /// Received frames dropped because a buffer of their chain was missing or too many.
    bad_chain,
    /// Frames of a burst that had to be copied: a view was alive, or the memory another.
    copied,
    /// Doorbells rung.
    kicks,
    /// Doorbells that the device did not want.
    kicks_suppressed,
    /// Interrupts that ended a wait.
    interrupts,
    /// Waits that ended while they polled, before they would have slept.
    polls,
    /// Waits that slept.
    sleeps,
}

/// The live counters of one queue pair.
#[derive(Debug)]
pub(super) struct LivePairStats {
    pub(super) rx: Arc<LiveQueueStats>,
    pub(super) tx: Arc<LiveQueueStats>,
}

impl LivePairStats {
    pub(super) fn snapshot(&self) -> PortStats {
        PortStats { rx: self.rx.snapshot(), tx: self.tx.snapshot() }
    }
}

/// The counters of one queue pair, or the sums over all of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// The receive queue.
    pub rx: QueueStats,
    /// The transmit queue.
    pub tx: QueueStats,
}

impl Sum for PortStats {
    fn sum<I: Iterator<Item = Self>>(pairs: I) -> Self {
        pairs.fold(Self::default(), |mut sum, pair| {
            sum.rx.add(&pair.rx);
            sum.tx.add(&pair.tx);
            sum
        })
    }
}
