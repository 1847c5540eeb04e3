//! What a kick is made of.

use super::EventFd;
use crate::qtest::QTest;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a notification of a modern device says (VIRTIO 1.3, section 4.1.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// What stands for the queue (NOTIF_CONFIG_DATA); its index without.
    pub value: Option<u16>,
    /// Whether the ring's position is said as well (NOTIFICATION_DATA).
    pub data: bool,
}

impl Notification {
    /// How many bytes are written, and which number.
    #[must_use]
    pub fn of(self, queue: u16, next: u16) -> (u8, u64) {
        let queue = u64::from(self.value.unwrap_or(queue));
        if self.data { (4, u64::from(next) << 16 | queue) } else { (2, queue) }
    }
}

/// How a queue's device side is told that buffers are available.
#[derive(Clone, Debug)]
pub enum Doorbell {
    /// An MMIO write over QTest; nobody waits for the socket, nor for the reply.
    Mmio {
        /// The connection.
        qtest: QTest,
        /// The queue's notification address.
        address: u64,
        /// What is written there.
        notification: Notification,
    },
    /// The same by a 16-bit port write, for the legacy interface.
    Port {
        /// The connection.
        qtest: QTest,
        /// The device's one notification register.
        port: u16,
    },
    /// The device polls this eventfd.
    Event(Arc<EventFd>),
    /// The device polls an eventfd that comes and goes with it.
    Kick(Arc<Kick>),
    /// The device is told in some other way, or polls (tests).
    Silent,
}

impl Doorbell {
    /// Rings it for this queue (VIRTIO 1.3, section 4.1.5.2), whose ring has come to `next`
    /// (section 2.9). Never waits, so that it can be rung with the queue's lock held: no kick
    /// overtakes an earlier one.
    ///
    /// One that is not delivered is no news: the connection has ended, which [`QTest::watch`]
    /// and every waiting call report.
    #[inline]
    pub fn ring(&self, queue: u16, next: u16) {
        let kicked = match self {
            Self::Mmio { qtest, address, notification } => {
                let (width, value) = notification.of(queue, next);
                qtest.kick(*address, width, value)
            }
            Self::Port { qtest, port } => qtest.port_kick(*port, 2, u32::from(queue)),
            Self::Event(event) => return event.signal(),
            Self::Kick(kick) => return kick.ring(),
            Self::Silent => return,
        };
        if let Err(error) = kicked {
            log::debug!("the kick of queue {queue} was not delivered: {error}");
        }
    }
}

/// An eventfd that a device polls for one queue, while there is such a device.
///
/// Ringing it costs one `write` and an uncontended lock, which is a twentieth of it: the
/// only other who locks is whoever exchanges the eventfd, when the device comes or goes.
/// The lock is held over the `write`, so that after [`Kick::disconnect`] has returned
/// nobody writes to the old eventfd any more. The `write` does not block ([`EventFd::signal`]).
#[derive(Debug, Default)]
pub struct Kick {
    event: Mutex<Option<Arc<EventFd>>>,
    lost: AtomicU64,
}

impl Kick {
    /// Rings; counts where there is nobody to ring for.
    #[inline]
    pub fn ring(&self) {
        match &*self.lock() {
            Some(event) => event.signal(),
            None => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// From now on this eventfd is rung. It is rung once right away: what was published
    /// while there was none has to be noticed, up to the moment in which there is one.
    pub fn connect(&self, event: Arc<EventFd>) {
        let mut current = self.lock();
        current.insert(event).signal();
    }

    /// From now on rings are only counted.
    pub fn disconnect(&self) {
        *self.lock() = None;
    }

    /// Whether there is an eventfd to ring.
    pub fn connected(&self) -> bool {
        self.lock().is_some()
    }

    /// How often it was rung while there was no eventfd.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, Option<Arc<EventFd>>> {
        // Each change under the lock is one assignment: a panic leaves nothing half done.
        self.event.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_notification_says_the_queue_and_where_the_ring_is() {
        let plain = Notification::default();
        assert_eq!(plain.of(3, 0xabcd), (2, 3));
        assert_eq!(Notification { data: true, ..plain }.of(3, 0x8005), (4, 0x8005_0003));
        let config = Notification { value: Some(0x1234), data: false };
        assert_eq!(config.of(3, 1), (2, 0x1234));
        assert_eq!(Notification { data: true, ..config }.of(3, 1), (4, 0x0001_1234));
    }

    #[test]
    fn a_kick_counts_what_it_loses() {
        let kick = Kick::default();
        kick.ring();
        assert_eq!((kick.connected(), kick.lost()), (false, 1));
        let event = Arc::new(EventFd::new().unwrap());
        kick.connect(Arc::clone(&event));
        assert_eq!(event.drain(), 1, "the first ring is for what was published before");
        kick.ring();
        Doorbell::Kick(Arc::new(Kick::default())).ring(0, 0);
        assert_eq!((event.drain(), kick.lost()), (1, 1));
        kick.disconnect();
        kick.ring();
        assert_eq!((event.drain(), kick.lost()), (0, 2));
        // The caller's handle is the last: nothing is kept.
        assert_eq!(Arc::strong_count(&event), 1);
    }
}
