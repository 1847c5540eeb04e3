//! `Memory`: the shared file and its packet pool.

use crate::errors::to_py;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyMemoryView, PyString};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use virtnic::memory::{Iova, PageRequest, PageSize, Placement, Pool, Region, RegionOptions};

/// Return (page size, total, free) for each huge page size, of the machine or one NUMA node.
///
/// Raises ValueError when the node does not exist.
#[pyfunction]
#[pyo3(signature = (node=None))]
pub(crate) fn hugepages(node: Option<u32>) -> PyResult<Vec<(usize, usize, usize)>> {
    let counts = virtnic::memory::hugepages(node).map_err(to_py)?;
    Ok(counts.iter().map(|count| (count.size.bytes(), count.total, count.free)).collect())
}

/// One shared, mapped, prefaulted and sealed file, with a packet pool in it.
#[pyclass(frozen, subclass, module = "virtnic._native")]
pub(crate) struct Memory {
    region: Arc<Region>,
    // Held here, so that there is exactly one pool per memory.
    pool: Arc<Pool>,
}

impl Memory {
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

#[pymethods]
impl Memory {
    #[new]
    #[pyo3(
        signature = (size, *, pages=0, iova=None, node=None, directory=None, buffer_size=2048,
                     jumbo_buffers=None, jumbo_size=None),
        text_signature = "(size, *, pages=0, iova='va', node=None, directory=None, buffer_size=2048, jumbo_buffers=None, jumbo_size=None)"
    )]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        py: Python<'_>,
        size: usize,
        pages: usize,
        iova: Option<&Bound<'_, PyAny>>,
        node: Option<u32>,
        directory: Option<PathBuf>,
        buffer_size: usize,
        jumbo_buffers: Option<usize>,
        jumbo_size: Option<usize>,
    ) -> PyResult<Self> {
        let options = RegionOptions {
            size,
            pages: page_request(pages)?,
            placement: iova.map_or(Ok(Placement::Virtual), placement)?,
            node,
            directory,
            buffer_size,
            jumbo_buffers,
            jumbo_size,
        };
        // Prefaulting takes time.
        let region = py.detach(|| Region::new(&options)).map_err(to_py)?;
        let pool = region.pool();
        Ok(Self { region, pool })
    }

    /// Size in bytes.
    #[getter]
    fn size(&self) -> usize {
        self.region.size()
    }
    /// Size in bytes of the pages behind it.
    #[getter]
    fn page_size(&self) -> usize {
        self.region.page_size().bytes()
    }
    /// The address at which devices see it: the address of QEMU's BAR.
    #[getter]
    fn iova(&self) -> u64 {
        self.region.iova().0
    }
    /// The address at which this process sees it.
    #[getter]
    fn address(&self) -> usize {
        self.region.address()
    }
    /// The path of the file, if it has one.
    #[getter]
    fn path(&self) -> Option<&str> {
        self.region.path().and_then(|path| path.to_str())
    }
    /// Why the pages are smaller than the largest size; None if they are not.
    #[getter]
    fn fallback(&self) -> Option<&str> {
        self.region.fallback()
    }
    /// Data bytes that a packet buffer holds.
    #[getter]
    fn buffer_size(&self) -> usize {
        self.pool.capacity()
    }
    /// Number of packet buffers.
    #[getter]
    fn buffers(&self) -> usize {
        self.pool.count()
    }
    /// Packet buffers that are neither with a device nor in a burst.
    #[getter]
    fn buffers_free(&self) -> usize {
        self.pool.free()
    }
    /// Number of buffers for frames longer than ``buffer_size``.
    #[getter]
    fn jumbo_buffers(&self) -> usize {
        self.pool.jumbo_count()
    }
    /// Jumbo buffers that are neither with a device nor in a burst.
    #[getter]
    fn jumbo_buffers_free(&self) -> usize {
        self.pool.jumbo_free()
    }
    /// Length in bytes of the longest frame that fits a buffer.
    #[getter]
    fn largest_frame(&self) -> usize {
        self.pool.largest_frame()
    }

    /// Return the file's descriptor.
    ///
    /// Raises ValueError if the file was closed; :func:`virtnic.open` closes that of a memory it
    /// makes.
    fn fileno(&self) -> PyResult<RawFd> {
        self.region.file().map(|file| file.as_raw_fd()).map_err(to_py)
    }

    /// Close the file unless it has a path; the mapping is kept.
    fn forget_file(&self) {
        self.region.forget_file();
    }

    /// Copy bytes out. Raises ValueError if they are not inside the file.
    ///
    /// 2, 4 or 8 bytes at a multiple of their number are one atomic load, before all that
    /// follows.
    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: usize,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        // Check first: an absurd length must not be allocated.
        self.region.iova_of(offset, length).ok_or_else(|| self.outside(offset, length))?;
        PyBytes::new_with(py, length, |out| self.region.read(offset, out).map_err(to_py))
    }

    /// Copy bytes in. Raises ValueError if they are not inside the file.
    ///
    /// 2, 4 or 8 bytes at a multiple of their number are one atomic store: all that was written
    /// before is visible first.
    fn write(&self, offset: usize, data: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(bytes) = data.cast_exact::<PyBytes>() {
            return self.region.write(offset, bytes.as_bytes()).map_err(to_py);
        }
        let bytes = PyMemoryView::from(data)?.call_method0("tobytes")?;
        let bytes = bytes.cast::<PyBytes>()?.as_bytes();
        self.region.write(offset, bytes).map_err(to_py)
    }

    /// Convert an offset to a device address. Raises ValueError if it is outside the file.
    #[pyo3(signature = (offset, length=1))]
    fn iova_of(&self, offset: usize, length: usize) -> PyResult<u64> {
        let found = self.region.iova_of(offset, length);
        found.map(|iova| iova.0).ok_or_else(|| self.outside(offset, length))
    }

    /// Convert a device address to an offset. Raises ValueError if it is outside the file.
    #[pyo3(signature = (iova, length=1))]
    fn offset_of(&self, iova: u64, length: usize) -> PyResult<usize> {
        self.region.offset_of(Iova(iova), length).ok_or_else(|| {
            PyValueError::new_err(format!(
                "{length} bytes at iova {iova:#x} are not inside the memory ({} bytes from {})",
                self.region.size(),
                self.region.iova(),
            ))
        })
    }
}

impl Memory {
    fn outside(&self, offset: usize, length: usize) -> PyErr {
        PyValueError::new_err(format!(
            "{length} bytes at offset {offset} are not inside the memory of {} bytes",
            self.region.size()
        ))
    }
}

fn page_request(bytes: usize) -> PyResult<PageRequest> {
    if bytes == 0 {
        return Ok(PageRequest::Auto);
    }
    PageSize::from_bytes(bytes).map(PageRequest::Exactly).ok_or_else(|| {
        PyValueError::new_err(format!(
            "there are no pages of {bytes} bytes; pass 0 (the largest that is free), {}, {} or {}",
            PageSize::Base.bytes(),
            PageSize::Huge2M.bytes(),
            PageSize::Huge1G.bytes(),
        ))
    })
}

fn placement(iova: &Bound<'_, PyAny>) -> PyResult<Placement> {
    if let Ok(name) = iova.cast::<PyString>() {
        match name.to_cow()?.as_ref() {
            "va" => return Ok(Placement::Virtual),
            "pa" => return Ok(Placement::Physical),
            _ => {}
        }
    } else if iova.is_instance_of::<PyInt>()
        && let Ok(address) = iova.extract()
    {
        return Ok(Placement::At(Iova(address)));
    }
    Err(PyValueError::new_err(format!(
        "iova={}: not an address; pass \"va\", \"pa\" or an integer from 0 to 2**40",
        iova.repr()?
    )))
}
