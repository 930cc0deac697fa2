//! The man in the middle: passes records on, remembers each with its contents, and cuts or silences
//! the link at a place.

use brant::units::Pages;
use brant::wire::{
    decode_delta, decode_list, list_len, Header, Record, RecordType, HEADER_LEN, MARKER_FLAG_FINAL,
};
use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Every time limit of a migration whose link is cut. None of them should run out.
pub const UNUSED: Duration = Duration::from_secs(8);

/// A direction: 0 from the source, 1 from the destination.
pub type Way = usize;

/// A place in one direction: this many records, or bytes, since the beginning, or since the end
/// came near. (The number of records differs a little each time.) The end is near at the source's
/// final marker and at the destination's READY.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub way: Way,
    pub tail: bool,
    pub n: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    Never,
    /// Both directions end as soon as this many records have been passed on.
    After(Place),
    /// Both directions end when the next record was sent, which is not passed on.
    Before(Place),
    /// Both directions end as soon as the first record of this type has gone through.
    AfterFirst(RecordType),
    /// Both directions end inside the first record of this type, behind this many of its bytes, or
    /// before its last byte.
    Inside(RecordType, usize),
    /// Both directions end as soon as this many bytes have been passed on.
    Byte(Place),
    /// After this many records nothing is passed on any more, in either direction, and no side is
    /// told.
    Silent(Place),
}

/// The records that have passed.
#[derive(Default)]
pub struct Log {
    pub records: [u64; 2],
    pub bytes: [u64; 2],
    /// Records and bytes at the moment when the end of the direction came near.
    pub tail: [Option<(u64, u64)>; 2],
    pub kinds: BTreeSet<&'static str>,
    /// For the newest version of each page, the number of the marker behind it.
    pub pages: HashMap<(u32, usize), u64>,
    pub markers: u64,
    /// The newest acknowledgement that was passed on.
    pub acked: u64,
    /// The source has sent it, or some of its bytes.
    pub handover: bool,
    /// The last record that was passed on in the direction of the cut.
    pub cut_after: Option<&'static str>,
}

pub struct Wire {
    pub ends: [UnixStream; 2],
    pub threads: Vec<JoinHandle<()>>,
    pub log: Arc<Mutex<Log>>,
}

pub struct Middle {
    pub way: Way,
    pub cut: Cut,
    pub from: UnixStream,
    pub to: UnixStream,
    pub silent: Arc<AtomicBool>,
    pub log: Arc<Mutex<Log>>,
    pub last: &'static str,
}

impl Middle {
    pub fn end_both(&self) {
        self.log.lock().unwrap().cut_after = Some(self.last);
        let _ = self.from.shutdown(Shutdown::Both);
        let _ = self.to.shutdown(Shutdown::Both);
    }

    /// Whether this direction is `place.n` records (or bytes) behind the point from which `place`
    /// counts.
    pub fn is_at(&self, place: Place, log: &Log) -> bool {
        place.way == self.way && self.left(place, log) == Some((0, 0))
    }

    /// How many records and bytes remain up to `place.n`; `None` before the point from which it
    /// counts, and behind the place.
    pub fn left(&self, place: Place, log: &Log) -> Option<(u64, u64)> {
        let (records, bytes) = match place.tail {
            true => log.tail[self.way]?,
            false => (0, 0),
        };
        let end = |from: u64, now: u64| (from + place.n).checked_sub(now);
        match self.cut {
            Cut::Byte(_) => Some((0, end(bytes, log.bytes[self.way])?)),
            _ => Some((end(records, log.records[self.way])?, 0)),
        }
    }

    /// Whether the cut comes now, between two records. `read`: the next one was sent.
    pub fn at_boundary(&mut self, read: bool) -> bool {
        let log = self.log.lock().unwrap();
        let (here, silent) = match self.cut {
            Cut::After(place) => (self.is_at(place, &log), false),
            Cut::Before(place) => (read && self.is_at(place, &log), false),
            Cut::AfterFirst(kind) => (self.last == kind.name(), false),
            Cut::Silent(place) => (false, self.is_at(place, &log)),
            _ => (false, false),
        };
        drop(log);
        if here {
            self.end_both();
        }
        if silent && !self.silent.swap(true, Ordering::SeqCst) {
            self.log.lock().unwrap().cut_after = Some(self.last);
        }
        here
    }

    /// A record that was read counts as sent, whether or not it is passed on.
    pub fn read(&mut self) -> Option<(Vec<u8>, RecordType)> {
        let mut bytes = vec![0u8; HEADER_LEN];
        self.from.read_exact(&mut bytes).ok()?;
        let header = Header::decode(bytes[..].try_into().unwrap()).unwrap();
        let kind = header.record_type().unwrap().expect("a type of our own");
        if kind == RecordType::Handover {
            self.log.lock().unwrap().handover = true;
        }
        let in_payload = kind.is_list() || kind == RecordType::Delta;
        if kind.is_page_run() && !in_payload {
            let mut log = self.log.lock().unwrap();
            let next = log.markers + 1;
            for page in 0..header.count as usize {
                log.pages
                    .insert((header.block, header.first_page as usize + page), next);
            }
        }
        bytes.resize(HEADER_LEN + header.payload as usize, 0);
        self.from.read_exact(&mut bytes[HEADER_LEN..]).ok()?;
        let mut log = self.log.lock().unwrap();
        let next = log.markers + 1;
        if kind == RecordType::Delta {
            let payload = &bytes[HEADER_LEN..];
            for delta in decode_delta(&header, payload, Pages(u64::MAX)).unwrap() {
                let page = (header.block, delta.page.0 as usize);
                log.pages.insert(page, next);
            }
        }
        if kind.is_list() {
            let list = &bytes[HEADER_LEN..][..list_len(header.count)];
            decode_list(&header, list, Pages(u64::MAX), |first, count| {
                for page in 0..count as usize {
                    log.pages
                        .insert((header.block, first.0 as usize + page), next);
                }
                Ok(())
            })
            .unwrap();
        }
        log.kinds.insert(kind.name());
        let mut ends = kind == RecordType::Ready;
        if kind == RecordType::Marker {
            log.markers += 1;
            ends = bytes[HEADER_LEN + 12] & MARKER_FLAG_FINAL as u8 != 0;
        }
        if ends {
            log.tail[self.way] = Some((log.records[self.way], log.bytes[self.way]));
        }
        drop(log);
        Some((bytes, kind))
    }

    /// Passes a record on. Returns whether to go on with another one.
    pub fn write(&mut self, bytes: &[u8], kind: RecordType) -> bool {
        if self.silent.load(Ordering::SeqCst) {
            return true;
        }
        if let Cut::Byte(place) = self.cut {
            let left = self.left(place, &self.log.lock().unwrap());
            let left = left.filter(|_| place.way == self.way);
            if let Some((_, left)) = left.filter(|(_, left)| *left < bytes.len() as u64) {
                let _ = self.to.write_all(&bytes[..left as usize]);
                self.end_both();
                return false;
            }
        }
        if let Cut::Inside(wanted, length) = self.cut {
            if wanted == kind {
                let _ = self.to.write_all(&bytes[..length.min(bytes.len() - 1)]);
                self.end_both();
                return false;
            }
        }
        if self.to.write_all(bytes).is_err() {
            return false;
        }
        self.last = kind.name();
        let mut log = self.log.lock().unwrap();
        log.records[self.way] += 1;
        log.bytes[self.way] += bytes.len() as u64;
        if kind == RecordType::Ack {
            log.acked = u64::from_le_bytes(bytes[HEADER_LEN..].try_into().unwrap());
        }
        true
    }

    pub fn run(mut self) {
        // brant never sends KEEPALIVE, and accepts it at any time. So it is sent here, once in each
        // direction.
        let mut keepalive = Vec::new();
        Record::Keepalive.encode(&mut keepalive).unwrap();
        let keepalive_after = [20, 4][self.way];
        let mut read = 0;
        loop {
            if self.at_boundary(false) {
                return;
            }
            let Some((bytes, kind)) = self.read() else {
                break;
            };
            if self.at_boundary(true) {
                return;
            }
            read += 1;
            if !self.write(&bytes, kind) {
                break;
            }
            if read == keepalive_after {
                if self.at_boundary(true) || !self.write(&keepalive, RecordType::Keepalive) {
                    return;
                }
                let name = RecordType::Keepalive.name();
                self.log.lock().unwrap().kinds.insert(name);
            }
        }
        if !self.silent.load(Ordering::SeqCst) {
            let _ = self.to.shutdown(Shutdown::Write);
            let _ = self.from.shutdown(Shutdown::Read);
        }
    }
}

impl Wire {
    /// A wire with this cut, and the ends for source and destination.
    pub fn new(cut: Cut) -> (Wire, OwnedFd, OwnedFd) {
        let (source, a) = UnixStream::pair().unwrap();
        let (b, destination) = UnixStream::pair().unwrap();
        let log: Arc<Mutex<Log>> = Arc::default();
        let silent: Arc<AtomicBool> = Arc::default();
        let way = |way, from: &UnixStream, to: &UnixStream| {
            let middle = Middle {
                way,
                cut,
                from: from.try_clone().unwrap(),
                to: to.try_clone().unwrap(),
                silent: Arc::clone(&silent),
                log: Arc::clone(&log),
                last: "nothing",
            };
            std::thread::spawn(move || middle.run())
        };
        let threads = vec![way(0, &a, &b), way(1, &b, &a)];
        let wire = Wire {
            ends: [a, b],
            threads,
            log,
        };
        (wire, source.into(), destination.into())
    }

    /// After the end of both sides: everything that has passed.
    pub fn finish(mut self) -> Log {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl Log {
    /// How many records and bytes follow after the end has come near.
    pub fn tail(&self, way: Way) -> (u64, u64) {
        let (records, bytes) = self.tail[way].unwrap();
        (self.records[way] - records, self.bytes[way] - bytes)
    }
}
