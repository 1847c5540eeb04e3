//! Counters. Each has one writer, the holder of its queue's lock, so counting is a load and a
//! store; reading takes no lock and never delays traffic.

use super::counter::Counter;
use crate::net::stats::classes::{Counting, FrameClasses};
use crate::net::stats::watch::Watch;
use std::iter::Sum;
use std::sync::Arc;

macro_rules! counters {
    ($(#[$doc:meta])* $live:ident, $snapshot:ident: $($(#[$field_doc:meta])* $field:ident,)*) => {
        #[derive(Debug, Default)]
        // On separate cache lines: queues are counted by different threads.
        #[repr(align(64))]
        pub(crate) struct $live {
            $(pub(crate) $field: Counter,)*
            /// Descriptors of the ring, and how many of them hold a buffer.
            pub(crate) ring_size: Counter,
            pub(crate) ring_used: Counter,
            pub(crate) watch: Watch,
        }

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
    /// Frames that the device has taken and returned (transmit only).
    completed,
    /// Frames with the device when it was reset or died (transmit only): it may or may not have
    /// sent them. None is sent again.
    lost,
    /// Completed frames that QEMU dropped while there was no vhost-user backend (transmit only).
    no_backend,
    /// Frames offered to `send` that did not fit the ring.
    ring_full,
    /// Frames that could not be sent, or buffers that could not be posted, for lack of a free
    /// buffer.
    no_buffer,
    /// Frames refused for their length (empty, or longer than a buffer).
    bad_length,
    /// Received frames dropped because their chain had too few or too many buffers.
    bad_chain,
    /// Forwarded frames dropped because the device does not support their offloads (transmit only).
    no_offload,
    /// Frames refused because they do not match their offload metadata (transmit only).
    bad_offload,
    /// Frames of a burst that had to be copied: live views, or another memory.
    copied,
    /// Doorbells rung.
    kicks,
    /// Doorbells suppressed by the device.
    kicks_suppressed,
    /// Interrupts that ended a wait.
    interrupts,
    /// Waits that ended while polling, before they would have slept.
    polls,
    /// Waits that slept.
    sleeps,
}

impl QueueStats {
    /// Frames lost because of errors.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.bad_length.wrapping_add(self.bad_chain)
    }
}

impl LiveQueueStats {
    fn extended(&self) -> ExtendedStats {
        ExtendedStats {
            counters: self.snapshot(),
            classes: self.watch.classes(),
            ring_size: self.ring_size.get(),
            ring_used: self.ring_used.get(),
        }
    }
}

/// All counters of one queue, and how full its ring is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtendedStats {
    /// The basic counters.
    pub counters: QueueStats,
    /// Frame classes, if counted.
    pub classes: Option<FrameClasses>,
    /// Descriptors of the ring.
    pub ring_size: u64,
    /// How many of them held a buffer after the last call that moved frames: one that the device
    /// has, or a finished one that was not taken back yet.
    pub ring_used: u64,
}

impl ExtendedStats {
    /// Each number with its name.
    #[must_use]
    pub fn fields(&self) -> Vec<(String, u64)> {
        let mut fields: Vec<_> =
            self.counters.fields().into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
        fields.push(("errors".to_owned(), self.counters.errors()));
        for (name, n) in self.classes.iter().flat_map(FrameClasses::fields) {
            fields.push((format!("{name}_packets"), n));
        }
        fields.push(("ring_size".to_owned(), self.ring_size));
        fields.push(("ring_used".to_owned(), self.ring_used));
        fields.push(("ring_free".to_owned(), self.ring_size.saturating_sub(self.ring_used)));
        fields
    }
}

/// The live counters of one queue pair.
#[derive(Debug)]
pub(in crate::net) struct LivePairStats {
    pub(in crate::net) rx: Arc<LiveQueueStats>,
    pub(in crate::net) tx: Arc<LiveQueueStats>,
}

impl LivePairStats {
    pub(in crate::net) fn snapshot(&self) -> PortStats {
        PortStats { rx: self.rx.snapshot(), tx: self.tx.snapshot() }
    }
    pub(in crate::net) fn extended(&self) -> [ExtendedStats; 2] {
        [self.rx.extended(), self.tx.extended()]
    }
    pub(in crate::net) fn count_classes(&self, counting: Counting) {
        self.rx.watch.count_classes(counting);
        self.tx.watch.count_classes(counting);
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
