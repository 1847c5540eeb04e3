//! The run loop: calls a user's compiled function for each burst.

use super::control::{Control, Report};
use super::forward::send_or_drop;
use super::lanes::{lanes, pairs_of};
use super::{BURST, of_port, running, swap};
use crate::net::{Burst, Port};
use crate::{Error, Result};

/// A packet function. In C:
///
/// ```c
/// void f(uint8_t **packets, uint32_t *lengths, uint32_t count);
/// ```
///
/// It may change the `lengths[i]` bytes at `packets[i]`. What it leaves in `lengths[i]` is the
/// verdict: 0 drops the frame; otherwise the low 24 bits are its new length (at most the buffer's
/// capacity), and the high 8 bits are the port to send it on, as an index into the ports given to
/// [`run`] (0 is the receiving port). A frame with an invalid verdict is dropped and counted.
pub type RawFunction = unsafe extern "C" fn(*const *mut u8, *mut u32, u32);

/// The length bits of a verdict.
const LENGTH: u32 = (1 << 24) - 1;

/// A packet function, by its address.
#[derive(Clone, Copy, Debug)]
pub struct PacketFunction(RawFunction);

impl PacketFunction {
    /// The function at this address.
    ///
    /// # Safety
    /// The address must be that of a function of type [`RawFunction`] that does what is documented
    /// there and remains loaded.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address in the first page, where there is no function.
    pub unsafe fn at(address: usize) -> Result<Self> {
        if address < 4096 {
            return Err(Error::Invalid(format!("{address:#x} is not the address of a function")));
        }
        // SAFETY: the caller guarantees the function.
        Ok(Self(unsafe { std::mem::transmute::<usize, RawFunction>(address) }))
    }
}

/// Receives from the first port, calls the function for each burst, and sends the frames on the
/// ports of their verdicts, as copies if a port uses another memory. With several queue pairs, one
/// thread per pair calls the function.
///
/// # Errors
/// What ended a port; [`Error::Busy`] if a port is in use or given twice; [`Error::Invalid`]
/// without a port, with too many, or with different numbers of queue pairs.
pub fn run(ports: &[&Port], function: PacketFunction, control: Control<'_>) -> Result<Report> {
    let Some(&first) = ports.first() else {
        return Err(Error::Invalid("a packet function needs a port".to_owned()));
    };
    if ports.len() > 256 {
        return Err(Error::Invalid(format!(
            "a packet function can use at most 256 ports, not {}",
            ports.len()
        )));
    }
    lanes(pairs_of(ports)?, control, |lane, control| {
        run_on_pair(ports, first, lane, function, control)
    })
}

fn run_on_pair(
    ports: &[&Port],
    first: &Port,
    lane: usize,
    function: PacketFunction,
    mut control: Control<'_>,
) -> Result<Report> {
    let mut rx = first.pair(lane)?.claim_rx()?;
    let mut txs = Vec::with_capacity(ports.len());
    for port in ports {
        txs.push(port.pair(lane)?.claim_tx()?);
    }
    let pool = first.pool();
    let mut burst = Burst::new(pool.clone());
    let mut outs: Vec<Burst> = ports.iter().map(|_| Burst::new(pool.clone())).collect();
    let mut rejected = Vec::with_capacity(BURST);
    let mut packets = Vec::with_capacity(BURST);
    let mut lengths = Vec::with_capacity(BURST);
    let mut report = Report::default();
    loop {
        rx.lend();
        for tx in &mut txs {
            tx.lend();
        }
        let most = BURST.min(control.left(report.received));
        let received = rx.recv(most, &mut burst).map_err(|error| of_port(first, error))?;
        if received == 0 {
            report.idle += 1;
            // The pool may be empty, and only these queues can return their buffers.
            for (tx, port) in txs.iter_mut().zip(ports) {
                tx.release().map_err(|error| of_port(port, error))?;
            }
        } else {
            swap::prefetch(&burst);
            packets.clear();
            packets.extend(burst.ids().iter().map(|&id| pool.data_ptr(id)));
            lengths.clear();
            lengths.extend_from_slice(burst.lengths());
            // SAFETY: the caller of `PacketFunction::at` guaranteed the type; both arrays have
            // `received` entries, and each pointer is to a buffer of this burst.
            unsafe { (function.0)(packets.as_ptr(), lengths.as_mut_ptr(), received as u32) };
            outs.iter_mut().for_each(|out| out.expect_those_of(&burst));
            for (&id, &verdict) in burst.ids().iter().zip(&lengths) {
                let length = verdict & LENGTH;
                let out = (verdict >> 24) as usize;
                if verdict == 0 {
                    report.dropped += 1;
                    rejected.push(id);
                } else if length == 0 || length as usize > pool.capacity_of(id) || out >= outs.len()
                {
                    report.bad_verdict += 1;
                    rejected.push(id);
                } else {
                    outs[out].push(id, length);
                }
            }
            burst.moved(usize::MAX);
            if !rejected.is_empty() {
                pool.give(&rejected);
                rejected.clear();
            }
            report.received += received as u64;
            report.bursts += 1;
            for ((out, tx), port) in outs.iter_mut().zip(&mut txs).zip(ports) {
                if out.is_empty() {
                    tx.release().map_err(|error| of_port(port, error))?;
                    continue;
                }
                send_or_drop(out, port, tx, &mut report)?;
            }
        }
        let alive = || ports.iter().try_for_each(|port| running(port));
        control.pause(received);
        if control.is_over(report.received) || !control.go_on(&mut report, alive)? {
            break;
        }
    }
    report.elapsed = control.elapsed();
    Ok(report)
}
