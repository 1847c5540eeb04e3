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
    /// Queue pairs, where they were asked for.
    pub pairs: Option<u64>,
}

impl Demands {
    /// What is left to demand where a backend lacks nothing but features that may be missing.
    pub(super) fn without(&self, offer: &Offer, may_lack: u64) -> Option<Self> {
        let missing = self.features & !F_LOG_ALL & !offer.features;
        let enough = offer.pairs.is_none_or(|pairs| pairs >= self.pairs.into());
        let spared = enough && missing & !may_lack == 0;
        spared.then_some(Self { features: self.features & !missing, ..*self })
    }

    /// What of it a backend lacks, in words.
    pub(super) fn lacking(&self, offer: &Offer) -> Option<String> {
        let missing = self.features & !F_LOG_ALL & !offer.features;
        if missing != 0 {
            let named = Features(u128::from(missing & !F_PROTOCOL_FEATURES));
            let also = match missing & F_PROTOCOL_FEATURES {
                0 => "",
                _ if named == Features::NONE => "protocol features",
                _ => ", protocol features",
            };
            return Some(format!("it is there, but without {named}{also}, which the port uses"));
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
        let left = |features, pairs, may_lack| {
            let left = demands.without(&Offer { features, pairs }, may_lack);
            left.map(|demands| demands.features)
        };
        assert_eq!(left(1 << 32, Some(2), 1 << 34), Some(1 << 32 | F_LOG_ALL));
        assert_eq!(left(1 << 32, Some(2), 1 << 15), None);
        assert_eq!(left(1 << 34, Some(2), 1 << 34), None);
        assert_eq!(left(1 << 32, Some(1), 1 << 34), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let demands = Demands { pairs: 2, features: 1 << 32 | 1 << 34 | 1 << 30 | F_LOG_ALL };
        let offer = |features, pairs| demands.lacking(&Offer { features, pairs });
        assert_eq!(offer(demands.features & !F_LOG_ALL, Some(2)), None);
        let words = |features, pairs| offer(features, pairs).unwrap_or_default();
        assert!(words(1 << 32 | 1 << 30, Some(2)).contains("without RING_PACKED,"));
        assert!(words(1 << 32 | 1 << 34, None).contains("without protocol features,"));
        assert!(words(0, None).contains("without VERSION_1, RING_PACKED, protocol features,"));
        assert!(words(demands.features, Some(1)).contains("1 queue pair, and 2 are asked for"));
    }
}
