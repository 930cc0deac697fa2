//! Asks the decider, which may be a VMM's own. A panic in the decider becomes an error that names
//! the decider.
//!
//! Otherwise the message of a failed migration would say that brant itself is defective, and its
//! reader would look for the defect in brant.

use crate::error::{Error, Kind, Result};
use crate::migrate::steering::{Decider, Decision, Facts, FitsDowntime, Verdict};
use crate::runtime::thread::catch;

/// The decider of a migration.
pub(super) enum Asked {
    /// brant's own. A forecast asks a copy of it.
    Own(FitsDowntime),
    /// One of the VMM's.
    Vmm(Box<dyn Decider>),
}

impl Asked {
    /// The decider to ask.
    pub(super) fn asked(&mut self) -> &mut dyn Decider {
        match self {
            Asked::Own(own) => own,
            Asked::Vmm(vmm) => &mut **vmm,
        }
    }
}

/// The decider's answer to `facts`. When the decider panics, the error is [`Kind::Vmm`].
pub(super) fn ask(decider: &mut dyn Decider, facts: &Facts) -> Result<Decision> {
    catch(|| decider.decide(facts))
        .map_err(|panic| Error::new(Kind::Vmm, format!("the decider {}", panic.message())))
}

/// Asks `decider` about a guest that stands still. A panic of the decider is an error.
pub(super) fn judge(decider: &mut dyn Decider, facts: &Facts) -> Result<Verdict> {
    catch(|| decider.judge(facts))
        .map_err(|panic| Error::new(Kind::Vmm, format!("the decider {}", panic.message())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::tracker::{Clearing, Tracker};
    use crate::memory::{Memory, NO_SLOT};
    use crate::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
    use crate::vmm::Vmm;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Duration;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    struct Panics;

    impl Decider for Panics {
        fn decide(&mut self, _: &Facts) -> Decision {
            panic!("no table for this guest")
        }
    }

    struct Machine;

    impl Vmm for Machine {}

    #[test]
    fn a_decider_that_panics_fails_the_migration_by_name_and_not_as_a_defect_of_brant() {
        let ram = || GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let guest = |ram: &GuestMemoryMmap| {
            let memory = Memory::new().unwrap();
            memory.add_guest_memory(ram, NO_SLOT).unwrap();
            Arc::new(memory)
        };
        let (here, there) = (ram(), ram());
        let tracker = Tracker::new(guest(&here), Clearing::default()).unwrap();
        let params = Params::default;
        let outgoing =
            Outgoing::new(tracker, Blockers::new(), Arc::new(Machine), params()).unwrap();
        let incoming = Incoming::new(guest(&there), Arc::new(Machine), params()).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        incoming.start(AcceptFrom::Connected(b.into())).unwrap();
        outgoing
            .start_with(ConnectTo::Connected(a.into()), Box::new(Panics))
            .unwrap();
        let error = outgoing.wait(Some(Duration::from_secs(60))).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm, "{error}");
        let message = error.message();
        assert!(message.contains("the decider panicked at "), "{message}");
        assert!(message.contains("no table for this guest"), "{message}");
        incoming.wait(Some(Duration::from_secs(60))).unwrap_err();
    }
}
