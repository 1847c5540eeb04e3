//! How many queue pairs the device uses, and one of them stopped and started alone.

use crate::net::port::Port;
use crate::net::queue::pair::{Mode, QueuePair};
use crate::virtio::Features;
use crate::{Error, Result};
use std::sync::atomic::Ordering;

impl Port {
    /// Has the device use the first `count` pairs (section 5.1.6.5.5.1), while the port runs.
    /// What the others received stays readable. Ends steering by [`Self::set_rss`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for none, or more than there are; [`Error::Refused`];
    /// [`Error::Busy`] while a loop has one of the queues; and as for [`Self::recv`].
    pub fn set_queues(&self, count: u16) -> Result<()> {
        let most = self.pairs.len();
        if count == 0 || usize::from(count) > most {
            return Err(Error::Invalid(format!(
                "the port was opened with {most} queue pairs, so 1 to {most} can be used, not {count}"
            )));
        }
        self.persist(|| self.try_set_queues(count))
    }

    fn try_set_queues(&self, count: u16) -> Result<()> {
        let _change = self.change()?;
        let before = self.active_pairs();
        // Nothing may be queued any more where the device is about to stop looking (5.1.6.5.5.2).
        self.turn(count, before, Mode::Active, Mode::Unused)?;
        if let Err(error) = self.command_queues(count) {
            self.turn(count, before, Mode::Unused, Mode::Active)?;
            return Err(error);
        }
        self.settings().rss = None;
        self.journal().forget_steering();
        self.active.store(count, Ordering::Relaxed);
        self.turn(before, count, Mode::Unused, Mode::Active)
    }

    /// Changes the mode of the pairs from `first` to before `end` that have mode `from`.
    fn turn(&self, first: u16, end: u16, from: Mode, to: Mode) -> Result<()> {
        for pair in self.pairs.iter().take(end.into()).skip(first.into()) {
            let (mut rx, mut tx) = (pair.rx.lock()?, pair.tx.lock()?);
            if pair.mode() == from {
                pair.set_mode(to);
                pair.received_all(&mut rx);
                pair.sent_in_part(&mut tx);
            }
        }
        Ok(())
    }

    /// Resets the two queues of a pair (section 2.6.1) and takes their buffers back; the other
    /// pairs go on. Whoever waits for its frames gets [`Error::Closed`]. Twice is fine.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such pair; [`Error::Refused`] without the feature
    /// RING_RESET; [`Error::Busy`] while a loop has one of the queues; and as for [`Self::recv`].
    pub fn stop_pair(&self, index: usize) -> Result<()> {
        let pair = self.resettable(index, "stopped")?;
        let _change = self.change()?;
        if pair.mode() == Mode::Stopped {
            return Ok(());
        }
        // From here on nothing is queued; what the device still has is taken back below.
        {
            let (_rx, _tx) = (pair.rx.lock()?, pair.tx.lock()?);
            pair.set_mode(Mode::Stopping);
        }
        for queue in [2 * pair.index, 2 * pair.index + 1] {
            self.device.transport().reset_queue(queue).map_err(|error| self.device.note(error))?;
        }
        let finished = pair.take_back();
        pair.set_mode(Mode::Stopped);
        finished.map_err(|error| self.device.note(error))
    }

    /// Sets the queues of a stopped pair up again. Twice is fine.
    ///
    /// # Errors
    /// As for [`Self::stop_pair`].
    pub fn start_pair(&self, index: usize) -> Result<()> {
        let pair = self.resettable(index, "started")?;
        if pair.mode() == Mode::Stopping {
            // Begun and not ended: it has to be, before the queues are set up again.
            self.stop_pair(index)?;
        }
        let _change = self.change()?;
        if pair.mode() != Mode::Stopped {
            return Ok(());
        }
        for (queue, addresses) in (2 * pair.index..).zip(pair.addresses()) {
            self.device
                .transport()
                .setup_queue(queue, &addresses)
                .map_err(|error| self.device.note(error))?;
        }
        let (mut rx, mut tx) = (pair.rx.lock()?, pair.tx.lock()?);
        let used = pair.index < self.active_pairs();
        pair.set_mode(if used { Mode::Active } else { Mode::Unused });
        rx.refill();
        pair.received_all(&mut rx);
        pair.sent_in_part(&mut tx);
        drop((rx, tx));
        self.device.connected()
    }

    fn resettable(&self, index: usize, what: &str) -> Result<&QueuePair> {
        self.device.check()?;
        let pair = self.pair(index)?;
        if self.device.accepted().contains(Features::RING_RESET) {
            return Ok(pair);
        }
        Err(Error::Refused(format!(
            "queue {index} cannot be {what} alone: the feature RING_RESET is not in force (QEMU \
             offers it since 7.2, with a vhost-user backend only where that offers it); \
             set_queues() turns the last queues off"
        )))
    }
}
