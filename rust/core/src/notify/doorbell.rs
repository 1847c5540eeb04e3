//! Doorbells: how a kick reaches the device.

use super::EventFd;
use crate::Result;
use crate::qtest::QTest;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The format of a modern device's notifications (VIRTIO 1.3, section 4.1.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// The value that identifies the queue (NOTIF_CONFIG_DATA); by default its index.
    pub value: Option<u16>,
    /// Whether it contains the ring's position (NOTIFICATION_DATA).
    pub data: bool,
}

impl Notification {
    /// The width in bytes and the value to write.
    #[must_use]
    pub fn of(self, queue: u16, next: u16) -> (u8, u64) {
        let queue = u64::from(self.value.unwrap_or(queue));
        if self.data { (4, u64::from(next) << 16 | queue) } else { (2, queue) }
    }
}

/// How to notify a queue's device that buffers are available.
#[derive(Clone, Debug)]
pub enum Doorbell {
    /// An MMIO write over QTest, without waiting for the socket or the reply.
    Mmio {
        /// The connection.
        qtest: QTest,
        /// The queue's notification address.
        address: u64,
        /// The format of the value.
        notification: Notification,
    },
    /// A 16-bit port write over QTest, for the legacy interface.
    Port {
        /// The connection.
        qtest: QTest,
        /// The device's notification register.
        port: u16,
    },
    /// The device waits for this eventfd.
    Event(Arc<EventFd>),
    /// The device waits for an eventfd that changes with it; the second doorbell is used if we do not
    /// have the eventfd.
    Kick(Arc<Kick>, Box<Doorbell>),
    /// Nothing: the device polls (tests).
    Silent,
}

impl Doorbell {
    /// A copy, with `otherwise` as the second doorbell of a [`Doorbell::Kick`].
    pub(crate) fn or(&self, otherwise: impl FnOnce() -> Result<Self>) -> Result<Self> {
        match self {
            Self::Kick(kick, _) => Ok(Self::Kick(Arc::clone(kick), Box::new(otherwise()?))),
            other => Ok(other.clone()),
        }
    }

    /// Rings for a queue (VIRTIO 1.3, section 4.1.5.2) with the ring position `next` (section 2.9). Never
    /// waits, so that it can be called with the queue's lock held and kicks stay in order.
    ///
    /// A failure is only logged: the connection has ended, which [`QTest::watch`] and every waiting call
    /// report.
    #[inline]
    pub fn ring(&self, queue: u16, next: u16) {
        let kicked = match self {
            Self::Mmio { qtest, address, notification } => {
                let (width, value) = notification.of(queue, next);
                qtest.kick(*address, width, value)
            }
            Self::Port { qtest, port } => qtest.port_kick(*port, 2, u32::from(queue)),
            Self::Event(event) => return event.signal(),
            Self::Kick(kick, otherwise) => {
                return kick.ring_or(|| otherwise.ring(queue, next));
            }
            Self::Silent => return,
        };
        if let Err(error) = kicked {
            log::debug!("the kick of queue {queue} was not delivered: {error}");
        }
    }
}

/// The kick of one queue, whose eventfd changes with the device.
///
/// Ringing takes one `write` and an uncontended lock, which costs a twentieth of the `write`: it is only
/// contended while the device changes. The lock is held during the `write`, so that nothing is written
/// to the old eventfd after [`Kick::disconnect`] has returned. The `write` does not block
/// ([`EventFd::signal`]).
#[derive(Debug, Default)]
pub struct Kick {
    target: Mutex<Target>,
    lost: AtomicU64,
}

/// How to reach the device.
#[derive(Debug, Default)]
enum Target {
    /// There is no device.
    #[default]
    None,
    /// By its eventfd.
    Event(Arc<EventFd>),
    /// By another doorbell.
    Otherwise,
}

impl Kick {
    /// Rings; counts a lost kick if there is no device or no eventfd.
    #[inline]
    pub fn ring(&self) {
        self.ring_or(|| {
            self.lost.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Rings, or calls `otherwise` if the device's eventfd is not kept here.
    #[inline]
    pub fn ring_or(&self, otherwise: impl FnOnce()) {
        match &*self.lock() {
            Target::Event(event) => return event.signal(),
            Target::Otherwise => {}
            Target::None => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        otherwise();
    }

    /// Sets the eventfd and signals it once, for buffers published before.
    pub fn connect(&self, event: Arc<EventFd>) {
        let mut target = self.lock();
        event.signal();
        *target = Target::Event(event);
    }

    /// Signals the eventfd once without keeping it: the device is reached by another doorbell.
    pub fn connect_otherwise(&self, event: &EventFd) {
        let mut target = self.lock();
        event.signal();
        *target = Target::Otherwise;
    }

    /// Removes the device: kicks are only counted.
    pub fn disconnect(&self) {
        *self.lock() = Target::None;
    }

    /// Whether there is a device.
    pub fn connected(&self) -> bool {
        !matches!(*self.lock(), Target::None)
    }

    /// The number of kicks without a device.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_notification_contains_the_queue_and_the_position() {
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
        assert_eq!(event.drain(), 1, "the first kick is for buffers published before");
        kick.ring();
        Doorbell::Kick(Arc::new(Kick::default()), Box::new(Doorbell::Silent)).ring(0, 0);
        assert_eq!((event.drain(), kick.lost()), (1, 1));
        kick.disconnect();
        kick.ring();
        assert_eq!((event.drain(), kick.lost()), (0, 2));
        // Only the caller's reference is left.
        assert_eq!(Arc::strong_count(&event), 1);
    }

    #[test]
    fn a_device_whose_eventfd_is_not_kept_is_reached_otherwise() {
        let (kick, qemu) = (Arc::new(Kick::default()), Arc::new(EventFd::new().unwrap()));
        let doorbell =
            Doorbell::Kick(Arc::clone(&kick), Box::new(Doorbell::Event(Arc::clone(&qemu))));
        doorbell.ring(0, 0);
        assert_eq!((qemu.drain(), kick.lost()), (0, 1));
        let event = EventFd::new().unwrap();
        kick.connect_otherwise(&event);
        assert_eq!((event.drain(), kick.connected()), (1, true));
        doorbell.ring(0, 0);
        assert_eq!((qemu.drain(), event.drain(), kick.lost()), (1, 0, 1));
        kick.disconnect();
        doorbell.ring(0, 0);
        assert_eq!((qemu.drain(), kick.lost()), (0, 2));
    }
}
