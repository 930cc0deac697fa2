//! Two sides with the same blocks, and what has to be true of them whatever happened.

use super::guest::Guest;
use super::memory::Spec;
use super::vmm::{Side, TestVmm, World};
use std::sync::Arc;

/// Two sides with the same blocks.
pub struct Pair {
    pub world: Arc<World>,
    pub source: Arc<Guest>,
    pub destination: Arc<Guest>,
    pub from: Arc<TestVmm>,
    pub to: Arc<TestVmm>,
}

impl Pair {
    pub fn new(specs: &[Spec]) -> Pair {
        Pair::of(Guest::new(specs), Guest::new(specs))
    }

    pub fn of(source: Arc<Guest>, destination: Arc<Guest>) -> Pair {
        let world = Arc::new(World::default());
        world.set(Some(true), Some(false));
        source.resume();
        let compared = Some(Arc::clone(&source));
        Pair {
            from: TestVmm::new(&source, None, &world, Side::Source),
            to: TestVmm::new(&destination, compared, &world, Side::Destination),
            world,
            source,
            destination,
        }
    }

    /// Checks that nothing went wrong so far, whatever the result was.
    pub fn assert_sound(&self, what: &str) {
        let wrongs = self.world.wrongs.lock().unwrap();
        assert!(wrongs.is_empty(), "{what}: {wrongs:?}");
    }

    /// Checks that the guest runs at the source, undisturbed.
    pub fn assert_runs_on(&self, what: &str) {
        self.assert_sound(what);
        assert_eq!(self.world.who(), (true, false), "{what}: who runs");
        assert!(self.source.is_running(), "{what}: the source's guest runs");
        assert_eq!(
            self.to.calls("run"),
            0,
            "{what}: the destination never runs"
        );
        assert_eq!(
            self.from.calls("resume"),
            self.from.calls("pause"),
            "{what}: resumed once if it was paused"
        );
        assert!(self.from.calls("pause") <= 1, "{what}");
    }
}
