//! `QTest`: the connection to QEMU's QTest socket.

use crate::eventfd::{EventFd, check_signals, raise};
use crate::time::duration;
use crate::views::Bytes;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::PathBuf;

/// A connection to QEMU's QTest socket, usable from any thread.
///
/// Every method raises QemuDied if QEMU is gone, TimeoutError if no reply comes, ValueError for an
/// argument on which QEMU would abort, QemuError if QEMU refuses. Connect only to a QEMU that is
/// listening.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct QTest(virtnic::qtest::QTest);

impl QTest {
    pub(crate) fn inner(&self) -> &virtnic::qtest::QTest {
        &self.0
    }

    #[inline]
    fn port_in(&self, py: Python<'_>, port: Int<16>, width: u8) -> PyResult<u32> {
        // `Int` has checked the size.
        py.detach(|| self.0.port_in(port.0 as u16, width)).map_err(raise)
    }

    #[inline]
    fn port_out(&self, py: Python<'_>, port: Int<16>, width: u8, value: u64) -> PyResult<()> {
        // Likewise.
        py.detach(|| self.0.port_out(port.0 as u16, width, value as u32)).map_err(raise)
    }

    #[inline]
    fn mmio_read(&self, py: Python<'_>, address: Int<64>, width: u8) -> PyResult<u64> {
        py.detach(|| self.0.read(address.0, width)).map_err(raise)
    }

    #[inline]
    fn mmio_write(&self, py: Python<'_>, address: Int<64>, width: u8, value: u64) -> PyResult<()> {
        py.detach(|| self.0.write(address.0, width, value)).map_err(raise)
    }
}

/// An unsigned number of `BITS` bits; ValueError if it is too large or negative.
struct Int<const BITS: u32>(u64);

impl<'py, const BITS: u32> FromPyObject<'_, 'py> for Int<BITS> {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let refuse = || {
            let shown = object.repr().map(|r| r.to_string()).unwrap_or_default();
            PyValueError::new_err(format!("{shown} is not an unsigned {BITS}-bit number"))
        };
        match object.extract::<u64>() {
            Ok(value) if BITS >= 64 || value >> BITS == 0 => Ok(Self(value)),
            Ok(_) => Err(refuse()),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => Err(refuse()),
            Err(error) => Err(error),
        }
    }
}

#[pymethods]
impl QTest {
    #[new]
    #[pyo3(signature = (path, timeout=5.0))]
    fn new(py: Python<'_>, path: PathBuf, timeout: f64) -> PyResult<Self> {
        let timeout = duration(timeout)?;
        py.detach(|| virtnic::qtest::QTest::connect_to_running(&path, timeout, Some(check_signals)))
            .map(Self)
            .map_err(raise)
    }

    /// Port input, 8 bits.
    fn inb(&self, py: Python<'_>, port: Int<16>) -> PyResult<u32> {
        self.port_in(py, port, 1)
    }

    /// Port input, 16 bits.
    fn inw(&self, py: Python<'_>, port: Int<16>) -> PyResult<u32> {
        self.port_in(py, port, 2)
    }

    /// Port input, 32 bits.
    fn inl(&self, py: Python<'_>, port: Int<16>) -> PyResult<u32> {
        self.port_in(py, port, 4)
    }

    /// Port output, 8 bits; does not wait.
    fn outb(&self, py: Python<'_>, port: Int<16>, value: Int<8>) -> PyResult<()> {
        self.port_out(py, port, 1, value.0)
    }

    /// Port output, 16 bits; does not wait.
    fn outw(&self, py: Python<'_>, port: Int<16>, value: Int<16>) -> PyResult<()> {
        self.port_out(py, port, 2, value.0)
    }

    /// Port output, 32 bits; does not wait.
    fn outl(&self, py: Python<'_>, port: Int<16>, value: Int<32>) -> PyResult<()> {
        self.port_out(py, port, 4, value.0)
    }

    /// Port input of a register that is selected first, by writing its index to a 32-bit port.
    ///
    /// No other access comes between the two, not even that of a signal handler.
    fn indexed_in(
        &self,
        py: Python<'_>,
        selector: Int<16>,
        index: Int<32>,
        port: Int<16>,
        width: u8,
    ) -> PyResult<u32> {
        // `Int` has checked the sizes; so below.
        let (selector, index, port) = (selector.0 as u16, index.0 as u32, port.0 as u16);
        py.detach(|| self.0.indexed_in(selector, index, port, width)).map_err(raise)
    }

    /// Port output to such a register; does not wait.
    fn indexed_out(
        &self,
        py: Python<'_>,
        selector: Int<16>,
        index: Int<32>,
        port: Int<16>,
        width: u8,
        value: Int<32>,
    ) -> PyResult<()> {
        let (selector, index, port) = (selector.0 as u16, index.0 as u32, port.0 as u16);
        py.detach(|| self.0.indexed_out(selector, index, port, width, value.0 as u32))
            .map_err(raise)
    }

    /// MMIO read, 8 bits.
    fn readb(&self, py: Python<'_>, address: Int<64>) -> PyResult<u64> {
        self.mmio_read(py, address, 1)
    }

    /// MMIO read, 16 bits.
    fn readw(&self, py: Python<'_>, address: Int<64>) -> PyResult<u64> {
        self.mmio_read(py, address, 2)
    }

    /// MMIO read, 32 bits.
    fn readl(&self, py: Python<'_>, address: Int<64>) -> PyResult<u64> {
        self.mmio_read(py, address, 4)
    }

    /// MMIO read, 64 bits.
    fn readq(&self, py: Python<'_>, address: Int<64>) -> PyResult<u64> {
        self.mmio_read(py, address, 8)
    }

    /// MMIO write, 8 bits; does not wait.
    fn writeb(&self, py: Python<'_>, address: Int<64>, value: Int<8>) -> PyResult<()> {
        self.mmio_write(py, address, 1, value.0)
    }

    /// MMIO write, 16 bits; does not wait.
    fn writew(&self, py: Python<'_>, address: Int<64>, value: Int<16>) -> PyResult<()> {
        self.mmio_write(py, address, 2, value.0)
    }

    /// MMIO write, 32 bits; does not wait.
    fn writel(&self, py: Python<'_>, address: Int<64>, value: Int<32>) -> PyResult<()> {
        self.mmio_write(py, address, 4, value.0)
    }

    /// MMIO write, 64 bits; does not wait.
    fn writeq(&self, py: Python<'_>, address: Int<64>, value: Int<64>) -> PyResult<()> {
        self.mmio_write(py, address, 8, value.0)
    }

    /// Read bytes.
    fn read<'py>(
        &self,
        py: Python<'py>,
        address: Int<64>,
        length: Int<31>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.0.read_bytes(address.0, length.0 as usize)).map_err(raise)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Write bytes.
    fn write(&self, py: Python<'_>, address: Int<64>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = Bytes::of(data)?.to_vec();
        py.detach(|| self.0.write_bytes(address.0, &data)).map_err(raise)
    }

    /// Wait until all earlier writes are done.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.flush()).map_err(raise)
    }

    /// Intercept the interrupts that reach one device (on a PC: ``ioapic``).
    fn intercept(&self, py: Python<'_>, path: &str) -> PyResult<()> {
        py.detach(|| self.0.intercept(path)).map_err(raise)
    }

    /// Signal the eventfd each time the line is raised.
    fn on_irq(&self, line: Int<10>, event: &Bound<'_, EventFd>) {
        self.0.on_irq(line.0 as u32, event.get().inner());
    }

    /// Signal the eventfd when the connection ends.
    fn watch(&self, event: &Bound<'_, EventFd>) {
        self.0.watch(event.get().inner());
    }

    /// Step the virtual clock; return its time in nanoseconds.
    #[pyo3(signature = (ns=None))]
    fn clock_step(&self, py: Python<'_>, ns: Option<Int<63>>) -> PyResult<u64> {
        py.detach(|| self.0.clock_step(ns.map(|ns| ns.0))).map_err(raise)
    }

    /// Step the virtual clock in real time from a thread, every ``period`` seconds.
    fn run_clock(&self, py: Python<'_>, period: f64) -> PyResult<()> {
        let period = duration(period)?;
        py.detach(|| self.0.run_clock(period)).map_err(raise)
    }

    /// Why the connection ended; None while it is up.
    #[getter]
    fn death(&self) -> Option<String> {
        self.0.death()
    }

    /// Close the connection and end its threads.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
