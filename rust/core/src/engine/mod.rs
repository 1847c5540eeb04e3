//! Loops that run without the interpreter: forward, reflect, generate, drop, exchange, play,
//! measure, and run, which calls a user's compiled function for each burst.
//!
//! A loop claims the queues it uses and polls them until its [`Control`] ends it or a port fails.
//! It uses all active queue pairs of its ports, with one thread per pair (`lanes`).

mod budget;
mod control;
mod exchange;
mod forward;
mod function;
mod generate;
mod lanes;
mod measure;
mod play;
mod sink;
mod streams;
mod swap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use control::{Control, Report, Tick};
pub use exchange::exchange;
pub use forward::{Forwarding, Mode, forward, reflect};
pub use function::{PacketFunction, RawFunction, run};
pub use generate::{Load, generate};
pub use measure::{FlowCounts, Glance, Measurement, Outcome, Plan, StreamOutcome};
pub use play::{Lateness, Pace, TimedFrame, TimedFrames, play};
pub use sink::drop_all;
pub use streams::{Field, Pattern, Place, Stream};

use crate::net::Port;
use crate::{Error, Result};

/// The most frames taken from a ring at once.
const BURST: usize = 64;

/// An error of a port's claimed queue. Names the port, as a loop has several.
#[cold]
fn of_port(port: &Port, error: Error) -> Error {
    named(port, port.fault(error))
}

/// Fails unless the port runs.
fn running(port: &Port) -> Result<()> {
    port.running().map_err(|error| named(port, error))
}

fn named(port: &Port, error: Error) -> Error {
    match error {
        Error::Device(rule) => Error::Device(format!("port {}: {rule}", port.mac())),
        other => other,
    }
}
