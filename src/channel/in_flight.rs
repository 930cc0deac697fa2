//! Sends without a copy (`MSG_ZEROCOPY`) whose memory the kernel still reads: the calls that are on
//! their way, the values that keep their memory, and whether such sends pay.
//!
//! The kernel numbers the calls of a socket from 0, in 32 bits. It reports complete calls as
//! ranges, often many calls at once, and not always in order. This file is pure: `transfer` makes
//! the calls, and the socket's error queue is read by `sends_in_place`. Both report to
//! [`InFlight`].

use crate::error::Result;
use crate::fallible;
use crate::sys::errqueue::Completion;
use crate::units::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::Arc;

/// When the kernel has copied this many calls in a row after all, on whichever of the channels that
/// go the same way, sending without a copy is switched off for all of them: a copy that is made later costs more than one that is made at once. Loopback, and
/// a socket whose packets somebody captures, copy each time.
const TRIAL: u32 = 32;

/// A call with fewer bytes is copied. For so little, pinning pages and reading the completion cost
/// more than a copy (the kernel's documentation says about 10 KB).
pub(super) const LEAST: usize = 16 << 10;

/// A value that keeps the memory of a send unchanged. It is dropped when the kernel no longer reads
/// that memory.
pub type Keep = Box<dyn Send>;

/// Whether a connection copies what it sends, and why.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// It copies, because nobody asked for anything else.
    #[default]
    Asked,
    /// It sends without a copy.
    No,
    /// It copies, because the kernel has no other way on this kind of socket.
    Unsupported,
    /// It copies, because the kernel copied all the same, call after call.
    Anyway,
    /// It copies, because the memory of not even one call can be locked (`RLIMIT_MEMLOCK`), or its
    /// completion kept (`net.core.optmem_max`).
    Limit,
}

/// What became of sends without a copy so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ZeroCopy {
    /// Bytes that went without a copy.
    pub without: Bytes,
    /// Bytes that the kernel copied after all.
    pub anyway: Bytes,
    /// Calls that were refused because no more memory may be locked. They were copied then.
    pub refused: u64,
    /// Whether sends go without a copy now, or why not.
    pub copying: Copying,
    /// Calls that were made without a copy, complete or not.
    pub calls: u64,
}

/// What channels that go the same way have found out together. One of them has no other kernel, and
/// no other limit on locked memory, than the others.
#[derive(Debug, Default)]
pub struct Findings {
    /// The number of calls in a row that the kernel copied after all, over all channels.
    copied: AtomicU32,
    /// The kernel copies each call: the verdict, which stays.
    copies: AtomicBool,
    /// Calls on their way, over all channels. Their completion makes room for others.
    on_their_way: AtomicUsize,
}

impl Findings {
    fn found(&self, copied: bool) {
        if !copied {
            self.copied.store(0, Ordering::Relaxed);
        } else if self.copied.fetch_add(1, Ordering::Relaxed) + 1 >= TRIAL {
            self.copies.store(true, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Call {
    bytes: u64,
    complete: bool,
}

/// The calls of one connection, as the file's description says.
#[derive(Default)]
pub(super) struct InFlight {
    /// The calls from the oldest incomplete one on.
    calls: VecDeque<Call>,
    /// The number of calls before the oldest incomplete one. All of them are complete.
    oldest: u64,
    /// Each value that keeps memory, and the position before which it keeps the calls' memory.
    kept: VecDeque<(u64, Keep)>,
    so_far: ZeroCopy,
    findings: Arc<Findings>,
    /// The number of refusals in a row while no call of this connection was on its way.
    refused_alone: u32,
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight")
            .field("calls", &self.calls)
            .field("oldest", &self.oldest)
            .field("kept", &self.kept.len())
            .field("so_far", &self.so_far)
            .finish_non_exhaustive()
    }
}

impl InFlight {
    /// Switches sending without a copy on or off.
    pub fn set(&mut self, copying: Copying) {
        self.so_far.copying = copying;
    }

    /// Has this connection find out together with others, before its first call.
    pub fn learn_from(&mut self, findings: &Arc<Findings>) {
        self.findings = Arc::clone(findings);
    }

    /// What this connection and those that learn from it have found out.
    pub fn findings(&self) -> &Arc<Findings> {
        &self.findings
    }

    /// Whether the next send may go without a copy.
    pub fn is_on(&self) -> bool {
        self.copying() == Copying::No
    }

    fn copying(&self) -> Copying {
        match self.so_far.copying {
            Copying::No if self.findings.copies.load(Ordering::Relaxed) => Copying::Anyway,
            copying => copying,
        }
    }

    /// What became of all sends so far.
    pub fn so_far(&self) -> ZeroCopy {
        ZeroCopy {
            copying: self.copying(),
            calls: self.position(),
            ..self.so_far
        }
    }

    /// Whether the kernel still reads the memory of any call.
    pub fn any(&self) -> bool {
        !self.calls.is_empty()
    }

    /// The number of calls so far.
    pub fn position(&self) -> u64 {
        self.oldest + self.calls.len() as u64
    }

    /// Makes room for one more call.
    pub fn make_room(&mut self) -> Result<()> {
        let what = "the account of sends without a copy";
        fallible::reserve_back(&mut self.calls, 1, what)?;
        fallible::reserve_back(&mut self.kept, 1, what)
    }

    /// Notes a call that took `bytes` bytes. There has to be room for it ([`InFlight::make_room`]).
    pub fn sent(&mut self, bytes: u64) {
        self.findings.on_their_way.fetch_add(1, Ordering::Relaxed);
        self.refused_alone = 0;
        self.calls.push_back(Call {
            bytes,
            complete: false,
        });
    }

    /// Keeps `keep` until all calls that were made before `position` are complete.
    pub fn keep(&mut self, position: u64, keep: Keep) {
        if position > self.oldest {
            self.kept.push_back((position, keep));
        }
    }

    /// Notes a call that the kernel refused because no more memory may be locked.
    pub fn refused(&mut self) {
        self.so_far.refused += 1;
        if self.any() {
            return;
        }
        // Calls of other connections may hold the memory that may be locked. When they are complete,
        // a call of this one is taken. But the room for completions is this socket's own.
        self.refused_alone += 1;
        let hopeless = self.findings.on_their_way.load(Ordering::Relaxed) == 0;
        if hopeless || self.refused_alone >= TRIAL {
            self.set(Copying::Limit);
        }
    }

    /// Notes that calls are complete, as the kernel reported. Calls that were reported before, or
    /// were never made, are ignored.
    pub fn complete(&mut self, completion: Completion) {
        // Positions count from the oldest incomplete call. The kernel's numbers have 32 bits and
        // wrap around.
        let first = completion.first.wrapping_sub(self.oldest as u32) as usize;
        let count = completion.last.wrapping_sub(completion.first) as usize + 1;
        let waiting = self.calls.len();
        // When a range begins before the oldest incomplete call, its end may still report new
        // calls.
        let (first, count) = match first < waiting {
            true => (first, count.min(waiting - first)),
            false => {
                let before = self.oldest as u32 as u64;
                let over = u64::from(completion.last.wrapping_sub(before as u32)) + 1;
                match over <= waiting as u64 {
                    true => (0, over as usize),
                    false => return,
                }
            }
        };
        for call in self.calls.range_mut(first..first + count) {
            if std::mem::replace(&mut call.complete, true) {
                continue;
            }
            match completion.copied {
                true => self.so_far.anyway += Bytes(call.bytes),
                false => self.so_far.without += Bytes(call.bytes),
            }
            self.findings.found(completion.copied);
            self.findings.on_their_way.fetch_sub(1, Ordering::Relaxed);
        }
        while self.calls.front().is_some_and(|call| call.complete) {
            self.calls.pop_front();
            self.oldest += 1;
        }
        while self.kept.front().is_some_and(|(at, _)| *at <= self.oldest) {
            self.kept.pop_front();
        }
    }

    /// Drops everything that is kept: the connection is gone, and the kernel reads none of its
    /// memory.
    pub fn forget(&mut self) {
        self.oldest = self.position();
        let left = self.calls.iter().filter(|call| !call.complete).count();
        self.findings
            .on_their_way
            .fetch_sub(left, Ordering::Relaxed);
        self.calls.clear();
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    fn at(oldest: u64) -> InFlight {
        let mut flight = InFlight {
            oldest,
            ..InFlight::default()
        };
        flight.set(Copying::No);
        flight
    }

    fn complete(flight: &mut InFlight, first: u32, last: u32, copied: bool) {
        flight.complete(Completion {
            first,
            last,
            copied,
        });
    }

    #[test]
    fn a_completion_of_many_calls_counts_each_once_also_out_of_order() {
        let mut flight = at(0);
        (1..=5).for_each(|bytes| flight.sent(bytes));
        complete(&mut flight, 3, 4, false);
        assert!(flight.any());
        assert_eq!(flight.so_far().without, Bytes(9));
        // The same range again, and a range that covers it.
        complete(&mut flight, 3, 4, false);
        complete(&mut flight, 1, 4, true);
        assert_eq!(flight.so_far().anyway, Bytes(5));
        complete(&mut flight, 0, 0, false);
        assert!(!flight.any());
        assert_eq!(flight.so_far().without, Bytes(10));
    }

    #[test]
    fn what_was_never_sent_is_passed_over() {
        let mut flight = at(7);
        flight.sent(1);
        for (first, last) in [(8, 9), (0, 6), (9, 3), (u32::MAX, u32::MAX)] {
            complete(&mut flight, first, last, false);
            assert!(flight.any(), "{first} to {last}");
        }
        // The range begins before the oldest incomplete call and ends after it.
        complete(&mut flight, 5, 7, false);
        assert!(!flight.any());
    }

    #[test]
    fn numbers_begin_again_after_32_bits() {
        let mut flight = at(u64::from(u32::MAX) - 1);
        (0..4).for_each(|_| flight.sent(1));
        complete(&mut flight, 0, 1, false);
        assert!(flight.any());
        complete(&mut flight, u32::MAX - 1, u32::MAX, false);
        assert!(!flight.any());
        assert_eq!(flight.position(), u64::from(u32::MAX) + 3);
        // One report that spans the wrap of the numbers.
        let mut flight = at(u64::from(u32::MAX));
        (0..2).for_each(|_| flight.sent(1));
        complete(&mut flight, u32::MAX, 0, false);
        assert!(!flight.any());
    }

    #[test]
    fn what_the_kernel_copies_each_time_is_switched_off_and_what_it_copies_now_and_then_is_not() {
        let mut flight = at(0);
        for call in 0..TRIAL {
            assert!(flight.is_on(), "{call}");
            flight.sent(1);
            complete(&mut flight, call, call, true);
        }
        assert_eq!(flight.so_far().copying, Copying::Anyway);
        let mut flight = at(0);
        for call in 0..10 * TRIAL {
            flight.sent(1);
            complete(&mut flight, call, call, !call.is_multiple_of(TRIAL));
        }
        assert!(flight.is_on());
    }

    #[test]
    fn a_refusal_is_copied_and_one_with_nothing_on_its_way_is_the_last() {
        let mut flight = at(0);
        flight.sent(1);
        flight.refused();
        assert!(flight.is_on());
        complete(&mut flight, 0, 0, false);
        flight.refused();
        assert_eq!(flight.so_far().copying, Copying::Limit);
        assert_eq!(flight.so_far().refused, 2);
    }

    #[test]
    fn connections_that_go_the_same_way_find_out_together_that_the_kernel_copies() {
        let findings = Arc::default();
        let mut flights: Vec<InFlight> = (0..4).map(|_| at(0)).collect();
        flights
            .iter_mut()
            .for_each(|flight| flight.learn_from(&findings));
        let mut alone = at(0);
        for call in 0..TRIAL {
            assert!(flights.iter().all(InFlight::is_on), "{call}");
            let flight = &mut flights[call as usize % 4];
            flight.sent(1);
            complete(flight, call / 4, call / 4, true);
        }
        for flight in &flights {
            assert_eq!(flight.so_far().copying, Copying::Anyway);
        }
        // What went uncopied before the verdict does not end the verdict.
        flights[0].sent(1);
        complete(&mut flights[0], TRIAL / 4, TRIAL / 4, false);
        assert!(!flights[0].is_on());
        alone.sent(1);
        assert!(alone.is_on(), "another way");
    }

    #[test]
    fn a_refusal_is_not_the_last_while_other_connections_hold_the_memory_that_may_be_locked() {
        let findings = Arc::default();
        let (mut holds, mut refused) = (at(0), at(0));
        holds.learn_from(&findings);
        refused.learn_from(&findings);
        holds.sent(1);
        refused.refused();
        assert!(refused.is_on());
        complete(&mut holds, 0, 0, false);
        refused.refused();
        assert_eq!(refused.so_far().copying, Copying::Limit);
        // The room for completions is the socket's own: others make none.
        let mut refused = at(0);
        refused.learn_from(&findings);
        holds.sent(1);
        for _ in 0..TRIAL {
            assert!(refused.is_on());
            refused.refused();
        }
        assert_eq!(refused.so_far().copying, Copying::Limit);
        // What a connection that is gone had on its way is no more on its way.
        let mut refused = at(0);
        refused.learn_from(&findings);
        holds.forget();
        refused.refused();
        assert_eq!(refused.so_far().copying, Copying::Limit);
    }

    /// A kept value that reports when it is dropped.
    struct Kept(u64, Arc<Mutex<BTreeSet<u64>>>);

    impl Drop for Kept {
        fn drop(&mut self) {
            self.1.lock().unwrap().remove(&self.0);
        }
    }

    proptest! {
        #[test]
        fn memory_is_kept_exactly_until_all_calls_before_it_are_complete(
            oldest in prop_oneof![Just(0u64), (u64::from(u32::MAX) - 50)..(u64::from(u32::MAX) + 50)],
            calls in prop::collection::vec(any::<bool>(), 1..80),
            order in any::<prop::sample::Index>(),
            lengths in prop::collection::vec(1u64..6, 1..8),
        ) {
            let mut flight = at(oldest);
            let kept = Arc::new(Mutex::new(BTreeSet::new()));
            for keeps in &calls {
                flight.sent(1);
                if *keeps {
                    let position = flight.position();
                    kept.lock().unwrap().insert(position);
                    flight.keep(position, Box::new(Kept(position, Arc::clone(&kept))));
                }
            }
            let all = kept.lock().unwrap().clone();
            // The ranges come in any order.
            let mut ranges = Vec::new();
            let (mut from, mut lengths) = (oldest, lengths.iter().cycle());
            while from < flight.position() {
                let to = (from + lengths.next().unwrap()).min(flight.position());
                ranges.push(from..to);
                from = to;
            }
            let mut done = BTreeSet::new();
            while !ranges.is_empty() {
                let range = ranges.swap_remove(order.index(ranges.len()));
                complete(&mut flight, range.start as u32, (range.end - 1) as u32, false);
                done.extend(range);
                let first_left = (oldest..).find(|p| !done.contains(p)).unwrap();
                let wanted: BTreeSet<u64> = all.iter().copied().filter(|p| *p > first_left).collect();
                prop_assert_eq!(&*kept.lock().unwrap(), &wanted);
            }
            prop_assert!(!flight.any() && kept.lock().unwrap().is_empty());
            prop_assert_eq!(flight.so_far().without, Bytes(calls.len() as u64));
        }
    }
}
