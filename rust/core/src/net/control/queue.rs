//! The control queue (section 5.1.6.5): one command at a time, and its acknowledgement.
//!
//! A device that did not answer in time may still execute the command later. The outcome is unknown
//! until the command comes back, and no other command can be given before; the next caller is then
//! told of a late execution ([`Late`]).

use crate::memory::{Chunk, Iova, Pool};
use crate::net::queue::AnyRing;
use crate::notify::Doorbell;
use crate::virtio::transport::{NO_VECTOR, QueueAddresses};
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of the longest command.
const ROOM: usize = 8192;
/// Where the acknowledgement and the command are in the chunk: on separate cache lines.
const ACK_AT: usize = 64;
const DATA_AT: usize = 128;
/// Bytes of `class` and `command`.
const HEADER: usize = 2;

const OK: u8 = 0;
/// Not a valid acknowledgement: the device must overwrite it.
const NOTHING: u8 = 0xff;

/// QEMU answers in tens of microseconds; one that takes this long is stuck.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the ring is checked.
const INTERVAL: Duration = Duration::from_micros(20);

/// The class and number of a command, and its name in the specification.
#[derive(Clone, Copy, Debug)]
pub(in crate::net) struct Command {
    pub(in crate::net) class: u8,
    pub(in crate::net) number: u8,
    pub(in crate::net) name: &'static str,
}

/// A command that was executed after its timeout, when its caller had gone.
#[derive(Debug)]
pub(in crate::net) struct Late {
    pub(in crate::net) command: Command,
    pub(in crate::net) payload: Vec<u8>,
    pub(in crate::net) arguments: String,
}

/// The driver's side of the control queue.
#[derive(Debug)]
pub(in crate::net) struct ControlQueue {
    index: u16,
    timeout: Duration,
    /// Whether a timed-out command is outstanding.
    overdue: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: AnyRing,
    doorbell: Doorbell,
    /// Whether the device still has a timed-out command.
    unanswered: bool,
    /// That command.
    overdue: Option<Late>,
    /// After the ring: it must outlive anything the device may still access. None once the port was
    /// closed.
    chunk: Option<Chunk>,
}

impl ControlQueue {
    pub(in crate::net) fn new(
        index: u16,
        mut ring: AnyRing,
        doorbell: Doorbell,
        pool: &Arc<Pool>,
    ) -> Result<Self> {
        ring.disable_interrupts();
        let chunk = pool.region().allocate(DATA_AT + ROOM, DATA_AT)?;
        let inner = Inner { ring, doorbell, unanswered: false, overdue: None, chunk: Some(chunk) };
        let overdue = AtomicBool::new(false);
        Ok(Self { index, timeout: TIMEOUT, overdue, inner: Mutex::new(inner) })
    }

    pub(in crate::net) fn addresses(&self) -> QueueAddresses {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (descriptors, driver, device) = inner.ring.addresses();
        QueueAddresses { size: inner.ring.size(), descriptors, driver, device, vector: NO_VECTOR }
    }

    /// Restarts with an empty ring, after the device was reset.
    pub(in crate::net) fn restart(&self, doorbell: Doorbell) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ring.reset(|_| {});
        inner.ring.disable_interrupts();
        (inner.doorbell, inner.unanswered, inner.overdue) = (doorbell, false, None);
        self.overdue.store(false, Ordering::Relaxed);
    }

    /// Uses another, empty ring; for a device that is gone or was reset.
    pub(in crate::net) fn replace_ring(&self, ring: AnyRing) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ring = ring;
        inner.ring.disable_interrupts();
    }

    /// Frees its memory: the port was closed and its device reset.
    pub(in crate::net) fn end(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ring.end();
        inner.chunk = None;
    }

    /// The timed-out command, if it has been executed since. Does not wait.
    pub(in crate::net) fn late(&self) -> Option<Late> {
        if !self.overdue.load(Ordering::Relaxed) {
            return None;
        }
        let mut inner = self.inner.try_lock().ok()?;
        // The next command reports the error.
        let back = inner.collect().unwrap_or(false);
        back.then(|| self.take_overdue(&mut inner)).flatten()
    }

    /// After the command has come back.
    fn take_overdue(&self, inner: &mut Inner) -> Option<Late> {
        self.overdue.store(false, Ordering::Relaxed);
        let late = inner.overdue.take()?;
        let done = inner.acknowledgement() == OK;
        let name = late.command.name;
        log::warn!(
            "the device has answered {name}({}) after its timeout: it {}",
            late.arguments,
            if done { "was carried out" } else { "was refused" }
        );
        done.then_some(late)
    }

    #[cfg(test)]
    pub(in crate::net) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    pub(in crate::net) fn index(&self) -> u16 {
        self.index
    }

    /// Sends a command to the device and waits for the acknowledgement.
    ///
    /// `arguments` is for the error only; an error of `alive` ends the wait. `late` is set to the
    /// previous command if that was executed after its timeout.
    ///
    /// # Errors
    /// [`Error::Refused`] if the device refuses, [`Error::Invalid`] for a command that is too long,
    /// [`Error::Timeout`], [`Error::QemuDied`], [`Error::Device`].
    pub(in crate::net) fn run(
        &self,
        alive: impl Fn() -> Result<()>,
        command: Command,
        payload: &[u8],
        arguments: &str,
        late: &mut Option<Late>,
    ) -> Result<()> {
        let Command { class, number, name } = command;
        if payload.len() > ROOM {
            return Err(Error::Invalid(format!(
                "{name}({arguments}) takes {} bytes; a command has at most {ROOM}",
                payload.len()
            )));
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let timeout = self.timeout;
        let started = Instant::now();
        let within = |inner: &mut Inner| -> Result<bool> {
            while !inner.collect()? {
                alive()?;
                if started.elapsed() > timeout {
                    return Ok(false);
                }
                std::thread::sleep(INTERVAL);
            }
            Ok(true)
        };
        if inner.unanswered {
            if !within(&mut inner)? {
                return Err(Error::Timeout(format!(
                    "{name}({arguments}) was not asked: the device has not answered the command \
                     before it, for another {timeout:?}"
                )));
            }
            *late = self.take_overdue(&mut inner);
        }
        inner.send(self.index, [class, number], payload)?;
        if !within(&mut inner)? {
            inner.overdue =
                Some(Late { command, payload: payload.to_vec(), arguments: arguments.to_owned() });
            self.overdue.store(true, Ordering::Relaxed);
            return Err(Error::Timeout(format!(
                "the device did not answer {name}({arguments}) within {timeout:?}; it may carry it \
                 out later, which will be noticed then"
            )));
        }
        match inner.acknowledgement() {
            OK => Ok(()),
            NOTHING => Err(Error::Refused(format!(
                "the device gave {name}({arguments}) back without an acknowledgement"
            ))),
            other => Err(Error::Refused(format!(
                "the device refused {name}({arguments}) (acknowledgement {other})"
            ))),
        }
    }
}

impl Inner {
    fn send(&mut self, queue: u16, header: [u8; HEADER], payload: &[u8]) -> Result<()> {
        let Some(chunk) = &self.chunk else {
            return Err(Error::Closed("the port is closed".to_owned()));
        };
        let base = chunk.as_ptr();
        //  SAFETY: the chunk is ours and no command is with the device; it has DATA_AT + ROOM
        //  bytes, and the
        // payload at most ROOM.
        unsafe {
            base.copy_from_nonoverlapping(header.as_ptr(), HEADER);
            base.add(ACK_AT).write_volatile(NOTHING);
            base.add(DATA_AT).copy_from_nonoverlapping(payload.as_ptr(), payload.len());
        }
        let at = |offset: usize| Iova(chunk.iova().0.wrapping_add(offset as u64));
        let parts = [(at(0), HEADER as u32), (at(DATA_AT), payload.len() as u32)];
        let readable = if payload.is_empty() { &parts[..1] } else { &parts[..] };
        if !self.ring.add_chain(0, readable, &[(at(ACK_AT), 1)]) {
            return Err(Error::Device("the control queue takes no command any more".to_owned()));
        }
        self.unanswered = true;
        if self.ring.publish() {
            self.doorbell.ring(queue, self.ring.next_available());
        }
        Ok(())
    }

    /// Whether the command has come back.
    fn collect(&mut self) -> Result<bool> {
        if self.ring.pop(1, |_, _| {})? > 0 {
            self.unanswered = false;
        }
        Ok(!self.unanswered)
    }

    fn acknowledgement(&self) -> u8 {
        let Some(chunk) = &self.chunk else { return NOTHING };
        // SAFETY: inside the chunk, which is ours; one volatile read of what the device wrote.
        unsafe { chunk.as_ptr().add(ACK_AT).read_volatile() }
    }
}
