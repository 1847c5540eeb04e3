//! `Session`: the messages of a front-end to a backend.

use super::super::channel::End;
use super::super::demands::PROTOCOL_F_MQ;
use super::super::message::{
    F_PROTOCOL_FEATURES, Fd, Message, NEED_REPLY, NO_FD, REPLY, VERSION, request,
};
use super::wire::{Failure, Wait, Wire, after};
use crate::memory::Region;
use crate::notify::EventFd;
use crate::qtest::SignalCheck;
use crate::virtio::Status;
use crate::virtio::transport::vhost::{Vhost, Vring};
use crate::{Error, Owned, Result};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Protocol features that are used if offered: acknowledgements, MTU, reset, status.
const REPLY_ACK: u64 = 1 << 3;
const NET_MTU: u64 = 1 << 4;
const RESET_DEVICE: u64 = 1 << 13;
const STATUS: u64 = 1 << 16;
const USED: u64 = PROTOCOL_F_MQ | REPLY_ACK | NET_MTU | RESET_DEVICE | STATUS;
/// Queue numbers have eight bits.
const MOST_PAIRS: u64 = 128;

/// A connection to a backend whose features are known.
#[derive(Debug)]
pub struct Session {
    wire: Wire,
    /// The backend's name in errors.
    name: String,
    offered: u64,
    /// The negotiated protocol features.
    protocol: u64,
    pairs: u16,
    /// Whether a message enables rings.
    enables: bool,
    until: Instant,
    signals: Option<SignalCheck>,
    stop: Option<Arc<EventFd>>,
    /// Why the connection ended.
    over: Option<End>,
    messages: Arc<AtomicU64>,
}

impl Session {
    /// Queries a backend's features and takes ownership of it. `name` is its name in errors.
    ///
    /// # Errors
    /// As for calls of [`Vhost`].
    pub(super) fn greet(
        socket: OwnedFd,
        name: &str,
        time: Duration,
        signals: Option<SignalCheck>,
        stop: Option<Arc<EventFd>>,
        messages: Arc<AtomicU64>,
    ) -> Result<Self, Failed> {
        let mut session = Self {
            wire: Wire::new(socket),
            name: name.to_owned(),
            offered: 0,
            protocol: 0,
            pairs: 1,
            enables: false,
            until: after(time),
            signals,
            stop,
            over: None,
            messages,
        };
        match session.introduce() {
            Ok(()) => Ok(session),
            Err(error) => Err(Failed { end: session.over, error }),
        }
    }

    fn introduce(&mut self) -> Result<()> {
        self.offered = self.number(request::GET_FEATURES)?;
        if self.offered & F_PROTOCOL_FEATURES != 0 {
            let offered = self.number(request::GET_PROTOCOL_FEATURES)?;
            let chosen = offered & USED;
            self.request(Message::with_number(request::SET_PROTOCOL_FEATURES, chosen))?;
            self.protocol = chosen;
            if chosen & PROTOCOL_F_MQ != 0 {
                let pairs = self.number(request::GET_QUEUE_NUM)?;
                self.pairs = pairs.min(MOST_PAIRS) as u16;
            }
        }
        self.request(Message::ask(request::SET_OWNER))
    }

    /// The error for the end of the connection.
    fn error(&self, end: &End, doing: u32) -> Error {
        let (name, doing) = (&self.name, request::name(doing));
        Error::Device(match end {
            End::Gone => {
                format!("the vhost-user backend at {name} closed the connection at {doing}")
            }
            End::Broken(why) => format!("the vhost-user backend at {name}: {why}"),
        })
    }

    /// Records the end and disconnects.
    fn end(&mut self, end: End, doing: u32) -> Error {
        self.wire.disconnect();
        let error = self.error(&end, doing);
        self.over.get_or_insert(end);
        error
    }

    fn failed(&mut self, failure: Failure, doing: u32, what: &str) -> Error {
        match failure {
            Failure::End(end) => self.end(end, doing),
            Failure::Late => {
                let name = request::name(doing);
                let why = format!("it {what} {name} in time");
                let said = format!("the vhost-user backend at {} {what} {name} in time", self.name);
                self.end(End::Broken(why), doing);
                Error::Timeout(said)
            }
            Failure::Stopped(error) => {
                self.end(End::Broken("a message was interrupted".to_owned()), doing);
                error
            }
        }
    }

    /// Sends a message and receives the answer, if there is one.
    fn exchange(&mut self, message: Message) -> Result<Option<Message>> {
        if let Some(end) = &self.over {
            return Err(self.error(end, message.request));
        }
        let (asked, answered) = (message.request, message.wants_reply());
        let stop = self.stop.clone();
        let wait = Wait { until: self.until, signals: self.signals, stop: stop.as_deref() };
        self.messages.fetch_add(1, Ordering::Relaxed);
        if let Err(failure) = self.wire.send(message, wait) {
            return Err(self.failed(failure, asked, "did not take"));
        }
        if !answered {
            return Ok(None);
        }
        let answer = match self.wire.receive(wait) {
            Ok(answer) => answer,
            Err(failure) => return Err(self.failed(failure, asked, "did not answer")),
        };
        let name = request::name(asked);
        let wrong = if answer.request != asked {
            Some(format!("it answered {name} with {}", request::name(answer.request)))
        } else if answer.flags != VERSION | REPLY {
            Some(format!("it answered {name} with the flags {:#x}", answer.flags))
        } else if answer.payload.len() != size_of::<u64>() {
            Some(format!("it answered {name} with {} bytes", answer.payload.len()))
        } else if !answer.fds.is_empty() {
            let count = answer.fds.len();
            Some(format!("it answered {name} with {count} unexpected descriptors"))
        } else {
            None
        };
        match wrong {
            Some(why) => Err(self.end(End::Broken(why), asked)),
            None => Ok(Some(answer)),
        }
    }

    /// Sends a request whose answer is a number.
    fn number(&mut self, question: u32) -> Result<u64> {
        let answer = self.exchange(Message::ask(question))?;
        Ok(answer.and_then(|answer| answer.number()).unwrap_or_default())
    }

    /// Sends a request and waits for the acknowledgement, if the backend supports that.
    fn request(&mut self, mut message: Message) -> Result<()> {
        let asked = message.request;
        if self.protocol & REPLY_ACK != 0 {
            message.flags |= NEED_REPLY;
        }
        match self.exchange(message)?.and_then(|answer| answer.number()) {
            None | Some(0) => Ok(()),
            Some(code) => {
                let why = format!("it refused {} (it answered {code})", request::name(asked));
                Err(self.end(End::Broken(why), asked))
            }
        }
    }

    fn with_fd(&mut self, request: u32, number: u64, fd: Option<&Arc<Owned>>) -> Result<()> {
        let number = if fd.is_some() { number } else { number | NO_FD };
        let mut message = Message::with_number(request, number);
        message.fds.extend(fd.cloned().map(Fd::Ours));
        self.request(message)
    }

    /// The socket, to detect that the backend disconnects.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.wire.socket()
    }
}

/// Why greeting a backend failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// The end of the connection, if the backend caused the failure.
    pub end: Option<End>,
    pub error: Error,
}

impl Vhost for Session {
    fn offered(&self) -> u64 {
        self.offered
    }
    fn pairs(&self) -> u16 {
        self.pairs
    }
    fn begin(&mut self, time: Duration) {
        self.until = after(time);
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        self.request(Message::with_number(request::SET_FEATURES, features))?;
        self.enables = features & F_PROTOCOL_FEATURES != 0;
        Ok(())
    }
    /// "Memory regions description": one region with its IOVA, size, our address, and offset 0.
    fn set_memory(&mut self, region: &Arc<Region>) -> Result<()> {
        let mut message = Message::ask(request::SET_MEM_TABLE);
        for word in [1, 0] {
            message.payload.extend_from_slice(&u32::to_ne_bytes(word));
        }
        for word in [region.iova().0, region.size() as u64, region.address() as u64, 0] {
            message.payload.extend_from_slice(&u64::to_ne_bytes(word));
        }
        message.fds.push(Fd::Ours(region.share()?));
        self.request(message)
    }
    fn set_mtu(&mut self, mtu: u16) -> Result<()> {
        if self.protocol & NET_MTU == 0 {
            return Ok(());
        }
        self.request(Message::with_number(request::NET_SET_MTU, mtu.into()))
    }
    fn set_status(&mut self, status: Status) -> Result<Status> {
        if self.protocol & STATUS == 0 {
            return Ok(status);
        }
        self.request(Message::with_number(request::SET_STATUS, status.bits().into()))?;
        if status.is_empty() {
            return Ok(status);
        }
        let now = self.number(request::GET_STATUS)?;
        Ok(Status::from_bits_retain(now as u8))
    }
    fn set_ring(&mut self, ring: &Vring) -> Result<()> {
        let Vring { index, addresses, here, base, kick, call } = ring;
        let index = *index;
        self.request(Message::of_vring(request::SET_VRING_NUM, index, addresses.size.into()))?;
        self.request(Message::of_vring(request::SET_VRING_BASE, index, *base))?;
        // "A vring address description": descriptors, used ring, available ring, log.
        let [descriptors, driver, device] = *here;
        let mut message = Message::of_vring(request::SET_VRING_ADDR, index, 0);
        for word in [descriptors, device, driver, 0] {
            message.payload.extend_from_slice(&word.to_ne_bytes());
        }
        self.request(message)?;
        self.with_fd(request::SET_VRING_KICK, index.into(), Some(kick))?;
        self.with_fd(request::SET_VRING_CALL, index.into(), call.as_ref())
    }
    fn enable_ring(&mut self, index: u16, on: bool) -> Result<()> {
        if !self.enables {
            return Ok(());
        }
        self.request(Message::of_vring(request::SET_VRING_ENABLE, index, on.into()))
    }
    fn stop_ring(&mut self, index: u16) -> Result<()> {
        let answer = self.exchange(Message::of_vring(request::GET_VRING_BASE, index, 0))?;
        match answer.and_then(|answer| answer.vring()) {
            Some(named) if named == u32::from(index) => Ok(()),
            named => {
                let why = format!("it answered GET_VRING_BASE of ring {index} for ring {named:?}");
                Err(self.end(End::Broken(why), request::GET_VRING_BASE))
            }
        }
    }
    fn reset(&mut self) -> Result<()> {
        if self.protocol & RESET_DEVICE != 0 {
            self.request(Message::ask(request::RESET_DEVICE))?;
        }
        self.set_status(Status::empty()).map(drop)
    }
    fn is_gone(&self) -> bool {
        self.over == Some(End::Gone)
    }
}
