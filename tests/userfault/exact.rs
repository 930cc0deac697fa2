//! Each written page is found once, and no other page is, however many runs there are.

use super::watched::{ten_blocks, tracked, Ram, Random};
use brant::dirty::When;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

#[test]
fn each_written_page_is_found_once_and_no_other() {
    let Some(t) = tracked(ten_blocks()) else {
        return;
    };
    let mut random = Random::new("each_written_page_is_found_once_and_no_other");
    t.start();
    assert_eq!(t.found(), BTreeSet::new(), "nobody has written yet");
    for round in 0..40 {
        let mut written = BTreeSet::new();
        for _ in 0..random.below(2000) {
            let block = random.below(t.blocks.len());
            let first = random.below(t.blocks[block].pages);
            let longest = t.blocks[block].pages - first;
            let pages = if random.below(10) == 0 {
                longest.min(700)
            } else {
                1
            };
            for page in first..first + pages {
                t.blocks[block].write(page, round);
                written.insert((block, page));
            }
        }
        // A read is no write.
        for _ in 0..500 {
            let block = random.below(t.blocks.len());
            let page = random.below(t.blocks[block].pages);
            std::hint::black_box(t.blocks[block].word(page, 0).load(Ordering::Relaxed));
        }
        assert_eq!(t.found(), written, "round {round}");
        assert_eq!(
            t.sync(When::Stopped),
            0,
            "round {round}: a page was found twice"
        );
    }
}

#[test]
fn more_runs_than_one_call_reports_are_all_found_and_none_again() {
    const PAGES: usize = 40_000;
    let Some(t) = tracked(vec![Ram::anonymous(PAGES), Ram::shared(PAGES)]) else {
        return;
    };
    t.start();
    for round in 0..3 {
        let mut written = BTreeSet::new();
        for page in (round % 2..PAGES).step_by(2) {
            for block in 0..2 {
                t.blocks[block].write(page, 1);
                written.insert((block, page));
            }
        }
        assert_eq!(t.found(), written, "round {round}");
        assert_eq!(t.sync(When::Running), 0);
    }
}
