//! `IvshmemServer`: gives QEMU the memory and our eventfds.

use crate::errors::to_py;
use crate::eventfd::EventFd;
use crate::memory::Memory;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;
use virtnic::ivshmem::Server;

/// Gives QEMU the memory and our interrupt eventfds over one UNIX socket.
///
/// Each vector is a peer of its own, so the device's ``vectors=`` is 1. A QEMU hears of those
/// that come later as long as it is connected.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct IvshmemServer(Server);

#[pymethods]
impl IvshmemServer {
    #[new]
    fn new(path: PathBuf, memory: &Bound<'_, Memory>) -> Self {
        Self(Server::new(&path, Arc::clone(memory.get().region())))
    }

    /// How many vectors there are, those given back among them.
    #[getter]
    fn vectors(&self, py: Python<'_>) -> usize {
        py.detach(|| self.0.vectors())
    }

    /// How many vectors can be taken; None: as many as are wanted.
    #[getter]
    fn left(&self, py: Python<'_>) -> Option<usize> {
        py.detach(|| self.0.left())
    }

    /// Let QEMUs connect that know of no vector yet; who was connected is gone.
    ///
    /// Raises OSError, ValueError (the path, or a memory whose file was closed).
    fn listen(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.listen()).map_err(to_py)
    }

    /// Let nobody connect any more; who is connected stays so.
    fn stop_listening(&self, py: Python<'_>) {
        py.detach(|| self.0.stop_listening());
    }

    /// Reserve a vector: its number, the doorbell value that fires it, its eventfd.
    ///
    /// QEMU may not know of it yet: ring until it is heard. Raises OSError without a
    /// descriptor, ValueError after :meth:`hang_up`.
    fn take_vector(&self, py: Python<'_>) -> PyResult<(u16, u32, EventFd)> {
        let (vector, event) = py.detach(|| self.0.take_vector()).map_err(to_py)?;
        Ok((vector, Server::doorbell_value(vector), event.into()))
    }

    /// Tell those who are connected what they have not heard yet, as far as they listen.
    fn tell(&self, py: Python<'_>) {
        py.detach(|| self.0.tell());
    }

    /// Give a vector back.
    fn give_vector(&self, py: Python<'_>, vector: u16) {
        py.detach(|| self.0.give_vector(vector));
    }

    /// Give a vector back that QEMU has not got: nobody takes it before another QEMU comes.
    fn lose_vector(&self, py: Python<'_>, vector: u16) {
        py.detach(|| self.0.lose_vector(vector));
    }

    /// End the connections; the vectors that there are go on.
    fn hang_up(&self, py: Python<'_>) {
        py.detach(|| self.0.hang_up());
    }

    /// Stop listening and end the connections.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
