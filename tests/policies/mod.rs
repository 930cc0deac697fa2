//! Policies in real migrations: a guest that dirties too much is slowed, its limit rises, or it is
//! paused to finish; and whatever happens, nobody is slowed afterwards.
//!
//! The link carries 10 MB/s. The guest has 8 MiB and writes to its pages in turn, so that a pass of 8
//! MiB leaves 8 MiB when the guest dirties faster than the link carries.

mod changes;
mod converge;
mod ends;
mod kvm;

use crate::support::link::Link;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use brant::migrate::{Params, Policy, Slowing};
use std::time::Duration;

const LINK: u64 = 10_000_000;
const MIB: usize = 256;

fn link() -> Link {
    Link::of(LINK, Duration::ZERO, 256 << 10)
}

/// A guest that dirties `times` what the link carries.
fn dirtying(times: f64) -> Pair {
    let pair = Pair::new(&[ram("ram", 8 * MIB)]);
    pair.source.fill(1);
    pair.source.track();
    let rate = times * LINK as f64 / 4096.0;
    let throttle = &pair.from.throttle;
    pair.source.sweeper("ram", 16..8 * MIB, rate, throttle);
    pair
}

fn policy(policy: Policy) -> Params {
    Params {
        downtime_limit: Duration::from_millis(300),
        policy,
        ..Params::default()
    }
}

fn auto_converge() -> Policy {
    Policy {
        slowing: Slowing::AutoConverge,
        sync: Duration::from_millis(100),
        ..Policy::default()
    }
}
