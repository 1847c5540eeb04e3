//! Models of the pipeline: replies, the end, interrupt lines.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::qtest::wire::parse;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

#[derive(Debug, Default)]
struct Bell(AtomicUsize);

impl Signal for Bell {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A socket whose peer answers each request with its port number: the requests written, in order.
#[derive(Default)]
struct Peer {
    requests: Mutex<VecDeque<u16>>,
    arrived: Condvar,
}

fn port(n: u16) -> Command {
    Command::In { port: n, width: 2 }
}

/// A caller: adds a slot, writes, waits.
fn ask(pipeline: &Pipeline<Bell>, peer: &Peer, n: u16) -> Result<Vec<Answer>> {
    let ticket = Ticket::new(1);
    let turn = pipeline.begin(&[port(n)], Some(&ticket), None, None)?;
    lock(&peer.requests).push_back(n);
    peer.arrived.notify_all();
    drop(turn);
    pipeline.finish(&ticket, port(n), None, None)
}

/// The reading thread, for this many replies.
fn serve(pipeline: &Pipeline<Bell>, peer: &Peer, replies: usize) {
    for _ in 0..replies {
        let mut requests = lock(&peer.requests);
        let n = loop {
            match requests.pop_front() {
                Some(n) => break n,
                None => requests = wait(&peer.arrived, requests, None),
            }
        };
        drop(requests);
        let line = format!("OK {n:#06x}");
        pipeline.deliver(&parse(line.as_bytes()).unwrap()).unwrap();
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

#[test]
fn loom_each_caller_gets_its_own_reply() {
    model(|| {
        let pipeline = Arc::new(Pipeline::new());
        let peer = Arc::new(Peer::default());
        let reader = {
            let (pipeline, peer) = (Arc::clone(&pipeline), Arc::clone(&peer));
            thread::spawn(move || serve(&pipeline, &peer, 2))
        };
        let other = {
            let (pipeline, peer) = (Arc::clone(&pipeline), Arc::clone(&peer));
            thread::spawn(move || ask(&pipeline, &peer, 7).unwrap())
        };
        assert_eq!(ask(&pipeline, &peer, 5).unwrap(), [Answer::Number(5)]);
        assert_eq!(other.join().unwrap(), [Answer::Number(7)]);
        reader.join().unwrap();
    });
}

/// Two callers, one reply, then the end: the other caller gets the error of the end, and the watcher
/// is signalled once.
#[test]
fn loom_the_end_wakes_all() {
    model(|| {
        let pipeline = Arc::new(Pipeline::new());
        let peer = Arc::new(Peer::default());
        let bell = Arc::new(Bell::default());
        let reader = {
            let (pipeline, peer) = (Arc::clone(&pipeline), Arc::clone(&peer));
            thread::spawn(move || {
                serve(&pipeline, &peer, 1);
                assert!(pipeline.die(End::Died("gone".into())));
            })
        };
        let other = {
            let (pipeline, peer) = (Arc::clone(&pipeline), Arc::clone(&peer));
            thread::spawn(move || ask(&pipeline, &peer, 7).is_ok())
        };
        pipeline.watch(&bell);
        let mine = ask(&pipeline, &peer, 5);
        let theirs = other.join().unwrap();
        reader.join().unwrap();
        if let Err(error) = &mine {
            assert!(matches!(error, Error::QemuDied(why) if why == "gone"));
        }
        assert_eq!(usize::from(mine.is_ok()) + usize::from(theirs), 1);
        assert_eq!(bell.0.load(Ordering::SeqCst), 1);
    });
}

/// An eventfd that is registered while its line is raised is signalled once.
#[test]
fn loom_a_raised_line_is_not_missed() {
    model(|| {
        let pipeline = Arc::new(Pipeline::new());
        let bell = Arc::new(Bell::default());
        let reader = {
            let pipeline = Arc::clone(&pipeline);
            thread::spawn(move || {
                pipeline.deliver(&Incoming::Irq { line: 11, raised: true }).unwrap();
            })
        };
        pipeline.on_irq(11, &bell);
        reader.join().unwrap();
        assert_eq!(bell.0.load(Ordering::SeqCst), 1);
    });
}
