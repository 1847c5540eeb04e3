//! The sequence protocol beside length and items: `collections.abc.Sequence`.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PySlice;

/// Registers classes as sequences, for `isinstance` and `match` patterns.
pub(crate) fn register(py: Python<'_>, classes: &[Bound<'_, PyAny>]) -> PyResult<()> {
    let sequence = py.import("collections.abc")?.getattr("Sequence")?;
    classes.iter().try_for_each(|class| sequence.call_method1("register", (class,)).map(drop))
}

/// The first item from a place on that is or equals the value, and its index.
///
/// Another thread may remove items from a burst meanwhile: missing ones are skipped.
fn find(
    items: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    from: usize,
    end: usize,
) -> PyResult<Option<usize>> {
    for at in from..end {
        match items.get_item(at) {
            Ok(item) if item.is(value) || item.eq(value)? => return Ok(Some(at)),
            Ok(_) => {}
            Err(error) if error.is_instance_of::<PyIndexError>(items.py()) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// `items.index(value, start, stop)`.
pub(crate) fn index(
    items: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    start: isize,
    stop: Option<isize>,
) -> PyResult<usize> {
    let length = items.len()?;
    // Negative numbers count from the end, as in slices.
    let place = |at: isize| match usize::try_from(at) {
        Ok(at) => at.min(length),
        Err(_) => length.saturating_sub(at.unsigned_abs()),
    };
    let found = find(items, value, place(start), stop.map_or(length, place))?;
    found.ok_or_else(|| PyValueError::new_err("the value is not present"))
}

/// `items.count(value)`.
pub(crate) fn count(items: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    let length = items.len()?;
    let (mut from, mut count) = (0, 0);
    while let Some(at) = find(items, value, from, length)? {
        count += 1;
        from = at + 1;
    }
    Ok(count)
}

/// `value in items`.
pub(crate) fn contains(items: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(find(items, value, 0, items.len()?)?.is_some())
}

/// `iter(items)` with a step of 1, `reversed(items)` with -1, over the current items.
pub(crate) fn walk<'py>(items: &Bound<'py, PyAny>, step: isize) -> PyResult<Bound<'py, PyAny>> {
    let none = items.py().None();
    let all = items.py().get_type::<PySlice>().call1((&none, &none, step))?;
    Ok(items.get_item(all)?.try_iter()?.into_any())
}
