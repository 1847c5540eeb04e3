//! Changes of forwarded messages, and the eventfds learnt from them.

use super::message::{F_INBAND_NOTIFICATIONS, Fd, MAX_QUEUES, Message, NO_FD, request};
use crate::notify::{EventFd, Kick};
use crate::virtio::transport::vhost::Driver;
use rustix::fs::fstat;
use rustix::process::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The wrap counter bit of a position.
const OTHER_LAP: u16 = 1 << 15;

/// The notifications of the queues, by queue index.
pub(super) struct Vrings {
    pub kicks: Vec<Arc<Kick>>,
    /// The eventfds that the backend signals; `None` keeps QEMU's.
    pub calls: Vec<Option<Arc<EventFd>>>,
    /// The drivers of the queues.
    pub drivers: Mutex<BTreeMap<u16, Arc<dyn Driver>>>,
    /// Number of kick eventfds learnt.
    pub learnt: AtomicU64,
    /// Number of kick eventfds not kept because descriptors are scarce.
    pub not_kept: AtomicU64,
    /// Number of call eventfds replaced.
    pub replaced: AtomicU64,
    /// The limit of open descriptors.
    pub most_open: u64,
}

impl Vrings {
    pub(super) fn new(calls: Vec<Option<Arc<EventFd>>>) -> Self {
        Self {
            kicks: (0..MAX_QUEUES).map(|_| Arc::default()).collect(),
            calls,
            drivers: Mutex::default(),
            learnt: AtomicU64::new(0),
            not_kept: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            most_open: most_open(),
        }
    }

    pub(super) fn drivers(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<dyn Driver>>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver of a queue. It must not be called with the lock held.
    fn driver(&self, vring: Option<u32>) -> Option<Arc<dyn Driver>> {
        self.drivers().get(&u16::try_from(vring?).ok()?).cloned()
    }

    /// Informs the drivers after the backend is gone and does not access the rings any more.
    pub(super) fn stopped(&self) {
        let drivers: Vec<_> = self.drivers().values().cloned().collect();
        for driver in drivers {
            driver.stopped();
        }
    }

    /// Processes a request of QEMU before it is forwarded.
    pub(super) fn request(&self, message: &mut Message) {
        match message.request {
            request::SET_VRING_KICK => self.learn_kick(message),
            request::SET_VRING_CALL => self.replace_call(message),
            request::SET_VRING_BASE => self.set_position(message),
            request::GET_VRING_BASE => {
                if let Some(kick) = message.vring().and_then(|index| self.kicks.get(index as usize))
                {
                    kick.disconnect();
                }
            }
            request::RESET_OWNER | request::RESET_DEVICE => self.forget(),
            request::SET_PROTOCOL_FEATURES => without_inband(message),
            _ => {}
        }
    }

    /// Processes a reply of the backend before it is forwarded.
    pub(super) fn reply(&self, message: &mut Message) {
        if message.request == request::GET_PROTOCOL_FEATURES && message.is_reply() {
            without_inband(message);
        }
        if message.request == request::GET_VRING_BASE
            && message.is_reply()
            && let Some(driver) = self.driver(message.vring())
            && driver.stopped()
        {
            hide_from_qemu(message);
        }
    }

    /// Disconnects the kicks of all queues.
    pub(super) fn forget(&self) {
        for kick in &self.kicks {
            kick.disconnect();
        }
    }

    /// Keeps a copy of the kick eventfd that QEMU passes to the backend.
    fn learn_kick(&self, message: &mut Message) {
        let Some((kick, index)) = message.number().and_then(|number| {
            let index = (number & 0xff) as usize;
            Some((self.kicks.get(index)?, index))
        }) else {
            return;
        };
        // Without a descriptor, the backend polls.
        kick.disconnect();
        if message.fds.len() != 1 {
            return;
        }
        match message.fds.pop() {
            Some(Fd::Passing(fd)) if cannot_block(&fd) => match EventFd::from_fd(fd) {
                Ok(event) => {
                    message.fds.extend(event.hold().map(Fd::Ours));
                    if event.number().is_some_and(|number| are_scarce(number, self.most_open)) {
                        self.do_not_keep(index, kick, &event);
                    } else {
                        kick.connect(Arc::new(event));
                        self.learnt.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // The backend reports the missing descriptor to QEMU.
                Err(error) => log::warn!("the kick eventfd of queue {index} is lost: {error}"),
            },
            other => {
                log::warn!("queue {index}: the kick descriptor that QEMU passed is not an eventfd");
                message.fds.extend(other);
            }
        }
    }

    /// Does not keep an eventfd, as descriptors are scarce: the backend is kicked through QEMU.
    fn do_not_keep(&self, index: usize, kick: &Kick, event: &EventFd) {
        kick.connect_otherwise(event);
        if self.not_kept.fetch_add(1, Ordering::Relaxed) == 0 {
            log::info!(
                "this process has a quarter of its descriptors open (RLIMIT_NOFILE, ulimit -n): from \
                 queue {index} on, the backend is kicked through QEMU, which takes longer"
            );
        }
    }

    /// Replaces QEMU's start position by the driver's.
    fn set_position(&self, message: &mut Message) {
        let driver = self.driver(message.vring());
        if let Some(at) = driver.and_then(|driver| driver.starting()) {
            // The next available descriptor in the lower half, the next used in the upper.
            message.set_vring_num(u32::from(at) << 16 | u32::from(at));
        }
    }

    /// Replaces QEMU's call eventfd, or none, by ours.
    fn replace_call(&self, message: &mut Message) {
        let Some(number) = message.number() else { return };
        let index = number & 0xff;
        if let Some(Some(call)) = self.calls.get(index as usize)
            && let Some(call) = call.hold()
        {
            message.set_number(number & !NO_FD);
            message.fds = vec![Fd::Ours(call)];
            self.replaced.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Vrings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vrings")
            .field("calls", &self.calls)
            .field("learnt", &self.learnt)
            .field("replaced", &self.replaced)
            .finish_non_exhaustive()
    }
}

/// Inverts the wrap counter of a stopped packed ring's position, so that QEMU finds no buffers there.
/// The next backend gets the right position from the driver.
///
/// Otherwise QEMU would drop the buffers while the link is down, and mark them as used at a wrong
/// place: the upper half of the answer, the used position, is 0 with DPDK 22.11, and QEMU 7.2 masks
/// other values wrongly and aborts.
fn hide_from_qemu(message: &mut Message) {
    if let Some(num) = message.vring_num() {
        message.set_vring_num(num ^ u32::from(OTHER_LAP));
    }
}

/// The limit of open descriptors of this process.
fn most_open() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether descriptors are scarce, judging by the newest, as the kernel assigns the lowest free number.
/// Three quarters of them then remain for the descriptors that a vhost-user port cannot do without.
fn are_scarce(newest: RawFd, most: u64) -> bool {
    u64::try_from(newest).is_ok_and(|newest| newest >= most / 4)
}

/// Whether a descriptor is an anonymous inode, such as an eventfd, a timerfd or an epoll set. A write to
/// anything else could block or raise SIGPIPE.
fn cannot_block(fd: &OwnedFd) -> bool {
    const FILE_TYPE: u32 = 0o170_000;
    fstat(fd).is_ok_and(|stat| stat.st_mode & FILE_TYPE == 0)
}

/// Removes in-band notifications from a set of protocol features: with them, a kick would be a message.
fn without_inband(message: &mut Message) {
    if let Some(features) = message.number()
        && features & F_INBAND_NOTIFICATIONS != 0
    {
        message.set_number(features & !F_INBAND_NOTIFICATIONS);
    }
}
