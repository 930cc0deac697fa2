//! Several channels against a destination that the test scripts: what arrives, what is pending
//! again after a failure, and who is told of the failure. The guest is memory of the test's own.
//! The decider writes to it between two passes.

mod reaping;
mod scripted;

use super::*;
use crate::dirty::consumer::Consumer;
use crate::dirty::testing::Guest;
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::error::Kind;
use crate::memory::BlockId;
use crate::migrate::planted;
use crate::migrate::steering::{Decider, Decision, Facts, Moment, Next};
use crate::migrate::{Blockers, ConnectTo, Outgoing};
use crate::runtime::Role;
use crate::units::{Pages, PAGE_SIZE};
use crate::vmm::Vmm;
use crate::wire::{Record, RecordType as R};
use scripted::{reply, Act, Session, LONG};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Mutex;

/// The pages of the block: 24 stretches, so that each of a few lanes has some.
const PAGES: u64 = 24 * 512;

/// The source's VMM. It counts threads, and plants a panic on those of channels.
#[derive(Default)]
struct Machine {
    pauses: AtomicU32,
    resumes: AtomicU32,
    /// Threads of channels that have started and not ended.
    channels: AtomicU32,
    plant: Option<&'static str>,
    fired: Mutex<Vec<Arc<AtomicBool>>>,
    refuses_threads: bool,
}

impl Machine {
    fn runs(&self) -> bool {
        self.pauses.load(Ordering::SeqCst) == self.resumes.load(Ordering::SeqCst)
    }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.resumes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn thread_start(&self, role: Role) {
        if role != Role::Channel {
            return;
        }
        assert!(!self.refuses_threads, "no thread is wanted");
        self.channels.fetch_add(1, Ordering::SeqCst);
        if let Some(place) = self.plant {
            self.fired.lock().unwrap().push(planted::plant(place));
        }
    }
}

/// The source: one block, in which every third page holds something.
struct Source {
    guest: Guest,
    block: BlockId,
    tracker: Arc<Tracker>,
    vmm: Arc<Machine>,
    channels: usize,
    outgoing: Outgoing,
}

/// Writes the first word of a page.
fn write(tracker: &Tracker, block: BlockId, page: u64, word: u64) {
    let memory = tracker.memory();
    let map = memory.map();
    let host = map.block(block).unwrap().page_address(Pages(page));
    // SAFETY: a page of the test's own memory.
    unsafe { host.cast::<u64>().write_volatile(word) };
    tracker.mark_block(block, Pages(page).bytes(), PAGE_SIZE);
}

fn read(tracker: &Tracker, block: BlockId, page: u64) -> u64 {
    let map = tracker.memory().map();
    let host = map.block(block).unwrap().page_address(Pages(page));
    // SAFETY: a page of the test's own memory.
    unsafe { host.cast::<u64>().read_volatile() }
}

impl Source {
    fn new(channels: usize, vmm: Machine) -> Source {
        Source::with(channels, vmm, |_| ())
    }

    fn with(channels: usize, vmm: Machine, set: impl FnOnce(&mut Params)) -> Source {
        let guest = Guest::new(2 * PAGES as usize);
        let block = guest.block("ram", PAGES);
        let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
        for page in (0..PAGES).step_by(3) {
            write(&tracker, block, page, page + 1);
        }
        let mut params = Params {
            channels: channels as u32,
            switchover_bandwidth: Some(1 << 30),
            ..Params::default()
        };
        set(&mut params);
        let vmm = Arc::new(vmm);
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let there = Arc::clone(&vmm) as Arc<dyn Vmm>;
        let outgoing = Outgoing::with_consumer(consumer, Blockers::new(), there, params).unwrap();
        Source {
            guest,
            block,
            tracker,
            vmm,
            channels,
            outgoing,
        }
    }

    /// Migrates with `decider` to a destination that does what `hook` says. `then` is called while
    /// the migration goes on.
    fn migrate(
        &self,
        decider: impl Decider + 'static,
        hook: impl Fn(usize, R, &Session) -> Act + Send + Sync + 'static,
        then: impl FnOnce(&Session),
    ) -> (Result<()>, Arc<Session>) {
        let (session, sockets) = Session::new(self.channels, hook);
        let end = std::thread::scope(|scope| {
            session.serve(scope);
            let to = ConnectTo::ConnectedAll(sockets);
            self.outgoing.start_with(to, Box::new(decider)).unwrap();
            then(&session);
            let end = self.outgoing.wait(Some(LONG));
            session.end();
            end
        });
        if let Err(error) = &end {
            assert_ne!(error.kind(), Kind::Pending, "it hangs");
        }
        let wrong = std::mem::take(&mut session.known().wrong);
        assert!(wrong.is_empty(), "{end:?}: {wrong:#?}");
        (end, session)
    }

    /// Checks that the migration failed, that the guest runs on, and that every page that the
    /// destination has not acknowledged is pending. In any case those are all pages that were never
    /// sent.
    fn runs_on(&self, what: &str, session: &Session) -> Consumer {
        assert!(self.vmm.runs(), "{what}: the guest stands still");
        let left = self.outgoing.leftover().unwrap();
        let known = session.known();
        let missing = (0..PAGES).filter(|page| {
            let key = (self.block.0, *page);
            let there = known.pages.get(&key).copied().unwrap_or(0);
            !known.sent.contains(&key) || there != read(&self.tracker, self.block, *page)
        });
        let missing: BTreeSet<u64> = missing.collect();
        // Pages that were written and marked since the last sync count too.
        let pending = crate::dirty::testing::sync_all(&left);
        for page in missing {
            let is_pending = pending.contains(&(self.block.0, page));
            assert!(is_pending, "{what}: page {page} is lost");
        }
        left
    }

    /// Checks that the migration completed, and that the destination has the source's pages.
    fn arrived(&self, what: &str, session: &Session) {
        let known = session.known();
        for page in 0..PAGES {
            let there = known.pages.get(&(self.block.0, page)).copied();
            let here = read(&self.tracker, self.block, page);
            assert_eq!(there.unwrap_or(0), here, "{what}: page {page}");
        }
        assert_eq!(known.sent.len() as u64, PAGES, "{what}");
    }
}

/// Calls `write` before each of that many further passes, and then switches over.
struct Passes<F>(u32, F);

impl<F: FnMut(u32) + Send> Decider for Passes<F> {
    fn decide(&mut self, facts: &Facts) -> Decision {
        if facts.moment != Moment::Synced {
            return Next::GoOn.into();
        }
        if self.0 == 0 {
            let expected = Duration::from_millis(1);
            return Next::SwitchOver { expected }.into();
        }
        self.0 -= 1;
        (self.1)(self.0);
        Next::GoOn.into()
    }
}

/// Never switches over.
struct OnAndOn;

impl Decider for OnAndOn {
    fn decide(&mut self, _: &Facts) -> Decision {
        Next::GoOn.into()
    }
}

fn right(_: usize, _: R, _: &Session) -> Act {
    Act::Right
}

/// Checks that an error begins with the channel that caused it, and its socket's descriptor.
fn assert_names(error: &Error, channel: usize) {
    let name = format!("channel {channel} (descriptor ");
    assert!(error.message().starts_with(&name), "{error}");
}

/// Writes scattered pages in each pass.
fn writes(source: &Source) -> impl FnMut(u32) + Send {
    let (tracker, block) = (Arc::clone(&source.tracker), source.block);
    move |pass| {
        for page in (u64::from(pass)..PAGES).step_by(97) {
            write(&tracker, block, page, page * 1000 + u64::from(pass));
        }
    }
}

#[test]
fn a_guest_arrives_whole_over_several_channels_and_each_stretch_by_one_of_them() {
    for channels in [1, 2, 3, 8, 64] {
        let what = format!("{channels} channels");
        let source = Source::new(channels, Machine::default());
        let (end, session) = source.migrate(Passes(4, writes(&source)), right, |_| ());
        end.unwrap();
        source.arrived(&what, &session);
        let threads = source.vmm.channels.load(Ordering::SeqCst) as usize;
        assert_eq!(threads, channels - 1, "{what}");
        let homes: BTreeSet<usize> = session.known().homes.values().copied().collect();
        let most = channels.min(24);
        assert!(homes.len() * 3 >= most, "{what}: only {homes:?} were used");
        assert_eq!(session.known().finals.len(), channels, "{what}");
        let stats = source.outgoing.stats();
        assert_eq!(stats.unacknowledged_pages, 0, "{what}");
        assert!(stats.data_pages + stats.zero_pages >= PAGES, "{what}");
        // Each channel reports its part of the totals, and no other channel exists.
        let lane = |channel| source.outgoing.lane_stats(channel);
        let lanes: Vec<LaneStats> = (0..channels as u32).map(|at| lane(at).unwrap()).collect();
        let sum = |of: fn(&LaneStats) -> u64| lanes.iter().map(of).sum::<u64>();
        assert_eq!(sum(|lane| lane.data_pages), stats.data_pages, "{what}");
        assert_eq!(sum(|lane| lane.zero_pages), stats.zero_pages, "{what}");
        assert_eq!(sum(|lane| lane.wire_bytes), stats.wire_bytes, "{what}");
        let closed = |lane: &LaneStats| lane.state == LaneState::Closed;
        assert!(lanes.iter().all(closed), "{what}: {lanes:?}");
        let error = lane(channels as u32).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{what}: {error}");
    }
}

#[test]
fn acknowledgements_may_come_in_any_order_between_channels() {
    const CHANNELS: usize = 4;
    // Each channel acknowledges its nth marker only after the next channel has: the last channel is
    // first.
    let source = Source::new(CHANNELS, Machine::default());
    let counts: [AtomicU32; CHANNELS] = Default::default();
    let hook = move |channel: usize, kind, session: &Session| {
        if kind == R::Marker && channel + 1 < CHANNELS {
            let number = u64::from(counts[channel].fetch_add(1, Ordering::SeqCst) + 1);
            session.wait("the next channel", |known| {
                known.acknowledged.get(&(channel + 1)).copied() >= Some(number)
            });
        }
        Act::Right
    };
    let (end, session) = source.migrate(Passes(3, writes(&source)), hook, |_| ());
    end.unwrap();
    source.arrived("acknowledged backwards", &session);
}

#[test]
fn what_the_destination_says_on_any_channel_wins_over_connections_that_broke() {
    for channel in [0, 3] {
        for at in [R::Pages, R::Marker] {
            let what = format!("ABORT on channel {channel} at {}", at.name());
            let source = Source::new(4, Machine::default());
            let hook = move |at_channel, kind: R, _: &Session| match kind {
                _ if at_channel != channel => Act::Right,
                kind if kind == at || (at == R::Pages && kind == R::PagesList) => {
                    Act::Abort("no room for this guest")
                }
                _ => Act::Right,
            };
            let (end, session) = source.migrate(OnAndOn, hook, |_| ());
            let error = end.unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{what}: {error}");
            let message = error.message();
            assert!(
                message.contains("no room for this guest"),
                "{what}: {message}"
            );
            source.runs_on(&what, &session);
        }
    }
}

#[test]
fn a_channel_that_is_cut_anywhere_fails_the_migration_and_loses_nothing() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut random = seed;
    for round in 0..12u64 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(round);
        // Each channel's handshake ends after four records. From then on pages can be lost.
        let (channel, after) = ((random >> 33) as usize % 3, 4 + (random >> 40) as u32 % 60);
        let what = format!("seed {seed}: channel {channel} cut after {after} records");
        let source = Source::new(3, Machine::default());
        let count = AtomicU32::new(0);
        let hook = move |at, _, _: &Session| {
            let cut = at == channel && count.fetch_add(1, Ordering::SeqCst) == after;
            if cut {
                Act::Cut
            } else {
                Act::Right
            }
        };
        let (end, session) = source.migrate(Passes(3, writes(&source)), hook, |_| ());
        match end {
            Ok(()) => source.arrived(&what, &session),
            Err(error) if error.kind() == Kind::Unanswered => {
                assert_eq!(channel, 0, "{what}: {error}");
                source
                    .outgoing
                    .resolve(crate::migrate::Resolution::Resume)
                    .unwrap();
            }
            Err(error) => {
                let kinds = [Kind::PeerGone, Kind::Io];
                assert!(kinds.contains(&error.kind()), "{what}: {error}");
                assert_names(&error, channel);
                source.runs_on(&what, &session);
            }
        }
    }
}

#[test]
fn a_panic_on_a_channels_thread_fails_the_migration_and_loses_nothing() {
    for place in [
        "before sending pages",
        "before the ledger",
        "after sending pages",
    ] {
        let vmm = Machine {
            plant: Some(place),
            ..Machine::default()
        };
        let source = Source::new(3, vmm);
        let (end, session) = source.migrate(OnAndOn, right, |_| ());
        let error = end.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "{place}: {error}");
        assert!(error.message().contains("planted"), "{place}: {error}");
        let fired = source.vmm.fired.lock().unwrap();
        assert!(fired.iter().any(|fired| fired.load(Ordering::SeqCst)));
        source.runs_on(place, &session);
    }
}

#[test]
fn a_vmm_that_refuses_a_channels_thread_has_its_guest_run_on() {
    let vmm = Machine {
        refuses_threads: true,
        ..Machine::default()
    };
    let source = Source::new(2, vmm);
    let (end, session) = source.migrate(OnAndOn, right, |_| ());
    let error = end.unwrap_err();
    assert_eq!(error.kind(), Kind::Vmm, "{error}");
    assert!(error.message().contains("`thread_start`"), "{error}");
    source.runs_on("no thread", &session);
}

/// A hook by which the further channels, or all channels, take no page.
fn stalls(all: bool) -> impl Fn(usize, R, &Session) -> Act + Send + Sync {
    move |channel, kind: R, _: &Session| {
        let stalls = kind.is_page_run() && (all || channel > 0);
        if stalls {
            Act::Stall
        } else {
            Act::Right
        }
    }
}

/// Waits until the further channels, or channel 0 when `all` stall, take nothing any more. Then
/// waits until no more pages are taken for them, because their queues are full.
fn until_full(source: &Source, session: &Session, all: bool) {
    session.wait("channels that stall", |known| match all {
        // The migration's thread then waits on channel 0.
        true => known.stalled.contains(&0),
        false => known.stalled.len() == source.channels - 1,
    });
    let begun = Instant::now();
    let mut last = (source.outgoing.stats().remaining_bytes, Instant::now());
    while last.1.elapsed() < Duration::from_millis(200) {
        let now = source.outgoing.stats().remaining_bytes;
        if now != last.0 {
            last = (now, Instant::now());
        }
        assert!(begun.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn other_channels_have_work_for_as_long_as_channel_0_waits_for_its_peer() {
    let source = Source::new(2, Machine::default());
    let stalls = |channel, kind: R, _: &Session| match kind.is_page_run() && channel == 0 {
        true => Act::Stall,
        false => Act::Right,
    };
    let (end, session) = source.migrate(OnAndOn, stalls, |session| {
        session.wait("channel 0 stalls", |known| known.stalled.contains(&0));
        session.wait("several stretches on channel 1", |known| {
            known.homes.values().filter(|home| **home == 1).count() >= HUNGRY
        });
        source.outgoing.cancel().unwrap();
    });
    assert_eq!(end.unwrap_err().kind(), Kind::Cancelled);
    source.runs_on("cancelled", &session);
}

#[test]
fn a_pass_includes_the_pages_that_are_in_queues_when_the_walk_ends() {
    /// Notes the pages of each pass.
    struct Notes(Arc<Mutex<Vec<u64>>>);
    impl Decider for Notes {
        fn decide(&mut self, facts: &Facts) -> Decision {
            if facts.moment != Moment::Synced {
                return Next::GoOn.into();
            }
            let pages = facts.last_pass.map_or(0, |pass| pass.pages.0);
            self.0.lock().unwrap().push(pages);
            let expected = Duration::from_millis(1);
            Next::SwitchOver { expected }.into()
        }
    }
    for channels in [1, 2, 8] {
        let source = Source::new(channels, Machine::default());
        let passes = Arc::new(Mutex::new(Vec::new()));
        let (end, _) = source.migrate(Notes(Arc::clone(&passes)), right, |_| ());
        end.unwrap();
        assert_eq!(*passes.lock().unwrap(), [PAGES], "{channels} channels");
    }
}

#[test]
fn a_cancel_is_prompt_with_every_queue_full() {
    for all in [false, true] {
        let source = Source::new(4, Machine::default());
        let (end, session) = source.migrate(OnAndOn, stalls(all), |session| {
            until_full(&source, session, all);
            let begun = Instant::now();
            source.outgoing.cancel().unwrap();
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(2), "a cancel took {took:?}");
        });
        let error = end.unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        assert_eq!(error.message(), "the migration was cancelled");
        source.runs_on("cancelled", &session);
    }
}

#[test]
fn a_block_is_removed_while_every_channel_stalls() {
    for all in [false, true] {
        let source = Source::new(3, Machine::default());
        let other = source.guest.block("other", PAGES);
        let (end, _) = source.migrate(OnAndOn, stalls(all), |session| {
            until_full(&source, session, all);
            for block in [source.block, other] {
                let begun = Instant::now();
                source.guest.memory.remove_block(block).unwrap();
                let took = begun.elapsed();
                assert!(took < Duration::from_secs(3), "a removal took {took:?}");
            }
            source.outgoing.cancel().unwrap();
        });
        let error = end.unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        let left = source.outgoing.leftover().unwrap();
        assert_eq!(left.pending(), Pages(0), "of blocks that are gone");
    }
}

#[test]
fn blocks_that_come_and_go_are_told_when_all_before_is_acknowledged() {
    let source = Source::new(3, Machine::default());
    let memory = Arc::clone(&source.guest.memory);
    let more = source.guest.describe("more", 600);
    let mut more = Some(more);
    let (tracker, block) = (Arc::clone(&source.tracker), source.block);
    let decider = Passes(6, move |left| {
        for page in (u64::from(left)..PAGES).step_by(301) {
            write(&tracker, block, page, page * 1000 + u64::from(left));
        }
        if left == 4 {
            let added = memory.add_block(more.take().unwrap()).unwrap();
            write(&tracker, added, 5, 77);
        }
        if left == 2 {
            let gone = memory.find_block("more").unwrap();
            memory.remove_block(gone).unwrap();
        }
    });
    let (end, session) = source.migrate(decider, right, |_| ());
    end.unwrap();
    let known = session.known();
    assert_eq!(known.names, ["more"]);
    assert_eq!(
        known.blocks,
        BTreeSet::from([source.block.0]),
        "the removal was told"
    );
    assert!(
        known.pages.values().any(|word| *word == 77),
        "its pages were sent"
    );
    for page in 0..PAGES {
        let there = known.pages.get(&(source.block.0, page)).copied();
        assert_eq!(
            there.unwrap_or(0),
            read(&source.tracker, source.block, page)
        );
    }
}

#[test]
fn each_channel_is_greeted_and_one_that_answers_otherwise_is_refused() {
    let answers: [(Record, Kind, &str); 3] = [
        (
            Record::HelloReply(reply("another")),
            Kind::Protocol,
            "HELLO_REPLY: expected",
        ),
        (
            Record::EarlyOk,
            Kind::Protocol,
            "expected HELLO_REPLY, found EARLY_OK",
        ),
        (
            Record::Abort(crate::wire::Abort {
                code: Kind::Unsupported as i32,
                reason: "one channel is enough".to_owned(),
            }),
            Kind::Refused,
            "one channel is enough",
        ),
    ];
    for (answer, kind, words) in answers {
        let source = Source::new(3, Machine::default());
        let hook = move |channel, asked, _: &Session| match (channel, asked) {
            (2, R::Hello) => Act::Say(answer.clone()),
            _ => Act::Right,
        };
        let (end, session) = source.migrate(OnAndOn, hook, |_| ());
        let error = end.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(words), "{error}");
        if kind == Kind::Protocol {
            assert_names(&error, 2);
        }
        assert_eq!(source.vmm.channels.load(Ordering::SeqCst), 0);
        assert!(source.vmm.runs());
        assert!(session.known().sent.is_empty());
    }
}

#[test]
fn another_number_of_sockets_than_of_channels_is_refused_with_the_number() {
    let source = Source::new(3, Machine::default());
    for count in [0, 1, 2, 4] {
        let (_session, sockets) = Session::new(count, right);
        let error = source
            .outgoing
            .start(ConnectTo::ConnectedAll(sockets))
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        let message = error.message();
        assert!(message.contains("3 by the parameters"), "{message}");
        assert!(message.contains(&format!("found {count}")), "{message}");
    }
    // The migration can still be started.
    let (end, session) = source.migrate(Passes(0, |_| ()), right, |_| ());
    end.unwrap();
    source.arrived("started after all", &session);
}

#[test]
fn a_channel_that_acknowledges_nothing_is_left_at_the_io_timeout() {
    let source = Source::with(3, Machine::default(), |params| {
        params.io_timeout = Duration::from_millis(200);
    });
    let hook = |channel, kind, _: &Session| match (channel, kind) {
        (2, R::Marker) => Act::Silent,
        _ => Act::Right,
    };
    let (end, session) = source.migrate(OnAndOn, hook, |_| ());
    let error = end.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    assert!(error.message().contains("an acknowledgement"), "{error}");
    assert_names(&error, 2);
    source.runs_on("silent", &session);
}

#[test]
fn a_channel_that_takes_nothing_until_the_time_is_up_is_named() {
    let source = Source::with(2, Machine::default(), |params| {
        params.total_timeout = Some(Duration::from_millis(500));
    });
    let (end, session) = source.migrate(OnAndOn, stalls(false), |_| ());
    let error = end.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    assert_names(&error, 1);
    source.runs_on("out of time", &session);
}
