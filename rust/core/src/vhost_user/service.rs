//! Whether a backend serves: what QEMU told it, and that it got to the end of that.
//!
//! A connection is no service. QEMU sets a backend up by some thirty messages, gives up in
//! the midst of them where the backend is not what it was, and connects again. A backend
//! serves when its rings were started (and enabled, where that is asked for), and it has
//! answered a question that came after that.

use super::message::{F_PROTOCOL_FEATURES, Message, request};
use std::collections::BTreeSet;

/// The rings of the first queue pair: no device goes without.
const FIRST_PAIR: [u32; 2] = [0, 1];

/// What QEMU has told a backend.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The features that it is to use.
    features: u64,
    started: BTreeSet<u32>,
    enabled: BTreeSet<u32>,
}

impl Told {
    /// Looks at a request that was passed on.
    pub(super) fn request(&mut self, message: &Message) {
        match message.request {
            request::SET_FEATURES => self.features = message.number().unwrap_or_default(),
            request::SET_VRING_KICK => {
                // Without a descriptor the backend is to poll: it starts all the same.
                self.started.extend(message.number().map(|number| (number & 0xff) as u32));
            }
            request::SET_VRING_ENABLE => {
                if let (Some(ring), Some(on)) = (message.vring(), message.vring_num()) {
                    match on {
                        0 => self.enabled.remove(&ring),
                        _ => self.enabled.insert(ring),
                    };
                }
            }
            request::GET_VRING_BASE => {
                self.started.retain(|&ring| Some(ring) != message.vring());
            }
            request::RESET_OWNER | request::RESET_DEVICE => *self = Self::default(),
            _ => {}
        }
    }

    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// The rings that the backend is to serve.
    pub(super) fn rings(&self) -> BTreeSet<u32> {
        // Without protocol features no ring has to be enabled.
        match self.features & F_PROTOCOL_FEATURES {
            0 => self.started.clone(),
            _ => self.started.intersection(&self.enabled).copied().collect(),
        }
    }

    /// Whether these are among them.
    pub(super) fn has(&self, rings: &BTreeSet<u32>) -> bool {
        self.rings().is_superset(rings)
    }
}

/// The rings of a device of which nothing is known yet.
pub(super) fn first_pair() -> BTreeSet<u32> {
    FIRST_PAIR.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(told: &mut Told, request: u32, payload: &[u8]) {
        let mut message = Message::ask(request);
        message.payload = payload.to_vec();
        told.request(&message);
    }

    fn state(ring: u32, num: u32) -> [u8; 8] {
        (u64::from(ring) | u64::from(num) << 32).to_ne_bytes()
    }

    #[test]
    fn rings_that_are_started_and_enabled_are_served() {
        let mut told = Told::default();
        for ring in FIRST_PAIR {
            assert!(!told.has(&first_pair()));
            tell(&mut told, request::SET_VRING_KICK, &u64::from(ring).to_ne_bytes());
        }
        assert!(told.has(&first_pair()), "without protocol features they are enabled");
        tell(&mut told, request::SET_FEATURES, &F_PROTOCOL_FEATURES.to_ne_bytes());
        assert!(!told.has(&first_pair()));
        for ring in [0, 1, 2] {
            tell(&mut told, request::SET_VRING_ENABLE, &state(ring, 1));
        }
        assert!(told.has(&first_pair()) && told.rings() == first_pair());
        tell(&mut told, request::GET_VRING_BASE, &state(1, 0));
        assert!(!told.has(&first_pair()));
        tell(&mut told, request::SET_VRING_ENABLE, &state(0, 0));
        assert!(told.rings().is_empty());
    }
}
