//! `VhostWire`: a connection to a vhost-user backend.

use crate::errors::{to_py, without_numbers};
use crate::eventfd::{check_signals, raise};
use crate::time::duration;
use pyo3::exceptions::{PyConnectionError, PyOSError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtnic::Error;
use virtnic::vhost_user::frontend::Wire;

/// A message: request, flags, payload, and descriptors, which the caller closes.
type Received<'py> = (u32, u32, Bound<'py, PyBytes>, Vec<RawFd>);

/// A connection to a vhost-user backend, for any messages.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct VhostWire(Mutex<Option<Wire>>);

fn closed() -> Error {
    Error::Closed("the connection was closed here".to_owned())
}

/// The exception of an error. A lost peer is a ConnectionError, not an error of a port.
fn failed(error: Error) -> PyErr {
    match error {
        Error::Closed(why) => PyConnectionError::new_err(without_numbers(why)),
        other => raise(other),
    }
}

impl VhostWire {
    fn wire(&self) -> MutexGuard<'_, Option<Wire>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Duplicates a descriptor, so that the caller keeps its own.
pub(crate) fn copy(fd: RawFd) -> virtnic::Result<OwnedFd> {
    if fd < 0 {
        return Err(Error::Invalid(format!("{fd} is not a descriptor")));
    }
    // SAFETY: only borrowed during this call; `dup` fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map_err(|e| Error::os(format!("duplicating descriptor {fd}"), e))
}

/// Duplicates descriptors to send.
fn copies(fds: &[RawFd]) -> PyResult<Vec<Arc<virtnic::Owned>>> {
    let copied = |&fd: &RawFd| match copy(fd) {
        Ok(copied) => Ok(Arc::new(virtnic::Owned::new(copied))),
        Err(Error::Invalid(why)) => Err(PyOSError::new_err(why)),
        Err(error) => Err(to_py(error)),
    };
    fds.iter().map(copied).collect()
}

#[pymethods]
impl VhostWire {
    #[new]
    fn new(path: PathBuf) -> PyResult<Self> {
        Wire::connect(&path).map(|wire| Self(Mutex::new(Some(wire)))).map_err(to_py)
    }

    /// Send a message without checking it; descriptors go with its first byte and stay open.
    ///
    /// Raises ValueError if it is too long, TimeoutError, ConnectionError if the backend
    /// disconnected.
    #[pyo3(signature = (request, flags, payload=Vec::new(), fds=Vec::new(), timeout=5.0),
           text_signature = "(self, request, flags, payload=b'', fds=(), timeout=5.0)")]
    fn send(
        &self,
        py: Python<'_>,
        request: u32,
        flags: u32,
        payload: Vec<u8>,
        fds: Vec<RawFd>,
        timeout: f64,
    ) -> PyResult<()> {
        let (fds, time) = (copies(&fds)?, duration(timeout)?);
        py.detach(|| {
            let mut wire = self.wire();
            let wire = wire.as_mut().ok_or_else(closed)?;
            wire.send_message((request, flags), payload, fds, time, Some(check_signals))
        })
        .map_err(failed)
    }

    /// Return the next message; None if none arrives in time.
    ///
    /// A tuple of request, flags, payload and descriptors, which the caller closes. Raises
    /// ConnectionError if the backend disconnected, DeviceError if it broke the protocol.
    #[pyo3(signature = (timeout=5.0))]
    fn receive<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Option<Received<'py>>> {
        let time = duration(timeout)?;
        let received = py
            .detach(|| {
                let mut wire = self.wire();
                wire.as_mut().ok_or_else(closed)?.receive_message(time, Some(check_signals))
            })
            .map_err(failed)?;
        Ok(received.map(|message| {
            let fds = message.fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
            (message.request, message.flags, PyBytes::new(py, &message.payload), fds)
        }))
    }

    /// Disconnect. Idempotent.
    fn close(&self) {
        *self.wire() = None;
    }
}
