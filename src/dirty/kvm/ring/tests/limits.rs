//! The dirty limit of single vCPUs, on the model: whose ring is left alone, what ends a wait, and how
//! exactly a limit is kept.

use super::*;
use crate::memory::ownership::Stage;
use std::sync::mpsc::{channel, Receiver};
use std::time::Instant;

/// A wait that nothing ends fails a test after this time.
const TEST_LIMIT: Duration = Duration::from_secs(60);

fn world(entries: usize, vcpus: u8) -> World {
    World::new(&Setup {
        entries,
        vcpus,
        with_bitmap: false,
        start_with: StartWith::Nothing,
    })
}

fn limit(vcpu: u32, pages_per_second: f64) -> VcpuLimit {
    VcpuLimit {
        vcpu,
        pages_per_second,
    }
}

/// vCPU 0 may write a page each 100 s and has written 10. Only an event ends a slice.
fn far_over(vcpus: u8) -> World {
    let world = world(256, vcpus);
    world.rings.0.lock().limits.longest = Duration::from_secs(3600);
    world.consumer.limit_vcpus(&[limit(0, 0.01)]).unwrap();
    for page in 0..10 {
        world.write(0, 1, page, 1).unwrap();
    }
    world.consumer.sync(When::Running).unwrap();
    world
}

#[test]
fn the_ring_of_a_vcpu_over_its_limit_is_left_alone_and_a_sync_harvests_it_all_the_same() {
    let world = far_over(2);
    for page in 100..200 {
        world.write(0, 1, page, 1).unwrap();
        world.write(1, 2, page - 100, 1).unwrap();
    }
    // The round that the other vCPU asks for leaves this ring alone.
    world.rings.full(1).unwrap();
    assert_eq!(world.rings.dirtied(0).unwrap(), 10);
    assert_eq!(world.rings.dirtied(1).unwrap(), 100);
    let counts = world.consumer.vcpu_counts().unwrap();
    assert_eq!(
        counts.iter().map(|c| c.pages).collect::<Vec<_>>(),
        [10, 100]
    );
    // One page a hundred seconds is what vCPU 0 may write, however many it has written at once.
    let allowed = world.consumer.tracker().allowed_counts().unwrap();
    assert_eq!(
        allowed.iter().map(|c| c.pages).collect::<Vec<_>>(),
        [0, 100]
    );
    let report = world.consumer.sync(When::Running).unwrap();
    assert_eq!(world.rings.dirtied(0).unwrap(), 110);
    assert_eq!(report.pending.0, 210);
    assert_eq!(world.rings.figures().limit_waits, 0);
}

/// A vCPU under a limit comes out full, waits until the slice ends within its limit, and gets room: one
/// exit.
#[test]
fn an_exit_with_a_full_ring_counts_once_whether_its_vcpu_waits_or_not() {
    let world = far_over(1);
    world.rings.0.lock().limits.longest = Duration::from_secs(3600);
    let before = world.rings.figures();
    let waiting = Waiting::begin(&world);
    world.consumer.limit_vcpus(&[limit(0, 1e9)]).unwrap();
    waiting.ends("a higher limit").unwrap();
    let after = world.rings.figures();
    // It waited, and the ring was emptied then.
    assert_eq!(after.limit_waits, before.limit_waits + 1);
    assert!(after.rounds > before.rounds);
    assert_eq!(after.full_exits, before.full_exits + 1);
    world.rings.full(0).unwrap();
    assert_eq!(world.rings.figures().full_exits, before.full_exits + 2);
}

#[test]
fn without_a_limit_no_vcpu_waits() {
    let world = far_over(3);
    for limits in [&[limit(2, 1.0)][..], &[]] {
        world.consumer.limit_vcpus(limits).unwrap();
        for page in 0..400 {
            world.write(0, 1, page, 1).unwrap();
            world.write(1, 2, page % 187, 1).unwrap();
        }
    }
    assert!(world.rings.figures().full_exits > 0);
    assert_eq!(world.rings.figures().limit_waits, 0);
}

/// vCPU 0 waits in `full`, on a thread that tells when the call has returned, and how.
struct Waiting {
    thread: libc::pthread_t,
    over: Receiver<Result<()>>,
}

impl Waiting {
    fn begin(world: &World) -> Waiting {
        let before = world.rings.figures().limit_waits;
        let (tell, over) = channel();
        let (tell_thread, thread) = channel();
        let rings = world.rings.clone();
        std::thread::spawn(move || {
            // SAFETY: asks for this thread's own identity.
            let _ = tell_thread.send(unsafe { libc::pthread_self() });
            let _ = tell.send(rings.full(0));
        });
        let waiting = Waiting {
            thread: thread.recv_timeout(TEST_LIMIT).unwrap(),
            over,
        };
        let begun = Instant::now();
        while world.rings.figures().limit_waits == before {
            assert!(begun.elapsed() < TEST_LIMIT, "it does not wait");
            std::thread::yield_now();
        }
        waiting
    }

    fn ends(&self, why: &str) -> Result<()> {
        let ended = self.over.recv_timeout(TEST_LIMIT);
        ended.unwrap_or_else(|e| panic!("{why} does not end the wait: {e}"))
    }
}

#[test]
fn a_kick_ends_the_wait_at_once() {
    let world = far_over(1);
    let waiting = Waiting::begin(&world);
    // A sync of the running guest kicks. It harvests the ring too, so nothing else is needed.
    world.memory.ownership().kick(|| {
        waiting.ends("a kick").unwrap();
        // No wait begins while the kick is in progress.
        world.rings.full(0).unwrap();
    });
    assert_eq!(world.rings.figures().limit_waits, 1);
}

#[test]
fn a_pause_ends_the_wait_at_once_and_none_begins_before_the_guest_runs_again() {
    let world = far_over(1);
    let waiting = Waiting::begin(&world);
    let claim = world.memory.ownership().leave().unwrap();
    claim.comes_to(Stage::Paused);
    waiting.ends("a pause").unwrap();
    for _ in 0..3 {
        world.rings.full(0).unwrap();
    }
    assert_eq!(world.rings.figures().limit_waits, 1);
    // An aborted pause: the limit holds again.
    claim.comes_to(Stage::Leaving);
    let waiting = Waiting::begin(&world);
    drop(claim);
    world.consumer.limit_vcpus(&[]).unwrap();
    waiting.ends("lifting").unwrap();
}

#[test]
fn lifting_the_limit_raising_it_stopping_and_removal_each_end_the_wait_at_once() {
    type Event = fn(&World);
    let events: [(&str, Event); 5] = [
        ("lifting", |world| world.consumer.limit_vcpus(&[]).unwrap()),
        ("another vCPU's limit", |world| {
            world.consumer.limit_vcpus(&[limit(1, 5.0)]).unwrap();
        }),
        ("a higher limit", |world| {
            world.consumer.limit_vcpus(&[limit(0, 1e9)]).unwrap();
        }),
        ("stopping", |world| world.consumer.stop().unwrap()),
        ("removal", |world| world.rings.remove(0).unwrap()),
    ];
    for (name, event) in events {
        let world = far_over(2);
        let waiting = Waiting::begin(&world);
        event(&world);
        waiting.ends(name).unwrap();
        let removed = world.rings.full(0).is_err();
        assert_eq!(removed, name == "removal", "{name}");
    }
}

#[test]
fn of_two_limits_for_one_vcpu_the_last_counts() {
    let world = far_over(1);
    let (low, high) = (limit(0, 0.01), limit(0, 1e9));
    world.consumer.limit_vcpus(&[high, low]).unwrap();
    let waiting = Waiting::begin(&world);
    world.consumer.limit_vcpus(&[low, high]).unwrap();
    waiting.ends("the higher limit").unwrap();
    world.rings.full(0).unwrap();
    assert_eq!(world.rings.figures().limit_waits, 1);
}

extern "C" fn ignore(_: libc::c_int) {}

#[test]
fn a_signal_to_the_vcpus_thread_ends_the_wait_at_once() {
    // SAFETY: all zero is a valid value of that plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the structure lives on this stack frame; the handler does nothing.
    unsafe { libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()) };
    let world = far_over(1);
    let waiting = Waiting::begin(&world);
    let begun = Instant::now();
    let done = loop {
        // SAFETY: the thread is not joined, and its identity is used only before its end is known.
        unsafe { libc::pthread_kill(waiting.thread, libc::SIGUSR2) };
        // The first signal can come before the wait has begun.
        match waiting.over.try_recv() {
            Ok(done) => break done,
            Err(_) => assert!(begun.elapsed() < TEST_LIMIT, "no signal ends the wait"),
        }
        std::thread::yield_now();
    };
    done.unwrap();
    // It is still over its limit, so it got no room.
    assert_eq!(world.rings.dirtied(0).unwrap(), 10);
}

#[test]
fn a_vcpu_that_the_vmm_wants_out_does_not_wait_and_gets_no_room() {
    let world = far_over(1);
    world.write(0, 1, 50, 1).unwrap();
    world.model.want_out(0, true);
    world.rings.full(0).unwrap();
    assert_eq!(world.rings.dirtied(0).unwrap(), 10);
    assert_eq!(world.rings.figures().limit_waits, 0);
    world.model.want_out(0, false);
    let waiting = Waiting::begin(&world);
    world.consumer.limit_vcpus(&[]).unwrap();
    waiting.ends("lifting").unwrap();
    assert_eq!(world.rings.dirtied(0).unwrap(), 11);
}

#[test]
fn calls_that_come_too_late_or_name_no_vcpu_are_refused_or_harmless() {
    let world = far_over(1);
    assert_eq!(world.rings.full(9).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(world.rings.remove(9).unwrap_err().kind(), Kind::NotFound);
    // A vCPU that is not known is passed over.
    world.consumer.limit_vcpus(&[limit(9, 5.0)]).unwrap();
    assert!(!world.consumer.has_vcpu_limits());
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = world.consumer.limit_vcpus(&[limit(0, wrong)]).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
    }
    world.consumer.limit_vcpus(&[limit(0, 5.0)]).unwrap();
    world.consumer.stop().unwrap();
    assert!(!world.consumer.has_vcpu_limits());
    let error = world.consumer.limit_vcpus(&[limit(0, 5.0)]).unwrap_err();
    assert_eq!(error.kind(), Kind::State);
    world.consumer.limit_vcpus(&[]).unwrap();
    world.rings.full(0).unwrap();
    assert_eq!(world.rings.figures().limit_waits, 0);
    // A tracker without rings.
    let tracker = Tracker::new(Arc::clone(&world.memory), Clearing::default()).unwrap();
    assert!(!tracker.can_limit_vcpus() && !tracker.counts_vcpus());
    assert_eq!(tracker.vcpu_counts(), None);
    let error = tracker.limit_vcpus(&[limit(0, 5.0)]).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    tracker.limit_vcpus(&[]).unwrap();
}

#[test]
fn what_a_removed_vcpu_wrote_last_is_found() {
    let mut world = world(256, 2);
    for page in 0..100 {
        world.write(0, 1, page, 1).unwrap();
    }
    world.rings.remove(0).unwrap();
    assert_eq!(world.rings.vcpus().0, 1);
    world.consumer.sync(When::Stopped).unwrap();
    world.drain().unwrap();
    world.compare().unwrap();
    // It comes back.
    world.rings.add(0, world.model.ring(0)).unwrap();
    for page in 100..200 {
        world.write(0, 1, page, 1).unwrap();
    }
    world.finish().unwrap();
}

#[test]
fn a_limit_is_kept_to_within_a_ring() {
    const LIMIT: f64 = 20_000.0;
    let world = world(256, 1);
    world.consumer.limit_vcpus(&[limit(0, LIMIT)]).unwrap();
    let (begun, mut page) = (Instant::now(), 0);
    while world.rings.figures().limit_waits < 20 {
        assert!(begun.elapsed() < TEST_LIMIT, "it never waits");
        match world.model.is_full(0) {
            true => world.rings.full(0).unwrap(),
            false => {
                world.model.write(0, 1, page % 500, 1);
                page += 1;
            }
        }
        let pages = world.rings.dirtied(0).unwrap();
        let allowed = LIMIT * (begun.elapsed().as_secs_f64() + 0.05) + 256.0;
        assert!(pages as f64 <= allowed, "{pages} of {allowed}");
    }
}

#[test]
fn an_overrun_under_a_limit_makes_every_page_dirty_and_the_limit_stays() {
    let mut world = far_over(1);
    world.model.write(0, 1, 7, 3000);
    let report = world.consumer.sync(When::Running).unwrap();
    assert_eq!(report.pending.0, 500 + 187 + 127);
    assert!(world.rings.figures().overruns > 0);
    assert_eq!(world.consumer.limited_vcpus(), 1);
    world.consumer.limit_vcpus(&[]).unwrap();
    world.finish().unwrap();
}
