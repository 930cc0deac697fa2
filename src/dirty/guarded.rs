//! A dirty log as the tracker holds it. A panic in the log becomes an error that names it, and a
//! promise that it cannot keep is refused when it is started.
//!
//! A [`DirtyLog`] may be a VMM's own. If its panic unwound through the tracker, the logs after it
//! would not be stopped, and their guests' logging would stay on. And a reader of the panic's
//! message would look for the defect in brant.

use super::strays::Counting;
use super::vcpus::Vcpus;
use super::{DirtyLog, Exact, Extent, Harvested, Initial, LogKind, Rearmed, Sink, When};
use crate::error::{Error, Kind, Result};
use crate::memory::{BlockId, Map, Ownership};
use crate::runtime::thread::catch;
use std::ops::Range;
use std::sync::Arc;

pub(super) struct Guarded {
    log: Box<dyn DirtyLog>,
    /// Whether the log clears in the harvest all that it reports.
    clears: bool,
    /// Reported pages that no block has.
    strays: u64,
}

/// Runs `f`, which calls into the log `name`.
fn guard<T>(name: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    guard_or(name, f, || {})
}

/// [`guard`], which also calls `panicked` after a panic.
fn guard_or<T>(name: &str, f: impl FnOnce() -> Result<T>, panicked: impl FnOnce()) -> Result<T> {
    catch(f).unwrap_or_else(|panic| {
        panicked();
        Err(Error::new(
            Kind::Vmm,
            format!("the dirty log `{name}` {}", panic.message()),
        ))
    })
}

impl Guarded {
    /// Wraps `log`, which is told whether to clear in its harvests.
    pub(super) fn new(mut log: Box<dyn DirtyLog>, clear_at_harvest: bool) -> Result<Self> {
        let name = name_of(&*log);
        let clears = guard(name, || Ok(log.clear_at_harvest(clear_at_harvest)))?;
        Ok(Guarded {
            log,
            clears,
            strays: 0,
        })
    }
}

/// The log's name, or its kind's if asking for the name panics.
fn name_of(log: &dyn DirtyLog) -> &'static str {
    catch(|| log.name())
        .or_else(|_| catch(|| log.kind().name()))
        .unwrap_or("unnamed")
}

impl DirtyLog for Guarded {
    fn kind(&self) -> LogKind {
        catch(|| self.log.kind()).unwrap_or(LogKind::Other)
    }

    fn name(&self) -> &'static str {
        name_of(&*self.log)
    }

    fn exact(&self) -> Exact {
        catch(|| self.log.exact()).unwrap_or(Exact::VcpusStopped)
    }

    fn clear_at_harvest(&mut self, whole: bool) -> bool {
        let log = &mut self.log;
        self.clears = catch(|| log.clear_at_harvest(whole)).unwrap_or(false);
        self.clears
    }

    fn rearms(&self) -> bool {
        catch(|| self.log.rearms()).unwrap_or(false)
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        let name = self.name();
        let mut panicked = false;
        let started = guard_or(name, || self.log.start(map), || panicked = true);
        if panicked {
            // The log may have switched its logging on before it failed.
            let _ = self.stop(map);
        }
        let initial = started?;
        if initial == Initial::Unprotected && !self.rearms() && !self.clears {
            // The first error is the one that is returned.
            let _ = self.stop(map);
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "the dirty log `{name}` starts unprotected, and neither restores protection \
                     (`rearms`) nor clears in its harvest (`clear_at_harvest`): what the guest \
                     writes would never be found"
                ),
            ));
        }
        Ok(initial)
    }

    fn stop(&mut self, map: &Map) -> Result<()> {
        let name = self.name();
        guard(name, || self.log.stop(map))
    }

    fn harvest(&mut self, map: &Map, when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        let name = self.name();
        let mut counting = Counting::new(map, sink);
        let harvested = guard(name, || self.log.harvest(map, when, &mut counting));
        self.strays += counting.strays;
        harvested
    }

    fn joins(&mut self, guest: &Arc<Ownership>) {
        let log = &mut self.log;
        // A log that fails here fails again where it is used, and the error is returned there.
        let _ = catch(|| log.joins(guest));
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        // A log that cannot tell which memory it covers may cover all of it.
        if catch(|| self.log.covered(map, each)).is_err() {
            for block in map.blocks() {
                each(Extent::all_of(block));
            }
        }
    }

    fn heap_bytes(&self) -> u64 {
        catch(|| self.log.heap_bytes()).unwrap_or(0)
    }

    fn vcpus(&self) -> Option<Arc<dyn Vcpus>> {
        catch(|| self.log.vcpus()).unwrap_or(None)
    }

    fn rearm(&mut self, map: &Map, block: BlockId, pages: Range<u64>) -> Result<Rearmed> {
        let name = self.name();
        guard(name, || self.log.rearm(map, block, pages))
    }

    fn strays(&self) -> u64 {
        self.strays + catch(|| self.log.strays()).unwrap_or(0)
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        let name = self.name();
        guard(name, || self.log.map_changes(old, new, sink))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing;
    use crate::dirty::tracker::{Clearing, StartWith, Tracker};
    use crate::units::Pages;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::Arc;

    /// Where a log of a VMM's panics.
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Start,
        Harvest,
        Stop,
        Nowhere,
    }

    struct Theirs {
        at: At,
        initial: Initial,
        on: Arc<AtomicBool>,
    }

    impl DirtyLog for Theirs {
        fn kind(&self) -> LogKind {
            LogKind::Vhost
        }
        fn name(&self) -> &'static str {
            "theirs"
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            self.on.store(true, Ordering::SeqCst);
            assert!(self.at != At::Start, "no room");
            Ok(self.initial)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            assert!(self.at != At::Stop, "no way back");
            self.on.store(false, Ordering::SeqCst);
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, _: &mut dyn Sink) -> Result<Harvested> {
            assert!(self.at != At::Harvest, "no crop");
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {
            assert!(self.at != At::Harvest, "no idea");
        }
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Ok(())
        }
    }

    /// A well-behaved log that knows whether it is on.
    struct Witness(Arc<AtomicBool>);

    impl DirtyLog for Witness {
        fn kind(&self) -> LogKind {
            LogKind::Vfio
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            self.0.store(true, Ordering::SeqCst);
            Ok(Initial::Clean)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            self.0.store(false, Ordering::SeqCst);
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, _: &mut dyn Sink) -> Result<Harvested> {
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Ok(())
        }
    }

    /// A tracker of 64 pages with such a log between two witnesses, and whether each of the three
    /// is on.
    fn tracker(at: At, initial: Initial) -> (Arc<Tracker>, [Arc<AtomicBool>; 3], testing::Guest) {
        let ram = testing::Guest::new(64);
        ram.block("ram", 64);
        let tracker = Tracker::new(Arc::clone(&ram.memory), Clearing::default()).unwrap();
        let on: [Arc<AtomicBool>; 3] = Default::default();
        tracker.add_log(Box::new(Witness(on[0].clone()))).unwrap();
        tracker
            .add_log(Box::new(Theirs {
                at,
                initial,
                on: on[2].clone(),
            }))
            .unwrap();
        tracker.add_log(Box::new(Witness(on[1].clone()))).unwrap();
        (tracker, on, ram)
    }

    fn all(on: &[Arc<AtomicBool>], expected: bool) {
        for on in on {
            assert_eq!(on.load(Ordering::SeqCst), expected);
        }
    }

    #[test]
    fn a_log_that_panics_at_its_start_is_named_and_the_others_are_off() {
        let (tracker, on, _ram) = tracker(At::Start, Initial::Clean);
        let consumer = tracker.consumer();
        let error = consumer.start(StartWith::Nothing).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm);
        for part in ["`theirs`", "no room", "guarded.rs:"] {
            assert!(error.message().contains(part), "{part} in: {error}");
        }
        all(&on, false);
    }

    #[test]
    fn a_log_that_panics_in_a_harvest_has_all_taken_as_dirty_and_is_named() {
        let (tracker, on, _ram) = tracker(At::Harvest, Initial::Clean);
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let report = consumer.sync(When::Running).unwrap();
        // The log could not even tell which memory it covers.
        assert_eq!(report.pending, Pages(64));
        assert!(report.warnings.iter().any(|w| w.contains("no crop")));
        let error = consumer.sync(When::Stopped).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm);
        all(&on, true);
        let _ = consumer.stop();
        all(&on, false);
    }

    #[test]
    fn a_log_that_panics_when_it_is_stopped_leaves_no_other_on() {
        let (tracker, on, _ram) = tracker(At::Stop, Initial::Clean);
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        all(&on, true);
        let _ = consumer.stop();
        all(&on[..2], false);
    }

    #[test]
    fn a_log_that_starts_unprotected_and_never_protects_is_refused() {
        let (tracker, on, _ram) = tracker(At::Nowhere, Initial::Unprotected);
        let consumer = tracker.consumer();
        let error = consumer.start(StartWith::Everything).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains("`theirs`"), "{error}");
        all(&on, false);
    }
}
