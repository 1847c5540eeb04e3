//! The drop loop: receives and discards frames.

use super::BURST;
use super::control::{Control, Report};
use super::lanes::{lanes, pairs_of};
use crate::Result;
use crate::net::{Burst, Port};

/// Receives frames and discards them.
///
/// # Errors
/// What ended the port; [`crate::Error::Busy`] if another loop uses it.
pub fn drop_all(port: &Port, control: Control<'_>) -> Result<Report> {
    lanes(pairs_of(&[port])?, control, |lane, control| drop_of_pair(port, lane, control))
}

fn drop_of_pair(port: &Port, lane: usize, mut control: Control<'_>) -> Result<Report> {
    let mut rx = port.pair(lane)?.claim_rx()?;
    let mut burst = Burst::new(port.pool().clone());
    let mut report = Report::default();
    loop {
        rx.lend();
        let most = BURST.min(control.left(report.received));
        let before = rx.bytes();
        let received = rx.recv(most, &mut burst).map_err(|error| port.fault(error))?;
        if received > 0 {
            rx.recycle(&mut burst);
            report.received += received as u64;
            report.dropped += received as u64;
            report.bytes += rx.bytes() - before;
            report.bursts += 1;
        } else {
            report.idle += 1;
        }
        if control.is_over(report.received) || !control.go_on(&mut report, || port.running())? {
            break;
        }
    }
    report.elapsed = control.elapsed();
    Ok(report)
}
