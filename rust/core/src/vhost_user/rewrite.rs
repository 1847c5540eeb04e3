//! What is changed in passing, and what is learnt.

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

/// The wrap counter in a position.
const OTHER_LAP: u16 = 1 << 15;

/// Our ends of the queues' notifications, by the index of the queue.
pub(super) struct Vrings {
    pub kicks: Vec<Arc<Kick>>,
    /// What the backend signals; `None` leaves QEMU's own in place.
    pub calls: Vec<Option<Arc<EventFd>>>,
    /// Who wants to know of a backend; by queue, few or none.
    pub drivers: Mutex<BTreeMap<u16, Arc<dyn Driver>>>,
    /// Kick eventfds learnt.
    pub learnt: AtomicU64,
    /// Kick eventfds not kept, because descriptors are scarce.
    pub let_go: AtomicU64,
    /// Call eventfds put in.
    pub replaced: AtomicU64,
    /// How many descriptors may be open.
    pub most_open: u64,
}

impl Vrings {
    pub(super) fn new(calls: Vec<Option<Arc<EventFd>>>) -> Self {
        Self {
            kicks: (0..MAX_QUEUES).map(|_| Arc::default()).collect(),
            calls,
            drivers: Mutex::default(),
            learnt: AtomicU64::new(0),
            let_go: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            most_open: most_open(),
        }
    }

    pub(super) fn drivers(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<dyn Driver>>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver of a queue. What it does is not done with the lock held.
    fn driver(&self, vring: Option<u32>) -> Option<Arc<dyn Driver>> {
        self.drivers().get(&u16::try_from(vring?).ok()?).cloned()
    }

    /// The backend is gone, and its last write to the rings with it.
    pub(super) fn stopped(&self) {
        let drivers: Vec<_> = self.drivers().values().cloned().collect();
        for driver in drivers {
            driver.stopped();
        }
    }

    /// Looks at a request on its way from QEMU to the backend.
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

    /// Looks at a reply on its way from the backend to QEMU.
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

    /// No queue is served any more.
    pub(super) fn forget(&self) {
        for kick in &self.kicks {
            kick.disconnect();
        }
    }

    /// Keeps the eventfd that QEMU gives the backend.
    fn learn_kick(&self, message: &mut Message) {
        let Some((kick, index)) = message.number().and_then(|number| {
            // Eight bits.
            let index = (number & 0xff) as usize;
            Some((self.kicks.get(index)?, index))
        }) else {
            return;
        };
        // The ring was never kicked by it, or the backend is to poll from now on.
        kick.disconnect();
        if message.fds.len() != 1 {
            return;
        }
        match message.fds.pop() {
            Some(Fd::Passing(fd)) if cannot_block(&fd) => match EventFd::from_fd(fd) {
                Ok(event) => {
                    message.fds.extend(event.hold().map(Fd::Ours));
                    if event.number().is_some_and(|number| are_scarce(number, self.most_open)) {
                        self.let_go(index, kick, &event);
                    } else {
                        kick.connect(Arc::new(event));
                        self.learnt.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // The backend misses it, and says so to QEMU.
                Err(error) => log::warn!("the kick of queue {index} is lost: {error}"),
            },
            other => {
                log::warn!("queue {index}: the kick that QEMU gave the backend is no eventfd");
                message.fds.extend(other);
            }
        }
    }

    /// Does without an eventfd, where descriptors are scarce: QEMU has it too.
    fn let_go(&self, index: usize, kick: &Kick, event: &EventFd) {
        kick.connect_otherwise(event);
        if self.let_go.fetch_add(1, Ordering::Relaxed) == 0 {
            log::info!(
                "this process has a quarter of its descriptors open (RLIMIT_NOFILE, ulimit -n): from \
                 queue {index} on the backend is kicked through QEMU, which takes longer"
            );
        }
    }

    /// Tells the backend where to go on where we know better than QEMU.
    fn set_position(&self, message: &mut Message) {
        let driver = self.driver(message.vring());
        if let Some(at) = driver.and_then(|driver| driver.starting()) {
            // The next available descriptor in the lower half, the next used in the upper.
            message.set_vring_num(u32::from(at) << 16 | u32::from(at));
        }
    }

    /// Gives the backend our eventfd in place of QEMU's, or of none.
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

/// Lets QEMU find nothing in a packed ring that its backend has stopped: it gets the position with
/// the wrap counter of the other lap. The next backend gets the right one from the driver.
///
/// Otherwise QEMU drops what waits there while the link is down, and says so at the wrong place:
/// the answer's upper half, where used descriptors are written, is 0 with DPDK 22.11, and what
/// else it may be goes through a mask that is a bit too wide (QEMU 7.2 then aborts).
fn hide_from_qemu(message: &mut Message) {
    if let Some(num) = message.vring_num() {
        message.set_vring_num(num ^ u32::from(OTHER_LAP));
    }
}

/// How many descriptors this process may have open.
fn most_open() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether descriptors are to be saved, as the newest says: the kernel gives the lowest number that is
/// free. What else a vhost-user port has then fits four times as often as all that it can do with.
fn are_scarce(newest: RawFd, most: u64) -> bool {
    u64::try_from(newest).is_ok_and(|newest| newest >= most / 4)
}

/// Whether a descriptor that should be an eventfd is an anonymous inode, as eventfds,
/// timerfds and epoll sets are. Anything else could block a `write`, or answer it with
/// SIGPIPE; these do neither.
fn cannot_block(fd: &OwnedFd) -> bool {
    const FILE_TYPE: u32 = 0o170_000;
    fstat(fd).is_ok_and(|stat| stat.st_mode & FILE_TYPE == 0)
}

/// Takes the in-band notifications out of a set of protocol features: with them a kick
/// would be a message of QEMU's.
fn without_inband(message: &mut Message) {
    if let Some(features) = message.number()
        && features & F_INBAND_NOTIFICATIONS != 0
    {
        message.set_number(features & !F_INBAND_NOTIFICATIONS);
    }
}
