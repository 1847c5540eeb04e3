//! The exchange loop: sends a load and counts received frames.

use super::BURST;
use super::control::{Control, Report};
use super::generate::{Load, Source};
use super::lanes::{lanes, pairs_of};
use crate::Result;
use crate::net::{Burst, Port};

/// Sends a load like [`super::generate`] and, in the same loop, receives and discards frames like
/// [`super::drop_all`].
///
/// # Errors
/// Those of [`super::generate`] and [`super::drop_all`].
pub fn exchange(port: &Port, load: &Load, control: Control<'_>) -> Result<Report> {
    let pairs = pairs_of(&[port])?;
    let load = load.shared_by(pairs);
    lanes(pairs, control, |lane, control| exchange_by_pair(port, lane, &load, control))
}

fn exchange_by_pair(
    port: &Port,
    lane: usize,
    load: &Load,
    mut control: Control<'_>,
) -> Result<Report> {
    let mut rx = port.pair(lane)?.claim_rx()?;
    let mut source = Source::new(port, lane, load)?;
    let mut burst = Burst::new(port.pool().clone());
    let mut report = Report::default();
    loop {
        rx.lend();
        let received = rx.recv(BURST, &mut burst).map_err(|error| port.fault(error))?;
        if received > 0 {
            rx.recycle(&mut burst);
            report.received += received as u64;
            report.dropped += received as u64;
        }
        let busy = source.turn(control.left(report.sent), &mut report)? || received > 0;
        report.bursts += u64::from(busy);
        report.idle += u64::from(!busy);
        if control.is_over(report.sent) || !control.go_on(&mut report, || port.running())? {
            break;
        }
    }
    report.elapsed = control.elapsed();
    Ok(report)
}
