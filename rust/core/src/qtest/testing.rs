//! The reading side of a connection without its socket, for tests and fuzzing.

use super::pipeline::{End, Pipeline, Ticket};
use super::wire::{Answer, Command, MAX_LINE, READ_CHUNK, Splitter, parse};
use crate::notify::EventFd;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// The most bytes that a peer can make a connection keep.
pub const MOST_HELD: usize = MAX_LINE;

/// A request of whose answer something is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A read of so many bytes (1, 2, 4 or 8): a number that fits them.
    Read(u8),
    /// A read of up to [`Self::LONGEST`] bytes: so many of them.
    Bytes(usize),
    /// A write that nobody waits for: nothing.
    Posted,
    /// A step of the clock: a number below 2^63.
    Clock,
}

impl Request {
    /// Bytes that one request may ask for.
    pub const LONGEST: usize = READ_CHUNK;
}

/// What a peer sends, and who waits for it.
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
    /// Takes a place in the queue for a request.
    ///
    /// # Errors
    /// As a caller of [`super::QTest`] gets them.
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

    /// What the reading thread does with what it has read.
    ///
    /// # Errors
    /// How the protocol was broken; that has ended the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Self { pipeline, splitter, .. } = self;
        let fed = splitter.feed(bytes, |line| pipeline.deliver(&parse(line)?));
        if let Err(violation) = &fed {
            pipeline.die(End::Died(violation.clone()));
        }
        fed
    }

    /// Bytes of an unfinished line.
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

    /// What each caller that waits has got by now, in the order of the requests: a number,
    /// or bytes; [`Error::Timeout`] for nothing yet.
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

/// What an answer carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A number.
    Number(u64),
    /// Bytes of memory.
    Bytes(Vec<u8>),
}
