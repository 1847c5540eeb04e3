//! Seconds as Python gives them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::time::Duration;

/// A time span: a number of seconds, 0 or more; `None` stays `None` (for ever).
pub(crate) fn span(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    match Duration::try_from_secs_f64(seconds) {
        Ok(span) => Ok(Some(span)),
        // Longer than Duration knows is for ever.
        Err(_) if seconds > 0.0 => Ok(None),
        Err(_) => Err(PyValueError::new_err(format!(
            "a timeout is a number of seconds, 0 or more, or None, not {seconds}"
        ))),
    }
}
