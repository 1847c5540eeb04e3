//! vhost-user messages (QEMU: `docs/interop/vhost-user.rst`, "Message specification").

use crate::Owned;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The size of a header: request, flags, size of the payload; 32 bits each, in native byte order.
pub(super) const HEADER: usize = 12;
/// The longest accepted payload. The specified ones have at most a few hundred bytes.
pub(super) const MAX_PAYLOAD: usize = 64 << 10;
/// The most accepted descriptors of one message. A memory table has up to 8.
pub(super) const MAX_FDS: usize = 32;
/// The number of queues: SET_VRING_KICK and SET_VRING_CALL have 8 bits for the index.
pub(super) const MAX_QUEUES: usize = 256;

/// Flag of a reply.
pub(super) const REPLY: u32 = 1 << 2;
/// Flag of a request that needs a reply although it usually has none.
pub(super) const NEED_REPLY: u32 = 1 << 3;
/// The protocol's version, in the flags of every message.
pub(super) const VERSION: u32 = 1;
/// In SET_VRING_KICK and SET_VRING_CALL: there is no descriptor.
pub(super) const NO_FD: u64 = 1 << 8;
/// Feature 30: there are protocol features, and rings must be enabled.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Protocol feature 14: kicks and calls can be messages.
pub(super) const F_INBAND_NOTIFICATIONS: u64 = 1 << 14;

/// Requests, by their numbers.
pub(super) mod request {
    macro_rules! requests {
        ($($name:ident = $number:literal),* $(,)?) => {
            $(#[allow(dead_code, reason = "complete for `name`")] pub const $name: u32 = $number;)*

            /// The name of a request.
            pub fn name(request: u32) -> String {
                match request {
                    $($number => stringify!($name).to_owned(),)*
                    other => format!("message {other}"),
                }
            }
        };
    }

    requests! {
        GET_FEATURES = 1,
        SET_FEATURES = 2,
        SET_OWNER = 3,
        RESET_OWNER = 4,
        SET_MEM_TABLE = 5,
        SET_LOG_BASE = 6,
        SET_LOG_FD = 7,
        SET_VRING_NUM = 8,
        SET_VRING_ADDR = 9,
        SET_VRING_BASE = 10,
        GET_VRING_BASE = 11,
        SET_VRING_KICK = 12,
        SET_VRING_CALL = 13,
        SET_VRING_ERR = 14,
        GET_PROTOCOL_FEATURES = 15,
        SET_PROTOCOL_FEATURES = 16,
        GET_QUEUE_NUM = 17,
        SET_VRING_ENABLE = 18,
        SEND_RARP = 19,
        NET_SET_MTU = 20,
        SET_BACKEND_REQ_FD = 21,
        IOTLB_MSG = 22,
        SET_VRING_ENDIAN = 23,
        GET_CONFIG = 24,
        SET_CONFIG = 25,
        GET_INFLIGHT_FD = 31,
        SET_INFLIGHT_FD = 32,
        RESET_DEVICE = 34,
        VRING_KICK = 35,
        GET_MAX_MEM_SLOTS = 36,
        ADD_MEM_REG = 37,
        REM_MEM_REG = 38,
        SET_STATUS = 39,
        GET_STATUS = 40,
    }
}

/// A descriptor in a message: a forwarded one, or one that we also keep.
#[derive(Debug)]
pub(super) enum Fd {
    Passing(OwnedFd),
    Ours(Arc<Owned>),
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Passing(fd) => fd.as_fd(),
            Self::Ours(fd) => fd.as_fd(),
        }
    }
}

/// A message. Dropping it closes its descriptors.
#[derive(Debug)]
pub(super) struct Message {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<Fd>,
}

impl Message {
    /// A request without payload.
    pub(super) fn ask(request: u32) -> Self {
        Self { request, flags: VERSION, payload: Vec::new(), fds: Vec::new() }
    }

    /// A request with a number.
    pub(super) fn with_number(request: u32, number: u64) -> Self {
        Self { payload: number.to_ne_bytes().to_vec(), ..Self::ask(request) }
    }

    /// A request about a ring: a vring state description.
    pub(super) fn of_vring(request: u32, index: u16, number: u32) -> Self {
        let payload = [u32::from(index).to_ne_bytes(), number.to_ne_bytes()].concat();
        Self { payload, ..Self::ask(request) }
    }

    /// The payload if it is one 64-bit number.
    pub(super) fn number(&self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.payload.as_slice().try_into().ok()?))
    }

    /// Sets the payload to this number.
    pub(super) fn set_number(&mut self, number: u64) {
        self.payload.clear();
        self.payload.extend_from_slice(&number.to_ne_bytes());
    }

    /// The ring index of a vring state description, its first 32 bits.
    pub(super) fn vring(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.payload.first_chunk()?))
    }

    /// The number of a vring state description.
    pub(super) fn vring_num(&self) -> Option<u32> {
        let (8, Some(bytes)) = (self.payload.len(), self.payload.last_chunk()) else { return None };
        Some(u32::from_ne_bytes(*bytes))
    }

    /// Sets the number of a vring state description, its second 32 bits.
    pub(super) fn set_vring_num(&mut self, num: u32) {
        if let (8, Some(bytes)) = (self.payload.len(), self.payload.last_chunk_mut()) {
            *bytes = num.to_ne_bytes();
        }
    }

    pub(super) fn is_reply(&self) -> bool {
        self.flags & REPLY != 0
    }

    /// Whether QEMU blocks until there is a reply. False for unknown messages without [`NEED_REPLY`].
    pub(super) fn wants_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0 || self.is_question()
    }

    /// Whether the answer has the requested value instead of an error code.
    pub(super) fn is_question(&self) -> bool {
        use request::*;
        matches!(
            self.request,
            GET_FEATURES
                | GET_VRING_BASE
                | GET_PROTOCOL_FEATURES
                | GET_QUEUE_NUM
                | GET_CONFIG
                | GET_INFLIGHT_FD
                | GET_MAX_MEM_SLOTS
                | GET_STATUS
        )
    }

    /// Whether the answer is more than one number.
    pub(super) fn is_structure(&self) -> bool {
        matches!(self.request, request::GET_CONFIG | request::GET_INFLIGHT_FD)
    }

    /// Whether it is known when the message has an answer: only with [`NEED_REPLY`], or as a question.
    pub(super) fn has_no_answer(&self) -> bool {
        use request::*;
        matches!(
            self.request,
            SET_OWNER
                | SET_MEM_TABLE
                | SET_VRING_NUM
                | SET_VRING_ADDR
                | SET_VRING_ERR
                | NET_SET_MTU
                | SET_FEATURES
                | RESET_OWNER
                | SET_VRING_BASE
                | SET_VRING_KICK
                | SET_VRING_CALL
                | SET_PROTOCOL_FEATURES
                | SET_VRING_ENABLE
        ) || self.is_question()
    }

    /// A copy without the descriptors.
    pub(super) fn words(&self) -> Self {
        let (request, flags, payload) = (self.request, self.flags, self.payload.clone());
        Self { request, flags, payload, fds: Vec::new() }
    }

    /// Header and payload.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // At most MAX_PAYLOAD.
        let size = self.payload.len() as u32;
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        for field in [self.request, self.flags, size] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Request, flags and size of a header.
pub(super) fn parse_header(header: &[u8; HEADER]) -> (u32, u32, usize) {
    let field = |i: usize| {
        let bytes = [header[i], header[i + 1], header[i + 2], header[i + 3]];
        u32::from_ne_bytes(bytes)
    };
    (field(0), field(4), field(8) as usize)
}
