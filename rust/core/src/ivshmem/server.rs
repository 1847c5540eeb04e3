//! Accepts QEMUs and announces a peer for each interrupt vector, at the start and whenever one is
//! added.

use super::protocol::{About, Message, about, peer};
use crate::memory::Region;
use crate::notify::{EventFd, timespec};
use crate::process::{Home, background};
use crate::unix::{FileId, listen_at, remove};
use crate::{Error, Owned, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most vectors: each is a peer with a 16-bit number, and one number is the client's.
const MAX_VECTORS: u16 = u16::MAX;
/// Simultaneous clients; each costs a descriptor and some socket buffer.
const MAX_CLIENTS: usize = 256;
/// How long no client is accepted after descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// An ivshmem server. Any number of QEMUs may connect while it listens; connected ones are told of
/// later vectors.
///
/// Each vector is a peer of ours with one eventfd, so a device's property `vectors` is 1: a QEMU's
/// doorbell write of [`Server::doorbell_value`]`(v)` to BAR0 + 12 signals [`Server::vector`]`(v)`.
/// The socket file gets mode 0600, in a directory writable by others 0660 or 0666; put it where
/// only those can enter who may have the memory. Closed on drop.
#[derive(Debug)]
pub struct Server {
    home: Home,
    memory: Arc<Region>,
    path: PathBuf,
    talk: Arc<Mutex<Talk>>,
    listening: Mutex<Option<Listening>>,
}

/// The vectors and the clients that are told of them.
#[derive(Debug, Default)]
struct Talk {
    vectors: Vec<Vector>,
    clients: Vec<Client>,
    /// What a client gets, while clients are expected.
    memory: Option<Arc<Owned>>,
    /// The server was closed, so unused vectors are closed too.
    ended: bool,
}

/// An interrupt vector. It is never removed: see the protocol.
#[derive(Debug)]
struct Vector {
    event: Arc<EventFd>,
    used: Use,
}

impl Vector {
    fn is_free(&self) -> bool {
        self.used == Use::Free && self.event.number().is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Free,
    Taken,
    /// The current QEMU does not have its eventfd.
    Lost,
}

/// The socket for clients, and the thread that serves it.
#[derive(Debug)]
struct Listening {
    file: FileId,
    wait: Arc<Wait>,
    thread: JoinHandle<()>,
}

/// How to end the thread's wait.
#[derive(Debug)]
struct Wait {
    wake: EventFd,
    over: AtomicBool,
}

impl Server {
    /// Creates a server that does not listen yet.
    #[must_use]
    pub fn new(path: &Path, memory: Arc<Region>) -> Self {
        Self {
            home: Home::here(),
            memory,
            path: path.to_owned(),
            talk: Arc::default(),
            listening: Mutex::default(),
        }
    }

    /// Listens at its path, in a thread, for QEMUs that know no vector yet; earlier connections
    /// must have ended.
    ///
    /// # Errors
    /// [`Error::Os`], [`Error::Invalid`] (the path, or a memory whose file was closed),
    /// [`Error::Closed`] in a forked child.
    pub fn listen(&self) -> Result<()> {
        self.home.check("the ivshmem server")?;
        self.stop_listening();
        let mut listening = lock(&self.listening);
        let memory = self.memory.share()?;
        let wait = Arc::new(Wait { wake: EventFd::new()?, over: AtomicBool::new(false) });
        // Reserve what the first client needs now, where its lack is an error: later, a refused
        // QEMU would wait without any report.
        let mut spare = Some(EventFd::new()?);
        let owner = Mode::RUSR | Mode::WUSR;
        let (listener, file) = listen_at(&self.path, "ivshmem", Some(owner))?;
        let listener = Owned::new(listener);
        lock(&self.talk).begin(memory);
        let thread = background("virtnic-ivshmem", {
            let (talk, wait) = (Arc::clone(&self.talk), Arc::clone(&wait));
            move || run(&talk, &listener, &wait, &mut spare)
        });
        match thread {
            Ok(thread) => {
                *listening = Some(Listening { file, wait, thread });
                Ok(())
            }
            Err(e) => {
                remove(&self.path, file);
                Err(Error::os("starting the ivshmem server's thread", e))
            }
        }
    }

    /// Stops accepting connections; the thread, the socket and its file are then gone. Connected
    /// clients are still told of every vector.
    pub fn stop_listening(&self) {
        if !self.home.is_here() {
            return;
        }
        let mut listening = lock(&self.listening);
        let Some(Listening { file, wait, thread }) = listening.take() else { return };
        // While the socket exists, no other file has its inode number.
        remove(&self.path, file);
        wait.over.store(true, Ordering::Release);
        wait.wake.signal();
        // A panic of the thread has already been reported.
        let _ = thread.join();
        lock(&self.talk).memory = None;
    }

    /// Closes the connections: clients keep the memory, and existing vectors keep working, but no
    /// more can be added.
    pub fn hang_up(&self) {
        if self.home.is_here() {
            lock(&self.talk).clients.clear();
        }
    }

    /// Number of vectors, including those given back.
    pub fn vectors(&self) -> usize {
        lock(&self.talk).vectors.len()
    }

    /// How many more vectors can be taken; `None` if unlimited.
    pub fn left(&self) -> Option<usize> {
        let talk = lock(&self.talk);
        let free = || talk.vectors.iter().filter(|v| v.is_free()).count();
        (!talk.open()).then(free)
    }

    /// The value that QEMU writes to the doorbell register for this vector.
    #[must_use]
    pub fn doorbell_value(vector: u16) -> u32 {
        u32::from(peer(vector)) << 16
    }

    /// The eventfd of a vector.
    pub fn vector(&self, vector: u16) -> Option<Arc<EventFd>> {
        lock(&self.talk).vectors.get(usize::from(vector)).map(|v| Arc::clone(&v.event))
    }

    /// Reserves a vector: one that was given back, or a new one that QEMU is told of. QEMU may not
    /// know it yet when this returns: ring until the eventfd is signalled.
    ///
    /// # Errors
    /// [`Error::Os`] if no descriptor is left for its eventfd, [`Error::Invalid`] after
    /// [`Self::hang_up`], [`Error::Closed`] in a forked child.
    pub fn take_vector(&self) -> Result<(u16, Arc<EventFd>)> {
        self.home.check("the ivshmem server")?;
        let taken = lock(&self.talk).take()?;
        self.tell();
        Ok(taken)
    }

    /// Sends connected clients the vectors they have not been told of, without blocking.
    pub fn tell(&self) {
        if !self.home.is_here() {
            return;
        }
        let all = lock(&self.talk).tell();
        if !all && let Some(Listening { wait, .. }) = &*lock(&self.listening) {
            // The thread continues when there is room.
            wait.wake.signal();
        }
    }

    /// Gives a vector back; its eventfd is drained.
    pub fn give_vector(&self, vector: u16) {
        self.put_down(vector, Use::Free);
    }

    /// Gives back a vector that QEMU was not told of: it is reused only by the next QEMU.
    pub fn lose_vector(&self, vector: u16) {
        self.put_down(vector, Use::Lost);
    }

    fn put_down(&self, vector: u16, to: Use) {
        if !self.home.is_here() {
            return;
        }
        if let Some(vector) = lock(&self.talk).vectors.get_mut(usize::from(vector))
            && vector.used == Use::Taken
        {
            vector.used = to;
            vector.event.drain();
        }
        lock(&self.talk).close_unused();
    }

    /// Stops listening, closes the connections and the vectors: those in use when they are given
    /// back. Does nothing in a forked child.
    pub fn close(&self) {
        self.stop_listening();
        self.hang_up();
        if self.home.is_here() {
            let mut talk = lock(&self.talk);
            talk.ended = true;
            talk.close_unused();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.home.is_here() {
            self.close();
        } else {
            // A forked child has no such thread: joining would detach another one.
            std::mem::forget(lock(&self.listening).take());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All methods are called with the lock held, and none waits.
impl Talk {
    /// Starts expecting clients, which are told of the vectors in use.
    fn begin(&mut self, memory: Arc<Owned>) {
        self.clients.clear();
        self.memory = Some(memory);
        self.ended = false;
        while self.vectors.pop_if(|vector| vector.used != Use::Taken).is_some() {}
        for vector in self.vectors.iter_mut().filter(|vector| vector.used == Use::Lost) {
            vector.used = Use::Free;
        }
    }

    /// Closes the unused vectors of a closed server.
    fn close_unused(&mut self) {
        if self.ended {
            let unused = self.vectors.iter().filter(|vector| vector.used != Use::Taken);
            unused.for_each(|vector| vector.event.close());
        }
    }

    /// Whether clients, connected or expected, can be told of one more vector.
    fn open(&self) -> bool {
        self.memory.is_some() || !self.clients.is_empty()
    }

    fn take(&mut self) -> Result<(u16, Arc<EventFd>)> {
        let given_back = self.vectors.iter_mut().zip(0..).find(|(v, _)| v.is_free());
        if let Some((vector, number)) = given_back {
            vector.used = Use::Taken;
            vector.event.drain();
            return Ok((number, Arc::clone(&vector.event)));
        }
        if !self.open() {
            return Err(Error::Invalid(
                "this QEMU is told of no more interrupt vectors: it was started by virtnic.open \
                 for one port; a virtnic.Qemu takes as many ports as there are slots"
                    .to_owned(),
            ));
        }
        let number = self.count();
        if number == MAX_VECTORS {
            return Err(Error::Invalid(format!(
                "all {MAX_VECTORS} interrupt vectors are in use: two for each queue pair and one \
                 for each port"
            )));
        }
        let event = Arc::new(EventFd::new()?);
        self.vectors.push(Vector { event: Arc::clone(&event), used: Use::Taken });
        Ok((number, event))
    }

    /// Tells all clients what they have not been told yet; false if one has not read enough.
    fn tell(&mut self) -> bool {
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| {
            let told = client.tell(self);
            client.behind = told.is_err();
            match told {
                // Too many of our descriptors are in flight, unread.
                Ok(()) | Err(Errno::AGAIN | Errno::TOOMANYREFS) => true,
                Err(why) => {
                    client.farewell(&why.to_string());
                    false
                }
            }
        });
        self.clients = clients;
        self.clients.iter().all(|client| !client.behind)
    }

    /// Accepts a client, unless there are too many.
    fn admit(&mut self, socket: OwnedFd) {
        if self.clients.len() >= MAX_CLIENTS {
            log::warn!("an ivshmem client was refused: there are {MAX_CLIENTS} already");
            return;
        }
        log::debug!("an ivshmem client connected");
        let first = self.count();
        self.clients.push(Client { socket: Arc::new(socket.into()), first, next: 0, behind: true });
    }

    /// Number of vectors: at most [`MAX_VECTORS`].
    fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(MAX_VECTORS)
    }
}

/// A connected QEMU.
#[derive(Debug)]
struct Client {
    socket: Arc<Owned>,
    /// The number of vectors when it connected.
    first: u16,
    /// Number of the next message to it.
    next: usize,
    /// Whether it must read before it can be told more.
    behind: bool,
}

impl Client {
    /// What to poll for. POLLHUP is implied.
    fn interest(&self) -> PollFlags {
        if self.behind { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    /// Tells it what it has not been told yet. [`Errno::AGAIN`]: it has not read enough; any other
    /// error ends the connection.
    fn tell(&mut self, talk: &Talk) -> Result<(), Errno> {
        loop {
            let event;
            let message = match about(self.next, self.first) {
                About::Version => Message::version(),
                About::Client => Message::client(),
                // Only a client accepted too late to be served asks for this.
                About::Memory => match &talk.memory {
                    Some(memory) => Message::memory(memory.as_fd()),
                    None => return Err(Errno::CONNABORTED),
                },
                About::Vector(number) => match talk.vectors.get(usize::from(number)) {
                    Some(vector) => {
                        event = vector.event.hold().ok_or(Errno::CONNABORTED)?;
                        Message::vector(number, event.as_fd())
                    }
                    None => return Ok(()),
                },
            };
            match message.send(self.socket.as_fd()) {
                Ok(()) => self.next += 1,
                Err(Errno::INTR) => {}
                Err(other) => return Err(other),
            }
        }
    }

    /// Checks that it is connected and, as every client must, sends nothing.
    fn look(&self) -> Result<(), String> {
        match recv(&self.socket, &mut [0; 8][..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err("it disconnected".into()),
            Ok(_) => Err("it sent data, which an ivshmem client never does".into()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn farewell(&self, why: &str) {
        let level = if self.behind { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "an ivshmem client left after {} messages: {why}", self.next);
    }
}

/// The thread, which blocks only in poll.
fn run(talk: &Mutex<Talk>, listener: &OwnedFd, wait: &Wait, spare: &mut Option<EventFd>) {
    let mut accepting = true;
    loop {
        let sockets: Vec<_> = {
            let mut talk = lock(talk);
            talk.tell();
            talk.clients.iter().map(|c| (Arc::clone(&c.socket), c.interest())).collect()
        };
        let events = {
            let Some(wake) = wait.wake.hold() else { return };
            let mut fds = vec![PollFd::new(&wake, PollFlags::IN)];
            // A descriptor polled for nothing still reports errors, which a listening socket does
            // not have.
            let asked = if accepting { PollFlags::IN } else { PollFlags::empty() };
            fds.push(PollFd::new(listener, asked));
            fds.extend(sockets.iter().map(|(socket, interest)| PollFd::new(socket, *interest)));
            let pause = (!accepting).then_some(PAUSE);
            match poll(&mut fds, timespec(pause).as_ref()) {
                Ok(_) => fds.iter().map(PollFd::revents).collect::<Vec<_>>(),
                Err(Errno::INTR) => continue,
                Err(e) => {
                    log::warn!("the ivshmem server cannot wait for its clients: {e}");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            }
        };
        let closed = events.first().is_some_and(|wake| wake.contains(PollFlags::NVAL));
        if wait.over.load(Ordering::Acquire) || closed {
            return; // our descriptors were closed from outside
        }
        wait.wake.drain();
        let knocked = events.get(1).is_some_and(|e| !e.is_empty());
        let stirred = |client: &Client| {
            let at = sockets.iter().position(|(socket, _)| Arc::ptr_eq(socket, &client.socket));
            at.and_then(|at| events.get(at + 2)).is_some_and(|e| !e.is_empty())
        };
        if knocked {
            *spare = None;
        }
        let mut talk = lock(talk);
        talk.clients.retain(|client| {
            !stirred(client) || client.look().map_err(|why| client.farewell(&why)).is_ok()
        });
        accepting = !knocked || accept(&mut talk, listener);
    }
}

/// Accepts one client; `false` if no descriptors are left.
fn accept(talk: &mut Talk, listener: &OwnedFd) -> bool {
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => talk.admit(socket),
        Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
            log::warn!("an ivshmem client must wait: {e}");
            return false;
        }
        // It disconnected before it was accepted.
        Err(_) => {}
    }
    true
}

#[cfg(all(test, not(loom)))]
#[path = "tests.rs"]
mod tests;
