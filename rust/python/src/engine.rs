//! The engine loops: `forward`, `reflect`, `drop`, `generate`, `exchange`, `run`.

use crate::errors::to_py;
use crate::port::NetPort;
use crate::time::span;
use crate::views::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use virtnic::Error;
use virtnic::engine::{self, Control, Forwarding, Load, Mode, PacketFunction, Report};
use virtnic::net::Port;

/// When a loop ends and where it runs: seconds, packets, progress function, processors.
#[derive(FromPyObject)]
pub(crate) struct Until(pub Option<f64>, pub Option<u64>, pub Option<Py<PyAny>>, pub Vec<usize>);

/// Runs a loop detached from the interpreter. Checks signals and calls `progress` 20 times a
/// second. If QEMU died, the error includes how.
pub(crate) fn run_loop<'py>(
    py: Python<'py>,
    ports: &[&NetPort],
    until: &Until,
    body: impl FnOnce(Control<'_>) -> virtnic::Result<Report> + Send,
) -> PyResult<Bound<'py, PyDict>> {
    let Until(seconds, packets, progress, cpus) = until;
    let mut tell = |py: Python<'_>, report: &Report| {
        py.check_signals()?;
        match progress {
            // Only False ends the loop, so `progress` need not return anything.
            Some(progress) => Ok(!progress
                .bind(py)
                .call1((to_dict(py, report)?,))?
                .is(&*false.into_pyobject(py)?)),
            None => Ok(true),
        }
    };
    let limits = (*seconds, *packets, cpus.clone());
    let report = run_told(py, ports, &limits, &mut tell, body)?;
    to_dict(py, &report)
}

/// Like [`run_loop`], but `progress` is a Rust function that returns whether to continue. The
/// limits are seconds, packets and processors.
pub(crate) fn run_told(
    py: Python<'_>,
    ports: &[&NetPort],
    limits: &(Option<f64>, Option<u64>, Vec<usize>),
    tell: &mut (impl FnMut(Python<'_>, &Report) -> PyResult<bool> + Send),
    body: impl FnOnce(Control<'_>) -> virtnic::Result<Report> + Send,
) -> PyResult<Report> {
    let (seconds, packets, cpus) = limits;
    let duration = span(*seconds)?;
    let mut failure = None;
    let mut tick = |report: &Report| {
        // The loop also ends when the interpreter is shutting down.
        let told = Python::try_attach(|py| tell(py, report)).unwrap_or(Ok(false));
        Ok(match told {
            Ok(go_on) => go_on,
            Err(error) => {
                failure = Some(error);
                false
            }
        })
    };
    let result = py.detach(|| body(Control::new(duration, *packets, &mut tick).on(cpus)));
    if let Some(error) = failure {
        return Err(error);
    }
    result.map_err(|error| {
        let died = |port: &Port| matches!(port.running(), Err(Error::QemuDied(_)));
        match (&error, ports.iter().find(|port| died(port.core()))) {
            (Error::QemuDied(_), Some(port)) => port.started().raise(py, error),
            _ => to_py(error),
        }
    })
}

fn to_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("packets", report.packets())?;
    dict.set_item("bytes", report.bytes)?;
    dict.set_item("seconds", report.elapsed.as_secs_f64())?;
    dict.set_item("received", report.received)?;
    dict.set_item("sent", report.sent)?;
    dict.set_item("bursts", report.bursts)?;
    dict.set_item("idle", report.idle)?;
    dict.set_item("held", report.held)?;
    dict.set_item("ring_full", report.ring_full)?;
    dict.set_item("dropped", report.dropped)?;
    dict.set_item("bad_verdict", report.bad_verdict)?;
    dict.set_item("no_offload", report.no_offload)?;
    Ok(dict)
}

fn forwarding_of(mode: &str, backpressure: bool) -> PyResult<Forwarding> {
    let mode = match mode {
        "io" => Mode::Io,
        "mac" => Mode::Mac,
        "macswap" => Mode::MacSwap,
        other => {
            return Err(PyValueError::new_err(format!(
                "the forwarding mode must be 'io', 'mac' or 'macswap', not {other:?}"
            )));
        }
    };
    Ok(if backpressure { Forwarding::with_backpressure(mode) } else { Forwarding::dropping(mode) })
}

/// Forward between two ports; see virtnic.forward.
#[pyfunction]
pub(crate) fn forward<'py>(
    a: &Bound<'py, NetPort>,
    b: &Bound<'py, NetPort>,
    mode: &str,
    backpressure: bool,
    until: Until,
) -> PyResult<Bound<'py, PyDict>> {
    if a.is(b) {
        return Err(PyValueError::new_err(
            "forward needs two different ports; reflect() sends frames back on one",
        ));
    }
    let forwarding = forwarding_of(mode, backpressure)?;
    let (a_port, b_port) = (a.get().core(), b.get().core());
    run_loop(a.py(), &[a.get(), b.get()], &until, |control| {
        engine::forward(a_port, b_port, forwarding, control)
    })
}

/// Send frames back on the port they came from; see virtnic.reflect.
#[pyfunction]
pub(crate) fn reflect<'py>(
    port: &Bound<'py, NetPort>,
    mode: &str,
    backpressure: bool,
    until: Until,
) -> PyResult<Bound<'py, PyDict>> {
    let forwarding = forwarding_of(mode, backpressure)?;
    let core = port.get().core();
    run_loop(port.py(), &[port.get()], &until, |control| engine::reflect(core, forwarding, control))
}

/// Receive and discard frames; see virtnic.drop.
#[pyfunction]
pub(crate) fn drop<'py>(port: &Bound<'py, NetPort>, until: Until) -> PyResult<Bound<'py, PyDict>> {
    let core = port.get().core();
    run_loop(port.py(), &[port.get()], &until, |control| engine::drop_all(core, control))
}

/// Send frames cyclically; see virtnic.generate.
#[pyfunction]
pub(crate) fn generate<'py>(
    port: &Bound<'py, NetPort>,
    frames: &Bound<'py, PyList>,
    rate: Option<f64>,
    until: Until,
) -> PyResult<Bound<'py, PyDict>> {
    let load = load_of(frames, rate)?;
    let core = port.get().core();
    run_loop(port.py(), &[port.get()], &until, |control| engine::generate(core, &load, control))
}

/// Send frames cyclically while receiving and discarding; see virtnic.exchange.
#[pyfunction]
pub(crate) fn exchange<'py>(
    port: &Bound<'py, NetPort>,
    frames: &Bound<'py, PyList>,
    rate: Option<f64>,
    until: Until,
) -> PyResult<Bound<'py, PyDict>> {
    let load = load_of(frames, rate)?;
    let core = port.get().core();
    run_loop(port.py(), &[port.get()], &until, |control| engine::exchange(core, &load, control))
}

fn load_of(frames: &Bound<'_, PyList>, rate: Option<f64>) -> PyResult<Load> {
    let mut load = Load { frames: Vec::with_capacity(frames.len()), rate };
    for frame in frames {
        load.frames.push(Bytes::of(&frame)?.to_vec());
    }
    Ok(load)
}

/// Run the compiled function at an address on every burst; see virtnic.run.
#[pyfunction]
pub(crate) fn run<'py>(
    py: Python<'py>,
    ports: Vec<Py<NetPort>>,
    address: usize,
    until: Until,
) -> PyResult<Bound<'py, PyDict>> {
    // SAFETY: `packet_function` in Python checked, as far as possible, that the function has this
    // type, and keeps it alive during the call.
    let function = unsafe { PacketFunction::at(address) }.map_err(to_py)?;
    let ports: Vec<&NetPort> = ports.iter().map(Py::get).collect();
    let cores: Vec<&Port> = ports.iter().map(|port| port.core()).collect();
    run_loop(py, &ports, &until, |control| engine::run(&cores, function, control))
}
