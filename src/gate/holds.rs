//! Who holds a guest still. The guest runs while nobody does: a user's pause outlasts a migration's, and
//! a migration's pause outlasts a user's resume. A pure value.

use std::fmt;

/// One who can hold the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The guest has not been started here.
    Start,
    /// The VMM, for its user.
    User,
    /// A migration or a save, from `pause` to `resume` or, after a hand-over, for good.
    Migration,
}

impl Holder {
    const fn bit(self) -> u8 {
        match self {
            Holder::Start => 1,
            Holder::User => 2,
            Holder::Migration => 4,
        }
    }
}

/// Who holds the guest at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    bits: u8,
    shut_down: bool,
}

impl Holds {
    /// A guest that was not started.
    pub(super) const fn new() -> Holds {
        Holds {
            bits: Holder::Start.bit(),
            shut_down: false,
        }
    }

    /// Whether `holder` holds the guest.
    pub fn by(self, holder: Holder) -> bool {
        self.bits & holder.bit() != 0
    }

    /// Whether the guest has shut down. It does not run again.
    pub fn is_shut_down(self) -> bool {
        self.shut_down
    }

    /// Whether the guest may run.
    pub fn is_open(self) -> bool {
        self.bits == 0 && !self.shut_down
    }

    pub(super) fn take(&mut self, holder: Holder) {
        self.bits |= holder.bit();
    }

    pub(super) fn lift(&mut self, holder: Holder) {
        self.bits &= !holder.bit();
    }

    pub(super) fn shut_down(&mut self) {
        self.shut_down = true;
    }
}

impl fmt::Debug for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [Holder::Start, Holder::User, Holder::Migration];
        let by = all.into_iter().filter(|holder| self.by(*holder));
        let mut list = f.debug_list();
        list.entries(by);
        if self.shut_down {
            list.entry(&"shut down");
        }
        list.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_runs_when_nobody_holds_it_and_never_after_its_shut_down() {
        let mut holds = Holds::new();
        assert!(!holds.is_open() && holds.by(Holder::Start));
        holds.lift(Holder::Start);
        assert!(holds.is_open());
        holds.take(Holder::User);
        holds.take(Holder::Migration);
        holds.take(Holder::Migration);
        assert_eq!(format!("{holds:?}"), "[User, Migration]");
        holds.lift(Holder::User);
        assert!(!holds.is_open());
        holds.lift(Holder::Migration);
        assert!(holds.is_open());
        holds.shut_down();
        assert!(!holds.is_open() && holds.is_shut_down());
    }
}
