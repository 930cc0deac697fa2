//! Tests of the rule against a virtual clock, with senders that are early, late, blocked or cut
//! short.

use super::*;
use proptest::prelude::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn grants_are_spaced_by_the_rate() {
    // At 1,000,000 B/s, 1,000 B take 1 ms, and a grant is at most 3,000 B. The rows: time in ms,
    // bytes that are asked for, answer.
    let table = [
        (100, 1_000, Grant::Bytes(1_000)),   // the first goes at once
        (100, 1_000, Grant::Wait(ms(1))),    // the second waits for the first
        (101, 9_000, Grant::Bytes(3_000)),   // the first is paid for; the grant is cut to a quantum
        (102, 1_000, Grant::Wait(ms(2))),    // waits until that quantum is paid for
        (108, 3_000, Grant::Bytes(3_000)),   // by now all is paid for
        (1_108, 3_000, Grant::Bytes(3_000)), // idle: 12 ms are caught up, and the next quantum
        (1_108, 3_000, Grant::Bytes(3_000)),
        (1_108, 3_000, Grant::Bytes(3_000)),
        (1_108, 3_000, Grant::Bytes(3_000)),
        (1_108, 3_000, Grant::Bytes(3_000)),
        (1_108, 3_000, Grant::Wait(ms(3))),
    ];
    let mut allowance = Allowance::new(Some(1_000_000));
    let mut place = Place::default();
    for (row, (now, bytes, told)) in table.into_iter().enumerate() {
        assert_eq!(allowance.ask(ms(now), bytes, &mut place), told, "row {row}");
    }
}

#[test]
fn without_a_rate_nothing_waits() {
    for rate in [None, Some(0)] {
        let mut allowance = Allowance::new(rate);
        for _ in 0..10 {
            assert_eq!(ask(&mut allowance, 1, u64::MAX), Grant::Bytes(u64::MAX));
        }
        assert_eq!(allowance.until_full(ms(1)), Duration::ZERO);
    }
}

#[test]
fn a_raised_rate_is_felt_at_once_and_a_lifted_one_forgets_the_debt() {
    let mut allowance = Allowance::new(Some(1_000));
    assert_eq!(ask(&mut allowance, 0, 4), Grant::Bytes(3));
    assert_eq!(ask(&mut allowance, 0, 3), Grant::Wait(ms(3)));
    allowance.set_rate(ms(0), Some(3_000));
    assert_eq!(ask(&mut allowance, 0, 3), Grant::Wait(ms(1)));
    allowance.set_rate(ms(0), None);
    assert_eq!(ask(&mut allowance, 0, 3), Grant::Bytes(3));
    allowance.set_rate(ms(5), Some(1_000));
    assert_eq!(ask(&mut allowance, 5, 1), Grant::Bytes(1));
}

#[test]
fn bytes_that_were_not_sent_are_not_paid_for() {
    let mut allowance = Allowance::new(Some(1_000_000));
    assert_eq!(ask(&mut allowance, 0, 3_000), Grant::Bytes(3_000));
    allowance.give_back(2_000);
    assert_eq!(ask(&mut allowance, 0, 1), Grant::Wait(ms(1)));
    allowance.give_back(1_000);
    assert_eq!(ask(&mut allowance, 0, 1), Grant::Bytes(1));
}

#[test]
fn senders_that_wait_are_told_one_after_another() {
    let mut allowance = Allowance::new(Some(1_000_000));
    let mut places: [Place; 3] = Default::default();
    assert_eq!(ask(&mut allowance, 0, 3_000), Grant::Bytes(3_000));
    // A short record delays the next sender by its own time, not by a whole quantum.
    let waits = [(3_000, 3), (1_000, 6), (3_000, 7)];
    for ((bytes, wait), place) in waits.into_iter().zip(&mut places) {
        let told = allowance.ask(ms(0), bytes, place);
        assert_eq!(told, Grant::Wait(ms(wait)));
    }
    // When one sender leaves, nobody waits for its turn.
    allowance.leave(&mut places[2]);
    let told = [3, 3].map(|now| allowance.ask(ms(now), 3_000, &mut places[0]));
    assert_eq!(told, [Grant::Bytes(3_000), Grant::Wait(ms(4))]);
}

#[test]
fn a_sender_that_dies_while_it_waits_is_not_waited_for() {
    let pacer = Pacer::new(Some(1));
    let mut first = pacer.turn();
    assert_eq!(first.ask(1), Grant::Bytes(1));
    for _ in 0..100 {
        assert!(matches!(pacer.turn().ask(1), Grant::Wait(w) if w <= Duration::from_secs(1)));
    }
}

#[test]
fn what_is_stated_after_an_override_is_remembered_and_not_in_force() {
    let pacer = Pacer::new(Some(1));
    pacer.override_rate(None);
    pacer.state_rate(Some(2));
    assert_eq!(pacer.stated(), Some(2));
    assert_eq!(pacer.turn().ask(u64::MAX), Grant::Bytes(u64::MAX));
    pacer.end_override();
    assert_ne!(pacer.turn().ask(u64::MAX), Grant::Bytes(u64::MAX));
    pacer.state_rate(None);
    assert_eq!(pacer.turn().ask(u64::MAX), Grant::Bytes(u64::MAX));
}

#[test]
fn extremes_saturate() {
    let mut allowance = Allowance::new(Some(1));
    let mut place = Place::default();
    for _ in 0..3 {
        allowance.ask(Duration::MAX, u64::MAX, &mut place);
        allowance.ask(Duration::ZERO, u64::MAX, &mut place);
        allowance.give_back(u64::MAX);
    }
    allowance.set_rate(Duration::ZERO, Some(u64::MAX));
    allowance.ask(Duration::MAX, u64::MAX, &mut place);
    allowance.set_rate(Duration::ZERO, Some(1));
    assert!(allowance.until_full(Duration::ZERO) <= Duration::MAX);
}

/// Asks for a sender that does not wait.
fn ask(allowance: &mut Allowance, now: u64, bytes: u64) -> Grant {
    let mut place = Place::default();
    let grant = allowance.ask(ms(now), bytes, &mut place);
    allowance.leave(&mut place);
    grant
}

/// One lane of the simulation.
#[derive(Debug, Clone)]
struct Sender {
    /// The sizes of the records that it sends, over and over. A record takes as many grants as it
    /// needs.
    records: Vec<u64>,
    /// How late its waits end, over and over, in microseconds.
    late: Vec<u64>,
    /// How long it pauses after a record, in microseconds.
    idle: Vec<u64>,
    /// The share of a grant that its socket takes, in percent.
    takes: Vec<u64>,
}

/// The times and sizes of what was sent.
type Sent = Vec<(Duration, u64)>;

/// Runs `senders` with one allowance for `length`. The rate changes at the given times, the first
/// of which is the beginning.
fn run(changes: &[(Duration, u64)], senders: &[Sender], length: Duration) -> Sent {
    struct At {
        now: Duration,
        left: u64,
        place: Place,
        asked: usize,
        record: usize,
    }
    let mut allowance = Allowance::new(Some(changes[0].1));
    let mut changes = changes.iter().peekable();
    let mut at: Vec<At> = senders
        .iter()
        .map(|s| At {
            now: Duration::ZERO,
            left: s.records[0],
            place: Place::default(),
            asked: 0,
            record: 0,
        })
        .collect();
    let mut sent = Sent::new();
    loop {
        // The sender with the earliest time asks next.
        let (who, now) = at
            .iter()
            .enumerate()
            .map(|(i, a)| (i, a.now))
            .min_by_key(|(_, now)| *now)
            .unwrap();
        if now >= length || sent.len() > 200_000 {
            return sent;
        }
        while let Some((_, rate)) = changes.next_if(|(when, _)| *when <= now) {
            allowance.set_rate(now, Some(*rate));
        }
        let (sender, a) = (&senders[who], &mut at[who]);
        a.asked += 1;
        let of = |list: &[u64], n: usize| list[n % list.len()];
        match allowance.ask(now, a.left, &mut a.place) {
            Grant::Wait(wait) => {
                a.now += wait + Duration::from_micros(of(&sender.late, a.asked));
            }
            Grant::Bytes(bytes) => {
                let takes = bytes * of(&sender.takes, a.asked) / 100;
                allowance.give_back(bytes - takes);
                if takes > 0 {
                    sent.push((now, takes));
                } else {
                    // The socket is full for a moment.
                    a.now += Duration::from_micros(500);
                }
                a.left -= takes;
                if a.left == 0 {
                    a.record += 1;
                    a.left = of(&sender.records, a.record);
                    a.now += Duration::from_micros(of(&sender.idle, a.record));
                }
            }
        }
    }
}

/// The most bytes in any second.
fn fullest_second(sent: &Sent) -> u64 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for (at, bytes) in sent {
        sum += bytes;
        while *at - sent[first].0 > Duration::from_secs(1) {
            sum -= sent[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

fn sender(late: u64, idle: impl Strategy<Value = u64>) -> impl Strategy<Value = Sender> {
    let list = |of| prop::collection::vec(of, 1..8);
    (
        // A marker of 48 bytes, a page, a batch of 8 MiB.
        prop::collection::vec(
            prop_oneof![32u64..100, 4096u64..70_000, 1u64..8_400_000],
            1..8,
        ),
        list(0..=late),
        prop::collection::vec(idle, 1..8),
        prop::collection::vec(prop_oneof![3 => Just(100u64), 1 => 1u64..100], 1..8),
    )
        .prop_map(|(records, late, idle, takes)| Sender {
            records,
            late,
            idle,
            takes,
        })
}

/// Rates from the least cap to 10 GB/s.
fn rates() -> impl Strategy<Value = u64> {
    prop_oneof![65_536u64..1_000_000, 1_000_000u64..10_000_000_000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_second_carries_more_than_the_cap_and_two_percent(
        rate in rates(),
        // Senders may be idle for longer than a second, and waits may end that late.
        senders in prop::collection::vec(sender(1_500_000, 0u64..1_500_000), 1..9),
    ) {
        let sent = run(&[(Duration::ZERO, rate)], &senders, Duration::from_secs(4));
        let most = fullest_second(&sent);
        prop_assert!(u128::from(most) * 100 <= u128::from(rate) * 102, "{most} of {rate}");
    }

    #[test]
    fn no_second_carries_more_than_the_highest_cap_that_was_in_force_in_it(
        first in rates(),
        later in prop::collection::vec((0u64..3_000, rates()), 1..6),
        senders in prop::collection::vec(sender(20_000, 0u64..300_000), 1..9),
    ) {
        let mut changes = vec![(Duration::ZERO, first)];
        changes.extend(later.into_iter().map(|(at, rate)| (ms(at), rate)));
        changes.sort_by_key(|(at, _)| *at);
        let sent = run(&changes, &senders, Duration::from_secs(4));
        for edge in changes.windows(2).flat_map(|w| [w[0].0, w[1].0]) {
            // Seconds that begin or end near a change of the rate, and seconds in between.
            for from in (0..=20).map(|i| (edge + ms(i * 50)).saturating_sub(Duration::from_secs(1))) {
                let until = from + Duration::from_secs(1);
                let in_force = changes.iter().rposition(|(at, _)| *at <= from).unwrap();
                let within = changes[in_force..].iter().take_while(|(at, _)| *at <= until);
                let most = within.map(|(_, rate)| *rate).max().unwrap();
                let inside = sent.iter().filter(|(at, _)| (from..=until).contains(at));
                let sum: u64 = inside.map(|s| s.1).sum();
                prop_assert!(u128::from(sum) * 100 <= u128::from(most) * 102, "{sum} of {most}");
            }
        }
    }

    #[test]
    fn a_sender_that_always_has_something_gets_the_whole_cap_in_every_second(
        rate in rates(),
        // The clock is late by less than a sender may catch up.
        senders in prop::collection::vec(sender(8_000, Just(0u64)), 1..9),
    ) {
        // The sockets take everything that they are given, since refused bytes would lower the
        // rate.
        let senders: Vec<_> = senders
            .into_iter()
            .map(|s| Sender { takes: vec![100], ..s })
            .collect();
        let sent = run(&[(Duration::ZERO, rate)], &senders, Duration::from_secs(4));
        prop_assume!(sent.len() <= 200_000);
        for start in 0..=30 {
            let from = ms(start * 100);
            let until = from + Duration::from_secs(1);
            let inside = sent.iter().filter(|(at, _)| (from..until).contains(at));
            let sum: u64 = inside.map(|s| s.1).sum();
            prop_assert!(u128::from(sum) * 100 >= u128::from(rate) * 98, "{sum} of {rate} from {from:?}");
        }
    }
}
