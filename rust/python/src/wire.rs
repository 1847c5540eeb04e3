//! `VhostWire`: a connection to a vhost-user backend, message by message.

use crate::errors::{to_py, without_numbers};
use crate::eventfd::{patience, raise};
use crate::time::span;
use pyo3::exceptions::{PyConnectionError, PyOSError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::os::fd::{BorrowedFd, IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use virtnic::Error;
use virtnic::vhost_user::frontend::Wire;

/// A message: its request, its flags, its payload, and descriptors, which are the caller's to close.
type Heard<'py> = (u32, u32, Bound<'py, PyBytes>, Vec<RawFd>);

/// A connection to a vhost-user backend. Whole messages go and come, whatever they say.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct VhostWire(Mutex<Option<Wire>>);

fn closed() -> Error {
    Error::Closed("the connection was closed here".to_owned())
}

/// The exception of an error: that the peer is gone is none of a port's.
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

fn time(seconds: f64) -> PyResult<Duration> {
    Ok(span(Some(seconds))?.unwrap_or(Duration::MAX))
}

/// Copies of descriptors, which are the sender's again once the message has gone.
fn copies(fds: &[RawFd]) -> PyResult<Vec<Arc<virtnic::Owned>>> {
    let copy = |&fd: &RawFd| {
        if fd < 0 {
            return Err(PyOSError::new_err(format!("{fd} is no descriptor")));
        }
        // SAFETY: borrowed for the time of this call; one that is not open is an error of dup.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let copied = borrowed.try_clone_to_owned().map(|fd| Arc::new(virtnic::Owned::new(fd)));
        copied.map_err(|e| to_py(Error::os(format!("sending descriptor {fd}"), e)))
    };
    fds.iter().map(copy).collect()
}

#[pymethods]
impl VhostWire {
    #[new]
    fn new(path: PathBuf) -> PyResult<Self> {
        Wire::connect(&path).map(|wire| Self(Mutex::new(Some(wire)))).map_err(to_py)
    }

    /// Send a message as it is; descriptors go with its first byte, and stay the caller's.
    ///
    /// Raises ValueError for one that is too long, TimeoutError, ConnectionError where the
    /// backend is gone.
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
        let (fds, time) = (copies(&fds)?, time(timeout)?);
        py.detach(|| {
            let mut wire = self.wire();
            let wire = wire.as_mut().ok_or_else(closed)?;
            wire.send_message((request, flags), payload, fds, time, Some(patience))
        })
        .map_err(failed)
    }

    /// Return the next message; None where none came in time.
    ///
    /// Its request, flags, payload and descriptors, which are the caller's to close. Raises
    /// ConnectionError where the backend is gone, DeviceError where it broke the protocol.
    #[pyo3(signature = (timeout=5.0))]
    fn receive<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Option<Heard<'py>>> {
        let time = time(timeout)?;
        let heard = py
            .detach(|| {
                let mut wire = self.wire();
                wire.as_mut().ok_or_else(closed)?.receive_message(time, Some(patience))
            })
            .map_err(failed)?;
        Ok(heard.map(|said| {
            let fds = said.fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
            (said.request, said.flags, PyBytes::new(py, &said.payload), fds)
        }))
    }

    /// Hang up. Twice is fine.
    fn close(&self) {
        *self.wire() = None;
    }
}
