//! `Driver`: the driver of a ring that a vhost backend processes.

/// The driver of a ring, which is informed when backends stop and start. Called from the thread that
/// handles backends.
pub trait Driver: Send + Sync {
    /// Called after the backend has stopped the ring or is gone, before QEMU, if any, takes it over.
    /// Returns whether the ring is packed.
    fn stopped(&self) -> bool {
        false
    }

    /// Called before a backend starts. Returns its start position in a packed ring: the index of a
    /// descriptor with the wrap counter in bit 15. `None` for a split ring, which shows it itself.
    fn starting(&self) -> Option<u16>;
}

impl<F: Fn() -> Option<u16> + Send + Sync> Driver for F {
    fn starting(&self) -> Option<u16> {
        self()
    }
}
