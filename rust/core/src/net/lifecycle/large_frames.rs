//! Whether frames as long as receive offloads produce can be received.

use crate::memory::{JUMBO_SIZE, Pool};
use crate::virtio::Features;
use crate::virtio::negotiation::{Preferences, prerequisites};
use crate::{Error, Result};

/// An error if such a frame fits no buffer; otherwise makes sure that they are merged if necessary.
///
/// # Errors
/// [`Error::Invalid`].
pub(in crate::net) fn plan(
    offered: Features,
    preferences: &mut Preferences,
    pool: &Pool,
) -> Result<()> {
    preferences.prefer |= prerequisites(preferences.insist | preferences.prefer);
    let wanted = (preferences.insist | preferences.prefer) & offered;
    let large = (wanted - preferences.refuse) & Features::LARGE_RECEIVE;
    if large == Features::NONE || pool.capacity() >= JUMBO_SIZE {
        return Ok(());
    }
    if pool.jumbo_capacity() < JUMBO_SIZE {
        let jumbos = match pool.jumbo_capacity() {
            0 => "the memory has no jumbo buffers; make it with jumbo_buffers=64 or so".to_owned(),
            bytes => format!("a jumbo buffer {bytes}; make the memory without jumbo_size"),
        };
        return Err(Error::Invalid(format!(
            "with {large} the device makes frames of up to {JUMBO_SIZE} bytes, but a buffer holds \
             {} and {jumbos}",
            pool.capacity()
        )));
    }
    preferences.prefer |= Features::MRG_RXBUF;
    preferences.merged = Features::LARGE_RECEIVE;
    Ok(())
}
