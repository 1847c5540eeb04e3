//! `NetSocket`.

use super::answers::counted;
use super::buffers::{Received, Writable, readable};
use super::options::{get, set};
use super::waiting::{Address, parse, run, spell};
use crate::errors::to_py;
use crate::time::span;
use crate::views::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};
use virtnic::stack::{Half, Options, Socket};

/// One socket of a stack. A ``timeout`` is in seconds; None waits forever, 0 not at all.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct NetSocket(pub(super) Socket);

impl NetSocket {
    /// Waits until something can be received, and allocates bytes for it. Returns also the remaining
    /// timeout.
    fn room<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        timeout: Option<f64>,
    ) -> PyResult<(Received<'py>, Option<Duration>)> {
        let timeout = span(timeout)?;
        let start = Instant::now();
        let available = run(py, |check| self.0.wait_readable(timeout, check))?;
        let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        Ok((Received::new(py, available.min(size))?, left))
    }
}

#[pymethods]
impl NetSocket {
    /// Bind to an address and a port; port 0 selects a free one.
    fn bind(&self, py: Python<'_>, host: &str, port: u16) -> PyResult<()> {
        let address = SocketAddr::new(parse(host)?, port);
        py.detach(|| self.0.bind(address)).map_err(to_py)
    }
    /// Listen for connections, of which ``backlog`` can wait to be accepted.
    fn listen(&self, py: Python<'_>, backlog: usize) -> PyResult<()> {
        py.detach(|| self.0.listen(backlog)).map_err(to_py)
    }
    /// Accept a connection; return it and its peer's address.
    #[pyo3(signature = (timeout = None))]
    fn accept(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<(Self, Address)> {
        let timeout = span(timeout)?;
        let (socket, from) = run(py, |check| self.0.accept(timeout, check))?;
        Ok((Self(socket), spell(from)))
    }
    /// Connect to a peer.
    #[pyo3(signature = (host, port, timeout = None))]
    fn connect(&self, py: Python<'_>, host: &str, port: u16, timeout: Option<f64>) -> PyResult<()> {
        let (to, timeout) = (SocketAddr::new(parse(host)?, port), span(timeout)?);
        run(py, |check| self.0.connect(to, timeout, check))
    }
    /// Send at least one of the bytes; return how many.
    #[pyo3(signature = (data, timeout = None))]
    fn send(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let (bytes, timeout) = (Bytes::of(data)?, span(timeout)?);
        let area = readable(&bytes);
        run(py, move |check| self.0.send(area, timeout, check))
    }
    /// Send all bytes.
    #[pyo3(signature = (data, timeout = None))]
    fn send_all(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let (bytes, timeout) = (Bytes::of(data)?, span(timeout)?);
        let area = readable(&bytes);
        run(py, move |check| self.0.send_all(area, timeout, check, &mut 0))
    }
    /// Return up to ``size`` bytes; none after the peer has shut down sending.
    #[pyo3(signature = (size, timeout = None, peek = false))]
    fn recv<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (bytes, timeout) = self.room(py, size, timeout)?;
        let area = bytes.area();
        let count = run(py, move |check| self.0.recv(area, peek, timeout, check))?;
        Ok(bytes.finish(count))
    }
    /// Receive up to ``size`` bytes (0: its length) into a buffer; return how many.
    #[pyo3(signature = (buffer, size = 0, timeout = None, peek = false))]
    fn recv_into(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<usize> {
        let (buffer, timeout) = (Writable::of(buffer)?, span(timeout)?);
        let area = buffer.area(size);
        run(py, move |check| self.0.recv(area, peek, timeout, check))
    }
    /// Send one datagram to an address (None: the connected peer); return its length.
    #[pyo3(signature = (data, address, timeout = None))]
    fn send_to(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        address: Option<(String, u16)>,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let (bytes, timeout) = (Bytes::of(data)?, span(timeout)?);
        let to = match address {
            Some((host, port)) => Some(SocketAddr::new(parse(&host)?, port)),
            None => None,
        };
        let area = readable(&bytes);
        run(py, move |check| self.0.send_to(area, to, timeout, check))
    }
    /// Return one datagram, cut to ``size`` bytes, its whole length, and its sender.
    #[pyo3(signature = (size, timeout = None, peek = false))]
    fn recv_from<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<(Bound<'py, PyAny>, usize, Option<Address>)> {
        let (bytes, timeout) = self.room(py, size, timeout)?;
        let area = bytes.area();
        let (count, whole, from) =
            run(py, move |check| self.0.recv_from(area, peek, timeout, check))?;
        Ok((bytes.finish(count), whole, from.map(spell)))
    }
    /// Receive a datagram into a buffer; return its bytes there, its length, and its sender.
    #[pyo3(signature = (buffer, size = 0, timeout = None, peek = false))]
    fn recv_from_into(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<(usize, usize, Option<Address>)> {
        let (buffer, timeout) = (Writable::of(buffer)?, span(timeout)?);
        let area = buffer.area(size);
        let (count, whole, from) =
            run(py, move |check| self.0.recv_from(area, peek, timeout, check))?;
        Ok((count, whole, from.map(spell)))
    }
    /// Return how many bytes can be received now; for UDP, the length of the next datagram.
    fn available(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| self.0.available()).map_err(to_py)
    }
    /// Shut down receiving (0), sending (1) or both (2).
    fn shutdown(&self, py: Python<'_>, how: u8) -> PyResult<()> {
        let half = match how {
            0 => Half::Read,
            1 => Half::Write,
            2 => Half::Both,
            other => {
                return Err(PyValueError::new_err(format!(
                    "expected SHUT_RD (0), SHUT_WR (1) or SHUT_RDWR (2), not {other}"
                )));
            }
        };
        py.detach(|| self.0.shutdown(half)).map_err(to_py)
    }
    /// Close the socket.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
    /// Return the local address; None if it is not bound.
    fn local(&self, py: Python<'_>) -> PyResult<Option<Address>> {
        Ok(py.detach(|| self.0.local()).map_err(to_py)?.map(spell))
    }
    /// Return the peer's address.
    fn peer(&self, py: Python<'_>) -> PyResult<Address> {
        Ok(spell(py.detach(|| self.0.peer()).map_err(to_py)?))
    }
    /// Return the value of an option.
    fn option(&self, py: Python<'_>, name: &str) -> PyResult<f64> {
        let options = py.detach(|| self.0.options()).map_err(to_py)?;
        get(&options, name)
            .ok_or_else(|| PyValueError::new_err(format!("there is no option {name:?}")))
    }
    /// Set an option.
    fn set_option(&self, py: Python<'_>, name: &str, value: f64) -> PyResult<()> {
        if get(&Options::default(), name).is_none() {
            return Err(PyValueError::new_err(format!("there is no option {name:?}")));
        }
        py.detach(|| self.0.set_options(|options| set(options, name, value))).map_err(to_py)
    }
    /// Return and clear the pending error number; 0 for none.
    fn take_error(&self, py: Python<'_>) -> PyResult<i32> {
        py.detach(|| self.0.take_error()).map_err(to_py)
    }
    /// Join or leave a multicast group.
    fn membership(&self, py: Python<'_>, group: &str, join: bool) -> PyResult<()> {
        let group = parse(group)?;
        py.detach(|| self.0.membership(group, join)).map_err(to_py)
    }
    /// Return a descriptor to wait on for reading and writing.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        py.detach(|| self.0.descriptor()).map_err(to_py)
    }
    /// Return whether receiving, and whether sending, would return at once.
    fn ready(&self, py: Python<'_>) -> PyResult<(bool, bool)> {
        py.detach(|| self.0.ready()).map_err(to_py)
    }
    /// Return the counters by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = py.detach(|| self.0.counters()).map_err(to_py)?;
        counted(py, &counters)
    }
}
