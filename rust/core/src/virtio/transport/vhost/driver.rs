//! Who drives a ring that a vhost backend serves.

/// Who drives a ring, and wants to know whether a backend serves it. Called from the thread that sees
/// backends come and go.
pub trait Driver: Send + Sync {
    /// The backend has stopped the ring, or is gone; QEMU, where there is one, will have it, but does
    /// not know yet. Whether it is a packed ring.
    fn stopped(&self) -> bool {
        false
    }

    /// A backend is about to start. Where it is to go on in a packed ring: the index of a
    /// descriptor, and in bit 15 the wrap counter of its lap. `None` where the ring itself says it.
    fn starting(&self) -> Option<u16>;
}

impl<F: Fn() -> Option<u16> + Send + Sync> Driver for F {
    fn starting(&self) -> Option<u16> {
        self()
    }
}
