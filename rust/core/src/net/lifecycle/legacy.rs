//! Differences of the legacy interface (the "Legacy Interface" notes of VIRTIO 1.3: sections 2.2.3,
//! 3.1.2 and 5.1.6.1).

use crate::net::packet::header::HEADER_LEN;
use crate::virtio::Features;
use crate::virtio::negotiation::{Outcome, Preferences, negotiate};
use crate::virtio::transport::Transport;
use crate::{Error, Result};

/// Without VERSION_1 the header has `num_buffers` only if MRG_RXBUF was negotiated.
const SHORT_HEADER_LEN: usize = HEADER_LEN - 2;

/// Negotiates with a modern or a legacy device.
///
/// # Errors
/// As for [`negotiate`]; [`Error::Device`] if a legacy device needs the header in a descriptor of
/// its own, as without ANY_LAYOUT (section 5.1.6.6).
pub(in crate::net) fn agree(
    transport: &dyn Transport,
    offered: Features,
    preferences: &Preferences,
) -> Result<(Features, Vec<Outcome>)> {
    if !transport.is_legacy() {
        return negotiate(offered, preferences);
    }
    if preferences.insist.contains(Features::VERSION_1) {
        return Err(Error::Device(
            "VERSION_1 is insisted on, but the device is driven by its legacy interface".to_owned(),
        ));
    }
    // These features make a device modern, and are no choice here.
    let mut preferences = *preferences;
    preferences.refuse = preferences.refuse - Features::VERSION_1;
    let (accepted, mut outcomes) = negotiate(offered | Features::VERSION_1, &preferences)?;
    for outcome in &mut outcomes {
        if Features::bit(outcome.bit) == Features::VERSION_1 {
            (outcome.offered, outcome.accepted) = (false, false);
            "the device is driven by its legacy interface".clone_into(&mut outcome.why);
        }
    }
    let accepted = accepted - Features::VERSION_1;
    if !accepted.contains(Features::ANY_LAYOUT) {
        return Err(Error::Device(format!(
            "by the legacy interface, packet and header can share a descriptor only where \
             ANY_LAYOUT is accepted, and it {}; use the modern interface",
            if offered.contains(Features::ANY_LAYOUT) { "is refused" } else { "is not offered" }
        )));
    }
    Ok((accepted, outcomes))
}

/// Bytes of the header in front of each packet (section 5.1.6.1).
pub(in crate::net) fn header_len(legacy: bool, accepted: Features) -> usize {
    if legacy && !accepted.contains(Features::MRG_RXBUF) { SHORT_HEADER_LEN } else { HEADER_LEN }
}

/// The size of a queue, whatever was requested.
pub(in crate::net) fn queue_size(index: u16, wanted: u16, has: u16) -> Result<u16> {
    if has == 0 {
        return Err(Error::Device(format!("the device has no queue {index}")));
    }
    if wanted != 0 && wanted != has {
        return Err(Error::Invalid(format!(
            "queue {index} has {has} entries, not {wanted}: with the legacy interface \
             the size is the device's; ask for none, or set its rx_queue_size and tx_queue_size"
        )));
    }
    Ok(has)
}

#[cfg(all(test, not(loom)))]
#[path = "legacy_tests.rs"]
mod tests;
