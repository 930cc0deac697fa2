//! I/O virtual addresses: which of them devices may write, which guest memory they show, and how a
//! bitmap of them becomes pages. The logs of VFIO and iommufd share this file.
//!
//! A log is asked mapping by mapping. If each change of the memory map asked for all mappings,
//! plugging thousands of slots would cost their square. So a change reads the mappings that go
//! (`Reader::harvest_of`), and changes the list of mappings by the difference (`Reader::follow`).
//!
//! This file is no log itself, and no vIOMMU: the VMM says which ranges there are.

use super::{Extent, Origin, Sink};
use crate::bits::words;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::{BlockId, Map, Slot, NO_SLOT};
use crate::sys::kvm::MEM_READONLY;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The most ranges that a VMM may give.
pub const RANGES_MAX: usize = 65536;
/// Pages asked for in one call, where a log accepts parts of a mapping: 64 GiB in pages of 4 KiB, a
/// bitmap of 2 MiB.
const PAGES_A_CALL: u64 = 1 << 24;
/// What an error about memory calls a list of them.
const RANGES: &str = "ranges of IOVAs";

/// The memory that a range of IOVAs shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaTarget {
    /// Guest-physical memory, from this address on.
    Guest(GuestAddress),
    /// A block, from this offset on.
    Block {
        /// The block.
        block: BlockId,
        /// The offset in bytes.
        offset: Bytes,
    },
}

/// A range of IOVAs that a device may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaRange {
    /// The first address, page-aligned.
    pub iova: u64,
    /// The length in bytes: whole pages, not 0.
    pub length: Bytes,
    /// The memory that it shows.
    pub target: DmaTarget,
}

impl DmaRange {
    fn iovas(&self) -> Range<u64> {
        self.iova..self.iova + self.length.0
    }

    /// The place in the guest of the page at `iova`, which lies in the range.
    fn origin(&self, iova: u64) -> Origin {
        let into = iova - self.iova;
        match self.target {
            DmaTarget::Guest(start) => Origin::Guest(GuestAddress(start.0 + into)),
            DmaTarget::Block { block, offset } => Origin::Block {
                block,
                page: Bytes(offset.0 + into).pages_down(),
            },
        }
    }
}

/// How IOVAs lead to guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Iovas {
    /// An IOVA is a guest physical address, and each writable slot of the map is one mapping.
    Guest,
    /// These ranges, sorted by IOVA, without overlaps; each is one mapping.
    Ranges(Vec<DmaRange>),
}

/// Whether devices see a slot: it is writable, and in the first address space.
fn is_mapped(slot: &Slot) -> bool {
    let first = slot.slot == NO_SLOT || slot.slot >> 16 == 0;
    first && slot.flags & MEM_READONLY == 0 && !slot.rom
}

impl Iovas {
    /// IOVAs that lead where the ranges say.
    pub fn ranges(mut ranges: Vec<DmaRange>) -> Result<Self> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        if ranges.is_empty() || ranges.len() > RANGES_MAX {
            return invalid(format!(
                "1 to {RANGES_MAX} DMA ranges, not {}",
                ranges.len()
            ));
        }
        for r in &ranges {
            let (what, at) = match r.target {
                DmaTarget::Guest(address) => ("guest address", address.0),
                DmaTarget::Block { offset, .. } => ("offset in its block", offset.0),
            };
            let aligned = (r.iova | r.length.0 | at).is_multiple_of(PAGE_SIZE);
            if !aligned || r.length.0 == 0 {
                return invalid(format!(
                    "a DMA range has whole pages of {PAGE_SIZE} bytes and is not empty; found \
                     IOVA {:#x}, length {:#x}, {what} {at:#x}",
                    r.iova, r.length.0
                ));
            }
            if r.iova.checked_add(r.length.0).is_none() || at.checked_add(r.length.0).is_none() {
                return invalid(format!(
                    "a DMA range wraps around: IOVA {:#x}, length {:#x}, {what} {at:#x}",
                    r.iova, r.length.0
                ));
            }
        }
        ranges.sort_by_key(|r| r.iova);
        for pair in ranges.windows(2) {
            if pair[0].iovas().end > pair[1].iova {
                return invalid(format!(
                    "two DMA ranges overlap: IOVA {:#x} to {:#x}, and from {:#x} on",
                    pair[0].iova,
                    pair[0].iovas().end,
                    pair[1].iova
                ));
            }
        }
        Ok(Iovas::Ranges(ranges))
    }

    /// The ranges of IOVAs as they are mapped for DMA, in order.
    pub(super) fn mapped(&self, map: &Map) -> Result<Vec<Range<u64>>> {
        match self {
            // Slots come in order of guest addresses.
            Iovas::Guest => self.mapped_by(map.slots().iter()),
            Iovas::Ranges(ranges) => fallible::collect(ranges.iter().map(DmaRange::iovas), RANGES),
        }
    }

    /// The ranges that are mapped for these slots, and that come and go with them.
    pub(super) fn mapped_by<'a>(
        &self,
        slots: impl Iterator<Item = &'a Slot>,
    ) -> Result<Vec<Range<u64>>> {
        match self {
            Iovas::Guest => fallible::collect(
                slots.filter(|slot| is_mapped(slot)).map(Slot::guest_range),
                RANGES,
            ),
            // The VMM's ranges are there whatever the map is.
            Iovas::Ranges(_) => Ok(Vec::new()),
        }
    }

    /// The ranges that show any part of these slots.
    pub(super) fn showing(&self, slots: &[Arc<Slot>]) -> Result<Vec<Range<u64>>> {
        let ranges = match self {
            Iovas::Guest => return self.mapped_by(slots.iter().map(|slot| &**slot)),
            Iovas::Ranges(_) if slots.is_empty() => return Ok(Vec::new()),
            Iovas::Ranges(ranges) => ranges,
        };
        let shows = |range: &&DmaRange| match range.target {
            DmaTarget::Guest(from) => slots.iter().map(|slot| slot.guest_range()).any(|slot| {
                let to = from.0 + range.length.0;
                slot.start < to && from.0 < slot.end
            }),
            DmaTarget::Block { block, .. } => slots.iter().any(|slot| slot.block == block),
        };
        fallible::collect(ranges.iter().filter(shows).map(DmaRange::iovas), RANGES)
    }

    /// Passes on the pages of blocks that the IOVAs show.
    pub(super) fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        let mut guest = |from: GuestAddress, length: u64| {
            for part in map.block_parts(from, Bytes(length).pages_down()) {
                each(Extent {
                    block: part.block,
                    pages: part.first.0..part.first.0 + part.pages.0,
                });
            }
        };
        match self {
            Iovas::Guest => {
                for slot in map.slots().iter().filter(|slot| is_mapped(slot)) {
                    guest(slot.guest_address, slot.pages.bytes().0);
                }
            }
            Iovas::Ranges(ranges) => {
                for range in ranges {
                    if let DmaTarget::Guest(from) = range.target {
                        guest(from, range.length.0);
                    }
                }
                for range in ranges {
                    let DmaTarget::Block { block, offset } = range.target else {
                        continue;
                    };
                    let all = map.block(block).map_or(0, |b| b.pages().0);
                    let first = offset.pages_down().0.min(all);
                    let end = first.saturating_add(range.length.pages_down().0).min(all);
                    each(Extent {
                        block,
                        pages: first..end,
                    });
                }
            }
        }
    }

    /// Reports every page that the IOVAs show.
    pub(super) fn everything(&self, map: &Map, sink: &mut dyn Sink) {
        self.covered(map, &mut |extent| extent.everything(sink));
    }

    /// The ranges that have a part of `iovas`.
    fn touching(ranges: &[DmaRange], iovas: Range<u64>) -> &[DmaRange] {
        let from = ranges.partition_point(|r| r.iovas().end <= iovas.start);
        let to = ranges.partition_point(|r| r.iova < iovas.end);
        &ranges[from..to.max(from)]
    }

    /// Reports pages by a bitmap that has one bit for each `page_size` bytes from `iova` on. A
    /// larger page stands for all pages of 4096 bytes in it.
    fn deliver(&self, sink: &mut dyn Sink, iova: u64, bitmap: &[u64], pages: u64, page_size: u64) {
        if page_size > PAGE_SIZE {
            let mut at = 0;
            while let Some(first) = words::next_set(bitmap, at, pages as usize) {
                let end =
                    words::next_clear(bitmap, first, pages as usize).unwrap_or(pages as usize);
                let from = iova + first as u64 * page_size;
                self.all_of(sink, from..iova + end as u64 * page_size);
                at = end;
            }
            return;
        }
        let ranges = match self {
            Iovas::Guest => return sink.bitmap(Origin::Iova(iova), bitmap, Pages(pages)),
            Iovas::Ranges(ranges) => ranges,
        };
        let all = iova..iova + pages * PAGE_SIZE;
        for range in Self::touching(ranges, all.clone()) {
            let from = range.iova.max(all.start);
            let to = range.iovas().end.min(all.end);
            let skip = ((from - iova) / PAGE_SIZE) as usize;
            let pages = (to - from) / PAGE_SIZE;
            // The range begins inside a word of the bitmap: the head is shifted down, and the rest
            // goes word by word.
            let head = match skip % 64 {
                0 => 0,
                within => {
                    let head = (64 - within as u64).min(pages);
                    sink.bitmap(
                        range.origin(from),
                        &[bitmap[skip / 64] >> within],
                        Pages(head),
                    );
                    head
                }
            };
            if head < pages {
                sink.bitmap(
                    range.origin(from + head * PAGE_SIZE),
                    &bitmap[skip.div_ceil(64)..],
                    Pages(pages - head),
                );
            }
        }
    }

    /// Reports every page that a range of IOVAs shows.
    pub(super) fn all_of(&self, sink: &mut dyn Sink, iovas: Range<u64>) {
        let ranges = match self {
            Iovas::Guest => {
                let pages = Bytes(iovas.end - iovas.start).pages_down();
                return sink.everything(Origin::Iova(iovas.start), pages);
            }
            Iovas::Ranges(ranges) => ranges,
        };
        for range in Self::touching(ranges, iovas.clone()) {
            let from = range.iova.max(iovas.start);
            let to = range.iovas().end.min(iovas.end);
            sink.everything(range.origin(from), Bytes(to - from).pages_down());
        }
    }
}

/// Rounds sorted ranges out to `page_size`, and joins those that touch then. Otherwise one page of
/// the device's could be part of two ranges, and a report on the first would clear the bit that the
/// second needs.
pub(super) fn round_out(ranges: &[Range<u64>], page_size: u64) -> Result<Vec<Range<u64>>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let start = range.start / page_size * page_size;
        let Some(end) = range.end.checked_next_multiple_of(page_size) else {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "IOVA {:#x} to {:#x} cannot be rounded out to pages of {page_size} bytes",
                    range.start, range.end
                ),
            ));
        };
        match out.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => fallible::push(&mut out, start..end, RANGES)?,
        }
    }
    Ok(out)
}

/// At most `most` ranges that hold all of these sorted ones. The ranges with the smallest gaps
/// between them are joined.
pub(super) fn at_most(mut ranges: Vec<Range<u64>>, most: usize) -> Result<Vec<Range<u64>>> {
    if ranges.len() <= most || most == 0 {
        return Ok(ranges);
    }
    let gap = |i: usize| ranges[i + 1].start - ranges[i].end;
    let mut gaps = fallible::collect(0..ranges.len() - 1, RANGES)?;
    gaps.sort_unstable_by_key(|&i| gap(i));
    // The smallest gaps are closed, as many as there are ranges too many.
    let mut close = fallible::collect(ranges.iter().map(|_| false), RANGES)?;
    for &i in &gaps[..ranges.len() - most] {
        close[i + 1] = true;
    }
    let mut i = 0;
    ranges.dedup_by(|next, last| {
        i += 1;
        if close[i] {
            last.end = next.end;
        }
        close[i]
    });
    Ok(ranges)
}

/// Asks a log for its bitmaps, range by range.
pub(super) struct Reader {
    /// The end of each range, by its beginning.
    spans: BTreeMap<u64, u64>,
    page_size: u64,
    whole: bool,
    pages_a_call: u64,
    bitmap: Vec<u64>,
}

impl Reader {
    /// A reader of `spans`, which are multiples of `page_size`. Long ones are read in parts, unless
    /// `whole`.
    pub(super) fn new(spans: &[Range<u64>], page_size: u64, whole: bool) -> Result<Self> {
        let mut reader = Reader {
            spans: BTreeMap::new(),
            page_size,
            whole,
            pages_a_call: 1,
            bitmap: Vec::new(),
        };
        reader.make_room(spans)?;
        reader.follow(&[], spans);
        Ok(reader)
    }

    /// Whether this reads exactly `spans`, which are in order.
    pub(super) fn reads(&self, spans: &[Range<u64>]) -> bool {
        let ours = self.spans.iter().map(|(start, end)| *start..*end);
        ours.eq(spans.iter().cloned())
    }

    /// Bytes of the bitmap that the longest of `spans` needs.
    pub(super) fn bitmap_bytes(spans: &[Range<u64>], page_size: u64) -> u64 {
        let pages = spans.iter().map(|s| (s.end - s.start) / page_size);
        pages.max().unwrap_or(0).max(1).div_ceil(64) * 8
    }

    /// Makes room for `spans` as well. Call it before [`Reader::follow`].
    pub(super) fn make_room(&mut self, spans: &[Range<u64>]) -> Result<()> {
        let page_size = self.page_size;
        for span in spans {
            if !(span.start | span.end).is_multiple_of(page_size) {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "DMA range {:#x} to {:#x} is no multiple of the IOMMU's pages of \
                         {page_size} bytes",
                        span.start, span.end
                    ),
                ));
            }
        }
        let longest = spans.iter().map(|s| (s.end - s.start) / page_size).max();
        let longest = longest.unwrap_or(0).max(1);
        let pages = match self.whole {
            true => longest,
            false => longest.min(PAGES_A_CALL),
        };
        let len = pages.div_ceil(64) as usize;
        if let Some(more) = len.checked_sub(self.bitmap.len()) {
            self.bitmap
                .try_reserve_exact(more)
                .map_err(|_| Error::no_memory("bitmap of IOVAs", len as u64 * 8))?;
            self.bitmap.resize(len, 0);
        }
        self.pages_a_call = self.pages_a_call.max(pages);
        Ok(())
    }

    /// Reads the ranges `gone` no more, and the ranges `fresh` from now on. There is room for
    /// these.
    pub(super) fn follow(&mut self, gone: &[Range<u64>], fresh: &[Range<u64>]) {
        for span in gone {
            self.spans.remove(&span.start);
        }
        for span in fresh {
            self.spans.insert(span.start, span.end);
        }
    }

    /// Reads all ranges by `read` (IOVA, bytes, page size, zeroed bitmap) into `sink`. After an
    /// error the bits of the ranges that were not read are unknown.
    pub(super) fn harvest(
        &mut self,
        iovas: &Iovas,
        sink: &mut dyn Sink,
        mut read: impl FnMut(u64, u64, u64, &mut [u64]) -> Result<()>,
    ) -> Result<()> {
        let Reader { spans, bitmap, .. } = self;
        let by = (self.page_size, self.pages_a_call);
        let mut spans = spans.iter().map(|(start, end)| *start..*end);
        spans.try_for_each(|span| read_span(span, by, bitmap, iovas, sink, &mut read))
    }

    /// Reads only `spans`, which are among its ranges. A range that could not be read counts as
    /// dirty.
    pub(super) fn harvest_of(
        &mut self,
        spans: &[Range<u64>],
        iovas: &Iovas,
        sink: &mut dyn Sink,
        mut read: impl FnMut(u64, u64, u64, &mut [u64]) -> Result<()>,
    ) {
        let by = (self.page_size, self.pages_a_call);
        for span in spans {
            let bitmap = &mut self.bitmap;
            let done = read_span(span.clone(), by, bitmap, iovas, sink, &mut read);
            if done.is_err() {
                iovas.all_of(sink, span.clone());
            }
        }
    }
}

/// Reads one range. `by` is the page size, and the most pages a call.
fn read_span(
    span: Range<u64>,
    by: (u64, u64),
    bitmap: &mut [u64],
    iovas: &Iovas,
    sink: &mut dyn Sink,
    read: &mut impl FnMut(u64, u64, u64, &mut [u64]) -> Result<()>,
) -> Result<()> {
    let (page_size, pages_a_call) = by;
    let mut from = span.start;
    while from < span.end {
        let pages = ((span.end - from) / page_size).min(pages_a_call);
        let bitmap = &mut bitmap[..pages.div_ceil(64) as usize];
        // The kernel only sets bits.
        bitmap.fill(0);
        read(from, pages * page_size, page_size, bitmap)?;
        if !words::is_zero(bitmap) {
            iovas.deliver(sink, from, bitmap, pages, page_size);
        }
        from += pages * page_size;
    }
    Ok(())
}
