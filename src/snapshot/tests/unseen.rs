//! A save whose instant is its start protects memory from writes through this process's page tables. Where
//! something writes that they do not see, the save is refused by its name, before anything stands still:
//! the image would have two instants.

use crate::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Sink, When};
use crate::error::{Kind, Result};
use crate::memory::{Map, Whose};
use crate::snapshot::testing::*;
use crate::snapshot::{SaveInstant, SaveParams};
use crate::vmm::device::{Device, Left};
use std::sync::Arc;

/// A log of writers of some kind.
struct Writers(LogKind);

impl DirtyLog for Writers {
    fn kind(&self) -> LogKind {
        self.0
    }
    fn start(&mut self, _: &Map) -> Result<Initial> {
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> Result<()> {
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

/// A device; `true`: it writes by DMA, or as another process does that maps the memory.
struct Writer(bool);

impl Device for Writer {
    fn left(&self) -> Result<Left> {
        Ok(Left::default())
    }
    fn stop(&self) -> Result<()> {
        Ok(())
    }
    fn read_stopped(&self, _: &mut [u8]) -> Result<usize> {
        Ok(0)
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn load_stopped(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
    fn writes_unseen(&self) -> bool {
        self.0
    }
}

/// How a save of `here` at this instant ends.
fn saved(here: &World, instant: SaveInstant) -> Result<()> {
    let (directory, path) = place();
    let save = here.save(SaveParams {
        instant,
        ..SaveParams::default()
    });
    save.start(&path).unwrap();
    let ended = save.wait(Some(LONG));
    assert_eq!(names(directory.path()).is_empty(), ended.is_err());
    ended
}

/// Refused by a sentence with these words, and nothing has stood still. The end can be saved.
fn refused(here: &World, words: &[&str]) {
    let error = saved(here, SaveInstant::Start).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error}");
    }
    let calls = here.notes.calls();
    let disturbed = ["pause", "resume", "save", "early_save"];
    assert!(
        !calls.iter().any(|call| disturbed.contains(&call.as_str())),
        "{calls:?}"
    );
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
    saved(here, SaveInstant::End).unwrap();
}

#[test]
fn logs_of_vhost_vfio_and_iommufd_refuse_a_save_of_the_start_by_name_before_the_pause() {
    for (kind, how) in [
        (LogKind::Vhost, "mappings of another process"),
        (LogKind::Vfio, "by DMA"),
        (LogKind::Iommufd, "by DMA"),
    ] {
        let here = world_of(FEW, Notes::default());
        here.tracker.add_log(Box::new(Writers(kind))).unwrap();
        refused(&here, &[kind.name(), how, "as it is at the end"]);
    }
}

#[test]
fn a_device_that_writes_unseen_refuses_a_save_of_the_start_by_name_before_the_pause() {
    let here = world_of(FEW, Notes::default());
    let add = |name, unseen| {
        let device = Arc::new(Writer(unseen));
        here.memory.devices().add(name, 3, 1, device).unwrap();
    };
    add("harmless", false);
    saved(&here, SaveInstant::Start).unwrap();
    here.notes.calls.lock().unwrap().clear();
    add("back-end", true);
    refused(&here, &["back-end", "3", "page tables do not see"]);
}
