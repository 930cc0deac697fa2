//! Verified migrations: what differs at the destination is told, what may differ is left out, and
//! nothing that happens after the hand-over is a failure.
//!
//! The tests make whole migrations in one process, through the public API. A proxy between the two
//! sides damages pages, which have no checksums here, and the destination's checksums.

mod differing;
mod endings;
mod equal;
mod left_out;
mod lying;
mod standing;

use crate::support::memory::{ram, shared};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::sides::quick;
use brant::migrate::{Outgoing, Params, Stats};
use brant::vmm::EventKind;

/// Parameters of a source that verifies.
fn verifying() -> Params {
    Params {
        verify: true,
        ..quick()
    }
}

/// Two blocks with data in long runs, single pages and holes.
fn pair() -> Pair {
    let pair = Pair::new(&[ram("ram", 1200), shared("shm", 700)]);
    let mut random = Random(11);
    for (_, ram) in pair.source.rams() {
        for page in (0..600).filter(|page| *page < 200 || page % 2 == 0) {
            ram.fill(page, &mut random);
        }
    }
    pair
}

const PAGES: u64 = 1900;

/// Checks that all pages but `left_out` were compared and none differed. Returns the figures.
fn assert_equal(pair: &Pair, out: &Outgoing, left_out: u64, what: &str) -> Stats {
    let stats = out.stats();
    let mismatches = pair.from.events(EventKind::Mismatch);
    assert_eq!(mismatches, Vec::<String>::new(), "{what}");
    assert_eq!(stats.mismatched_pages, 0, "{what}");
    let first = (stats.first_mismatch_block, stats.first_mismatch_page);
    assert_eq!(first, (None, None), "{what}");
    assert_eq!(
        (stats.verified_pages, stats.unverified_pages),
        (PAGES - left_out, left_out),
        "{what}"
    );
    stats
}
