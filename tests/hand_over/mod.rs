//! Hand-over on one host: memory goes to the new process by the descriptors of its files, and only
//! the rest is copied. `whole` and `refused` play both sides in one process, `hostile` plays a peer,
//! `processes` has two real processes with a guest of KVM.

mod hostile;
mod machine;
mod processes;
mod refused;
mod whole;

use crate::support::guest::Guest;
use crate::support::memory::Spec;
use crate::support::pair::Pair;
use crate::support::sides::quick;
use brant::migrate::{HandOver, Params};

/// Two sides. The destination describes only `there` by itself.
fn pair(here: &[Spec], there: &[Spec]) -> Pair {
    Pair::of(Guest::new(here), Guest::new(there))
}

fn params(hand_over: HandOver) -> Params {
    Params {
        hand_over,
        ..quick()
    }
}
