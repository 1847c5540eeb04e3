//! `IvshmemServer`: gives QEMU the memory and our eventfds.

use crate::errors::to_py;
use crate::eventfd::EventFd;
use crate::memory::Memory;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;
use virtnic::ivshmem::Server;

/// Gives QEMU the memory and our interrupt eventfds over one UNIX socket.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct IvshmemServer(Server);

#[pymethods]
impl IvshmemServer {
    #[new]
    #[pyo3(signature = (path, memory, vectors=128))]
    fn new(path: PathBuf, memory: &Bound<'_, Memory>, vectors: i64) -> PyResult<Self> {
        let vectors = u16::try_from(vectors).map_err(|_| {
            PyValueError::new_err(format!("an ivshmem device has 1 to 1024 vectors, not {vectors}"))
        })?;
        Server::bind(&path, Arc::clone(memory.get().region()), vectors).map(Self).map_err(to_py)
    }

    /// How many; QEMU's ``vectors=`` must say the same.
    #[getter]
    fn vectors(&self) -> u16 {
        self.0.vectors()
    }

    /// Our peer number.
    #[getter]
    fn peer(&self) -> u16 {
        self.0.peer()
    }

    /// Reserve a vector: its number, the doorbell value that fires it, its eventfd.
    fn take_vector(&self) -> PyResult<(u16, u32, EventFd)> {
        let (vector, event) = self.0.take_vector().map_err(to_py)?;
        Ok((vector, self.0.doorbell_value(vector), event.into()))
    }

    /// Give a vector back.
    fn give_vector(&self, vector: u16) {
        self.0.give_vector(vector);
    }

    /// Stop listening and end the connections.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
