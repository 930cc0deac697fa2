//! A connection through a man in the middle, who reads records, and drops, cuts or changes them.

use brant::wire::{Header, RecordType, HEADER_LEN, MARKER_FLAG_FINAL};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// The proxy's action on a record.
#[derive(Clone, Debug)]
pub enum Verdict {
    Forward,
    /// This one only.
    Drop,
    /// The connection ends before it.
    Cut,
    /// The connection ends in the middle of it.
    CutMid,
    /// The connection ends right after it.
    CutAfter,
    /// From now on nothing is passed on in either direction, and no side is told.
    Swallow,
    /// Other bytes are sent instead.
    Replace(Vec<u8>),
}

/// A point in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The n-th record of a type, from 1.
    Nth(RecordType, usize),
    FinalMarker,
    FinalAck,
}

type Rule = dyn FnMut(&Header, &[u8]) -> Verdict + Send;

/// A rule that acts at one point, and passes all other records on.
pub fn at(point: Point, verdict: Verdict) -> Box<Rule> {
    let mut seen = 0;
    let mut last_marker = 0;
    Box::new(move |header, payload| {
        let kind = header.record_type().ok().flatten();
        let number = || u64::from_le_bytes(payload[..8].try_into().unwrap());
        let is_final =
            kind == Some(RecordType::Marker) && payload[12] & MARKER_FLAG_FINAL as u8 != 0;
        if is_final {
            last_marker = number();
        }
        let here = match point {
            Point::Nth(wanted, n) => {
                seen += usize::from(kind == Some(wanted));
                kind == Some(wanted) && seen == n
            }
            Point::FinalMarker => is_final,
            Point::FinalAck => kind == Some(RecordType::Ack) && number() == last_marker,
        };
        if here {
            verdict.clone()
        } else {
            Verdict::Forward
        }
    })
}

/// A man in the middle, who reads records.
pub struct Proxy {
    ends: [UnixStream; 2],
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<RecordType>>>,
}

impl Proxy {
    /// A proxy, and the ends for source and destination.
    pub fn new(rule: Box<Rule>) -> (Proxy, OwnedFd, OwnedFd) {
        let (source, a) = UnixStream::pair().unwrap();
        let (b, destination) = UnixStream::pair().unwrap();
        let rule = Arc::new(Mutex::new(rule));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let swallow = Arc::new(AtomicBool::new(false));
        let way = |mut from: UnixStream, mut to: UnixStream| {
            let (rule, seen, swallow) =
                (Arc::clone(&rule), Arc::clone(&seen), Arc::clone(&swallow));
            std::thread::spawn(move || {
                let cut = |from: &UnixStream, to: &UnixStream| {
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = to.shutdown(Shutdown::Both);
                };
                loop {
                    let mut bytes = vec![0u8; HEADER_LEN];
                    if from.read_exact(&mut bytes).is_err() {
                        break;
                    }
                    let header = Header::decode(bytes[..].try_into().unwrap()).unwrap();
                    bytes.resize(HEADER_LEN + header.payload as usize, 0);
                    if from.read_exact(&mut bytes[HEADER_LEN..]).is_err() {
                        break;
                    }
                    let verdict = (rule.lock().unwrap())(&header, &bytes[HEADER_LEN..]);
                    if let Ok(Some(kind)) = header.record_type() {
                        seen.lock().unwrap().push(kind);
                    }
                    if matches!(verdict, Verdict::Swallow) {
                        swallow.store(true, Ordering::SeqCst);
                    }
                    if swallow.load(Ordering::SeqCst) {
                        continue;
                    }
                    let sent = match verdict {
                        Verdict::Drop | Verdict::Swallow => Ok(()),
                        Verdict::Forward => to.write_all(&bytes),
                        Verdict::Replace(other) => to.write_all(&other),
                        Verdict::Cut => return cut(&from, &to),
                        Verdict::CutMid => {
                            let _ = to.write_all(&bytes[..bytes.len() - 3]);
                            return cut(&from, &to);
                        }
                        Verdict::CutAfter => {
                            // First the way back: on a busy machine the answer could pass before
                            // this thread runs again.
                            let _ = from.shutdown(Shutdown::Both);
                            // Bytes on their way still arrive.
                            let _ = to.write_all(&bytes);
                            let _ = to.shutdown(Shutdown::Write);
                            return;
                        }
                    };
                    if sent.is_err() {
                        break;
                    }
                }
                if !swallow.load(Ordering::SeqCst) {
                    let _ = to.shutdown(Shutdown::Write);
                    let _ = from.shutdown(Shutdown::Read);
                }
            })
        };
        let threads = vec![
            way(a.try_clone().unwrap(), b.try_clone().unwrap()),
            way(b.try_clone().unwrap(), a.try_clone().unwrap()),
        ];
        let proxy = Proxy {
            ends: [a, b],
            threads,
            seen,
        };
        (proxy, source.into(), destination.into())
    }

    /// How many records of a type have passed.
    pub fn seen(&self, kind: RecordType) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|k| **k == kind)
            .count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
