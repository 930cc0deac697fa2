//! Equal memory has no difference: over several lanes, with every encoding of pages, in memory of
//! every kind. Verifying touches no hole.

use super::{assert_equal, pair, verifying, PAGES};
use crate::support::kinds::{Area, HugePool, Made, HUGE, HUGE_KINDS, SMALL};
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::LONG;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::{BackingFile, BlockDescription, HostMemory, Memory};
use brant::migrate::{
    AcceptFrom, Blockers, Compression, ConnectTo, Incoming, Outgoing, PageChecksums, Params,
};
use brant::units::Bytes;
use brant::vmm::{Event, EventKind, Role, Vmm};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Moves the guest of `pair` over as many channels as the parameters say.
fn moved(pair: &Pair, params: &Params) -> (Arc<Outgoing>, Arc<Incoming>) {
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    let pairs = (0..params.channels).map(|_| socketpair());
    let (here, there) = pairs.unzip();
    inc.start(AcceptFrom::ConnectedAll(there)).unwrap();
    out.start(ConnectTo::ConnectedAll(here)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    (out, inc)
}

#[test]
fn a_guest_that_writes_until_it_is_paused_verifies() {
    for channels in [1, 2, 5] {
        for (what, params) in [
            ("plain", verifying()),
            (
                "checksums",
                Params {
                    page_checksums: PageChecksums::On,
                    ..verifying()
                },
            ),
            (
                "compressed",
                Params {
                    compression: Compression::Always,
                    ..verifying()
                },
            ),
            (
                "deltas",
                Params {
                    delta_cache_bytes: Some(16 << 20),
                    ..verifying()
                },
            ),
        ] {
            let what = format!("{what}, {channels} channels");
            let pair = pair();
            // What was there before must not be seen.
            pair.destination.fill(2);
            pair.source.writers(2, Duration::from_micros(200));
            pair.source.wait_goes_on(0);
            let params = Params { channels, ..params };
            let (out, inc) = moved(&pair, &params);
            pair.assert_sound(&what);
            let stats = assert_equal(&pair, &out, 0, &what);
            assert!(stats.verify.is_some() && inc.stats().digest.is_some());
            assert_eq!(stats.progress, 10_000, "{what}");
            let states = pair.from.states();
            let last: Vec<_> = states.iter().rev().take(2).rev().collect();
            assert_eq!(last, ["verifying", "completed"], "{what}");
            let end = pair.from.events(EventKind::Completed);
            let said = format!("{PAGES} pages verified, 0 of them differ");
            assert!(end[0].contains(&said), "{what}: {end:?}");
        }
    }
}

#[test]
fn without_verifying_nothing_is_compared() {
    let pair = pair();
    let (out, inc) = start(&pair, &quick());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    let stats = out.stats();
    assert_eq!((stats.verified_pages, stats.unverified_pages), (0, 0));
    assert_eq!((stats.verify, stats.digest), (None, None));
    assert_eq!((inc.stats().verify, inc.stats().digest), (None, None));
    assert!(!pair.from.states().contains(&"verifying".to_owned()));
}

#[test]
fn only_the_source_says_that_a_migration_is_verified() {
    let pair = pair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &verifying()));
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.stats().verified_pages, 0);
}

/// A machine that does nothing but hear.
#[derive(Default)]
struct Machine {
    told: Mutex<Vec<String>>,
    roles: Mutex<Vec<Role>>,
}

impl Vmm for Machine {
    fn pause(&self) -> brant::Result<()> {
        Ok(())
    }
    fn run(&self) -> brant::Result<()> {
        Ok(())
    }
    fn event(&self, event: &Event) {
        if matches!(event.kind, EventKind::Warning | EventKind::Mismatch) {
            self.told.lock().unwrap().push(event.message.clone());
        }
    }
    fn thread_start(&self, role: Role) {
        self.roles.lock().unwrap().push(role);
    }
}

fn memory(area: &Area) -> Arc<Memory> {
    let memory = Arc::new(Memory::new().unwrap());
    // SAFETY: the test's own mapping, which lives until the migration is over.
    let host = unsafe { HostMemory::new(area.at) };
    let file = area.file.as_ref().filter(|_| area.made.is_told());
    memory
        .add_block(BlockDescription {
            page_size: Bytes(area.made.page_size() as u64),
            file: file.map(|file| BackingFile {
                fd: file.try_clone().unwrap().into(),
                offset: 0,
            }),
            ..BlockDescription::new("ram", host, Bytes(area.length as u64))
        })
        .unwrap();
    memory
}

/// Moves a guest of one kind of memory that has touched little of it. Returns how much memory the
/// destination took, and the source's figures.
fn move_kind(made: Made, verify: bool) -> Option<(usize, brant::migrate::Stats)> {
    let length = 8 * HUGE;
    let (from, to) = (Area::new(made, length)?, Area::new(made, length)?);
    for page in [0, 7, 600, 601, 602, from.pages() - 1] {
        from.write(page, 0x5a);
    }
    // A page of zeros that was written.
    from.write(1100, 0);
    let tracker = Tracker::new(memory(&from), Clearing::default()).unwrap();
    let (here, there) = (Arc::<Machine>::default(), Arc::<Machine>::default());
    let params = Params {
        verify,
        channels: 2,
        ..quick()
    };
    let out = Outgoing::new(tracker, Blockers::new(), here.clone(), params).unwrap();
    let inc = Incoming::new(memory(&to), there.clone(), quick()).unwrap();
    let (a, b) = (0..2).map(|_| socketpair()).unzip();
    inc.start(AcceptFrom::ConnectedAll(b)).unwrap();
    out.start(ConnectTo::ConnectedAll(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    for machine in [&here, &there] {
        assert_eq!(*machine.told.lock().unwrap(), Vec::<String>::new());
    }
    let roles = there.roles.lock().unwrap();
    let digests = roles.iter().filter(|role| **role == Role::Digest).count();
    // 16 MiB are one piece, for one thread.
    assert_eq!(digests, 0);
    Some((to.backed(), out.stats()))
}

fn kind_verifies_and_touches_no_hole(made: Made) {
    let Some((without, _)) = move_kind(made, false) else {
        eprintln!("skipped: no memory of kind {made:?}");
        return;
    };
    let (with, stats) = move_kind(made, true).unwrap();
    // How many blocks of a disk hold a file is the file system's affair.
    if made != Made::Disk {
        assert_eq!(with, without, "{made:?}: memory that the destination took");
    }
    assert_eq!(stats.verified_pages, (8 * HUGE / 4096) as u64, "{made:?}");
    assert_eq!(stats.mismatched_pages, 0, "{made:?}");
}

#[test]
fn memory_of_every_kind_verifies_and_its_holes_stay_untouched_at_the_destination() {
    for made in SMALL {
        kind_verifies_and_touches_no_hole(made);
    }
}

#[test]
fn huge_pages_verify_and_no_huge_page_is_taken_for_a_hole() {
    let Some(_pool) = HugePool::new(16) else {
        return;
    };
    for made in HUGE_KINDS {
        kind_verifies_and_touches_no_hole(made);
    }
}
