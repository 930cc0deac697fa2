//! Connections of a postcopy through a man in the middle, who cuts them behind a byte: one of them, or
//! all at once. A cut falls anywhere, so most of them are in the middle of a record.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What a cut ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The connection alone.
    One,
    /// All connections.
    All,
}

/// One connection.
struct Wire {
    /// At the source's side and at the destination's.
    ends: [UnixStream; 2],
    /// Bytes that pass to the destination until the cut, and back.
    left: [AtomicI64; 2],
    all: AtomicBool,
}

impl Wire {
    fn end(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// See the file's description. When it is dropped, every connection ends.
pub struct Wires {
    wires: Arc<Vec<Wire>>,
    threads: Vec<JoinHandle<()>>,
}

impl Wires {
    /// This many connections; the ends for the source, and those for the destination.
    pub fn new(count: usize) -> (Wires, Vec<OwnedFd>, Vec<OwnedFd>) {
        let (mut near, mut far, mut wires) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (source, a) = UnixStream::pair().unwrap();
            let (b, destination) = UnixStream::pair().unwrap();
            near.push(source.into());
            far.push(destination.into());
            wires.push(Wire {
                ends: [a, b],
                left: [AtomicI64::new(i64::MAX), AtomicI64::new(i64::MAX)],
                all: AtomicBool::new(false),
            });
        }
        let wires = Arc::new(wires);
        let threads = (0..2 * count).map(|n| {
            let wires = Arc::clone(&wires);
            std::thread::spawn(move || pass_on(&wires, n / 2, n % 2))
        });
        let threads = threads.collect();
        (Wires { wires, threads }, near, far)
    }

    /// Cuts behind `bytes` more bytes of connection `wire`: to the destination (0) or back (1).
    pub fn cut_behind(&self, wire: usize, way: usize, bytes: u64, reach: Reach) {
        let wire = &self.wires[wire];
        wire.all.store(reach == Reach::All, Ordering::SeqCst);
        wire.left[way].store(bytes as i64, Ordering::SeqCst);
    }

    /// Takes all cuts back that have not come.
    pub fn spare(&self) {
        for wire in self.wires.iter() {
            wire.left
                .iter()
                .for_each(|left| left.store(i64::MAX, Ordering::SeqCst));
        }
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.wires.iter().for_each(Wire::end);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One direction of a connection.
fn pass_on(wires: &[Wire], number: usize, way: usize) {
    let wire = &wires[number];
    let (mut from, mut to) = (&wire.ends[way], &wire.ends[1 - way]);
    let mut bytes = vec![0; 16 << 10];
    loop {
        let count = match from.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let left = wire.left[way].load(Ordering::SeqCst);
        let passes = count.min(usize::try_from(left).unwrap_or(0));
        if to.write_all(&bytes[..passes]).is_err() {
            break;
        }
        if passes < count {
            match wire.all.load(Ordering::SeqCst) {
                true => wires.iter().for_each(Wire::end),
                false => wire.end(),
            }
            return;
        }
        if left != i64::MAX {
            // A cut that is ordered at this moment stays as it was ordered.
            let now = left - passes as i64;
            let _ = wire.left[way].compare_exchange(left, now, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
