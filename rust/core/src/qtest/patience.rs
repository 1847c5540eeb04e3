//! Whether a wait for QEMU goes on.

use crate::Result;

/// Asked again and again by a thread that waits for QEMU: an error ends the wait
/// (a user's Ctrl-C), and is what the waiting call returns.
pub type Patience = fn() -> Result<()>;
