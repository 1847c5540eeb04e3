//! A started device.

use crate::memory::Pool;
use crate::net::config::{Line, Mac, NetConfig, RssLimits, read_status};
use crate::net::control::journal::Journal;
use crate::net::control::queue::ControlQueue;
use crate::net::control::rss::Rss;
use crate::net::device::Device;
use crate::net::interrupts::Events;
use crate::net::interrupts::intx::IntxDispatcher;
use crate::net::lifecycle::exclusive::{Exclusive, Turn};
use crate::net::packet::burst::Burst;
use crate::net::packet::frame::FrameSource;
use crate::net::queue::RingFormat;
use crate::net::queue::SendStop;
use crate::net::queue::pair::QueuePair;
use crate::net::queue::waiting::Wake;
use crate::net::stats::{Counting, PortStats};
use crate::notify::EventFd;
use crate::virtio::Features;
use crate::virtio::negotiation::Outcome;
use crate::virtio::transport::QueueAddresses;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A virtio-net device, started.
///
/// All methods may be called from any thread. Frames go through its queue pairs
/// ([`Self::pair`]), each with locks of its own; the port's own data path is that of the first.
pub struct Port {
    pub(in crate::net) device: Arc<Device>,
    /// At least one.
    pub(in crate::net) pairs: Box<[QueuePair]>,
    pub(in crate::net) control: Option<ControlQueue>,
    pub(in crate::net) state: Mutex<Settings>,
    /// The pairs that the device uses.
    pub(in crate::net) active: AtomicU16,
    pub(in crate::net) setup: Setup,
    pub(in crate::net) link: AtomicBool,
    outcomes: Mutex<Vec<Outcome>>,
    pub(in crate::net) intx: Mutex<Option<IntxDispatcher>>,
    pub(in crate::net) journal: Mutex<Journal>,
    /// One change at a time: held for as long as it takes to tell the device, and while it is reset.
    changing: Exclusive,
    /// One command at a time, as long as the device takes to answer.
    pub(in crate::net) asking: Exclusive,
    /// It was closed, and its device was reset.
    pub(in crate::net) ended: AtomicBool,
    /// It is over, but the device was not reset, and may still write to its buffers.
    pub(in crate::net) withheld: AtomicBool,
    /// It was closed by who interrupts a change, at the end of which it ends.
    pub(in crate::net) ending: AtomicBool,
    pub(in crate::net) restarts: AtomicU64,
}

/// A change of a port, which is the only one.
pub(in crate::net) struct Change<'a> {
    port: &'a Port,
    _turn: Turn<'a>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.port.ending.swap(false, Ordering::AcqRel)
            && let Err(error) = self.port.shut_down()
        {
            log::warn!("the device was not reset at the end: {error}");
        }
    }
}

/// How the device was brought up.
#[derive(Clone, Copy, Debug)]
pub(in crate::net) struct Setup {
    pub(in crate::net) config: NetConfig,
    pub(in crate::net) config_vector: Option<u16>,
    /// Whether queues are kicked in another way than through the transport.
    pub(in crate::net) doorbells_given: bool,
    /// Features that must be in force.
    pub(in crate::net) insisted: Features,
}

/// What the device was told, as far as somebody asks for it; the rest is in the [`Journal`].
/// Locked for a moment only: who asks may hold what others need to go on, Python's interpreter lock
/// for one.
#[derive(Debug)]
pub(in crate::net) struct Settings {
    pub(in crate::net) mac: Mac,
    pub(in crate::net) rss: Option<Rss>,
    /// What it said of its line.
    line: Line,
}

impl Port {
    pub(in crate::net) fn new(
        device: Arc<Device>,
        pairs: Box<[QueuePair]>,
        control: Option<ControlQueue>,
        setup: Setup,
        outcomes: Vec<Outcome>,
        intx: Option<IntxDispatcher>,
    ) -> Self {
        Self {
            device,
            pairs,
            control,
            state: Mutex::new(Settings {
                mac: setup.config.mac,
                rss: None,
                line: setup.config.line,
            }),
            active: AtomicU16::new(1),
            setup,
            link: AtomicBool::new(setup.config.link),
            outcomes: Mutex::new(outcomes),
            intx: Mutex::new(intx),
            journal: Mutex::default(),
            changing: Exclusive::default(),
            asking: Exclusive::default(),
            ended: AtomicBool::new(false),
            withheld: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
        }
    }

    /// Whether it has dropped received frames because they fit no buffer. The first of them
    /// signals the event of configuration changes.
    pub fn drops_long_frames(&self) -> bool {
        self.device.too_long.seen()
    }

    /// The device's configuration as it was at the start.
    pub fn config(&self) -> &NetConfig {
        &self.setup.config
    }
    /// The MAC address it has now.
    pub fn mac(&self) -> Mac {
        self.settle();
        self.settings().mac
    }
    /// How the device steers and hashes, as it was last told; `None` where it was not.
    pub fn rss(&self) -> Option<Rss> {
        self.settings().rss.clone()
    }
    /// What the device can hash; `None` where it cannot.
    pub fn rss_limits(&self) -> Option<RssLimits> {
        self.setup.config.rss
    }
    /// Begins a change, when no other is under way.
    pub(in crate::net) fn change(&self) -> Result<Change<'_>> {
        let _turn = self.changing.enter(|| {
            self.device.transport().check_signals()?;
            // Whoever closes may wait for this thread, and have interrupted the change under way.
            self.device.check_resettable()
        })?;
        Ok(Change { port: self, _turn })
    }
    /// The change that stops the port; also of one that refuses others.
    pub(in crate::net) fn last_change(&self) -> Result<Change<'_>> {
        let _turn = self.changing.enter(|| self.device.transport().check_signals())?;
        Ok(Change { port: self, _turn })
    }
    /// An error if this thread is in a change, which a signal handler or callback interrupts.
    pub(in crate::net) fn not_changing(&self) -> Result<()> {
        self.changing.not_mine()
    }
    pub(in crate::net) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// What was negotiated.
    pub fn accepted(&self) -> Features {
        self.device.accepted()
    }
    /// What became of each feature, and why.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.all_outcomes().clone()
    }
    pub(in crate::net) fn all_outcomes(&self) -> MutexGuard<'_, Vec<Outcome>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The pool that received frames lie in.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.device.pool
    }
    /// What interrupts signal.
    pub fn events(&self) -> Option<&Events> {
        self.device.events.as_ref()
    }
    /// All queue pairs, those that are not in use among them.
    pub fn pairs(&self) -> &[QueuePair] {
        &self.pairs
    }
    /// A queue pair.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none of that number.
    pub fn pair(&self, index: usize) -> Result<&QueuePair> {
        self.pairs.get(index).ok_or_else(|| {
            Error::Invalid(format!(
                "there is no queue {index}: the port was opened with {0}, numbered from 0; open it \
                 with queues={1} or more",
                self.pairs.len(),
                index + 1
            ))
        })
    }
    /// The pairs that the device uses.
    pub fn active_pairs(&self) -> u16 {
        self.active.load(Ordering::Relaxed)
    }
    #[inline]
    fn first(&self) -> &QueuePair {
        // At least one: `bring_up`.
        &self.pairs[0]
    }
    /// Where the first receive and transmit queue lie, and their sizes.
    pub fn queues(&self) -> [QueueAddresses; 2] {
        self.first().addresses()
    }
    /// The layout of the queues.
    pub fn ring_format(&self) -> RingFormat {
        if self.device.accepted().contains(Features::RING_PACKED) {
            RingFormat::Packed
        } else {
            RingFormat::Split
        }
    }
    /// Whether the device is driven by its legacy interface.
    pub fn is_legacy(&self) -> bool {
        self.device.transport().is_legacy()
    }
    /// Whether the link was up when last asked.
    pub fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }
    /// How fast the line was when last asked.
    pub fn line(&self) -> Line {
        self.settings().line
    }
    /// Asks the device whether the link is up; announces the port where the device wants that.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn refresh_link(&self) -> Result<bool> {
        self.device.check()?;
        let (link, announce) =
            read_status(self.device.transport().as_ref(), self.device.accepted())?;
        self.link.store(link, Ordering::Relaxed);
        if let Err(error) = self.device.check() {
            // It was given up meanwhile, with its link.
            self.link.store(false, Ordering::Relaxed);
            return Err(error);
        }
        // Section 5.1.5: it may be another now.
        let line = Line::read(self.device.transport().as_ref(), self.device.accepted())?;
        self.settings().line = line;
        if announce {
            self.announce()?;
        }
        Ok(link)
    }
    /// The counters, summed over all pairs.
    pub fn stats(&self) -> PortStats {
        self.pairs.iter().map(QueuePair::stats).sum()
    }

    /// Counts from now on, or no longer, what kinds of frames all queues move
    /// ([`FrameClasses`](crate::net::FrameClasses)), also those of running loops.
    pub fn count_classes(&self, counting: Counting) {
        for pair in &self.pairs {
            pair.stats.count_classes(counting);
        }
    }
    /// What was set by [`Self::count_classes`].
    pub fn counting(&self) -> Counting {
        self.first().stats.rx.watch.counting()
    }

    /// [`QueuePair::recv`] of the first pair.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::QemuDied`], [`Error::Device`] when the device broke a rule
    /// (now or before).
    #[inline]
    pub fn recv(&self, max: usize, burst: &mut Burst) -> Result<usize> {
        self.first().recv(max, burst)
    }
    /// [`QueuePair::wait`] of the first pair.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.first().wait(timeout)
    }
    /// [`QueuePair::wait_writable`] of the first pair.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn wait_writable(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.first().wait_writable(timeout)
    }
    /// [`QueuePair::set_spin`] of all pairs.
    ///
    /// # Errors
    /// See there.
    pub fn set_spin(&self, limit: Duration) -> Result<()> {
        self.pairs.iter().try_for_each(|pair| pair.set_spin(limit))
    }
    /// What was set by [`Self::set_spin`].
    pub fn spin(&self) -> Duration {
        self.first().spin()
    }
    /// [`QueuePair::arm`] of the first pair.
    ///
    /// # Errors
    /// See there.
    pub fn arm(&self) -> Result<&Arc<EventFd>> {
        self.first().arm()
    }
    /// [`QueuePair::arm_tx`] of the first pair.
    ///
    /// # Errors
    /// See there.
    pub fn arm_tx(&self) -> Result<&Arc<EventFd>> {
        self.first().arm_tx()
    }
    /// [`QueuePair::send_burst`] of the first pair.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    #[inline]
    pub fn send_burst(&self, burst: &mut Burst) -> Result<usize> {
        self.first().send_burst(burst)
    }
    /// [`QueuePair::send`] of the first pair.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    #[inline]
    pub fn send(&self, frames: &mut impl FrameSource) -> Result<(usize, Option<SendStop>)> {
        self.first().send(frames)
    }
    /// Takes back the buffers of transmitted frames that the device has finished, in all pairs.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn reclaim(&self) -> Result<()> {
        self.pairs.iter().try_for_each(QueuePair::reclaim)
    }

    /// An error unless the port runs, which a loop over bursts looks at now and then.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn running(&self) -> Result<()> {
        self.device.alive()
    }
    /// Passes an error of a claimed queue on, after marking the port broken where it is one
    /// of the device.
    pub(crate) fn fault(&self, error: Error) -> Error {
        self.device.note(error)
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port")
            .field("config", &self.setup.config)
            .field("accepted", &self.device.accepted())
            .field("pairs", &self.pairs)
            .finish_non_exhaustive()
    }
}
