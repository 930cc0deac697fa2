//! Who holds a guest still. The guest runs while nobody does: a user's pause outlasts a migration's, and
//! a migration's pause outlasts a user's resume. A pure value.
//!
//! A VMM may have several users of its own: an operator's pause, a snapshot, a debugger. Example of the loss
//! with one hold for all of them: the snapshot pauses, the operator pauses, the snapshot resumes, and the
//! guest runs although its operator has paused it. So the users' pauses are counted, and each is taken
//! back once.

use std::fmt;

/// One who can hold the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The guest has not been started here.
    Start,
    /// The VMM, for one of its users. Each of them holds the guest once more.
    User,
    /// A migration or a save, from `pause` to `resume` or, after a hand-over, for good.
    Migration,
}

impl Holder {
    /// Of those that hold the guest once.
    const fn bit(self) -> u8 {
        match self {
            Holder::User => 0,
            Holder::Start => 1,
            Holder::Migration => 2,
        }
    }
}

/// Who holds the guest at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    bits: u8,
    users: u32,
    shut_down: bool,
}

impl Holds {
    /// A guest that was not started.
    pub(super) const fn new() -> Holds {
        Holds {
            bits: Holder::Start.bit(),
            users: 0,
            shut_down: false,
        }
    }

    /// Whether `holder` holds the guest.
    pub fn by(self, holder: Holder) -> bool {
        match holder {
            Holder::User => self.users > 0,
            _ => self.bits & holder.bit() != 0,
        }
    }

    /// How many pauses of users have not been taken back.
    pub fn user_pauses(self) -> u32 {
        self.users
    }

    /// Whether the guest has shut down. It does not run again.
    pub fn is_shut_down(self) -> bool {
        self.shut_down
    }

    /// Whether the guest may run.
    pub fn is_open(self) -> bool {
        self.bits == 0 && self.users == 0 && !self.shut_down
    }

    pub(super) fn take(&mut self, holder: Holder) {
        self.bits |= holder.bit();
        self.users = self.users.saturating_add(u32::from(holder == Holder::User));
    }

    /// Lifts one hold of a user, or the only one of another holder.
    pub(super) fn lift(&mut self, holder: Holder) {
        self.bits &= !holder.bit();
        self.users = self.users.saturating_sub(u32::from(holder == Holder::User));
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
        holds.take(Holder::User);
        holds.take(Holder::User);
        assert_eq!(holds.user_pauses(), 2);
        holds.lift(Holder::User);
        assert!(holds.by(Holder::User) && !holds.is_open());
        holds.lift(Holder::User);
        holds.lift(Holder::User); // one too many takes nothing back
        assert!(holds.is_open());
        holds.shut_down();
        assert!(!holds.is_open() && holds.is_shut_down());
    }
}
