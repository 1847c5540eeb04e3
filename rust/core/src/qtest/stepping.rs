//! Steps QEMU's virtual clock in real time, for the qtest accelerator.
//!
//! With that accelerator, the virtual clock stands still, but timers of slirp and of the device need it.
//! A step is as long as the elapsed time, and the next starts after QEMU's reply to the last, so steps
//! do not accumulate.

use super::connection::Connection;
use super::wire::Command;
use crate::Error;
use crate::process::background;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest single step, as QEMU runs all timers of a step before it answers other requests.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// Starts the thread, after [`Clock::set`](super::clock::Clock::set).
pub(super) fn start(connection: &Arc<Connection>) -> Result<JoinHandle<()>, std::io::Error> {
    let connection = Arc::clone(connection);
    background("virtnic-clock", move || run(&connection))
}

fn run(connection: &Connection) {
    let mut stepped = Instant::now();
    while connection.clock.sleep(stepped) {
        let step = stepped.elapsed().min(LONGEST_STEP);
        let ns = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX);
        match connection.ask_for_ever(Command::ClockStep { ns: Some(ns) }) {
            Ok(_) => stepped += step,
            Err(Error::QemuDied(_) | Error::Closed(_)) => return,
            Err(error) => {
                log::warn!("QEMU's virtual clock is not stepped any more: {error}");
                return connection.clock.unset();
            }
        }
    }
}
