//! Timeouts in seconds, as Python passes them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::time::Duration;

/// A time span in seconds, 0 or more; `None` (for ever) stays `None`.
pub(crate) fn span(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    match Duration::try_from_secs_f64(seconds) {
        Ok(span) => Ok(Some(span)),
        // Too long for a Duration: for ever.
        Err(_) if seconds > 0.0 => Ok(None),
        Err(_) => Err(PyValueError::new_err(format!(
            "the timeout must be a number of seconds, 0 or more, or None, not {seconds}"
        ))),
    }
}

/// A timeout in seconds that is not None.
pub(crate) fn duration(seconds: f64) -> PyResult<Duration> {
    Ok(span(Some(seconds))?.unwrap_or(Duration::MAX))
}
