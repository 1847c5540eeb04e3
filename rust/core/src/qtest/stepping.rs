//! Steps QEMU's virtual clock in real time, for the qtest accelerator.
//!
//! With that accelerator the virtual clock stands still; slirp's timers and the
//! device's own need it to run. A step is as long as the time that really passed,
//! and the next begins only when QEMU has answered the last, so steps never pile up.

use super::connection::Connection;
use super::wire::Command;
use crate::Error;
use crate::process::background;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest single step: QEMU runs each timer on the way, and must be able to
/// answer others in between.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// Starts the thread; [`Clock::set`](super::clock::Clock::set) was called before.
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
