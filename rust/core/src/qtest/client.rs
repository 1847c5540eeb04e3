//! `QTest`: one method per command, with checked arguments.

use super::connection::Connection;
use super::pipeline::End;
use super::signals::SignalCheck;
use super::stepping;
use super::sync::{Mutex, lock};
use super::wire::{Answer, Command, MAX_IRQ, READ_CHUNK, WRITE_CHUNK, lines_of, push_hex};
use crate::notify::EventFd;
use crate::unix::{address, unconnected};
use crate::{Error, Result};
use rustix::io::Errno;
use rustix::net::connect;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two attempts to connect to a socket that does not exist yet.
const RETRY: Duration = Duration::from_millis(2);

/// A connection to QEMU's QTest socket; clones share it.
///
/// Any thread may use it. When the connection ends, every waiting and later call returns
/// [`crate::Error::QemuDied`], and the eventfds of [`QTest::watch`] are signalled. It is closed when the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct QTest {
    connection: Arc<Connection>,
    threads: Arc<Threads>,
}

/// The threads of a connection. Only users own this, so the threads end with the last user.
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
            // The threads do not exist in a forked child.
            let handles = self.handles.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::take(handles));
            return;
        }
        self.close();
    }
}

impl QTest {
    /// Connects to the socket, retrying until it exists, and waits until QEMU answers. `timeout` is also
    /// the limit for a reply.
    ///
    /// # Errors
    /// [`crate::Error::Timeout`], [`crate::Error::Os`], [`crate::Error::QemuDied`];
    /// [`crate::Error::Invalid`] for a path that is too long for a socket.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        Self::connect_interruptible(path, timeout, None)
    }

    /// Like [`Self::connect`]; every waiting call of this connection also calls `signals` every 100 ms,
    /// in its own thread.
    ///
    /// # Errors
    /// See [`Self::connect`], and the error of `signals`.
    pub fn connect_interruptible(
        path: &Path,
        timeout: Duration,
        signals: Option<SignalCheck>,
    ) -> Result<Self> {
        let deadline = Instant::now().checked_add(timeout);
        let socket = open(path, deadline, signals)?;
        Self::greet(path, socket, timeout, deadline, signals)
    }

    /// Like [`Self::connect_interruptible`], to a QEMU that has been listening: if nobody listens, it has
    /// ended.
    ///
    /// # Errors
    /// See [`Self::connect_interruptible`]; [`crate::Error::QemuDied`] at once if nobody listens.
    pub fn connect_to_running(
        path: &Path,
        timeout: Duration,
        signals: Option<SignalCheck>,
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
            // The backlog is full, or a signal arrived.
            Err(_) => open(path, deadline, signals)?,
        };
        Self::greet(path, socket, timeout, deadline, signals)
    }

    /// Waits until QEMU answers.
    fn greet(
        path: &Path,
        socket: OwnedFd,
        timeout: Duration,
        deadline: Option<Instant>,
        signals: Option<SignalCheck>,
    ) -> Result<Self> {
        let qtest = Self::from_socket(socket, timeout, signals)?;
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
        signals: Option<SignalCheck>,
    ) -> Result<Self> {
        let (connection, reader) = Connection::start(socket, timeout, signals)?;
        let threads =
            Threads { connection: Arc::clone(&connection), handles: Mutex::new(vec![reader]) };
        Ok(Self { connection, threads: Arc::new(threads) })
    }

    /// Port input of `width` 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a width on which QEMU would abort; [`crate::Error::QemuDied`];
    /// [`crate::Error::Timeout`]; [`crate::Error::Qemu`] for a FAIL or ERR reply, also to an earlier
    /// write. The same applies to the methods below.
    pub fn port_in(&self, port: u16, width: u8) -> Result<u32> {
        check_port_width(width)?;
        Ok(number(self.connection.ask(Command::In { port, width })?)? as u32)
    }

    /// Port output of `width` 1, 2 or 4 bytes; returns once it is sent, not once it is done. The next
    /// call that waits reports a FAIL.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn port_out(&self, port: u16, width: u8, value: u32) -> Result<()> {
        check_port_width(width)?;
        check_value(width, u64::from(value))?;
        self.connection.post(Command::Out { port, width, value })
    }

    /// Port input of a register that is selected first: `index` is written to the 32-bit port
    /// `selector`. Both go to QEMU in one piece, so no other access comes between, not even one
    /// of the same thread (a signal handler's).
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn indexed_in(&self, selector: u16, index: u32, port: u16, width: u8) -> Result<u32> {
        check_port_width(width)?;
        let select = Command::Out { port: selector, width: 4, value: index };
        match self.ask_batch(&[select, Command::In { port, width }])?.pop() {
            Some(answer) => Ok(number(answer)? as u32),
            None => Err(unexpected(&Answer::Done)),
        }
    }

    /// Port output to such a register; returns once written, not once done.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn indexed_out(
        &self,
        selector: u16,
        index: u32,
        port: u16,
        width: u8,
        value: u32,
    ) -> Result<()> {
        check_port_width(width)?;
        check_value(width, u64::from(value))?;
        let select = Command::Out { port: selector, width: 4, value: index };
        self.connection.post_all(&[select, Command::Out { port, width, value }])
    }

    /// MMIO read of `width` 1, 2, 4 or 8 bytes.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn read(&self, address: u64, width: u8) -> Result<u64> {
        check_access(address, width)?;
        number(self.connection.ask(Command::Read { address, width })?)
    }

    /// MMIO write of `width` 1, 2, 4 or 8 bytes; returns once it is sent, not once it is done. One system
    /// call, no heap allocation.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    #[inline]
    pub fn write(&self, address: u64, width: u8, value: u64) -> Result<()> {
        check_access(address, width)?;
        check_value(width, value)?;
        self.connection.post(Command::Write { address, width, value })
    }

    /// [`Self::write`] to a queue's doorbell, which never waits: if the socket is full, the kick is kept,
    /// once per queue, and sent before later requests. It can be called with a queue's lock held.
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

    /// Reads `len` bytes.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn read_bytes(&self, address: u64, len: usize) -> Result<Vec<u8>> {
        check_range(address, len)?;
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let part = (len - out.len()).min(READ_CHUNK);
            // In range: `check_range` checked the end.
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

    /// Waits until all earlier writes are done.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn flush(&self) -> Result<()> {
        self.connection.ask(Command::Endianness).map(drop)
    }

    /// Enables `IRQ raise/lower` lines for one device (on a PC: `ioapic`). Once per QEMU. QEMU aborts if
    /// the path is that of an object other than a device.
    ///
    /// # Errors
    /// See [`Self::port_in`].
    pub fn intercept(&self, path: &str) -> Result<()> {
        if path.is_empty() || path.len() > 255 || !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Invalid(format!(
                "{path:?} is not a QOM path: 1 to 255 printable ASCII characters without blanks"
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

    /// Signals `event` each time interrupt line `line` is raised, and now if it is, until `event` is
    /// dropped. A PC has 24 lines; lines above 1,023 are ignored.
    pub fn on_irq(&self, line: u32, event: &Arc<EventFd>) {
        if line >= MAX_IRQ {
            log::warn!("there is no interrupt line {line}; its eventfd will not be signalled");
        }
        self.connection.pipeline.on_irq(line, event);
    }

    /// Whether an interrupt line is raised. Exact after a call that waited, as a reply arrives after the
    /// `IRQ` lines that its command caused.
    pub fn irq_level(&self, line: u32) -> bool {
        self.connection.pipeline.level(line)
    }

    /// Signals `event` when the connection ends, or at once if it has, until `event` is dropped.
    pub fn watch(&self, event: &Arc<EventFd>) {
        self.connection.pipeline.watch(event);
    }

    /// Steps the virtual clock by `ns`, or to the next timer; returns its time in ns (accel=qtest). Newer
    /// QEMUs refuse a step of 0, and one to the next timer if there is none.
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

    /// Steps the virtual clock in real time every `period` in a thread, until the connection closes. A
    /// second call changes the period.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a period of 0; [`crate::Error::Os`] if no thread can be started;
    /// [`crate::Error::Qemu`] if the accelerator is not qtest.
    pub fn run_clock(&self, period: Duration) -> Result<()> {
        if period.is_zero() {
            return Err(Error::Invalid("the period of the clock must be longer than 0".into()));
        }
        // Fails unless the accelerator is qtest. Not 0, as newer QEMUs refuse that.
        self.clock_step(Some(1))?;
        // Locked from the check to the start, so that only one thread is started.
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

    /// Calls the connection's [`SignalCheck`], during a wait for something else.
    ///
    /// # Errors
    /// Its error.
    pub fn check_signals(&self) -> Result<()> {
        self.connection.signals.map_or(Ok(()), |ask| ask())
    }

    /// Why the connection ended, if it has.
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
        self.connection.ask_many(commands, &lines_of(commands), self.connection.deadline())
    }
}

/// Connects. The inner error is one after which another attempt may succeed.
fn attempt(path: &Path) -> Result<Result<OwnedFd, Errno>> {
    let address = address(path)?;
    match unconnected().and_then(|socket| connect(&socket, &address).map(|()| socket)) {
        Ok(socket) => Ok(Ok(socket)),
        Err(why @ (Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)) => Ok(Err(why)),
        Err(e) => Err(Error::os(format!("connecting to the QTest socket {}", path.display()), e)),
    }
}

/// Connects to a socket that may not exist yet.
fn open(path: &Path, deadline: Option<Instant>, signals: Option<SignalCheck>) -> Result<OwnedFd> {
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
        if let Some(ask) = signals {
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

/// Cannot happen: `Command::answer` returns the right kind for each command.
fn unexpected(answer: &Answer) -> Error {
    Error::Qemu(format!("a reply of the wrong kind: {answer:?}"))
}

fn check_port_width(width: u8) -> Result<()> {
    match width {
        1 | 2 | 4 => Ok(()),
        _ => {
            Err(Error::Invalid(format!("a port access must be 1, 2 or 4 bytes wide, not {width}")))
        }
    }
}

#[inline]
fn check_access(address: u64, width: u8) -> Result<()> {
    match width {
        1 | 2 | 4 | 8 => check_range(address, usize::from(width)),
        _ => Err(Error::Invalid(format!(
            "an MMIO access must be 1, 2, 4 or 8 bytes wide, not {width}"
        ))),
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
