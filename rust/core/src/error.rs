//! The one error type of the crate. Each message says what was tried, what was
//! found and, where there is something to do, what to do next.

use std::io;

/// Everything that can go wrong in the driver.
///
/// The variants are the classes that a caller can react to differently; the
/// Python binding maps each to one exception.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An argument is out of its range or inconsistent with another.
    #[error("{0}")]
    Invalid(String),
    /// Shared memory of the wanted kind, size or place cannot be had.
    #[error("{0}")]
    MemoryUnavailable(String),
    /// The operation needs a privilege that the process does not have.
    #[error("{0}")]
    Permission(String),
    /// QEMU refused a command or did not behave as QEMU does.
    #[error("{0}")]
    Qemu(String),
    /// QEMU is gone: its socket closed or its process ended.
    #[error("{0}")]
    QemuDied(String),
    /// The device broke a rule of the specification; the port is unusable.
    #[error("{0}")]
    Device(String),
    /// The device was asked for something by its control queue and did not do it, or cannot;
    /// the port goes on.
    #[error("{0}")]
    Refused(String),
    /// The port or the object was closed.
    #[error("{0}")]
    Closed(String),
    /// The queue is in use by another caller (a running engine loop).
    #[error("{0}")]
    Busy(String),
    /// Nothing happened within the time given.
    #[error("{0}")]
    Timeout(String),
    /// A system call failed.
    #[error("{what}: {message}")]
    Os {
        /// What was being done.
        what: String,
        /// The system's message.
        message: String,
        /// The error number, 0 where there is none.
        errno: i32,
    },
}

impl Error {
    /// An [`Error::Os`] that says what was being done when `cause` happened.
    pub fn os(what: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        Self::Os {
            what: what.into(),
            errno: cause.raw_os_error().unwrap_or(0),
            message: cause.to_string(),
        }
    }

    /// Whether a wait was ended by a signal, not by what was waited for.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Os { errno, .. } if *errno == rustix::io::Errno::INTR.raw_os_error())
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
