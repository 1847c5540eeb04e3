//! The error type of the crate. Each message says what was tried, what was found and, if possible,
//! what to do next.

use std::io;

/// Everything that can go wrong in the driver.
///
/// Each variant is a class of errors to which callers can react differently; the Python binding
/// maps each to one exception.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An argument is out of range or inconsistent with another one.
    #[error("{0}")]
    Invalid(String),
    /// Shared memory of the requested kind, size or address is not available.
    #[error("{0}")]
    MemoryUnavailable(String),
    /// The operation needs a privilege that the process does not have.
    #[error("{0}")]
    Permission(String),
    /// QEMU refused a command or behaved unexpectedly.
    #[error("{0}")]
    Qemu(String),
    /// QEMU is gone: its socket was closed or its process has ended.
    #[error("{0}")]
    QemuDied(String),
    /// The device violated the specification; the port is unusable.
    #[error("{0}")]
    Device(String),
    /// The device refused or does not support a command of the control queue; the port remains
    /// usable.
    #[error("{0}")]
    Refused(String),
    /// The port or the object was closed.
    #[error("{0}")]
    Closed(String),
    /// The queue is in use by another caller (a running engine loop).
    #[error("{0}")]
    Busy(String),
    /// Nothing happened within the timeout.
    #[error("{0}")]
    Timeout(String),
    /// A TCP/IP stack's link has failed: this is why.
    #[error("the stack has ended: {0}")]
    Down(Box<Self>),
    /// A system call failed.
    #[error("{what}: {message}")]
    Os {
        /// What was being done.
        what: String,
        /// The system's message.
        message: String,
        /// The error number; 0 if there is none.
        errno: i32,
    },
}

impl Error {
    /// An [`Error::Os`] for `cause`, with what was being done.
    pub fn os(what: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        Self::Os {
            what: what.into(),
            errno: cause.raw_os_error().unwrap_or(0),
            message: cause.to_string(),
        }
    }

    /// Whether a wait was ended by a signal.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Os { errno, .. } if *errno == rustix::io::Errno::INTR.raw_os_error())
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
