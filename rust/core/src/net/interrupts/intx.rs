//! INTx: one level-triggered line for everything. A thread reads the ISR status (section 4.1.4.5),
//! which lowers the line, and signals the eventfds that MSI-X would signal.

use crate::net::interrupts::Events;
use crate::notify::EventFd;
use crate::process::{Home, background};
use crate::virtio::transport::Transport;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const QUEUE_INTERRUPT: u8 = 1;
const CONFIG_INTERRUPT: u8 = 2;

/// The thread; ended on drop.
#[derive(Debug)]
pub(crate) struct IntxDispatcher {
    home: Home,
    line: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IntxDispatcher {
    pub(crate) fn start(
        line: Arc<EventFd>,
        transport: Arc<dyn Transport>,
        events: Events,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let work = {
            let (line, stop) = (line.clone(), stop.clone());
            move || dispatch(&line, &stop, transport.as_ref(), &events)
        };
        let thread = background("virtnic-intx", work)
            .map_err(|cause| Error::os("starting the INTx thread", cause))?;
        Ok(Self { home: Home::here(), line, stop, thread: Some(thread) })
    }
}

impl IntxDispatcher {
    /// The eventfd of the line.
    pub(crate) fn line(&self) -> &Arc<EventFd> {
        &self.line
    }
}

fn dispatch(line: &EventFd, stop: &AtomicBool, transport: &dyn Transport, events: &Events) {
    loop {
        // An error here means that a signal interrupted the wait: check again.
        let _ = line.wait(None);
        if stop.load(Ordering::Acquire) {
            return;
        }
        line.drain();
        match transport.take_isr() {
            Ok(isr) => {
                if isr & QUEUE_INTERRUPT != 0 {
                    events.signal_queues();
                }
                if isr & CONFIG_INTERRUPT != 0 {
                    events.config.signal();
                }
            }
            Err(error) => {
                log::debug!("INTx dispatch ends: {error}");
                events.signal_all();
                return;
            }
        }
    }
}

impl Drop for IntxDispatcher {
    fn drop(&mut self) {
        if !self.home.is_here() {
            // A forked child has no such thread: joining would detach another one.
            std::mem::forget(self.thread.take());
            return;
        }
        self.stop.store(true, Ordering::Release);
        self.line.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
