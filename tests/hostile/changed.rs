//! A recorded session, changed in some thousand ways, is refused or does no harm, on both sides.

use super::as_destination::{sound, source_against};
use super::bounds::bounded;
use super::params::{each, quick, seed};
use crate::support::fuzz;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing};
use crate::support::time::{LONG, MS};
use crate::support::vmm::blob;
use brant::migrate::{AcceptFrom, ConnectTo, Params};
use brant::wire;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The records of a real migration: the source's, and the destination's.
fn recorded() -> [Vec<Vec<u8>>; 2] {
    let pair = Pair::new(&[ram("ram", fuzz::RAM_PAGES)]);
    let ram = pair.source.ram("ram");
    ram.fill(7, &mut Random(1));
    ram.word(9 * 4096).store(0, Ordering::Relaxed);
    *pair.from.early.lock().unwrap() = vec![blob("cfg", 1, &[1; 33])];
    let log: Arc<Mutex<[Vec<Vec<u8>>; 2]>> = Arc::default();
    let taken = Arc::clone(&log);
    let (proxy, a, b) = Proxy::new(Box::new(move |header, payload| {
        let kind = header.record_type().unwrap().unwrap();
        let way = usize::from(kind.direction() == wire::Direction::ToSource);
        let record = [&header.encode()[..], payload].concat();
        taken.lock().unwrap()[way].push(record);
        Verdict::Forward
    }));
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    drop(proxy);
    let log = log.lock().unwrap();
    log.clone()
}

#[test]
fn a_recorded_session_changed_two_thousand_times_is_refused_or_harmless_at_the_destination() {
    bounded();
    let mut random = Random(seed());
    let [recorded, _] = recorded();
    assert_eq!(fuzz::destination(&recorded.concat()).result, Ok(()));
    let made = fuzz::session();
    let (mut kinds, mut longest) = (std::collections::BTreeMap::new(), Duration::ZERO);
    for n in 0..2000 {
        let session = if n % 2 == 0 { &recorded } else { &made };
        let stream = fuzz::mutate(session, || random.next());
        let outcome = fuzz::destination(&stream);
        longest = longest.max(outcome.took);
        let kind = outcome.result.map_or_else(|e| e.kind().name(), |()| "ran");
        *kinds.entry(kind).or_insert(0) += 1;
    }
    println!("{kinds:?}, the longest {longest:?}");
    assert!(kinds.len() >= 4, "{kinds:?}");
    assert!(kinds["protocol error"] > 500, "{kinds:?}");
    bounded();
}

#[test]
fn a_destination_whose_answers_change_is_left_or_harmless() {
    bounded();
    let mut random = Random(seed());
    let params = || Params {
        connect_timeout: MS * 200,
        io_timeout: MS * 200,
        switchover_timeout: MS * 200,
        handover_timeout: MS * 200,
        ..quick()
    };
    let states = Mutex::new(std::collections::BTreeMap::new());
    // Which answer is changed: that to HELLO, EARLY_END, LAYOUT_END, two markers and so on.
    let rounds: Vec<_> = (0..600)
        .map(|n| (n, random.below(7), Random(random.next())))
        .collect();
    each(&rounds, |(n, which, random)| {
        let (mut count, mut random) = (0, random.clone());
        let (pair, out, result) = source_against(params(), false, MS * 8, |raw, _, right| {
            count += 1;
            if count <= *which {
                raw.say_bytes(&right);
                return Some(());
            }
            raw.say_bytes(&fuzz::mutate(&[right], || random.next()));
            // The change may have done no harm. Then this goes on as long as the source does.
            raw.0.set_read_timeout(Some(MS * 8)).unwrap();
            Some(())
        });
        sound(&pair, &out, &result, &format!("round {n}: {result:?}"));
        let kind = result.map_or_else(|e| e.kind().name(), |()| "completed");
        *states.lock().unwrap().entry(kind).or_insert(0) += 1;
    });
    let states = states.into_inner().unwrap();
    println!("{states:?}");
    assert!(states["protocol error"] > 100, "{states:?}");
    bounded();
}
