//! What is asked of a backend before QEMU meets it.
//!
//! QEMU finds out itself whether a backend has what it needs, but has only one answer where it
//! has not: it hangs up and connects again, for ever, and while a netdev is being made it
//! does nothing else.

use super::message::F_PROTOCOL_FEATURES;
use crate::virtio::Features;

/// Protocol feature 0: several queue pairs, and GET_QUEUE_NUM.
pub(super) const PROTOCOL_F_MQ: u64 = 1;
/// Dirty pages are logged; only a migration asks for it.
const F_LOG_ALL: u64 = 1 << 26;

/// Protocol features 3 and 5: acknowledgements, and requests of the backend's own.
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_F_BACKEND_REQ: u64 = 1 << 5;
/// Feature 33: addresses may be translated.
pub(super) const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// What a backend must have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demands {
    /// Queue pairs.
    pub pairs: u16,
    /// The features that the device was set up with.
    pub features: u64,
}

/// What a backend says that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub features: u64,
    /// Protocol features, where they were asked for.
    pub protocol: Option<u64>,
    /// Queue pairs, where they were asked for.
    pub pairs: Option<u64>,
}

impl Demands {
    /// What is left to demand where a backend lacks nothing but features that may be missing.
    pub(super) fn without(&self, offer: &Offer, may_lack: u64) -> Option<Self> {
        let missing = self.features & !F_LOG_ALL & !offer.features & may_lack;
        let left = Self { features: self.features & !missing, ..*self };
        left.lacking(offer).is_none().then_some(left)
    }

    /// What of it a backend lacks, in words.
    pub(super) fn lacking(&self, offer: &Offer) -> Option<String> {
        // QEMU takes none without protocol features: then it has no place for any memory.
        let missing = (self.features | F_PROTOCOL_FEATURES) & !F_LOG_ALL & !offer.features;
        if missing != 0 {
            let named = Features(u128::from(missing & !F_PROTOCOL_FEATURES));
            let also = match missing & F_PROTOCOL_FEATURES {
                0 => "",
                _ if named == Features::NONE => "protocol features",
                _ => ", protocol features",
            };
            return Some(format!("it is there, but without {named}{also}, which the port uses"));
        }
        let both = PROTOCOL_F_REPLY_ACK | PROTOCOL_F_BACKEND_REQ;
        if offer.features & F_ACCESS_PLATFORM != 0
            && offer.protocol.is_some_and(|p| p & both != both)
        {
            return Some(
                "it offers ACCESS_PLATFORM without the protocol features REPLY_ACK and \
                 BACKEND_REQ, which QEMU wants with it"
                    .into(),
            );
        }
        match offer.pairs {
            Some(pairs) if pairs < self.pairs.into() => Some(few_pairs(pairs, self.pairs)),
            _ => None,
        }
    }
}

/// There are too few queue pairs.
pub(super) fn few_pairs(found: u64, wanted: u16) -> String {
    let s = |count: u64| if count == 1 { "" } else { "s" };
    let are = if wanted == 1 { "is" } else { "are" };
    format!("it has {found} queue pair{}, and {wanted} {are} asked for", s(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_missing_is_demanded_no_more() {
        let demands = Demands { pairs: 2, features: 1 << 32 | 1 << 34 | F_LOG_ALL };
        let left = |features: u64, pairs, may_lack| {
            let features = features | F_PROTOCOL_FEATURES;
            let left = demands.without(&Offer { features, protocol: None, pairs }, may_lack);
            left.map(|demands| demands.features)
        };
        let bare = Offer { features: 1 << 32, protocol: None, pairs: Some(2) };
        assert!(demands.without(&bare, 1 << 34).is_none(), "QEMU wants protocol features");
        assert_eq!(left(1 << 32, Some(2), 1 << 34), Some(1 << 32 | F_LOG_ALL));
        assert_eq!(left(1 << 32, Some(2), 1 << 15), None);
        assert_eq!(left(1 << 34, Some(2), 1 << 34), None);
        assert_eq!(left(1 << 32, Some(1), 1 << 34), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let demands = Demands { pairs: 2, features: 1 << 32 | 1 << 34 | 1 << 30 | F_LOG_ALL };
        let offer = |features, pairs| demands.lacking(&Offer { features, protocol: None, pairs });
        assert_eq!(offer(demands.features & !F_LOG_ALL, Some(2)), None);
        let words = |features, pairs| offer(features, pairs).unwrap_or_default();
        assert!(words(1 << 32 | 1 << 30, Some(2)).contains("without RING_PACKED,"));
        assert!(words(1 << 32 | 1 << 34, None).contains("without protocol features,"));
        assert!(words(0, None).contains("without VERSION_1, RING_PACKED, protocol features,"));
        assert!(words(demands.features, Some(1)).contains("1 queue pair, and 2 are asked for"));
        let features = demands.features | F_ACCESS_PLATFORM;
        let with = |protocol| demands.lacking(&Offer { features, protocol, pairs: Some(2) });
        assert!(with(Some(PROTOCOL_F_REPLY_ACK)).unwrap_or_default().contains("ACCESS_PLATFORM"));
        assert_eq!(with(Some(PROTOCOL_F_REPLY_ACK | PROTOCOL_F_BACKEND_REQ)), None);
    }
}
