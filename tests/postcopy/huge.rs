//! Postcopy of memory in huge pages of 2 MiB. Each is placed as a whole: one that the guest has written a
//! word to since it was sent is missing with all of its 512 small pages.

use super::vcpus::{Vcpus, ORDERS};
use super::whole::{allowed, CopiesOn, Sides};
use crate::support::guest::Guest;
use crate::support::kinds::{Area, HugePool, Made, HUGE};
use crate::support::memory::{ram, Ram, Spec, PAGE};
use crate::support::pair::Pair;
use crate::support::time::{LONG, MS};
use crate::support::vmm::{Side, TestVmm};
use brant::migrate::{DestinationState, Params, SourceState};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Huge pages of each side.
const COUNT: usize = 8;
const UNIT: usize = HUGE / PAGE;

fn guest(made: Made) -> Option<Arc<Guest>> {
    let area = Area::new(made, COUNT * HUGE)?;
    let spec = Spec {
        page_size: HUGE as u64,
        memfd: made == Made::HugeMemfd,
        ..ram("huge", COUNT * UNIT)
    };
    let file = area
        .file
        .as_ref()
        .map(|file| file.try_clone().unwrap().into());
    let guest = Guest::new(&[]);
    guest.add(Ram::over(&spec, area.at, file, area));
    Some(guest)
}

/// Both sides of a migration that copies, `None` where there are no huge pages of this kind.
fn copying(made: Made, channels: u32) -> Option<Sides> {
    let (Some(source), Some(destination)) = (guest(made), guest(made)) else {
        eprintln!("skipped: no {made:?}");
        return None;
    };
    let mut pair = Pair::of(source, destination);
    pair.to = TestVmm::new(&pair.destination, None, &pair.world, Side::Destination);
    pair.source.fill(11);
    let params = Params {
        max_bandwidth: Some(64 << 20),
        switchover_max_bandwidth: Some(16 << 20),
        ..allowed(channels)
    };
    Some(Sides::start_with(pair, &params, Some(Box::new(CopiesOn))))
}

#[test]
fn a_huge_page_that_was_written_before_the_switch_comes_whole_and_new() {
    let Some(_pool) = HugePool::new(2 * COUNT) else {
        return;
    };
    for (made, channels) in [(Made::Huge, 1), (Made::HugeMemfd, 2)] {
        let Some(sides) = copying(made, channels) else {
            continue;
        };
        // All of it is there once.
        assert!(sides.wait_until(|sides| sides.out.stats().data_pages >= (COUNT * UNIT) as u64));
        let written = [2 * UNIT + 77, 5 * UNIT];
        for (n, page) in written.into_iter().enumerate() {
            sides
                .pair
                .source
                .poke("huge", page * PAGE + 2048, n as u64 + 1);
        }
        sides.out.set_max_bandwidth(Some(16 << 20)).unwrap();
        sides.out.start_postcopy().unwrap();
        assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Serving));
        let here = sides.pair.destination.ram("huge");
        for (n, page) in written.into_iter().enumerate() {
            let found = here.word(page * PAGE + 2048).load(Ordering::SeqCst);
            assert_eq!(found, n as u64 + 1, "{made:?}");
        }
        let (source, destination) = (&sides.pair.source, &sides.pair.destination);
        let vcpus = Vcpus::start(source, destination, &ORDERS, 5, MS / 20);
        sides.out.wait(Some(LONG)).unwrap();
        let stats = sides.inc.stats();
        let came = stats.urgent_pages + stats.bulk_pages;
        let unit = UNIT as u64;
        // The two, perhaps others of a pass that had not ended, and the one that `save` writes to.
        assert!(
            came >= 2 * unit && came.is_multiple_of(unit),
            "{made:?}: {stats:?}"
        );
        sides.inc.wait(Some(LONG)).unwrap();
        vcpus.assert_exact(&format!("{made:?}"));
        println!(
            "{made:?}: {came} pages came behind the switch, {} faults",
            stats.faults
        );
    }
}

#[test]
fn huge_pages_that_have_come_in_part_come_whole_after_a_recovery() {
    let Some(_pool) = HugePool::new(2 * COUNT) else {
        return;
    };
    for (made, channels) in [(Made::Huge, 2), (Made::HugeMemfd, 1)] {
        let Some(mut sides) = copying(made, channels) else {
            continue;
        };
        sides.wait_until(|sides| sides.out.state() == SourceState::Copying);
        sides.out.set_max_bandwidth(Some(12 << 20)).unwrap();
        sides.out.start_postcopy().unwrap();
        assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Serving));
        let (mut recoveries, mut vcpus) = (0, None);
        for _ in 0..3 {
            let left = sides.out.stats().missing_pages;
            // In the middle of some huge page.
            if !sides.wait_until(|sides| sides.out.stats().missing_pages + 300 < left) {
                break;
            }
            sides.cut();
            // The last page may just have come.
            let whole = |sides: &Sides| sides.inc.state() == DestinationState::Running;
            if !sides.wait_until(|sides| sides.is_interrupted() || whole(sides)) || whole(&sides) {
                break;
            }
            vcpus.get_or_insert_with(|| {
                let (source, destination) = (&sides.pair.source, &sides.pair.destination);
                Vcpus::start(source, destination, &ORDERS, 6, MS / 20)
            });
            sides.recover(channels);
            recoveries += 1;
            sides.wait_until(|sides| sides.out.stats().recoveries == recoveries);
        }
        assert!(recoveries > 0, "{made:?}");
        sides.out.set_max_bandwidth(None).unwrap();
        // Where the last page had come, the source may not know it.
        if sides.wait_until(|sides| sides.out.state() == SourceState::Interrupted) {
            sides.recover(channels);
        }
        sides.out.wait(Some(LONG)).unwrap();
        sides.inc.wait(Some(LONG)).unwrap();
        let stats = sides.inc.stats();
        assert!(
            stats.faults > 0 && stats.missing_pages == 0,
            "{made:?}: {stats:?}"
        );
        vcpus
            .unwrap()
            .assert_exact(&format!("{made:?}, {recoveries} recoveries"));
    }
}
