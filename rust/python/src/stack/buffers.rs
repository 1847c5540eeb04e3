//! Memory of Python objects to send from and receive into.

use crate::views::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use virtnic::stack::Area;

/// A writable buffer of a Python object.
pub(super) struct Writable(Box<ffi::Py_buffer>);

impl Writable {
    pub(super) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        let into = &raw mut *view;
        let flags = ffi::PyBUF_WRITABLE;
        // SAFETY: `view` is a fresh Py_buffer at a stable address; we are attached.
        let result = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), into, flags) };
        if result == 0 { Ok(Self(view)) } else { Err(PyErr::fetch(object.py())) }
    }
    pub(super) fn area(&self, limit: usize) -> Area {
        let length = usize::try_from(self.0.len).unwrap_or(0);
        let length = if limit == 0 { length } else { length.min(limit) };
        // SAFETY: writable for its length while `self` lives, which is for the whole call.
        unsafe { Area::new(self.0.buf.cast(), length) }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        // SAFETY: filled by PyObject_GetBuffer and released once, while we are attached.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
    }
}

/// The bytes to send.
pub(super) fn readable(bytes: &Bytes) -> Area {
    // SAFETY: readable for its length while `bytes` lives, which is for the whole call; nothing is
    // received into it.
    unsafe { Area::new(bytes.as_ptr().cast_mut(), bytes.len()) }
}

/// A new `bytes` object to receive into.
pub(super) struct Received<'py> {
    object: *mut ffi::PyObject,
    length: usize,
    py: Python<'py>,
}

impl<'py> Received<'py> {
    pub(super) fn new(py: Python<'py>, length: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(length)
            .map_err(|_| PyValueError::new_err("the number of bytes to receive is too large"))?;
        // SAFETY: null requests uninitialized bytes; we are attached.
        let object = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) };
        if object.is_null() { Err(PyErr::fetch(py)) } else { Ok(Self { object, length, py }) }
    }
    pub(super) fn area(&self) -> Area {
        // SAFETY: the object has that many bytes and is not shared yet.
        unsafe { Area::new(ffi::PyBytes_AsString(self.object).cast(), self.length) }
    }
    pub(super) fn finish(mut self, length: usize) -> Bound<'py, PyAny> {
        if length < self.length {
            // Another call took some, or the connection ended.
            let mut copy = vec![0; length];
            // SAFETY: the object has more than `length` bytes and is not shared yet.
            unsafe {
                let from = ffi::PyBytes_AsString(self.object).cast::<u8>();
                std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), length);
            }
            return PyBytes::new(self.py, &copy).into_any();
        }
        let object = std::mem::replace(&mut self.object, std::ptr::null_mut());
        // SAFETY: our reference to a bytes object.
        unsafe { Bound::from_owned_ptr(self.py, object) }
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        // SAFETY: null or our reference; we are attached.
        unsafe { ffi::Py_XDECREF(self.object) };
    }
}
