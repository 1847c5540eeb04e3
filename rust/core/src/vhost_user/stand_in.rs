//! A replacement for a failed backend, so that QEMU can complete a command.
//!
//! While QEMU creates a vhost-user netdev it does nothing else, and if the backend fails it reconnects
//! forever (`net_vhost_user_init` in QEMU's `net/vhost-user.c`). Therefore, if a backend was refused or
//! disconnected, QEMU is connected to this one, which accepts everything. QEMU then creates the netdev,
//! which can be deleted.

use super::channel::{End, Reader, Writer};
use super::demands::PROTOCOL_F_MQ;
use super::line::Line;
use super::message::{F_PROTOCOL_FEATURES, MAX_QUEUES, Message, NEED_REPLY, REPLY, request};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// VERSION_1 (VIRTIO 1.3, section 6).
const VERSION_1: u64 = 1 << 32;
/// The number of memory regions that every backend supports.
const BASELINE_SLOTS: u64 = 8;

/// A QEMU without a backend.
#[derive(Debug)]
pub(super) struct StandIn {
    qemu: Line,
    reader: Reader,
    writer: Writer,
}

impl StandIn {
    pub(super) fn new(qemu: OwnedFd) -> Self {
        Self { qemu: qemu.into(), reader: Reader::new(), writer: Writer::default() }
    }

    /// Continues the connection of a lost backend: with the partly read and the partly written message,
    /// and the open request, which it answers. A disconnected QEMU would connect again but keep a watch
    /// of the old connection, which crashes it later (seen on 7.2). `None` if it cannot complete a
    /// partly written answer.
    pub(super) fn taking_over(
        qemu: Line,
        reader: Reader,
        writer: Writer,
        question: Option<Message>,
    ) -> Option<Self> {
        let mut stand_in = Self { qemu, reader, writer };
        if let Some(question) = question {
            if stand_in.writer.busy() {
                return None;
            }
            stand_in.writer.put(answer(&question)?);
        }
        Some(stand_in)
    }

    /// The events to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.writer.busy() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Answers at most one message.
    pub(super) fn serve(&mut self) -> Result<(), End> {
        if self.writer.busy() {
            return self.writer.write(self.qemu.as_fd());
        }
        if let Some(message) = self.reader.read(self.qemu.as_fd())?
            && let Some(reply) = answer(&message)
        {
            self.writer.put(reply);
            self.writer.write(self.qemu.as_fd())?;
        }
        Ok(())
    }
}

impl AsFd for StandIn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.qemu.as_fd()
    }
}

/// The answer to a message, if it needs one.
fn answer(message: &Message) -> Option<Message> {
    let number = match message.request {
        request::GET_FEATURES => VERSION_1 | F_PROTOCOL_FEATURES,
        request::GET_PROTOCOL_FEATURES => PROTOCOL_F_MQ,
        request::GET_QUEUE_NUM => MAX_QUEUES as u64,
        // The number without CONFIGURE_MEM_SLOTS.
        request::GET_MAX_MEM_SLOTS => BASELINE_SLOTS,
        // The ring's position: its start.
        request::GET_VRING_BASE => message.vring()?.into(),
        _ if message.flags & NEED_REPLY != 0 => 0,
        _ => return None,
    };
    let mut reply = Message::ask(message.request);
    reply.flags |= REPLY;
    reply.set_number(number);
    Some(reply)
}
