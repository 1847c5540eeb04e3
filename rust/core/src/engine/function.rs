//! A user's own compiled function, run once for each burst.

use super::control::{Control, Report};
use super::forward::pass_on;
use super::lanes::{lanes, pairs_of};
use super::{BURST, blame, running, swap};
use crate::net::{Burst, Port};
use crate::{Error, Result};

/// What a packet function is, in C:
///
/// ```c
/// void f(uint8_t **packets, uint32_t *lengths, uint32_t count);
/// ```
///
/// It may change the `lengths[i]` bytes at `packets[i]`, and decides what becomes of each frame
/// by what it leaves in `lengths[i]`: 0 drops it; else the low 24 bits are the frame's new
/// length (at most what a buffer holds), and the high 8 bits the port to send it by, an index
/// into the list of ports given to [`run`] (0, the first, is where frames come from). Anything
/// else is counted as a bad verdict and dropped.
pub type RawFunction = unsafe extern "C" fn(*const *mut u8, *mut u32, u32);

/// Bits of a verdict that are the length.
const LENGTH: u32 = (1 << 24) - 1;

/// A function by its address.
#[derive(Clone, Copy, Debug)]
pub struct PacketFunction(RawFunction);

impl PacketFunction {
    /// The function at this address.
    ///
    /// # Safety
    /// There must be a function of type [`RawFunction`] at it that stays there and keeps to
    /// what is said there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address in the first page, where there is no function.
    pub unsafe fn at(address: usize) -> Result<Self> {
        if address < 4096 {
            return Err(Error::Invalid(format!("{address:#x} is not the address of a function")));
        }
        // SAFETY: the caller vouches for what is there.
        Ok(Self(unsafe { std::mem::transmute::<usize, RawFunction>(address) }))
    }
}

/// Receives from the first port, has the function look at each burst, and sends what it leaves
/// by the ports it says. Ports of other memories get copies. Ports with several queue pairs have the
/// function called from as many threads.
///
/// # Errors
/// What ended a port, [`Error::Busy`] when one is in use or given twice, [`Error::Invalid`]
/// without a port.
pub fn run(ports: &[&Port], function: PacketFunction, control: Control<'_>) -> Result<Report> {
    let Some(&first) = ports.first() else {
        return Err(Error::Invalid("a packet function needs a port".to_owned()));
    };
    if ports.len() > 256 {
        return Err(Error::Invalid(format!(
            "a verdict names one of 256 ports, not of {}",
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
        let received = rx.recv(most, &mut burst).map_err(|error| blame(first, error))?;
        if received == 0 {
            report.idle += 1;
            // Perhaps for want of buffers, which only these queues can give back.
            for (tx, port) in txs.iter_mut().zip(ports) {
                tx.release().map_err(|error| blame(port, error))?;
            }
        } else {
            swap::prefetch(&burst);
            packets.clear();
            packets.extend(burst.ids().iter().map(|&id| pool.data_ptr(id)));
            lengths.clear();
            lengths.extend_from_slice(burst.lengths());
            // SAFETY: `PacketFunction::at` was promised a function of this type; both arrays
            // have `received` entries and each pointer leads to a buffer that is ours.
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
                    tx.release().map_err(|error| blame(port, error))?;
                    continue;
                }
                pass_on(out, port, tx, &mut report)?;
            }
        }
        let alive = || ports.iter().try_for_each(|port| running(port));
        control.rest(received);
        if control.is_over(report.received) || !control.go_on(&mut report, alive)? {
            break;
        }
    }
    report.elapsed = control.elapsed();
    Ok(report)
}
