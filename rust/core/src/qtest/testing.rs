//! The reading side of a connection without a socket, for tests and fuzzing.

use super::pipeline::{End, Pipeline, Ticket};
use super::wire::{Answer, Command, MAX_LINE, READ_CHUNK, Splitter, parse};
use crate::notify::EventFd;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// The most bytes of a peer that a connection keeps.
pub const MOST_HELD: usize = MAX_LINE;

/// A request and its expected answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A read of 1, 2, 4 or 8 bytes: a number of this width.
    Read(u8),
    /// A read of up to [`Self::LONGEST`] bytes: this many bytes.
    Bytes(usize),
    /// A write without waiting: nothing.
    Posted,
    /// A step of the clock: a number below 2^63.
    Clock,
}

impl Request {
    /// The most bytes of one request.
    pub const LONGEST: usize = READ_CHUNK;
}

/// A peer's data and the requests that wait for it.
#[derive(Debug)]
pub struct Inbox {
    pipeline: Pipeline<EventFd>,
    splitter: Splitter,
    waiting: VecDeque<(Request, Command, Arc<Ticket>)>,
}

impl Default for Inbox {
    fn default() -> Self {
        let (pipeline, splitter) = (Pipeline::new(), Splitter::default());
        Self { pipeline, splitter, waiting: VecDeque::new() }
    }
}

impl Inbox {
    /// Adds a request to the queue.
    ///
    /// # Errors
    /// As for calls of [`super::QTest`].
    pub fn ask(&mut self, request: Request) -> Result<()> {
        let command = match request {
            Request::Read(width) => Command::Read { address: 0, width },
            Request::Bytes(len) => Command::ReadBytes { address: 0, len },
            Request::Posted => Command::Write { address: 0, width: 1, value: 0 },
            Request::Clock => Command::ClockStep { ns: None },
        };
        let ticket = (request != Request::Posted).then(|| Ticket::new(1));
        drop(self.pipeline.begin(&[command], ticket.as_ref(), Some(Instant::now()), None)?);
        self.waiting.extend(ticket.map(|ticket| (request, command, ticket)));
        Ok(())
    }

    /// Processes received bytes like the reading thread.
    ///
    /// # Errors
    /// How the protocol was broken, which ends the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Self { pipeline, splitter, .. } = self;
        let fed = splitter.feed(bytes, |line| pipeline.deliver(&parse(line)?));
        if let Err(violation) = &fed {
            pipeline.die(End::Died(violation.clone()));
        }
        fed
    }

    /// The number of bytes of an incomplete line.
    #[must_use]
    pub fn held(&self) -> usize {
        self.splitter.held()
    }

    /// The refusals of posted writes, as the next call that waits reports them.
    ///
    /// # Errors
    /// [`Error::Qemu`].
    pub fn refusals(&self) -> Result<()> {
        self.pipeline.check_refusals()
    }

    /// Whether an interrupt line is raised.
    #[must_use]
    pub fn level(&self, line: u32) -> bool {
        self.pipeline.level(line)
    }

    /// The replies so far, in the order of the requests; [`Error::Timeout`] without a reply.
    pub fn answers(&mut self) -> Vec<(Request, Result<Reply>)> {
        let Self { pipeline, waiting, .. } = self;
        let answer = |(request, command, ticket): (_, _, Arc<Ticket>)| {
            let answers = pipeline.finish(&ticket, command, Some(Instant::now()), None);
            let reply = answers.and_then(|mut answers| match answers.pop() {
                Some(Answer::Number(number)) => Ok(Reply::Number(number)),
                Some(Answer::Bytes(bytes)) => Ok(Reply::Bytes(bytes)),
                other => Err(Error::Qemu(format!("{other:?}"))),
            });
            (request, reply)
        };
        waiting.drain(..).map(answer).collect()
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A number.
    Number(u64),
    /// Bytes of memory.
    Bytes(Vec<u8>),
}
