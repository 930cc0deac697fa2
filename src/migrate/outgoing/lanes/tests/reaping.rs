//! Lane 0 has pages that the kernel still reads, while its thread waits for another lane.

use super::*;
use crate::dirty::consumer::Cursor;
use crate::units::STRETCH_PAGES;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;

/// More than the socket of lane 0's peer holds, and less than lane 0's own.
const SENT: u64 = 32;

fn set_buffer(socket: &impl AsRawFd, option: i32, bytes: i32) {
    // SAFETY: the value is an integer of this stack frame.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(&bytes).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// A connection whose second end takes a few kilobytes until somebody reads.
fn narrow() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set_buffer(&listener, libc::SO_RCVBUF, 4096);
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    set_buffer(&ours, libc::SO_SNDBUF, 1 << 20);
    (ours, listener.accept().unwrap().0)
}

/// The first pages of the stretches of a block that belong to lane `lane` of two.
fn stretches(tracker: &Tracker, block: BlockId, lane: usize) -> Vec<Pages> {
    let map = tracker.memory().map();
    let block = map.block(block).unwrap();
    let firsts = (0..block.pages().0).step_by(STRETCH_PAGES as usize);
    let of_lane = firsts.filter(|first| {
        let run = block.run(Pages(*first), Pages(1)).unwrap();
        Assignment::to(2).lane(block, &run) == lane
    });
    of_lane.map(Pages).collect()
}

#[test]
fn a_block_that_lane_0_sends_in_place_can_be_removed_while_lane_0_waits_for_another_lane() {
    let guest = Guest::new(2 * PAGES as usize);
    let (small, large) = (
        guest.block("small", 4 * STRETCH_PAGES),
        guest.block("large", PAGES),
    );
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    let take = |block: BlockId, first: Pages, count: u64| {
        for page in first.0..first.0 + count {
            write(&tracker, block, page, 7);
        }
        consumer.sync(crate::dirty::When::Running).unwrap();
        let taken = consumer.take_recallable(&mut Cursor::default(), 64, Pages(count));
        let taken = taken.unwrap();
        assert_eq!(taken.pages(), Pages(count));
        taken
    };
    let cancel = Cancel::new().unwrap();
    let params = Params {
        channels: 2,
        zero_copy: true,
        // Lane 1 must not end the wait by giving its peer up.
        io_timeout: Duration::from_secs(3600),
        ..Params::default()
    };
    let (ours, mut peer) = narrow();
    // Lane 1's peer reads nothing. A unix socket copies, so lane 1 has nothing with the kernel.
    let (further, _silent) = UnixStream::pair().unwrap();
    let channels = vec![
        Channel::from_fd(ours.into()).unwrap(),
        Channel::from_fd(further.into()).unwrap(),
    ];
    let pacer = Arc::new(Pacer::new(None));
    let mut lanes = Lanes::over(channels, false, &pacer, &params, &cancel).unwrap();
    let vmm = Callbacks::new(Arc::new(Machine::default()), 1);
    lanes.start(&guest.memory, &vmm).unwrap();
    let mut announced = Announced::default();
    announced.all_of(&guest.memory.map());
    for block in guest.memory.map().blocks() {
        announced.add(block).unwrap();
    }
    let shared = Arc::clone(&lanes.shared);
    std::thread::scope(|scope| {
        let (lanes, memory, params, cancel) = (&mut lanes, &guest.memory, &params, &cancel);
        let (tracker, take, announced) = (&tracker, &take, &mut announced);
        let walk = scope.spawn(move || {
            let io = Io::until(cancel, LONG);
            let mut sending = Sending {
                lanes,
                announced,
                memory,
                params,
                pass: 1,
                io: &io,
            };
            let recall = Recall::new().unwrap();
            let of_lane_0 = take(small, stretches(tracker, small, 0)[0], SENT);
            let mut put = sending
                .progress()
                .and_then(|()| sending.put(of_lane_0, &recall));
            let mut places = stretches(tracker, large, 1).into_iter().cycle();
            // Until lane 1's queue is full.
            while put.is_ok() {
                let next = take(large, places.next().unwrap(), STRETCH_PAGES);
                put = sending.progress().and_then(|()| sending.put(next, &recall));
            }
            let lane = &mut sending.lanes.first;
            lane.close();
            lane.let_go();
            put.unwrap_err()
        });
        // This time passes only while lane 0 waits for another lane.
        let begun = Instant::now();
        while shared.balance.uneven().is_zero() {
            assert!(begun.elapsed() < LONG && !walk.is_finished());
            std::thread::yield_now();
        }
        let (tell, told) = channel();
        scope.spawn(move || tell.send(memory.remove_block(small)).unwrap());
        let early = told.recv_timeout(Duration::from_millis(100));
        assert!(early.is_err(), "the kernel still reads: {early:?}");
        scope.spawn(move || {
            let mut room = vec![0; 64 << 10];
            while peer.read(&mut room).is_ok_and(|n| n > 0) {}
        });
        let removed = told.recv_timeout(LONG / 3);
        cancel.cancel();
        let error = walk.join().unwrap();
        removed.unwrap().unwrap();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    });
}
