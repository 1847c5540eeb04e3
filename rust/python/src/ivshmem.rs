//! `IvshmemServer`: hands the memory and the interrupt eventfds to QEMU.

use crate::errors::to_py;
use crate::eventfd::EventFd;
use crate::memory::Memory;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;
use virtnic::ivshmem::Server;

/// Hands the memory and the interrupt eventfds to QEMU over a UNIX socket.
///
/// Each vector is a peer of its own, so the device has ``vectors=1``. A connected QEMU is told of
/// vectors that are added later.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct IvshmemServer(Server);

#[pymethods]
impl IvshmemServer {
    #[new]
    fn new(path: PathBuf, memory: &Bound<'_, Memory>) -> Self {
        Self(Server::new(&path, Arc::clone(memory.get().region())))
    }

    /// How many vectors exist, including those given back.
    #[getter]
    fn vectors(&self, py: Python<'_>) -> usize {
        py.detach(|| self.0.vectors())
    }

    /// How many more vectors can be taken; None if unlimited.
    #[getter]
    fn left(&self, py: Python<'_>) -> Option<usize> {
        py.detach(|| self.0.left())
    }

    /// Accept new QEMUs, which know no vectors yet. Earlier connections must have ended.
    ///
    /// Raises OSError, ValueError (the path, or a memory whose file was closed).
    fn listen(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.listen()).map_err(to_py)
    }

    /// Accept no more connections; existing ones are kept.
    fn stop_listening(&self, py: Python<'_>) {
        py.detach(|| self.0.stop_listening());
    }

    /// Reserve a vector: its number, the doorbell value that fires it, its eventfd.
    ///
    /// QEMU may not know it yet: ring until the eventfd is signalled. Raises OSError if no
    /// descriptor is left, ValueError after :meth:`hang_up`.
    fn take_vector(&self, py: Python<'_>) -> PyResult<(u16, u32, EventFd)> {
        let (vector, event) = py.detach(|| self.0.take_vector()).map_err(to_py)?;
        Ok((vector, Server::doorbell_value(vector), event.into()))
    }

    /// Send connected QEMUs the vectors they have not been told of, without blocking.
    fn tell(&self, py: Python<'_>) {
        py.detach(|| self.0.tell());
    }

    /// Give a vector back.
    fn give_vector(&self, py: Python<'_>, vector: u16) {
        py.detach(|| self.0.give_vector(vector));
    }

    /// Give back a vector that QEMU was not told of: it is reused only by the next QEMU.
    fn lose_vector(&self, py: Python<'_>, vector: u16) {
        py.detach(|| self.0.lose_vector(vector));
    }

    /// Close the connections; vectors are kept.
    fn hang_up(&self, py: Python<'_>) {
        py.detach(|| self.0.hang_up());
    }

    /// Stop listening and close the connections.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
