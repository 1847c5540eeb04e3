//! A backend that serves nobody: it lets QEMU out of a command.
//!
//! While QEMU makes a vhost-user netdev it does nothing else, and where it does not come to
//! terms with the backend it connects again and again, for ever (`net_vhost_user_init` in
//! QEMU's `net/vhost-user.c`). So where a backend was refused, or went, QEMU meets this one
//! instead, which agrees to everything. The netdev is then made, and can be deleted again.

use super::channel::{End, Reader, Writer};
use super::demands::PROTOCOL_F_MQ;
use super::line::Line;
use super::message::{F_PROTOCOL_FEATURES, MAX_QUEUES, Message, NEED_REPLY, REPLY, request};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// VERSION_1 (VIRTIO 1.3, section 6).
const VERSION_1: u64 = 1 << 32;
/// Regions of memory that every backend has place for.
const BASELINE_SLOTS: u64 = 8;

/// A QEMU that talks to nobody.
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

    /// Goes on where a backend went that QEMU was talking to, with the message that is half read
    /// and the one that is half written, and answers what that left open. QEMU does not notice: it
    /// would begin anew, with a watch of the old connection left behind that brings it down later
    /// (seen on 7.2). `None` where an answer cannot be finished that nobody but the backend knows.
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

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.writer.busy() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Answers what there is, one message at most.
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

/// What QEMU wants to hear; nothing where it wants nothing.
fn answer(message: &Message) -> Option<Message> {
    let number = match message.request {
        request::GET_FEATURES => VERSION_1 | F_PROTOCOL_FEATURES,
        request::GET_PROTOCOL_FEATURES => PROTOCOL_F_MQ,
        request::GET_QUEUE_NUM => MAX_QUEUES as u64,
        // Of those that the backend said it has, before it went: as many as without that.
        request::GET_MAX_MEM_SLOTS => BASELINE_SLOTS,
        // Where the ring stopped: at its start.
        request::GET_VRING_BASE => message.vring()?.into(),
        _ if message.flags & NEED_REPLY != 0 => 0,
        _ => return None,
    };
    let mut reply = Message::ask(message.request);
    reply.flags |= REPLY;
    reply.set_number(number);
    Some(reply)
}
