//! The ivshmem server: hands QEMU the memory and our interrupt eventfds
//! (QEMU: `docs/specs/ivshmem-spec.rst`, protocol version 0).
//!
//! Who may connect is decided by the directory the socket lies in, not by credentials: a
//! QEMU in a container of its own has another user id.

mod protocol;
mod server;

pub use server::Server;
