//! [`Served`]: how the service of a guest's memory begins and ends.

use super::faulting;
use super::kind::Way;
use super::kind::{self, Checked};
use super::marks::Marks;
use super::meter::Faulted;
use super::placing::{Absent, Inner, Other, Theirs, Watched};
use super::supplier::{Place, Supplier};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::block::{Block, BlockPin};
use crate::memory::holds::Holder;
use crate::memory::map::Memory;
use crate::runtime::{spawn, Cancel, Join, Role};
use crate::sys::event;
use crate::sys::mem;
use crate::sys::uffd::Faults;
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{mpsc, Arc, Mutex, MutexGuard};

/// Tells the VMM of the thread that serves faults, on that thread. An error ends the beginning.
pub type Announce = Box<dyn FnOnce(Role) -> Result<()> + Send>;

/// How memory is served.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// Old contents of absent pages are punched out of the files of shared memory. Necessary where
    /// other processes map that memory, and their userfaultfds tell of missing pages only: they
    /// would find the old contents without a fault.
    pub punch: bool,
}

/// A guest's memory of which some is not here. See the module's description. Any thread may call
/// any method, unless it says otherwise.
///
/// When this is dropped while pages are absent, those pages are given up first
/// ([`Served::lose`]): an access raises a signal, and never finds wrong contents.
pub struct Served {
    inner: Arc<Inner>,
    thread: Mutex<Option<Join<()>>>,
    stop: Cancel,
    changed: Arc<OwnedFd>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Served({} pages absent)", self.left())
    }
}

impl Served {
    /// Whether every block of `memory` can be served here. Call it before the guest is paused.
    /// Registers pages of the memory for a moment, so no other userfaultfd may be registered for it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] names what is missing, or the block and the reason;
    /// [`Kind::Exists`] a block that another userfaultfd watches.
    pub fn check(memory: &Memory) -> Result<Checked> {
        Checked::all(memory)
    }

    /// Takes the absent pages away and begins to serve faults. No thread but brant's may touch the
    /// memory during the call. When the call returns, the guest may run. Only the blocks in `absent`
    /// are watched. `supplier` may be called before the return.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for absent pages that are not whole huge pages, or of a block that is not in
    /// the map; those of [`Served::check`]; that of `announce`. After an error of the kernel's some
    /// absent pages may have been taken away, so the memory holds no guest.
    pub fn begin(
        memory: &Arc<Memory>,
        checked: &Checked,
        absent: Vec<Absent>,
        how: How,
        supplier: Arc<dyn Supplier>,
        announce: Announce,
    ) -> Result<Arc<Served>> {
        let own = Faults::open()?;
        let holder = Arc::new(Holder {
            who: "a guest whose memory is still arriving".to_owned(),
            until: "all of it is here",
        });
        let mut blocks = Vec::new();
        let mut left = 0;
        for Absent { block, pages } in absent {
            let mut kind = checked.of(&own, &block)?;
            if how.punch && kind.way == Way::Overwrite {
                kind.way = Way::Holes;
            }
            let invalid = |what: String| {
                let name = block.name();
                Err(Error::new(Kind::Invalid, format!("block `{name}`: {what}")))
            };
            if pages.len() as u64 != block.pages().0 {
                let (has, found) = (block.pages(), pages.len());
                return invalid(format!("{has} pages, but marks for {found}"));
            }
            let mut at = 0;
            while let Some(run) = pages.next_run(at..pages.len()) {
                at = run.end;
                let unit = kind.unit.index();
                if !run.start.is_multiple_of(unit) || !run.end.is_multiple_of(unit) {
                    return invalid(format!(
                        "its pages {} to {} are absent, which are not whole huge pages of {unit} pages",
                        run.start, run.end
                    ));
                }
                left += run.len() as u64;
            }
            let Some(pin) = BlockPin::hold(&block, &holder)?
                .filter(|_| memory.with_map(|map| map.block(block.id()).is_some()))
            else {
                return invalid("it was removed".to_owned());
            };
            let marks = Marks::new(pages, kind.unit)?;
            fallible::push(&mut blocks, Watched::new(pin, marks, kind), "blocks")?;
        }
        blocks.sort_unstable_by_key(|it| it.block.host() as u64);
        let cannot = |e| Error::os("an eventfd for faults", e);
        let changed = Arc::new(event::eventfd().map_err(cannot)?);
        let inner = Arc::new(Inner::new(Arc::clone(memory), blocks, own, left, supplier)?);
        let served = Served {
            inner,
            thread: Mutex::new(None),
            stop: Cancel::new()?,
            changed,
        };
        served.start(announce)?;
        served.take_over().inspect_err(|_| served.let_go())?;
        Ok(Arc::new(served))
    }

    /// Starts the thread, and returns when the VMM knows of it.
    fn start(&self, announce: Announce) -> Result<()> {
        let (tell, told) = mpsc::channel();
        let (inner, stop) = (Arc::clone(&self.inner), self.stop.clone());
        let changed = Arc::clone(&self.changed);
        let work = move || {
            let result = crate::runtime::catch(|| announce(Role::Fault)).and_then(|told| told);
            let goes_on = result.is_ok();
            let _ = tell.send(result);
            if goes_on {
                faulting::serve(&inner, &stop, &changed);
            }
        };
        *self.thread() = Some(spawn(Role::Fault, |_| (), work)?);
        let ended = |_| Error::new(Kind::Internal, "the thread that serves faults has ended");
        told.recv().map_err(ended)?
    }

    /// Has the kernel tell of faults, and takes absent pages away, in this order: a thread that
    /// touches a page in between waits instead of finding zeros.
    fn take_over(&self) -> Result<()> {
        for watched in &self.inner.blocks {
            let (block, kind) = (&watched.block, &watched.kind);
            mem::forbid_huge_pages(block.host(), block.length().0 as usize);
            self.inner
                .own
                .register(watched.addresses(), kind.way.modes())?;
        }
        for watched in &self.inner.blocks {
            let next = |at| watched.marks.next_absent(at..watched.block.pages().0);
            kind::take_away(&watched.block, &watched.kind, next)
                .map_err(|e| e.context(format_args!("block `{}`", watched.block.name())))?;
        }
        Ok(())
    }

    fn thread(&self) -> MutexGuard<'_, Option<Join<()>>> {
        self.thread.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What puts pages into the memory.
    pub fn here(&self) -> &dyn Place {
        &*self.inner
    }

    /// [`Place::place`].
    ///
    /// # Errors
    /// Those of [`Place::place`].
    pub fn place(&self, block: &Block, first: Pages, contents: &[u8]) -> Result<Pages> {
        self.here().place(block, first, contents)
    }

    /// [`Place::place_zeros`].
    ///
    /// # Errors
    /// Those of [`Place::place`].
    pub fn place_zeros(&self, block: &Block, pages: Range<Pages>) -> Result<Pages> {
        self.here().place_zeros(block, pages)
    }

    /// Whether a page has not arrived. `false` for a block that is not served.
    pub fn is_absent(&self, block: &Block, page: Pages) -> bool {
        let watched = self.inner.watched(block.id());
        watched.is_some_and(|(_, it)| page < block.pages() && it.marks.is_absent(page.0))
    }

    /// The first run of absent pages of a block in `within`. Pages that arrive meanwhile may be in it.
    pub fn next_absent(&self, block: &Block, within: Range<Pages>) -> Option<Range<Pages>> {
        let (_, watched) = self.inner.watched(block.id())?;
        let run = watched.marks.next_absent(within.start.0..within.end.0)?;
        Some(Pages(run.start)..Pages(run.end))
    }

    /// How many pages are absent.
    pub fn left(&self) -> Pages {
        Pages(self.inner.left.load(Ordering::Acquire))
    }

    /// Asks the supplier once more for every page that a thread waits for, on the calling thread: the
    /// supplier had lost its connections, and has new ones.
    pub fn ask_again(&self) {
        for watched in &self.inner.blocks {
            let mut at = 0;
            while let Some(run) = watched.marks.next_waiting(at..watched.block.pages().0) {
                at = run.end;
                let pages = Pages(run.start)..Pages(run.end);
                self.inner.supplier.wanted(&watched.shared, pages);
            }
        }
        self.inner.supplier.all_wanted();
    }

    /// [`Place::lose`].
    ///
    /// # Errors
    /// Those of [`Place::place`].
    pub fn lose(&self, block: &Block, pages: Range<Pages>) -> Result<Pages> {
        self.here().lose(block, pages)
    }

    /// Serves faults that another process's userfaultfd tells of too, until this is dropped. `map`
    /// says what is where in that process.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a part that is not inside of a shared block that is served, or overlaps
    /// another one.
    pub fn add_uffd(&self, faults: Faults, map: Vec<Theirs>) -> Result<()> {
        let mut known = Vec::new();
        for theirs in map {
            let invalid = |why: String| Err(Error::new(Kind::Invalid, why));
            let Range { start, end } = theirs.addresses;
            let pages = Pages(end.saturating_sub(start) / PAGE_SIZE);
            let Some((number, watched)) = self.inner.watched(theirs.block) else {
                let id = theirs.block;
                return invalid(format!("block number {id} is not served by fault"));
            };
            let (name, unit) = (watched.block.name(), watched.kind.unit.bytes().0);
            if watched.kind.way == Way::Private {
                return invalid(format!(
                    "block `{name}` is private memory, which no other process can map"
                ));
            }
            let inside = theirs.first.0.checked_add(pages.0);
            if start >= end
                || inside.is_none_or(|end| end > watched.block.pages().0)
                || [start, end, theirs.first.bytes().0]
                    .iter()
                    .any(|it| !it.is_multiple_of(unit))
            {
                return invalid(format!(
                    "expected addresses and a first page that are multiples of {unit} bytes, inside of \
                     block `{name}` ({} pages); found {start:#x}..{end:#x}, from page {}",
                    watched.block.pages(),
                    theirs.first
                ));
            }
            fallible::push(&mut known, (theirs, number), "parts of a block")?;
        }
        known.sort_unstable_by_key(|(theirs, _)| theirs.addresses.start);
        let pairs = known.iter().zip(known.iter().skip(1));
        for ((one, _), (next, _)) in pairs {
            if one.addresses.end > next.addresses.start {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("{:#x} is mapped twice", next.addresses.start),
                ));
            }
        }
        let mut others = self.inner.others.write().unwrap_or_else(|e| e.into_inner());
        let mut all = Vec::new();
        fallible::reserve(&mut all, others.len() + 1, "userfaultfds")?;
        let old = std::mem::take(&mut *others);
        // The fault thread may hold the old list until its next round.
        match Arc::try_unwrap(old) {
            Ok(old) => all.extend(old),
            Err(old) => all.extend(old.iter().cloned()),
        }
        all.push(Arc::new(Other { faults, map: known }));
        *others = Arc::new(all);
        drop(others);
        event::eventfd_raise(self.changed.as_fd())
            .map_err(|e| Error::os("telling the thread that serves faults", e))
    }

    /// Ends the service of this process's faults: all pages are here. Transparent huge pages are
    /// allowed again where they were. Faults that [`Served::add_uffd`] has brought are served on
    /// until this is dropped. May be called again. Not on the thread that serves faults.
    ///
    /// # Errors
    /// [`Kind::Busy`] with the number of pages that are absent.
    pub fn finish(&self) -> Result<()> {
        let left = self.left();
        if left.0 > 0 {
            let what = format!("{left} pages of the guest's memory have not arrived");
            return Err(Error::new(Kind::Busy, what));
        }
        self.let_go();
        Ok(())
    }

    /// Ends the service of a guest that never ran here and never will. No page is given up: the
    /// memory holds nothing of use, and can take another guest. Threads that wait go on. Not on the
    /// thread that serves faults.
    pub fn abandon(&self) {
        self.let_go();
    }

    /// The kernel tells of faults no longer.
    fn let_go(&self) {
        let mut thread = self.thread();
        if !self.inner.ended.swap(true, Ordering::AcqRel) {
            for watched in &self.inner.blocks {
                // What was never registered is refused, and nothing is lost by that.
                let _ = self.inner.own.unregister(watched.addresses());
                for part in &watched.kind.huge {
                    let length = (part.end - part.start) as usize;
                    mem::prefer_huge_pages(part.start as *const u8, length);
                }
            }
        }
        if self.inner.others().is_empty() {
            self.stop.cancel();
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }

    /// The figures at this moment.
    pub fn figures(&self) -> Faulted {
        self.inner.meter.figures()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.left().0 > 0 && !self.inner.ended.load(Ordering::Acquire) {
            for (number, watched) in self.inner.blocks.iter().enumerate() {
                // Nothing better can be done about an error than to go on.
                let _ = self.inner.lose(number, 0..watched.block.pages().0, false);
            }
        }
        *self.inner.others.write().unwrap_or_else(|e| e.into_inner()) = Arc::default();
        self.let_go();
        self.inner.memory.ownership().set_left(0);
    }
}
