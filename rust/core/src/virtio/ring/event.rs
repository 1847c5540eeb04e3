//! Notification suppression by `VIRTIO_F_EVENT_IDX` (section 2.7.10).

/// Whether the entry at `event`, for which the other side wants a notification, was filled when the
/// index went from `old` to `new` (all modulo 2^16).
#[inline]
pub(super) fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::passed;

    #[test]
    fn an_event_is_passed_once() {
        assert!(passed(4, 5, 4));
        assert!(!passed(4, 4, 4));
        assert!(!passed(4, 6, 5));
        assert!(passed(4, 10, 0));
    }

    #[test]
    fn indices_wrap() {
        assert!(passed(u16::MAX, 0, u16::MAX));
        assert!(passed(u16::MAX, 3, u16::MAX - 2));
        assert!(passed(1, 3, u16::MAX - 2));
        assert!(!passed(3, 3, u16::MAX - 2));
    }
}
