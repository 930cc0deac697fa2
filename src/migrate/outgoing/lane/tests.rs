//! No page on a lane is ever lost: whatever ends a batch, its pages arrive or are pending again.

use super::*;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::testing::Guest;
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::migrate::planted;
use crate::runtime::Cancel;
use crate::units::Pages;
use crate::wire::{Header, RecordType, HEADER_LEN};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::thread::{spawn, JoinHandle};

const PAGES: u64 = 100;
const LONG: Duration = Duration::from_secs(20);

struct Side {
    _guest: Guest,
    consumer: Consumer,
    lane: Lane,
    peer: UnixStream,
}

fn lane_over(socket: impl Into<OwnedFd>) -> Lane {
    let channel = Channel::from_fd(socket.into()).unwrap();
    Lane::new(channel, LaneName::default())
}

/// A guest whose pages are all pending, and a lane for them.
fn side() -> Side {
    let guest = Guest::new(PAGES as usize);
    guest.block("ram", PAGES);
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    let (ours, peer) = UnixStream::pair().unwrap();
    Side {
        _guest: guest,
        consumer,
        lane: lane_over(ours),
        peer,
    }
}

/// The removal of a block, on a thread of its own.
struct Removal {
    told: Receiver<Result<()>>,
    remover: JoinHandle<()>,
}

impl Removal {
    fn returns(self) {
        self.told.recv_timeout(LONG).unwrap().unwrap();
        self.remover.join().unwrap();
    }
}

impl Side {
    /// Begins to remove the block while the kernel reads pages of it.
    fn removal_that_waits(&self) -> Removal {
        let memory = Arc::clone(self.consumer.memory());
        let id = memory.map().blocks()[0].id();
        let (tell, told) = channel();
        let remover = spawn(move || tell.send(memory.remove_block(id)).unwrap());
        let early = told.recv_timeout(Duration::from_millis(100));
        assert!(early.is_err(), "the kernel still reads: {early:?}");
        Removal { told, remover }
    }

    fn send(&mut self) -> Result<()> {
        self.send_by(&Io::patient(Duration::from_secs(10)))
    }

    fn send_by(&mut self, io: &Io<'_>) -> Result<()> {
        self.send_unless(&Recall::new()?, io)
    }

    fn send_unless(&mut self, recall: &Recall, io: &Io<'_>) -> Result<()> {
        let taken = self
            .consumer
            .take(&mut Cursor::default(), 64, Pages(PAGES))?;
        assert_eq!(self.consumer.pending(), Pages(0));
        self.lane.send(&[], taken, recall, io).map(|_| ())
    }

    /// Sends pages that are taken as a walk takes them: a removal waits for their pins.
    fn send_recallable(&mut self, io: &Io<'_>) -> Result<()> {
        let mut cursor = Cursor::default();
        let taken = self
            .consumer
            .take_recallable(&mut cursor, 64, Pages(PAGES))?;
        self.lane.send(&[], taken, &Recall::new()?, io).map(|_| ())
    }

    fn send_marker(&mut self) {
        let io = Io::patient(Duration::from_secs(10));
        self.lane.send_marker(1, false, &io).unwrap();
    }

    /// Checks that every page is pending again, and counted as put back once.
    fn has_all(&self, what: &str) {
        assert_eq!(self.consumer.pending(), Pages(PAGES), "{what}");
        assert_eq!(self.consumer.stats().put_back, Pages(PAGES), "{what}");
    }
}

#[test]
fn a_panic_between_take_and_ledger_loses_nothing() {
    for place in [
        "before sending pages",
        "before the ledger",
        "after the ledger",
        "after sending pages",
    ] {
        let mut side = side();
        let fired = planted::plant(place);
        let sent = catch_unwind(AssertUnwindSafe(|| side.send()));
        assert!(sent.is_err() && fired.load(std::sync::atomic::Ordering::SeqCst));
        side.lane.give_up();
        side.has_all(place);
    }
}

#[test]
fn an_error_while_pages_are_sent_puts_them_back() {
    let mut side = side();
    side.peer.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(side.send().is_err());
    assert_eq!(side.lane.unacknowledged(), 0);
    side.has_all("an error");
}

/// All pages but the first hold something; the first is a record of its own. The bytes are more
/// than a socket's buffer holds, so that a peer that reads only a part of them stops in the middle
/// of a record.
fn full_side() -> Side {
    let side = side();
    let block = Arc::clone(&side.consumer.memory().map().blocks()[0]);
    for page in 1..PAGES {
        // SAFETY: a page of the test's own memory, which nobody else uses now.
        unsafe { block.page_address(Pages(page)).write_volatile(7) };
    }
    side
}

/// Reads the header of the second record, and then ends the sending in the middle of that record.
fn end_in_mid_record(mut peer: UnixStream, end: impl FnOnce()) -> UnixStream {
    peer.set_read_timeout(Some(LONG)).unwrap();
    peer.read_exact(&mut [0; 2 * HEADER_LEN]).unwrap();
    end();
    peer
}

/// Reads the second record's contents, and then everything to the end, which must be one KEEPALIVE.
fn reads_contents_and_a_keepalive(mut peer: UnixStream, pages: u64) {
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).unwrap();
    let contents = (pages * crate::units::PAGE_SIZE) as usize;
    assert_eq!(heard.len(), contents + HEADER_LEN);
    assert!(heard[..contents]
        .chunks(crate::units::PAGE_SIZE as usize)
        .all(|page| page[0] == 7));
    let last = Header::decode(heard[contents..].try_into().unwrap()).unwrap();
    assert_eq!(last.record_type(), Ok(Some(RecordType::Keepalive)));
}

#[test]
fn a_cancel_in_mid_record_can_still_be_told_to_who_reads_on() {
    let mut side = full_side();
    side.lane.patience = LONG;
    let cancel = Cancel::new().unwrap();
    std::thread::scope(|scope| {
        let (there, stop) = (side.peer.try_clone().unwrap(), &cancel);
        let reader = scope.spawn(move || {
            let peer = end_in_mid_record(there, || _ = stop.cancel());
            reads_contents_and_a_keepalive(peer, PAGES - 1);
        });
        let error = side.send_by(&Io::until(&cancel, LONG)).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        // The lane counts the records that the destination has in full.
        let put = side.lane.put();
        assert_eq!((put.data_pages, put.zero_pages), (PAGES - 1, 1));
        // All pages were sent, and none is acknowledged.
        assert_eq!(side.lane.unacknowledged(), PAGES);
        side.lane.give_up();
        side.has_all("cancelled");
        let io = Io::patient(LONG);
        side.lane.say(&Record::Keepalive, &io).unwrap();
        side.lane = lane_over(UnixStream::pair().unwrap().0);
        reader.join().unwrap();
    });
}

/// A page of zeros, at which the record before it ends.
const PARTED: u64 = 90;

/// Sends, and is recalled in the middle of the second record. The rest cannot be copied, because a
/// page of its last record is unreadable.
fn recalled_without_a_copy(patience: Duration, then: fn(UnixStream)) -> (Error, Result<()>) {
    let mut side = full_side();
    side.lane.patience = patience;
    let block = Arc::clone(&side.consumer.memory().map().blocks()[0]);
    let last = block.page_address(Pages(PAGES - 1)) as usize;
    // SAFETY: a page of the test's own memory, which nobody else uses now.
    unsafe { block.page_address(Pages(PARTED)).write_volatile(0) };
    let protect = |access| {
        // SAFETY: a page of the test's own memory, which nobody reads but the kernel.
        assert_eq!(0, unsafe { libc::mprotect(last as *mut _, 4096, access) });
    };
    let recall = Recall::new().unwrap();
    std::thread::scope(|threads| {
        let (there, recall) = (side.peer.try_clone().unwrap(), &recall);
        threads.spawn(move || {
            then(end_in_mid_record(there, || {
                protect(libc::PROT_NONE);
                recall.raise();
            }));
        });
        let error = side.send_unless(recall, &Io::patient(LONG)).unwrap_err();
        side.has_all("no copy");
        let said = side.lane.say(&Record::Keepalive, &Io::patient(LONG));
        side.lane = lane_over(UnixStream::pair().unwrap().0);
        protect(libc::PROT_READ | libc::PROT_WRITE);
        (error, said)
    })
}

#[test]
fn a_recalled_batch_that_cannot_be_copied_is_ended_at_a_records_end() {
    let reads_on = |peer| reads_contents_and_a_keepalive(peer, PARTED - 1);
    let (error, said) = recalled_without_a_copy(LONG, reads_on);
    assert_eq!(error.kind(), Kind::Memory, "{error}");
    said.unwrap();
}

#[test]
fn nothing_is_said_inside_a_recalled_record_that_the_peer_reads_no_more_of() {
    let (error, said) = recalled_without_a_copy(Duration::from_millis(1), drop);
    assert_eq!(error.kind(), Kind::Memory, "{error}");
    assert_eq!(said.unwrap_err().kind(), Kind::State);
}

#[test]
fn a_cancel_in_mid_record_does_not_wait_for_who_reads_no_more() {
    let mut side = full_side();
    let cancel = Cancel::new().unwrap();
    let error = std::thread::scope(|scope| {
        let (there, stop) = (side.peer.try_clone().unwrap(), &cancel);
        scope.spawn(move || end_in_mid_record(there, || _ = stop.cancel()));
        side.send_by(&Io::until(&cancel, LONG)).unwrap_err()
    });
    assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    // The destination has the first record in full.
    let put = side.lane.put();
    assert_eq!((put.data_pages, put.zero_pages), (0, 1));
    side.has_all("cancelled");
    let error = side.lane.say(&Record::Keepalive, &Io::patient(LONG));
    assert_eq!(error.unwrap_err().kind(), Kind::State);
}

#[test]
fn a_lane_that_is_dropped_puts_back_what_was_not_acknowledged() {
    let mut side = side();
    side.send().unwrap();
    side.send_marker();
    assert_eq!(side.lane.unacknowledged(), PAGES);
    side.lane = lane_over(UnixStream::pair().unwrap().0);
    side.has_all("a dropped lane");
}

#[test]
fn a_marker_delivers_what_was_sent_before_it_and_nothing_else() {
    let mut side = side();
    side.send().unwrap();
    side.send_marker();
    let block = side.consumer.memory().map().blocks()[0].id();
    side.consumer.put_back(block, Pages(3), Pages(1));
    side.send().unwrap();
    assert_eq!(side.lane.unacknowledged(), PAGES + 1);
    for wrong in [0, 2, u64::MAX] {
        assert!(
            side.lane.ledger.acknowledged(wrong).is_err(),
            "marker {wrong}"
        );
    }
    side.lane.ledger.acknowledged(1).unwrap();
    assert!(side.lane.ledger.acknowledged(1).is_err());
    assert_eq!(side.lane.unacknowledged(), 1);
    assert_eq!(side.consumer.pending(), Pages(0));
    side.lane.give_up();
    assert_eq!(side.consumer.pending(), Pages(1));
}

/// A lane over TCP that sends in place, to a peer that has read nothing.
fn in_place() -> (Side, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = listener.accept().unwrap().0;
    let mut side = full_side();
    side.lane = lane_over(ours);
    side.lane.send_in_place();
    (side, peer)
}

#[test]
fn a_removal_waits_for_pages_that_the_kernel_still_reads_and_then_returns() {
    let (mut side, mut peer) = in_place();
    // Sends until the peer's kernel takes no more, so that pages are on their way.
    let short = Io::patient(Duration::from_millis(50));
    let io = Io::patient(LONG);
    let mut sent = 0;
    while sent < 200 {
        if let Err(error) = side.send_recallable(&short) {
            assert_eq!(error.kind(), Kind::Timeout, "{error}");
            break;
        }
        side.lane.give_up();
        sent += 1;
    }
    assert!(sent < 200, "the sockets hold everything");
    let removal = side.removal_that_waits();
    let reader = std::thread::spawn(move || {
        peer.set_read_timeout(Some(LONG)).unwrap();
        let _ = std::io::copy(&mut peer, &mut std::io::sink());
    });
    side.lane.land(&io).unwrap();
    removal.returns();
    side.lane.close();
    reader.join().unwrap();
}

#[test]
fn a_removal_returns_when_the_lane_of_a_peer_that_reads_nothing_is_let_go_of() {
    let (mut side, peer) = in_place();
    let short = Io::patient(Duration::from_millis(50));
    while side.send_recallable(&short).is_ok() {
        side.lane.give_up();
    }
    let removal = side.removal_that_waits();
    side.lane.let_go();
    removal.returns();
    drop(peer);
}
