//! `SignalCheck`: ends waits for QEMU on a signal.

use crate::Result;

/// Called regularly by a thread that waits for QEMU. An error, such as after a user's Ctrl-C, ends the
/// wait and is returned by the waiting call.
pub type SignalCheck = fn() -> Result<()>;
