//! What has become of each part of guest memory since the instant, and what to do about a fault.
//! Pure: no system call, no guest memory, no lock.
//!
//! Memory is divided into *units*: 2 MiB of a block, or one page of a larger size. A unit is
//! *waiting* (protected), then *being written* (its pages are read), then *done* (its protection is
//! lifted, or about to be). The walk takes one unit after the other. A page of a waiting unit that
//! the guest touches first is *kept*: as a copy if the guest writes it, as a note if it was a hole,
//! which the guest now fills.
//!
//! Why a fault in a unit that is being written is left alone: its page may be half read. The thread
//! waits until the whole unit is read, which is a millisecond, and is woken with the rest of the
//! unit. So nobody is woken twice or never: a unit is marked as done *before* its protection is
//! lifted and its threads are woken. A thread that faults after the wake-up finds it done.
//!
//! Example of a loss without the note of a hole: page 5 is a hole. The guest reads it, and gets a
//! page of zeros without protection. The guest writes it. The walk comes to page 5, finds contents,
//! and the image has a page that was written after the instant.

use super::super::sequence::Sequence;
use super::copies::{Copies, Slot};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::units::{Bytes, Pages, PAGE_SIZE, STRETCH_PAGES};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// A unit: the number of its block here, and its number in the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Unit {
    pub(super) area: usize,
    pub(super) number: usize,
}

/// What has become of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Waiting,
    /// Waiting, and in the list of those that somebody waits for.
    Wanted,
    Written,
    Done,
}

impl Is {
    fn waits(self) -> bool {
        matches!(self, Is::Waiting | Is::Wanted)
    }
}

/// A fault, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched {
    pub(super) address: u64,
    /// The page is there and protected. Otherwise it is not there.
    pub(super) protected: bool,
    /// The thread that waits is the walk's own: inside an operation of the VMM's before the walk has
    /// begun, or reading.
    pub(super) by_walk: bool,
}

/// What is to be done about a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Fill the page with zeros, and wake its threads.
    Zero(Range<u64>),
    /// Lift the page's protection, and wake its threads.
    Unprotect(Range<u64>),
    /// Wake the threads: there is nothing to wait for any more.
    Wake(Range<u64>),
    /// Nothing. The threads are woken when the unit is done.
    Leave,
}

/// A page that the guest has touched before the walk came. `copy` is `None` for a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) page: Pages,
    pub(super) copy: Option<Slot>,
}

/// The kept pages of one unit.
#[derive(Debug, Default)]
struct KeptPages {
    is_kept: [u64; (STRETCH_PAGES / 64) as usize],
    list: Vec<Kept>,
}

impl KeptPages {
    fn has(&self, page: Pages) -> bool {
        let at = (page.0 % STRETCH_PAGES) as usize;
        self.is_kept[at / 64] & 1 << (at % 64) != 0
    }

    fn add(&mut self, kept: Kept) -> Result<()> {
        fallible::push(&mut self.list, kept, "pages that the guest wrote")?;
        let at = (kept.page.0 % STRETCH_PAGES) as usize;
        self.is_kept[at / 64] |= 1 << (at % 64);
        Ok(())
    }
}

/// One block.
#[derive(Debug)]
struct Area {
    name: String,
    start: u64,
    length: u64,
    /// Pages of the host behind the block, in bytes.
    page: u64,
    /// Bytes of a unit.
    unit: u64,
    units: Vec<Is>,
    /// Units at the beginning that are done.
    done: usize,
    /// Of writes. The walk lifts the protection of a whole unit, so the next fault may be as far on.
    sequence: Sequence,
}

impl Area {
    fn end(&self) -> u64 {
        self.start + self.length
    }

    fn units_of(&self, addresses: &Range<u64>) -> Range<usize> {
        if addresses.start >= self.end() || addresses.end <= self.start {
            return 0..0;
        }
        let from = addresses.start.max(self.start) - self.start;
        let to = addresses.end.min(self.end()) - self.start;
        (from / self.unit) as usize..to.div_ceil(self.unit) as usize
    }
}

/// What happened, for the statistics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    /// Faults since the instant.
    pub(super) faults: u64,
    /// Pages that were copied because the guest wrote them first.
    pub(super) copied: u64,
    /// Faults for which there was no room to copy.
    pub(super) held: u64,
}

/// See the file's description.
#[derive(Debug)]
pub(super) struct Ledger {
    areas: Vec<Area>,
    /// The areas' numbers, by address.
    by_address: Vec<usize>,
    /// The instant has come.
    armed: bool,
    /// The walk has begun.
    walking: bool,
    /// Units for which threads wait, because there was no room for copies.
    held: VecDeque<Unit>,
    /// Units of which pages are kept.
    urgent: VecDeque<Unit>,
    /// Where the walk is.
    at: Unit,
    kept: HashMap<Unit, KeptPages>,
    copies: Copies,
    left: Bytes,
    pub(super) tally: Tally,
}

impl Ledger {
    /// Nothing is watched yet. Copies take at most `copies` bytes.
    pub(super) fn new(copies: u64) -> Ledger {
        Ledger {
            areas: Vec::new(),
            by_address: Vec::new(),
            armed: false,
            walking: false,
            held: VecDeque::new(),
            urgent: VecDeque::new(),
            at: Unit { area: 0, number: 0 },
            kept: HashMap::new(),
            copies: Copies::new(copies),
            left: Bytes(0),
            tally: Tally::default(),
        }
    }

    /// Adds a block before the instant. Returns its number here.
    pub(super) fn add(&mut self, name: &str, memory: Range<u64>, page: u64) -> Result<usize> {
        let length = memory.end - memory.start;
        let unit = page.max(STRETCH_PAGES * PAGE_SIZE);
        let count = length.div_ceil(unit) as usize;
        let mut units = Vec::new();
        fallible::reserve(&mut units, count, "parts of guest memory")?;
        units.resize(count, Is::Waiting);
        let number = self.areas.len();
        let area = Area {
            name: name.to_owned(),
            start: memory.start,
            length,
            page,
            unit,
            units,
            done: 0,
            sequence: Sequence::new(STRETCH_PAGES),
        };
        fallible::reserve(&mut self.by_address, 1, "blocks of the guest")?;
        fallible::push(&mut self.areas, area, "blocks of the guest")?;
        let areas = &self.areas;
        let at = self
            .by_address
            .partition_point(|i| areas[*i].start < memory.start);
        self.by_address.insert(at, number);
        self.left += Bytes(length);
        Ok(number)
    }

    /// The instant: from now on pages are kept.
    pub(super) fn arm(&mut self) {
        self.armed = true;
    }

    /// At the instant: the units of a block, from an address on, of whose pages `wanted` says that the
    /// image needs none are done. Ends at the first that it needs, and returns the addresses of all
    /// that follow one another there; `None` at the end of the block.
    pub(super) fn leave_out(
        &mut self,
        area: usize,
        from: u64,
        wanted: impl Fn(Range<Pages>) -> bool,
    ) -> Option<Range<u64>> {
        let (start, end) = (self.areas[area].start, self.areas[area].end());
        let unit_bytes = self.areas[area].unit;
        let mut first = None;
        let mut number = ((from - start) / unit_bytes) as usize;
        while number < self.areas[area].units.len() {
            let unit = Unit { area, number };
            let address = start + number as u64 * unit_bytes;
            match (wanted(self.pages(unit)), first) {
                (true, None) => first = Some(address),
                (true, Some(_)) => {}
                (false, Some(first)) => return Some(first..address),
                (false, None) => {
                    self.done(unit, &[]);
                }
            }
            number += 1;
        }
        first.map(|first| first..end)
    }

    /// The walk begins.
    pub(super) fn walk(&mut self) {
        self.walking = true;
    }

    /// Whether threads wait for the walk, which has not begun.
    pub(super) fn waits_for_the_walk(&self) -> bool {
        !self.walking && !self.held.is_empty()
    }

    /// Bytes of memory that the walk has not come to.
    pub(super) fn left(&self) -> Bytes {
        self.left
    }

    /// The name of the block at an address.
    pub(super) fn name_at(&self, address: u64) -> Option<&str> {
        Some(&self.areas[self.area_at(address)?].name)
    }

    fn area_at(&self, address: u64) -> Option<usize> {
        let areas = &self.areas;
        let after = self
            .by_address
            .partition_point(|i| areas[*i].start <= address);
        let number = *self.by_address.get(after.checked_sub(1)?)?;
        (address < areas[number].end()).then_some(number)
    }

    /// What to do about a fault. `copy` reads the page, which is there and protected, into its
    /// argument.
    pub(super) fn touched(
        &mut self,
        touched: Touched,
        copy: impl FnOnce(&mut [u8]),
    ) -> Result<Answer> {
        let Some(number) = self.area_at(touched.address) else {
            let page = touched.address & !(PAGE_SIZE - 1);
            return Ok(Answer::Wake(page..page + PAGE_SIZE));
        };
        let area = &self.areas[number];
        let first = area.start + (touched.address - area.start) / area.page * area.page;
        let range = first..first + area.page;
        if !self.armed {
            return Ok(match touched.protected {
                true => Answer::Wake(range),
                false => Answer::Zero(range),
            });
        }
        self.tally.faults += 1;
        let at = Unit {
            area: number,
            number: ((first - area.start) / area.unit) as usize,
        };
        match area.units[at.number] {
            Is::Written if touched.by_walk => {
                return Err(Error::new(
                    Kind::State,
                    format!(
                        "block `{}`: a page has gone while it was read, {:#x} bytes from the start",
                        area.name,
                        first - area.start
                    ),
                ))
            }
            Is::Written => return Ok(Answer::Leave),
            Is::Done if touched.protected => return Ok(Answer::Wake(range)),
            Is::Done => return Ok(Answer::Zero(range)),
            Is::Waiting | Is::Wanted => {}
        }
        let page = Pages((first - area.start) / PAGE_SIZE);
        let small = area.page == PAGE_SIZE;
        // A thread may fault twice for one page, and two threads may.
        let known = small && self.kept.get(&at).is_some_and(|kept| kept.has(page));
        if !known {
            let slot = match touched.protected {
                true if small => self.copies.take(),
                _ => None,
            };
            if slot.is_none() && (touched.protected || !small) {
                if touched.by_walk {
                    return Err(no_room(&format!("block `{}`", area.name)));
                }
                self.tally.held += 1;
                self.wants(at)?;
                return Ok(Answer::Leave);
            }
            if let Some(slot) = slot {
                copy(self.copies.bytes_mut(slot));
                self.tally.copied += 1;
            }
            self.keep(at, Kept { page, copy: slot })?;
        }
        Ok(match touched.protected {
            true => Answer::Unprotect(range),
            false => Answer::Zero(range),
        })
    }

    /// Behind a fault for which a copy was made: copies of the pages behind it too, if faults come one
    /// behind the other, which the guest is likely to write next. `there` returns up to which address
    /// pages are there and can be read. Returns up to which address protection is to be lifted.
    ///
    /// A fault costs 15 to 80 us here, a copy half of one.
    pub(super) fn copy_ahead(
        &mut self,
        page: &Range<u64>,
        there: impl FnOnce(Range<u64>) -> u64,
        mut copy: impl FnMut(u64, &mut [u8]),
    ) -> Result<u64> {
        let Some(number) = self.area_at(page.start) else {
            return Ok(page.end);
        };
        let area = &self.areas[number];
        let first = (page.start - area.start) / PAGE_SIZE;
        let at = Unit {
            area: number,
            number: ((page.start - area.start) / area.unit) as usize,
        };
        if area.page != PAGE_SIZE || !area.units[at.number].waits() {
            return Ok(page.end);
        }
        let ahead = area.sequence.ahead_of(first);
        let most = self.pages(at).end.0.min(first + 1 + ahead);
        let kept = self.kept.get(&at);
        let is_kept = |page: &u64| kept.is_some_and(|kept| kept.has(Pages(*page)));
        let end = (first + 1..most).find(is_kept).unwrap_or(most);
        let start = area.start;
        let to = start + Pages(end).bytes().0;
        let to = if page.end < to {
            there(page.end..to)
        } else {
            to
        };
        let mut next = first + 1;
        while start + Pages(next).bytes().0 < to {
            let Some(slot) = self.copies.take_spare() else {
                break;
            };
            let bytes = self.copies.bytes_mut(slot);
            copy(start + Pages(next).bytes().0, bytes);
            self.tally.copied += 1;
            let page = Pages(next);
            self.keep(
                at,
                Kept {
                    page,
                    copy: Some(slot),
                },
            )?;
            next += 1;
        }
        self.areas[number].sequence.had(next, ahead);
        Ok(start + Pages(next).bytes().0)
    }

    fn keep(&mut self, at: Unit, kept: Kept) -> Result<()> {
        if !self.kept.contains_key(&at) {
            fallible::reserve_back(&mut self.urgent, 1, "parts of guest memory")?;
            fallible::insert(&mut self.kept, at, KeptPages::default(), "pages written")?;
            // The pages beside it are likely to be touched next, and its copies end when it is
            // written.
            self.urgent.push_back(at);
        }
        match self.kept.get_mut(&at) {
            Some(pages) => pages.add(kept),
            None => Err(Error::new(Kind::Internal, "a unit was not noted")),
        }
    }

    /// Somebody waits for this unit.
    fn wants(&mut self, at: Unit) -> Result<()> {
        if self.areas[at.area].units[at.number] == Is::Waiting {
            fallible::reserve_back(&mut self.held, 1, "parts of guest memory")?;
            self.held.push_back(at);
            self.areas[at.area].units[at.number] = Is::Wanted;
        }
        Ok(())
    }

    /// Has the units of a range of memory come first. Returns whether any of them is not done.
    pub(super) fn want(&mut self, memory: &Range<u64>) -> Result<bool> {
        if !self.armed {
            return Ok(false);
        }
        let mut any = false;
        for number in 0..self.areas.len() {
            for unit in self.areas[number].units_of(memory) {
                match self.areas[number].units[unit] {
                    Is::Waiting | Is::Wanted => {
                        any = true;
                        self.wants(Unit {
                            area: number,
                            number: unit,
                        })?;
                    }
                    Is::Written => any = true,
                    Is::Done => {}
                }
            }
        }
        Ok(any)
    }

    /// Memory that is being discarded: an error if the walk has not read all of it.
    pub(super) fn discarded(&self, memory: &Range<u64>) -> Result<()> {
        if !self.armed {
            return Ok(());
        }
        for area in &self.areas {
            let units = area.units_of(memory);
            if area.units[units].iter().any(|is| *is != Is::Done) {
                let from = memory.start.max(area.start) - area.start;
                let to = memory.end.min(area.end()) - area.start;
                return Err(Error::new(
                    Kind::State,
                    format!(
                        "block `{}`: bytes {from:#x} to {to:#x} were discarded before \
                         the image had them; while a save of this kind is in progress, the VMM \
                         tells brant before it discards memory (`before_discard`)",
                        area.name
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The next unit for the walk: one that somebody waits for, one of which pages are kept, or the
    /// next by address. `None` when all are done.
    pub(super) fn next(&mut self) -> Option<Unit> {
        for queue in [&mut self.held, &mut self.urgent] {
            while let Some(unit) = queue.pop_front() {
                if self.areas[unit.area].units[unit.number].waits() {
                    return Some(unit);
                }
            }
        }
        while let Some(area) = self.areas.get(self.at.area) {
            let rest = area.units[self.at.number..].iter();
            match rest.copied().position(Is::waits) {
                Some(ahead) => {
                    self.at.number += ahead;
                    return Some(self.at);
                }
                None => {
                    self.at = Unit {
                        area: self.at.area + 1,
                        number: 0,
                    };
                }
            }
        }
        None
    }

    /// The pages of a unit in its block.
    pub(super) fn pages(&self, unit: Unit) -> Range<Pages> {
        let area = &self.areas[unit.area];
        let first = unit.number as u64 * area.unit;
        let end = (first + area.unit).min(area.length);
        Pages(first / PAGE_SIZE)..Pages(end / PAGE_SIZE)
    }

    /// The walk begins to read a unit. Returns the pages that are kept, in order. Their copies stay
    /// until [`Ledger::done`].
    pub(super) fn begin(&mut self, unit: Unit) -> Vec<Kept> {
        self.areas[unit.area].units[unit.number] = Is::Written;
        let mut kept = self.kept.remove(&unit).unwrap_or_default().list;
        kept.sort_unstable_by_key(|kept| kept.page);
        kept
    }

    /// A copy, which the walk takes.
    pub(super) fn copy_of(&mut self, slot: Slot) -> &[u8] {
        self.copies.bytes_mut(slot)
    }

    /// All of a unit was read. The caller lifts the protection of the returned addresses next, and
    /// wakes their threads.
    pub(super) fn done(&mut self, unit: Unit, kept: &[Kept]) -> Range<u64> {
        for slot in kept.iter().filter_map(|kept| kept.copy) {
            self.copies.give_back(slot);
        }
        let pages = self.pages(unit);
        self.left = self.left - (pages.end - pages.start).bytes();
        let area = &mut self.areas[unit.area];
        area.units[unit.number] = Is::Done;
        while area.units.get(area.done) == Some(&Is::Done) {
            area.done += 1;
        }
        area.start + pages.start.bytes().0..area.start + pages.end.bytes().0
    }

    /// The addresses at the beginning of a block up to the first unit that is not done.
    pub(super) fn behind(&self, area: usize) -> Range<u64> {
        let area = &self.areas[area];
        area.start..area.start + (area.done as u64 * area.unit).min(area.length)
    }
}

/// An operation of the VMM's waits for a page, and the walk for the operation.
pub(super) fn no_room(block: &str) -> Error {
    Error::new(
        Kind::NoMemory,
        format!(
            "{block}: `resume` writes more guest memory than there is room for copies, and the save \
             goes on only when `resume` has returned; raise the limit (`max_copy_bytes`)"
        ),
    )
}

#[cfg(test)]
mod tests;
