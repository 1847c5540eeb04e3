//! The loop `measure`: streams sent by one port and received by another.

use crate::engine::{Until, run_told};
use crate::errors::to_py;
use crate::port::NetPort;
use crate::time::span;
use crate::views::Bytes;
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use virtnic::engine::{
    Field, FlowCounts, Glance, Measurement, Outcome, Pattern, Place, Plan, Report, Stream,
    StreamOutcome,
};

/// A field: its name, or its offset and width; "increment", "list" or "random"; its numbers.
#[derive(FromPyObject)]
pub(crate) struct GivenField(Option<String>, usize, usize, String, Vec<Option<u128>>);

/// A stream: frames, frames per second, burst, whether frames are signed, fields.
#[derive(FromPyObject)]
pub(crate) struct GivenStream<'py>(Bound<'py, PyList>, Option<f64>, u64, bool, Vec<GivenField>);

impl GivenField {
    fn into_field(self) -> PyResult<Field> {
        let Self(name, offset, width, kind, numbers) = self;
        let place = name.map_or(Place::At { offset, width }, Place::Named);
        let small = |number: Option<u128>, what: &str| {
            number.and_then(|number| u64::try_from(number).ok()).ok_or_else(|| {
                PyValueError::new_err(format!("{what} is 0 or more and below 2**64"))
            })
        };
        let pattern = match (kind.as_str(), &numbers[..]) {
            ("increment", &[first, step, count]) => Pattern::Increment {
                first,
                step: small(step, "a step")?,
                count: small(count, "a count")?,
            },
            ("random", &[low, high, seed]) => {
                Pattern::Random { low, high, seed: small(seed, "a seed")? }
            }
            ("list", values) => Pattern::List(values.iter().copied().flatten().collect()),
            _ => return Err(PyValueError::new_err(format!("there is no pattern {kind:?}"))),
        };
        Ok(Field { place, pattern })
    }
}

impl GivenStream<'_> {
    fn into_stream(self) -> PyResult<Stream> {
        let Self(given, rate, burst, flow, fields) = self;
        let mut frames = Vec::with_capacity(given.len());
        for frame in &given {
            frames.push(Bytes::of(&frame)?.to_vec());
        }
        let fields = fields.into_iter().map(GivenField::into_field).collect::<PyResult<_>>()?;
        Ok(Stream { frames, fields, rate, burst, flow })
    }
}

/// Send streams by one port and receive them by another; see virtnic.measure.run.
#[pyfunction]
pub(crate) fn measure<'py>(
    py: Python<'py>,
    ports: (Py<NetPort>, Option<Py<NetPort>>),
    streams: Vec<GivenStream<'py>>,
    times: (f64, f64),
    verify: bool,
    until: Until,
) -> PyResult<Bound<'py, PyDict>> {
    let streams = streams.into_iter().map(GivenStream::into_stream).collect::<PyResult<_>>()?;
    let [warmup, drain] =
        [span(Some(times.0))?.unwrap_or_default(), span(Some(times.1))?.unwrap_or_default()];
    let plan = Plan { streams, warmup, drain, verify };
    let (tx, rx) = (ports.0.get(), ports.1.as_ref().map(Py::get));
    let ports: Vec<&NetPort> = [tx].into_iter().chain(rx).collect();
    let (tx, rx) = (tx.core(), rx.map(NetPort::core));
    let run = py.detach(|| Measurement::new(tx, rx, plan)).map_err(to_py)?;
    let Until(seconds, packets, progress, cpus) = until;
    let limits = (seconds.map(|seconds| seconds + times.0), packets, cpus);
    let (mut over, mut interrupted) = (false, false);
    let mut tell = |py: Python<'_>, _: &Report| {
        let glance = run.glance();
        let told = py.check_signals().and_then(|()| match &progress {
            Some(progress) => {
                let go_on = progress.bind(py).call1((glance_dict(py, &glance)?,))?;
                Ok(!go_on.is(&*false.into_pyobject(py)?))
            }
            None => Ok(true),
        });
        match told {
            // Frames in flight are still waited for.
            Ok(go_on) => Ok(go_on || std::mem::replace(&mut over, true)),
            Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) && !interrupted => {
                interrupted = true;
                Ok(std::mem::replace(&mut over, true))
            }
            Err(error) => Err(error),
        }
    };
    run_told(py, &ports, &limits, &mut tell, |control| run.run(tx, rx, control))
        .map_err(|error| with_counts(py, error, &run.glance()))?;
    let outcome = run.outcome().map_err(to_py)?;
    let dict = outcome_dict(py, &outcome)?;
    dict.set_item("interrupted", interrupted)?;
    dict.set_item("glance", glance_dict(py, &run.glance())?)?;
    Ok(dict)
}

/// Adds the counts so far to the exception of a port that ended, as a note.
fn with_counts(py: Python<'_>, error: PyErr, glance: &Glance) -> PyErr {
    let note = format!(
        "until then {} frames were sent and {} of {} with a signature had arrived",
        glance.sent, glance.received, glance.signed
    );
    // If the note cannot be added, the exception is raised without it.
    let _ = error.value(py).call_method1("add_note", (note,));
    error
}

fn glance_dict<'py>(py: Python<'py>, glance: &Glance) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("seconds", glance.elapsed.as_secs_f64())?;
    dict.set_item("sent", glance.sent)?;
    dict.set_item("signed", glance.signed)?;
    dict.set_item("received", glance.received)?;
    dict.set_item("duplicates", glance.duplicates)?;
    dict.set_item("reordered", glance.reordered)?;
    dict.set_item("corrupt", glance.corrupt)?;
    dict.set_item("foreign", glance.foreign)?;
    dict.set_item("latency_mean", glance.latency.0 as f64 / 1e9)?;
    dict.set_item("latency_max", glance.latency.1 as f64 / 1e9)?;
    Ok(dict)
}

fn outcome_dict<'py>(py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("seconds", outcome.sending.as_secs_f64())?;
    dict.set_item("corrupt", outcome.corrupt)?;
    dict.set_item("foreign", outcome.foreign)?;
    dict.set_item("early", outcome.early)?;
    dict.set_item("untaken", outcome.untaken)?;
    let streams = outcome.streams.iter().map(|stream| stream_dict(py, stream));
    dict.set_item("streams", streams.collect::<PyResult<Vec<_>>>()?)?;
    Ok(dict)
}

fn stream_dict<'py>(py: Python<'py>, stream: &StreamOutcome) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("bytes", stream.bytes)?;
    dict.set_item("unsent", stream.unsent)?;
    dict.set_item("late", stream.late)?;
    dict.set_item("latest", stream.latest as f64 / 1e9)?;
    dict.set_item("stale", stream.stale)?;
    let flows = stream.flows.iter().map(|flow: &FlowCounts| {
        let counts = (flow.sent, flow.received, flow.duplicates, flow.reordered);
        (counts.0, counts.1, counts.2, counts.3, flow.latency_sum, flow.latency_max)
    });
    dict.set_item("flows", flows.collect::<Vec<_>>())?;
    let latencies = stream
        .latencies
        .iter_recorded()
        .map(|step| (step.value_iterated_to(), step.count_at_value()));
    dict.set_item("latencies", latencies.collect::<Vec<_>>())?;
    dict.set_item("least", stream.latencies.min())?;
    Ok(dict)
}
