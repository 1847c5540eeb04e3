//! What users hold: one method for each command, arguments checked first.

use super::connection::Connection;
use super::patience::Patience;
use super::pipeline::End;
use super::stepping;
use super::sync::{Mutex, lock};
use super::wire::{Answer, Command, MAX_IRQ, READ_CHUNK, WRITE_CHUNK, push_hex};
use crate::notify::EventFd;
use crate::{Error, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Reads that go to QEMU in one piece; it reads its socket 1,024 bytes at a time.
const BATCH: usize = 128;
/// How often a socket that is not there yet is tried again.
const RETRY: Duration = Duration::from_millis(2);

/// A connection to QEMU's QTest socket; clones share it.
///
/// Any thread may use it. Replies are matched to requests in order. When the
/// connection ends, every waiting and later call returns [`crate::Error::QemuDied`]
/// and each eventfd given to [`QTest::watch`] is signalled. It is closed when the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct QTest {
    connection: Arc<Connection>,
    threads: Arc<Threads>,
}

/// The threads of a connection. Only users own this, the threads do not: when the
/// last user is gone, the threads go.
#[derive(Debug)]
struct Threads {
    connection: Arc<Connection>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    fn close(&self) {
        if !self.connection.home.is_here() {
            return;
        }
        self.connection.end(End::Closed);
        let handles = std::mem::take(&mut *lock(&self.handles));
        for handle in handles {
            // A thread that panicked has printed why.
            let _ = handle.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.connection.home.is_here() {
            // There are no such threads here: a handle's end would detach somebody else's.
            let handles = self.handles.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::take(handles));
            return;
        }
        self.close();
    }
}

impl QTest {
    /// Connects to the socket, retrying until it is there or the timeout is over, and
    /// waits until QEMU answers. `timeout` is also how long a reply may take.
    ///
    /// # Errors
    /// [`crate::Error::Timeout`], [`crate::Error::Os`], [`crate::Error::QemuDied`];
    /// [`crate::Error::Invalid`] for a path that no socket can have.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        Self::connect_interruptible(path, timeout, None)
    }

    /// Like [`Self::connect`]; every call on this connection that waits longer than
    /// 100 ms asks `patience`, in its own thread, whether to go on.
    ///
    /// # Errors
    /// See [`Self::connect`], and what `patience` returns.
    pub fn connect_interruptible(
        path: &Path,
        timeout: Duration,
        patience: Option<Patience>,
    ) -> Result<Self> {
        let deadline = Instant::now().checked_add(timeout);
        let socket = open(path, deadline, patience)?;
        Self::greet(path, socket, timeout, deadline, patience)
    }

    /// Like [`Self::connect_interruptible`], to a QEMU that is known to listen: where nobody does, it
    /// has ended.
    ///
    /// # Errors
    /// See [`Self::connect_interruptible`]; [`crate::Error::QemuDied`] at once where nobody listens.
    pub fn connect_to_running(
        path: &Path,
        timeout: Duration,
        patience: Option<Patience>,
    ) -> Result<Self> {
        let deadline = Instant::now().checked_add(timeout);
        let socket = match attempt(path)? {
            Ok(socket) => socket,
            Err(Errno::NOENT | Errno::CONNREFUSED) => {
                return Err(Error::QemuDied(format!(
                    "nobody listens at the QTest socket {} any more",
                    path.display()
                )));
            }
            // Others are connecting, or a signal came.
            Err(_) => open(path, deadline, patience)?,
        };
        Self::greet(path, socket, timeout, deadline, patience)
    }

    /// Waits until QEMU answers.
    fn greet(
        path: &Path,
        socket: OwnedFd,
        timeout: Duration,
        deadline: Option<Instant>,
        patience: Option<Patience>,
    ) -> Result<Self> {
        let qtest = Self::from_socket(socket, timeout, patience)?;
        let hello = Command::Endianness;
        match qtest.connection.ask_by(hello, hello.line().bytes(), deadline) {
            Ok(Answer::Number(0)) => Ok(qtest),
            Ok(_) => Err(Error::Qemu(
                "the QEMU at the QTest socket is big-endian; virtnic needs qemu-system-x86_64"
                    .into(),
            )),
            Err(Error::Timeout(_)) => Err(Error::Timeout(format!(
                "connected to the QTest socket {}, but QEMU does not answer: it is blocked, or \
                 serves another client (it takes one at a time)",
                path.display()
            ))),
            Err(error) => Err(error),
        }
    }

    /// Takes over a connected socket.
    pub(crate) fn from_socket(
        socket: OwnedFd,
        timeout: Duration,
        patience: Option<Patience>,
    ) -> Result<Self> {
        let (connection, reader) = Connection::start(socket, timeout, patience)?;
        let threads =
            Threads { connection: Arc::clone(&connection), handles: Mutex::new(vec![reader]) };
        Ok(Self { connection, threads: Arc::new(threads) })
    }

    /// Port input of `width` 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a width or port that QEMU would abort on; [`crate::Error::QemuDied`];
    /// [`crate::Error::Timeout`]; [`crate::Error::Qemu`] for a FAIL or ERR reply, also to an
    /// earlier write. So for all below.
    pub fn port_in(&self, port: u16, width: u8) -> Result<u32> {
        check_port_width(width)?;
        Ok(number(self.connection.ask(Command::In { port, width })?)? as u32)
    }

    /// Port output of `width` 1, 2 or 4 bytes; returns once written, not once done.
    /// A FAIL is reported by the next call that waits.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn port_out(&self, port: u16, width: u8, value: u32) -> Result<()> {
        check_port_width(width)?;
        check_value(width, u64::from(value))?;
        self.connection.post(Command::Out { port, width, value })
    }

    /// MMIO read of `width` 1, 2, 4 or 8 bytes.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn read(&self, address: u64, width: u8) -> Result<u64> {
        check_access(address, width)?;
        number(self.connection.ask(Command::Read { address, width })?)
    }

    /// MMIO write of `width` 1, 2, 4 or 8 bytes; returns once written, not once done.
    /// One system call, no heap allocation.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    #[inline]
    pub fn write(&self, address: u64, width: u8, value: u64) -> Result<()> {
        check_access(address, width)?;
        check_value(width, value)?;
        self.connection.post(Command::Write { address, width, value })
    }

    /// [`Self::write`] of a queue's doorbell, which never waits, whatever QEMU does: where the
    /// socket is full it is kept, once for each queue, and sent before anything that is asked later. So
    /// it may be called with a queue's lock held.
    ///
    /// # Errors
    /// [`crate::Error::QemuDied`], [`crate::Error::Closed`], [`crate::Error::Invalid`] as above.
    #[inline]
    pub fn kick(&self, address: u64, width: u8, value: u64) -> Result<()> {
        check_access(address, width)?;
        check_value(width, value)?;
        self.connection.kick(Command::Write { address, width, value })
    }

    /// The same by a port, as [`Self::port_out`].
    ///
    /// # Errors
    /// See [`Self::kick`].
    #[inline]
    pub fn port_kick(&self, port: u16, width: u8, value: u32) -> Result<()> {
        check_port_width(width)?;
        check_value(width, u64::from(value))?;
        self.connection.kick(Command::Out { port, width, value })
    }

    /// Several MMIO reads in one round trip: `(address, width)` each.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn read_many(&self, reads: &[(u64, u8)]) -> Result<Vec<u64>> {
        for (address, width) in reads {
            check_access(*address, *width)?;
        }
        let mut values = Vec::with_capacity(reads.len());
        for batch in reads.chunks(BATCH) {
            let commands: Vec<_> = batch
                .iter()
                .map(|(address, width)| Command::Read { address: *address, width: *width })
                .collect();
            for answer in self.ask_batch(&commands)? {
                values.push(number(answer)?);
            }
        }
        Ok(values)
    }

    /// Reads `len` bytes.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn read_bytes(&self, address: u64, len: usize) -> Result<Vec<u8>> {
        check_range(address, len)?;
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let part = (len - out.len()).min(READ_CHUNK);
            // In range: `check_range` looked at the end of the whole.
            let command = Command::ReadBytes { address: address + out.len() as u64, len: part };
            match self.connection.ask(command)? {
                Answer::Bytes(bytes) => out.extend_from_slice(&bytes),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(out)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn write_bytes(&self, address: u64, data: &[u8]) -> Result<()> {
        check_range(address, data.len())?;
        let mut address = address;
        for part in data.chunks(WRITE_CHUNK) {
            let command = Command::WriteBytes { address, len: part.len() };
            let mut line = command.line().bytes().to_vec();
            push_hex(&mut line, part);
            line.push(b'\n');
            self.connection.post_line(command, &line)?;
            address = address.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Waits until everything written before is done.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn flush(&self) -> Result<()> {
        self.connection.ask(Command::Endianness).map(drop)
    }

    /// Asks for `IRQ raise/lower` lines of one device (on a PC: `ioapic`). Once per QEMU.
    /// QEMU aborts when the path names an object that is not a device.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn intercept(&self, path: &str) -> Result<()> {
        if path.is_empty() || path.len() > 255 || !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Invalid(format!(
                "{path:?} is no QOM path: 1 to 255 printable ASCII characters without blanks"
            )));
        }
        let mut line = Command::Intercept.line().bytes().to_vec();
        line.extend_from_slice(path.as_bytes());
        line.push(b'\n');
        let deadline = self.connection.deadline();
        match self.connection.ask_by(Command::Intercept, &line, deadline) {
            Err(Error::Qemu(why)) => Err(Error::Qemu(format!("intercepting {path}: {why}"))),
            other => other.map(drop),
        }
    }

    /// Signals `event` each time interrupt line `line` is raised (and now, if it is),
    /// until `event` is dropped. QEMU has 24 lines on a PC; one above 1,023 is ignored.
    pub fn on_irq(&self, line: u32, event: &Arc<EventFd>) {
        if line >= MAX_IRQ {
            log::warn!("there is no interrupt line {line}; its eventfd will not be signalled");
        }
        self.connection.pipeline.on_irq(line, event);
    }

    /// Whether an interrupt line is raised. Exact after a call that waited: a reply
    /// comes after the `IRQ` lines its command caused.
    pub fn irq_level(&self, line: u32) -> bool {
        self.connection.pipeline.level(line)
    }

    /// Signals the eventfds of a line again if it is still raised; says whether it is.
    /// INTx is level-triggered and shared: who has served his device and finds the line
    /// still raised calls this, so that the others look at theirs.
    pub fn irq_signal_again(&self, line: u32) -> bool {
        self.connection.pipeline.signal_again(line)
    }

    /// Signals `event` when the connection ends (at once if it has), until `event` is dropped.
    pub fn watch(&self, event: &Arc<EventFd>) {
        self.connection.pipeline.watch(event);
    }

    /// Steps the virtual clock by `ns`, or to the next timer; returns its time, ns. (accel=qtest)
    /// Newer QEMUs refuse a step of 0, and one to the next timer where there is none.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn clock_step(&self, ns: Option<u64>) -> Result<u64> {
        if let Some(ns) = ns
            && ns > i64::MAX as u64
        {
            return Err(Error::Invalid(format!("a clock step of {ns} ns is past 2^63 - 1")));
        }
        number(self.connection.ask(Command::ClockStep { ns })?)
    }

    /// Steps the virtual clock in real time every `period` from a thread, until the
    /// connection closes. A second call changes the period.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a period of 0; [`crate::Error::Os`] when no thread can be
    /// started; [`crate::Error::Qemu`] when the accelerator is not qtest.
    pub fn run_clock(&self, period: Duration) -> Result<()> {
        if period.is_zero() {
            return Err(Error::Invalid("the period of the clock must be longer than 0".into()));
        }
        // Says whether the accelerator is qtest. Not 0: newer QEMUs refuse a step that
        // does not advance the time.
        self.clock_step(Some(1))?;
        // The lock is held from the first look to the start, so that only one starts.
        let mut handles = lock(&self.threads.handles);
        if !self.connection.clock.set(period) {
            return Ok(());
        }
        match stepping::start(&self.connection) {
            Ok(handle) => {
                handles.push(handle);
                Ok(())
            }
            Err(error) => {
                self.connection.clock.unset();
                Err(Error::os("starting the clock thread", error))
            }
        }
    }

    /// Asks the patience that the connection was made with, for a wait for something else.
    ///
    /// # Errors
    /// What it returns.
    pub fn patience(&self) -> Result<()> {
        self.connection.patience.map_or(Ok(()), |ask| ask())
    }

    /// Why the connection ended, where it has.
    pub fn death(&self) -> Option<String> {
        if let Err(error) = self.connection.home.check("the QTest connection") {
            return Some(error.to_string());
        }
        self.connection.pipeline.end().map(|end| end.error().to_string())
    }

    /// Ends the connection and its threads; later calls return [`crate::Error::Closed`].
    pub fn close(&self) {
        self.threads.close();
    }

    fn ask_batch(&self, commands: &[Command]) -> Result<Vec<Answer>> {
        let mut lines = Vec::with_capacity(commands.len() * 32);
        for command in commands {
            lines.extend_from_slice(command.line().bytes());
        }
        self.connection.ask_many(commands, &lines, self.connection.deadline())
    }
}

/// Connects, or says why that may succeed later.
fn attempt(path: &Path) -> Result<Result<OwnedFd, Errno>> {
    let address = SocketAddrUnix::new(path).map_err(|_| {
        Error::Invalid(format!(
            "{} is no path of a socket: 1 to 107 bytes without a zero byte",
            path.display()
        ))
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    match socket.and_then(|socket| connect(&socket, &address).map(|()| socket)) {
        Ok(socket) => Ok(Ok(socket)),
        Err(why @ (Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)) => Ok(Err(why)),
        Err(e) => Err(Error::os(format!("connecting to the QTest socket {}", path.display()), e)),
    }
}

/// Connects to a socket that may not be there yet.
fn open(path: &Path, deadline: Option<Instant>, patience: Option<Patience>) -> Result<OwnedFd> {
    loop {
        let why = match attempt(path)? {
            Ok(socket) => return Ok(socket),
            Err(why) => why,
        };
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(Error::Timeout(format!(
                "connecting to the QTest socket {0}: {why}; is QEMU running with \
                 `-qtest unix:{0},server=on,wait=off`?",
                path.display()
            )));
        }
        std::thread::sleep(RETRY);
        if let Some(ask) = patience {
            ask()?;
        }
    }
}

fn number(answer: Answer) -> Result<u64> {
    match answer {
        Answer::Number(value) => Ok(value),
        other => Err(unexpected(&other)),
    }
}

/// Cannot be: `Command::answer` yields what each command asks for.
fn unexpected(answer: &Answer) -> Error {
    Error::Qemu(format!("a reply of the wrong kind: {answer:?}"))
}

fn check_port_width(width: u8) -> Result<()> {
    match width {
        1 | 2 | 4 => Ok(()),
        _ => Err(Error::Invalid(format!("a port access is 1, 2 or 4 bytes wide, not {width}"))),
    }
}

#[inline]
fn check_access(address: u64, width: u8) -> Result<()> {
    match width {
        1 | 2 | 4 | 8 => check_range(address, usize::from(width)),
        _ => Err(Error::Invalid(format!("an MMIO access is 1, 2, 4 or 8 bytes wide, not {width}"))),
    }
}

#[inline]
fn check_range(address: u64, len: usize) -> Result<()> {
    // The last byte may be at 2^64 - 1.
    match address.checked_add((len as u64).saturating_sub(1)) {
        Some(_) => Ok(()),
        None => Err(Error::Invalid(format!("{len} bytes at {address:#x} go past 2^64"))),
    }
}

#[inline]
fn check_value(width: u8, value: u64) -> Result<()> {
    if width >= 8 || value >> (u32::from(width) * 8) == 0 {
        return Ok(());
    }
    Err(Error::Invalid(format!("{value:#x} does not fit {width} bytes")))
}
