//! Loops that run without the interpreter: forward, reflect, generate, drop, exchange, and
//! a user's own compiled function over every burst.
//!
//! A loop claims the queues it uses, polls them, and stops when its time is
//! over, when its [`Control`] says so, or with the error that ended a port. It takes all pairs that
//! its ports use, and has a thread for each (`lanes`).

mod budget;
mod control;
mod exchange;
mod forward;
mod function;
mod generate;
mod lanes;
mod sink;
mod swap;

pub use control::{Control, Report, Tick};
pub use exchange::exchange;
pub use forward::{Manner, Mode, forward, reflect};
pub use function::{PacketFunction, RawFunction, run};
pub use generate::{Load, generate};
pub use sink::drop_all;

use crate::net::Port;
use crate::{Error, Result};

/// Frames taken from a ring at once.
const BURST: usize = 64;

/// An error of a claimed queue, where a loop has several ports: says whose device it was.
#[cold]
fn blame(port: &Port, error: Error) -> Error {
    named(port, port.fault(error))
}

/// An error unless the port runs.
fn running(port: &Port) -> Result<()> {
    port.running().map_err(|error| named(port, error))
}

fn named(port: &Port, error: Error) -> Error {
    match error {
        Error::Device(rule) => Error::Device(format!("port {}: {rule}", port.mac())),
        other => other,
    }
}
