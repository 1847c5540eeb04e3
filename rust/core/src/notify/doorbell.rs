//! What a kick is made of.

use super::EventFd;
use crate::Result;
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
    /// The device polls an eventfd that comes and goes with it; where we do not have that, this other
    /// way leads to it.
    Kick(Arc<Kick>, Box<Doorbell>),
    /// The device is told in some other way, or polls (tests).
    Silent,
}

impl Doorbell {
    /// This one; where a device is to be reached `otherwise` at times, by that.
    pub(crate) fn or(&self, otherwise: impl FnOnce() -> Result<Self>) -> Result<Self> {
        match self {
            Self::Kick(kick, _) => Ok(Self::Kick(Arc::clone(kick), Box::new(otherwise()?))),
            other => Ok(other.clone()),
        }
    }

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

/// An eventfd that a device polls for one queue, while there is such a device.
///
/// Ringing it costs one `write` and an uncontended lock, which is a twentieth of it: the
/// only other who locks is whoever exchanges the eventfd, when the device comes or goes.
/// The lock is held over the `write`, so that after [`Kick::disconnect`] has returned
/// nobody writes to the old eventfd any more. The `write` does not block ([`EventFd::signal`]).
#[derive(Debug, Default)]
pub struct Kick {
    way: Mutex<Way>,
    lost: AtomicU64,
}

/// How a device is reached.
#[derive(Debug, Default)]
enum Way {
    /// There is none.
    #[default]
    Nobody,
    /// By its eventfd.
    Event(Arc<EventFd>),
    /// By whoever else has its eventfd.
    Otherwise,
}

impl Kick {
    /// Rings; counts where there is nobody to ring for, or no eventfd to ring by.
    #[inline]
    pub fn ring(&self) {
        self.ring_or(|| {
            self.lost.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// The same, where the device can be reached `otherwise` when its eventfd is not kept here.
    #[inline]
    pub fn ring_or(&self, otherwise: impl FnOnce()) {
        match &*self.lock() {
            Way::Event(event) => return event.signal(),
            Way::Otherwise => {}
            Way::Nobody => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        otherwise();
    }

    /// From now on this eventfd is rung. It is rung once right away: what was published
    /// while there was none has to be noticed, up to the moment in which there is one.
    pub fn connect(&self, event: Arc<EventFd>) {
        let mut way = self.lock();
        event.signal();
        *way = Way::Event(event);
    }

    /// The same for a device whose eventfd is not kept: from now on it is reached otherwise.
    pub fn connect_otherwise(&self, event: &EventFd) {
        let mut way = self.lock();
        event.signal();
        *way = Way::Otherwise;
    }

    /// From now on rings are only counted.
    pub fn disconnect(&self) {
        *self.lock() = Way::Nobody;
    }

    /// Whether there is a device to ring for.
    pub fn connected(&self) -> bool {
        !matches!(*self.lock(), Way::Nobody)
    }

    /// How often it was rung while there was nobody to ring for.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, Way> {
        // Each change under the lock is one assignment: a panic leaves nothing half done.
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
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
        Doorbell::Kick(Arc::new(Kick::default()), Box::new(Doorbell::Silent)).ring(0, 0);
        assert_eq!((event.drain(), kick.lost()), (1, 1));
        kick.disconnect();
        kick.ring();
        assert_eq!((event.drain(), kick.lost()), (0, 2));
        // The caller's handle is the last: nothing is kept.
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
