//! One exception for each class of error; the tree is drawn in `virtnic/errors.py`.

use crate::eventfd::raised;
use pyo3::create_exception;
use pyo3::exceptions::{
    PyException, PyFileNotFoundError, PyOSError, PyPermissionError, PyTimeoutError, PyValueError,
};
use pyo3::prelude::*;
use virtnic::Error;

create_exception!(
    virtnic._native,
    VirtnicError,
    PyException,
    "Base of the exceptions that are virtnic's own."
);
create_exception!(
    virtnic._native,
    MemoryUnavailable,
    VirtnicError,
    "Shared memory of the requested kind, size or address is not available."
);
create_exception!(
    virtnic._native,
    QemuError,
    VirtnicError,
    "QEMU refused something; the message quotes QEMU."
);
create_exception!(virtnic._native, QemuNotFound, QemuError, "No usable QEMU was found.");
create_exception!(virtnic._native, QemuDied, QemuError, "QEMU has ended.");
create_exception!(
    virtnic._native,
    DeviceError,
    VirtnicError,
    "The device violated the specification; its port is unusable."
);
create_exception!(
    virtnic._native,
    CommandRefused,
    VirtnicError,
    "The device refused or does not support a command; the port remains usable."
);
create_exception!(
    virtnic._native,
    PortClosed,
    VirtnicError,
    "The port was closed or its device was removed."
);
create_exception!(
    virtnic._native,
    PortBusy,
    VirtnicError,
    "The queue is in use by an engine loop or another call."
);

const ENOENT: i32 = 2;
const ENETDOWN: i32 = 100;

/// Removes the error numbers that Rust adds to the system's messages: exceptions have `errno`.
pub(crate) fn without_numbers(mut message: String) -> String {
    const START: &str = " (os error ";
    while let Some(start) = message.find(START)
        && let Some(length) = message[start..].find(')')
    {
        message.replace_range(start..=start + length, "");
    }
    message
}

/// Converts an error of the core.
pub(crate) fn to_py(error: Error) -> PyErr {
    // A signal handler raised an exception, which ended the wait.
    if error.is_interruption()
        && let Some(raised) = raised()
    {
        return raised;
    }
    let message = without_numbers(error.to_string());
    match error {
        Error::Invalid(_) => PyValueError::new_err(message),
        Error::MemoryUnavailable(_) => MemoryUnavailable::new_err(message),
        Error::Permission(_) => PyPermissionError::new_err(message),
        Error::Qemu(_) => QemuError::new_err(message),
        Error::QemuDied(_) => QemuDied::new_err(message),
        Error::Device(_) => DeviceError::new_err(message),
        Error::Refused(_) => CommandRefused::new_err(message),
        Error::Closed(_) => PortClosed::new_err(message),
        Error::Busy(_) => PortBusy::new_err(message),
        Error::Timeout(_) => PyTimeoutError::new_err(message),
        Error::Down(cause) => {
            let down = PyOSError::new_err((ENETDOWN, message));
            Python::attach(|py| down.set_cause(py, Some(to_py(*cause))));
            down
        }
        Error::Os { errno: ENOENT, .. } => PyFileNotFoundError::new_err((ENOENT, message)),
        Error::Os { errno: 0, .. } => PyOSError::new_err(message),
        Error::Os { errno, .. } => PyOSError::new_err((errno, message)),
    }
}

pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("VirtnicError", py.get_type::<VirtnicError>())?;
    module.add("MemoryUnavailable", py.get_type::<MemoryUnavailable>())?;
    module.add("QemuError", py.get_type::<QemuError>())?;
    module.add("QemuNotFound", py.get_type::<QemuNotFound>())?;
    module.add("QemuDied", py.get_type::<QemuDied>())?;
    module.add("DeviceError", py.get_type::<DeviceError>())?;
    module.add("CommandRefused", py.get_type::<CommandRefused>())?;
    module.add("PortClosed", py.get_type::<PortClosed>())?;
    module.add("PortBusy", py.get_type::<PortBusy>())
}
