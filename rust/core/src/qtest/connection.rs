//! The socket and its reading thread.

use super::clock::Clock;
use super::pipeline::{End, Pipeline, Signal, Ticket};
use super::signals::SignalCheck;
use super::wire::{Answer, Command, Splitter, lines_of, parse};
use crate::locks::may_wait;
use crate::notify::{Descriptor, EventFd};
use crate::process::{Home, background};
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

impl Signal for EventFd {
    fn signal(&self) {
        self.signal();
    }
}

/// The state shared by the callers and threads of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) home: Home,
    /// Blocks for reads in the reading thread, never for writes. Closed with the connection, even if
    /// there are other references.
    socket: Descriptor,
    pub(super) pipeline: Pipeline<EventFd>,
    pub(super) clock: Clock,
    pub(super) timeout: Duration,
    pub(super) signals: Option<SignalCheck>,
}

impl Connection {
    /// Takes over a connected socket and starts the thread that reads it.
    pub(super) fn start(
        socket: OwnedFd,
        timeout: Duration,
        signals: Option<SignalCheck>,
    ) -> Result<(Arc<Self>, JoinHandle<()>)> {
        rustix::io::ioctl_fionbio(&socket, false)
            .map_err(|e| Error::os("setting up the QTest socket", e))?;
        let connection = Arc::new(Self {
            home: Home::here(),
            socket: Descriptor::new(socket),
            pipeline: Pipeline::new(),
            clock: Clock::default(),
            timeout,
            signals,
        });
        let reader = Arc::clone(&connection);
        let thread = background("virtnic-qtest", move || reader.read())
            .map_err(|e| Error::os("starting the thread that reads the QTest socket", e))?;
        Ok((connection, thread))
    }

    /// Reads until the end.
    fn read(&self) {
        // Shared, so that its number is not reused while this thread reads.
        let Some(socket) = self.socket.share() else { return };
        let mut splitter = Splitter::default();
        let mut buffer = [0; 4096];
        let why = loop {
            let count = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => break "QEMU closed the QTest socket (it ended or crashed)".into(),
                Ok((_, count)) => count.min(buffer.len()),
                Err(Errno::INTR) => continue,
                Err(e) => break format!("reading the QTest socket failed: {e}"),
            };
            let input = buffer.get(..count).unwrap_or_default();
            let fed = splitter.feed(input, |line| self.pipeline.deliver(&parse(line)?));
            if let Err(violation) = fed {
                break format!("the QTest protocol was broken: {violation}");
            }
            self.pipeline.go_on(|lines| self.write_now(lines));
        };
        self.end(End::Died(why));
    }

    /// Ends the connection and its threads. Only the first reason counts. Does nothing in a forked child,
    /// as the connection is the parent's.
    pub(super) fn end(&self, end: End) {
        if !self.home.is_here() {
            return;
        }
        let message = match &end {
            End::Died(why) => Some(why.clone()),
            End::Closed => None,
        };
        if self.pipeline.die(end)
            && let Some(why) = message
        {
            log::info!("the QTest connection ended: {why}");
        }
        self.clock.stop();
        // Wakes the reading thread and a writer in poll, which close the socket when they end.
        let _ = self.socket.with(|socket| shutdown(socket, Shutdown::Both));
        self.socket.take(|| true);
    }

    /// The deadline of a call that starts now.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.timeout)
    }

    /// Sends a command without waiting for its reply.
    #[inline]
    pub(super) fn post(&self, command: Command) -> Result<()> {
        self.submit(&[command], None, command.line().bytes(), self.deadline(), self.signals)
    }

    /// The same for several commands, in one piece.
    pub(super) fn post_all(&self, commands: &[Command]) -> Result<()> {
        self.submit(commands, None, &lines_of(commands), self.deadline(), self.signals)
    }

    /// The same for a command whose line is longer.
    pub(super) fn post_line(&self, command: Command, line: &[u8]) -> Result<()> {
        self.submit(&[command], None, line, self.deadline(), self.signals)
    }

    /// Sends a command now, or as soon as it can be written. Never waits, so the caller may hold any
    /// lock.
    #[inline]
    pub(super) fn kick(&self, command: Command) -> Result<()> {
        self.home.check("the QTest connection")?;
        self.pipeline.kick(command, |line| self.write_now(line))
    }

    /// Sends a command and waits for its reply.
    #[inline]
    pub(super) fn ask(&self, command: Command) -> Result<Answer> {
        self.ask_by(command, command.line().bytes(), self.deadline())
    }

    /// The same for a command whose line is longer, or with another deadline.
    pub(super) fn ask_by(
        &self,
        command: Command,
        line: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Answer> {
        only(command, self.ask_many(&[command], line, deadline)?)
    }

    /// Sends several commands in one piece and waits for all replies.
    pub(super) fn ask_many(
        &self,
        commands: &[Command],
        lines: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Vec<Answer>> {
        let Some(last) = commands.last() else { return Ok(Vec::new()) };
        let ticket = Ticket::new(commands.len());
        self.submit(commands, Some(&ticket), lines, deadline, self.signals)?;
        let answers = self.pipeline.finish(&ticket, *last, deadline, self.signals)?;
        self.pipeline.check_refusals()?;
        Ok(answers)
    }

    /// Sends a command and waits for its reply without a limit, for our own threads, which end with the
    /// connection.
    pub(super) fn ask_for_ever(&self, command: Command) -> Result<Answer> {
        let ticket = Ticket::new(1);
        self.submit(&[command], Some(&ticket), command.line().bytes(), None, None)?;
        only(command, self.pipeline.finish(&ticket, command, None, None)?)
    }

    fn submit(
        &self,
        commands: &[Command],
        ticket: Option<&Arc<Ticket>>,
        lines: &[u8],
        deadline: Option<Instant>,
        signals: Option<SignalCheck>,
    ) -> Result<()> {
        self.home.check("the QTest connection")?;
        let submitted = self.submit_in_turn(commands, ticket, lines, deadline, signals);
        // Kicks may have been kept during the turn.
        self.pipeline.go_on(|lines| self.write_now(lines));
        submitted
    }

    fn submit_in_turn(
        &self,
        commands: &[Command],
        ticket: Option<&Arc<Ticket>>,
        lines: &[u8],
        deadline: Option<Instant>,
        signals: Option<SignalCheck>,
    ) -> Result<()> {
        let mut turn = self.pipeline.begin(commands, ticket, deadline, signals)?;
        let written = self.write(turn.before(), deadline).and_then(|()| {
            turn.wrote_before();
            self.write(lines, deadline)
        });
        match written {
            Ok(()) => Ok(()),
            Err((0, error @ Error::Timeout(_))) => {
                turn.cancel();
                Err(error)
            }
            Err((written, error)) => {
                // The next line would follow half of ours, and QEMU aborts on a malformed line.
                let why = match written {
                    0 => error.to_string(),
                    n => format!("{error} ({n} of {} bytes written)", lines.len()),
                };
                self.end(End::Died(why));
                Err(self.pipeline.end().map_or(error, |end| end.error()))
            }
        }
    }

    /// Writes without waiting. Returns the number of bytes. The reading thread detects socket errors.
    fn write_now(&self, lines: &[u8]) -> usize {
        loop {
            match self.send(lines) {
                Err(Errno::INTR) => {}
                other => return other.unwrap_or(0),
            }
        }
    }

    #[inline]
    fn send(&self, lines: &[u8]) -> Result<usize, Errno> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.socket.with(|socket| send(socket, lines, flags))
    }

    /// Writes everything. An error includes the number of bytes written.
    fn write(&self, lines: &[u8], deadline: Option<Instant>) -> Result<(), (usize, Error)> {
        may_wait("the QTest socket");
        let mut written = 0;
        while let Some(rest) = lines.get(written..).filter(|rest| !rest.is_empty()) {
            match self.send(rest) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
                    if left == Some(Duration::ZERO) {
                        let text = "QEMU does not read its QTest socket; its main loop is blocked or stopped";
                        return Err((written, Error::Timeout(text.into())));
                    }
                    // If the connection has ended, the next attempt fails.
                    let Some(socket) = self.socket.share() else { continue };
                    let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
                    // An interrupted or failed poll is repeated until the deadline.
                    let _ = poll(&mut fds, crate::notify::timespec(left).as_ref());
                }
                Err(Errno::PIPE | Errno::CONNRESET | Errno::BADF) => {
                    let text = "QEMU closed the QTest socket (it ended or crashed)";
                    return Err((0, Error::QemuDied(text.into())));
                }
                Err(e) => return Err((written, Error::os("writing the QTest socket", e))),
            }
        }
        Ok(())
    }
}

fn only(command: Command, mut answers: Vec<Answer>) -> Result<Answer> {
    answers.pop().ok_or_else(|| Error::Qemu(format!("no answer to `{command}`")))
}
