//! Views of the memory for Python, through the buffer protocol, without copies.

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;
use virtnic::memory::{BufferId, Pool};

/// A one-dimensional buffer to be exported to Python.
pub(crate) struct Flat {
    pub(crate) start: *mut c_void,
    pub(crate) items: usize,
    pub(crate) item_size: usize,
    pub(crate) format: &'static CStr,
    pub(crate) read_only: bool,
}

/// Fills `view` as PEP 3118 requires.
///
/// # Safety
/// `view` is as `__getbuffer__` received it; `flat.start` stays valid as long as `owner` lives.
/// Of `view`'s pointers, `shape` and `strides` point into `view` itself, which the
/// protocol allows for one dimension.
pub(crate) unsafe fn expose(
    owner: Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    flat: &Flat,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("view is NULL"));
    }
    if flat.read_only && flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
        return Err(PyBufferError::new_err("this view is read-only"));
    }
    //  SAFETY: the caller guarantees that `view` is valid for writes.
    unsafe {
        (*view).buf = flat.start;
        (*view).len = (flat.items * flat.item_size) as ffi::Py_ssize_t;
        (*view).itemsize = flat.item_size as ffi::Py_ssize_t;
        (*view).readonly = c_int::from(flat.read_only);
        (*view).ndim = 1;
        (*view).format = if flags & ffi::PyBUF_FORMAT == ffi::PyBUF_FORMAT {
            flat.format.as_ptr().cast_mut()
        } else {
            std::ptr::null_mut()
        };
        // The extent in items: only for bytes can it point at `len`.
        (*view).internal = std::ptr::null_mut();
        (*view).shape = std::ptr::null_mut();
        (*view).strides = std::ptr::null_mut();
        if flags & ffi::PyBUF_ND == ffi::PyBUF_ND {
            let shape =
                Box::new([flat.items as ffi::Py_ssize_t, flat.item_size as ffi::Py_ssize_t]);
            let shape = Box::into_raw(shape);
            (*view).internal = shape.cast();
            (*view).shape = shape.cast();
            if flags & ffi::PyBUF_STRIDES == ffi::PyBUF_STRIDES {
                (*view).strides = shape.cast::<ffi::Py_ssize_t>().add(1);
            }
        }
        (*view).suboffsets = std::ptr::null_mut();
        (*view).obj = owner.into_ptr();
    }
    Ok(())
}

/// Frees what [`expose`] allocated.
///
/// # Safety
/// `view` was filled by [`expose`] and is released once.
pub(crate) unsafe fn conceal(view: *mut ffi::Py_buffer) {
    // SAFETY: `internal` is null or the box that `expose` leaked, of the same type.
    unsafe {
        if !(*view).internal.is_null() {
            drop(Box::from_raw((*view).internal.cast::<[ffi::Py_ssize_t; 2]>()));
            (*view).internal = std::ptr::null_mut();
        }
    }
}

/// One frame of a burst. Its buffer goes to no device as long as this lives.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Frame {
    pool: Arc<Pool>,
    id: BufferId,
    length: u32,
}

impl Frame {
    /// Exports a buffer that the caller owns.
    pub(crate) fn export(pool: &Arc<Pool>, id: BufferId, length: u32) -> Self {
        pool.export(id);
        Self { pool: pool.clone(), id, length }
    }
    /// Makes the memoryview that Python gets.
    pub(crate) fn into_view(self, py: Python<'_>) -> PyResult<Bound<'_, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, self)?.as_any())
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.pool.unexport(self.id);
    }
}

#[pymethods]
impl Frame {
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let flat = Flat {
            start: this.pool.data_ptr(this.id).cast(),
            items: this.length as usize,
            item_size: 1,
            format: c"B",
            read_only: false,
        };
        // SAFETY: the buffer is this frame's until it is dropped, and `view` holds a reference to it.
        unsafe { expose(slf.into_any(), view, flags, &flat) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: Python releases each view that `__getbuffer__` filled once.
        unsafe { conceal(view) }
    }
}

/// A read-only snapshot of numbers.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Numbers(Box<[u32]>);

impl Numbers {
    pub(crate) fn view(py: Python<'_>, numbers: Box<[u32]>) -> PyResult<Bound<'_, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, Self(numbers))?.as_any())
    }
}

#[pymethods]
impl Numbers {
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let numbers = &slf.get().0;
        let flat = Flat {
            start: numbers.as_ptr().cast_mut().cast(),
            items: numbers.len(),
            item_size: size_of::<u32>(),
            format: c"I",
            read_only: true,
        };
        // SAFETY: the numbers are never changed, and live as long as the object.
        unsafe { expose(slf.into_any(), view, flags, &flat) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: Python releases each view that `__getbuffer__` filled once.
        unsafe { conceal(view) }
    }
}

/// Rows of bytes: adjacent buffers of a burst, or a private copy.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Rows {
    start: *mut u8,
    rows: usize,
    columns: usize,
    stride: usize,
    /// Owner of the bytes: exported buffers, or private memory.
    _keep: Keep,
}

enum Keep {
    Exported { _frames: Vec<Frame> },
    Own { _bytes: Vec<u8> },
}

//  SAFETY: `start` points to bytes that `_keep` owns, in any thread; Python code that accesses
// them through a view synchronises itself, as with any buffer.
unsafe impl Send for Rows {}
// SAFETY: as above; nothing here changes after construction.
unsafe impl Sync for Rows {}

impl Rows {
    /// The buffers of `ids`, which must be adjacent; `None` if they are not.
    pub(crate) fn of_burst(burst: &virtnic::net::Burst) -> Option<Self> {
        let (pool, ids) = (burst.pool(), burst.ids());
        if ids.windows(2).any(|pair| pair[0].checked_add(1) != Some(pair[1])) {
            return None;
        }
        let frames: Vec<Frame> = ids
            .iter()
            .zip(burst.lengths())
            .map(|(&id, &length)| Frame::export(pool, id, length))
            .collect();
        let start = ids.first().map_or(std::ptr::dangling_mut(), |&id| pool.data_ptr(id));
        Some(Self {
            start,
            rows: ids.len(),
            // Adjacent ids are of one kind.
            columns: ids.first().map_or(pool.capacity(), |&id| pool.capacity_of(id)),
            stride: ids.first().map_or(pool.stride(), |&id| pool.stride_of(id)),
            _keep: Keep::Exported { _frames: frames },
        })
    }

    /// Copies the first `columns` bytes of each frame; zeros follow a shorter frame.
    pub(crate) fn of_headers(burst: &virtnic::net::Burst, columns: usize) -> Self {
        let mut bytes = vec![0u8; burst.len() * columns];
        for (index, row) in bytes.chunks_exact_mut(columns).enumerate() {
            if let Some((from, length)) = burst.frame(index) {
                // SAFETY: the frame has `length` readable bytes and the row `columns` of ours.
                unsafe {
                    std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), length.min(columns));
                }
            }
        }
        Self {
            start: bytes.as_mut_ptr(),
            rows: burst.len(),
            columns,
            stride: columns,
            _keep: Keep::Own { _bytes: bytes },
        }
    }
}

#[pymethods]
impl Rows {
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("view is NULL"));
        }
        let this = slf.get();
        let contiguous = this.stride == this.columns || this.rows < 2;
        if flags & ffi::PyBUF_STRIDES != ffi::PyBUF_STRIDES && !contiguous {
            return Err(PyBufferError::new_err("the rows are not contiguous: request strides"));
        }
        let (rows, columns) = (this.rows as ffi::Py_ssize_t, this.columns as ffi::Py_ssize_t);
        let extents = Box::into_raw(Box::new([rows, columns, this.stride as ffi::Py_ssize_t, 1]));
        let with = |wanted: c_int| flags & wanted == wanted;
        //  SAFETY: `view` is valid for writes (checked, and guaranteed by the protocol); `extents`
        //  is
        // freed in `__releasebuffer__`, after which the view is not used.
        unsafe {
            (*view).buf = this.start.cast();
            (*view).len = rows * columns;
            (*view).itemsize = 1;
            (*view).readonly = 0;
            (*view).ndim = 2;
            (*view).format = if with(ffi::PyBUF_FORMAT) {
                c"B".as_ptr().cast_mut()
            } else {
                std::ptr::null_mut()
            };
            (*view).internal = extents.cast();
            (*view).shape = if with(ffi::PyBUF_ND) { extents.cast() } else { std::ptr::null_mut() };
            (*view).strides = if with(ffi::PyBUF_STRIDES) {
                extents.cast::<ffi::Py_ssize_t>().add(2)
            } else {
                std::ptr::null_mut()
            };
            (*view).suboffsets = std::ptr::null_mut();
            (*view).obj = slf.into_any().into_ptr();
        }
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: `internal` is the box that `__getbuffer__` leaked for this view, released once.
        unsafe { drop(Box::from_raw((*view).internal.cast::<[ffi::Py_ssize_t; 4]>())) };
    }
}

/// Another object's bytes, held for reading.
pub(crate) struct Bytes(Box<ffi::Py_buffer>);

impl Bytes {
    /// Requests an object's contiguous bytes; its TypeError or BufferError is passed on.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        let into = &raw mut *view;
        // SAFETY: `view` is a fresh Py_buffer at a stable address; we are attached.
        let result = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), into, ffi::PyBUF_SIMPLE) };
        if result == 0 { Ok(Self(view)) } else { Err(PyErr::fetch(object.py())) }
    }
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.0.buf.cast()
    }
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.0.len).unwrap_or(0)
    }
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(self.len());
        //  SAFETY: the buffer has `len` readable bytes and `copy` room for them. Copied by pointer,
        // because other threads may write to a Python buffer meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(self.as_ptr(), copy.as_mut_ptr(), self.len());
            copy.set_len(self.len());
        }
        copy
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        //  SAFETY: filled by PyObject_GetBuffer and released once. A `Bytes` never leaves the call
        // that made it, which is attached throughout.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
    }
}
