//! How the contents of runs of pages get from a lane into guest memory.
//!
//! Plain contents are read straight into guest memory. Contents that have to be checked or decoded
//! are staged: read into a buffer, checked or decoded there, and then copied. So contents that were
//! damaged on their way never reach guest memory.
//!
//! Behind the switch to postcopy the guest may run, and a page counts from its first arrival on. So
//! all contents are staged there, and then placed as whole pages by [`Served`].

use super::lane::Lane;
use super::lane_account::{LaneAccount, Place};
use super::prefault::{Ahead, Backed, Prefault};
use crate::channel::{Io, IoPart as _, PartMut};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::served::Served;
use crate::memory::{BlockPin, PageRun};
use crate::page::compress::Decompressor;
use crate::runtime::Recall;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::wire::{self, list_len, Header, RecordType, CHECKSUM_LEN, LIST_RUNS_MAX};
use std::sync::Arc;

/// The ways of placing contents, as the file's description says.
pub(super) struct Placement {
    /// Backs memory ahead of plain contents.
    prefault: Option<Prefault>,
    staged: Staged,
    /// Places pages behind the switch to postcopy.
    served: Option<Arc<Served>>,
    /// What was backed until prefaulting ended.
    backed: Backed,
}

/// The buffers for one record's payload. A record's pages lie inside one stretch, or are a list of
/// limited length. So the buffers never grow beyond a few MiB, and are kept.
#[derive(Default)]
struct Staged {
    payload: Vec<u8>,
    /// The contents of compressed pages after decoding.
    contents: Vec<u8>,
    /// Made when the first compressed contents come.
    decompressor: Option<Decompressor>,
}

/// A record with a list of runs, which was checked.
struct List<'a> {
    header: &'a Header,
    /// The runs in our block; none when the block is gone here.
    runs: &'a [PageRun],
    /// The pages of all runs in the list.
    pages: u64,
}

/// Room of at least `length` bytes, which may hold bytes of an earlier record.
fn room(bytes: &mut Vec<u8>, length: usize) -> Result<&mut [u8]> {
    if bytes.len() < length {
        fallible::reserve(bytes, length - bytes.len(), "contents of pages")?;
        bytes.resize(length, 0);
    }
    Ok(&mut bytes[..length])
}

impl Staged {
    /// Reads the `length` bytes that are left of a record's payload. No block is pinned during the
    /// read, because the source may take long.
    fn read(
        &mut self,
        lane: &mut Lane,
        length: usize,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<&[u8]> {
        room(&mut self.payload, length)?;
        let mut got = 0;
        while got < length {
            let room = PartMut::bytes(&mut self.payload[got..length]);
            match lane.payload_into(room, length - got, recall, io)? {
                0 => recall.lower(),
                more => got += more,
            }
        }
        Ok(&self.payload[..length])
    }

    /// Decodes the contents of `pages` compressed pages, which are checksum and frame in the first
    /// `length` bytes of what was read.
    fn unpack(&mut self, header: &Header, pages: u64, length: usize) -> Result<&[u8]> {
        let name = RecordType::from_number(header.kind).map_or("a record", RecordType::name);
        let payload = self.payload.get(..length).unwrap_or_default();
        let Some((sum, frame)) = payload.split_first_chunk::<CHECKSUM_LEN>() else {
            return Err(Error::new(Kind::Protocol, format!("{name}: no checksum")));
        };
        // The pages lie inside one stretch, or are in a list of limited length: both were checked.
        let contents = room(&mut self.contents, Pages(pages).bytes().0 as usize)?;
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new()?),
        };
        decompressor
            .decompress(frame, contents)
            .map_err(|e| e.context(format_args!("{name}: {}", header.pages_in_words())))?;
        let (expected, found) = (u32::from_le_bytes(*sum), crc32fast::hash(contents));
        match expected == found {
            true => Ok(contents),
            false => Err(header.damaged(expected, found)),
        }
    }
}

/// Adds the block's name to an error about contents of a record.
fn named(account: &mut LaneAccount, header: &Header, error: Error) -> Error {
    match account.name_of(header.block) {
        Some(name) => error.context(format_args!("block `{name}`")),
        None => error,
    }
}

/// Copies contents from a buffer into guest memory.
fn write(served: Option<&Served>, block: &BlockPin, run: PageRun, contents: &[u8]) -> Result<()> {
    if let Some(served) = served {
        return served
            .place(&block.shared(), run.first(), contents)
            .map(drop);
    }
    access::writable(block, run.range())?;
    block.slice(run.first(), run.count())?.copy_from(contents);
    Ok(())
}

impl Placement {
    pub(super) fn new(prefault: Option<Prefault>) -> Self {
        Placement {
            prefault,
            staged: Staged::default(),
            served: None,
            backed: Backed::default(),
        }
    }

    /// From here on pages are placed by `served`. No thread backs memory ahead any more when this
    /// returns.
    pub(super) fn serve(&mut self, served: Arc<Served>) {
        self.stop_prefault();
        self.served = Some(served);
    }

    /// Ends the backing of memory ahead of contents. No thread does it any more when this returns.
    pub(super) fn stop_prefault(&mut self) {
        if let Some(prefault) = self.prefault.take() {
            self.backed += prefault.done();
        }
    }

    /// Behind the switch to postcopy: places the zero pages of a record, and returns their number.
    /// `runs` is a buffer.
    pub(super) fn place_zeros(
        &mut self,
        lane: &mut Lane,
        account: &mut LaneAccount,
        header: &Header,
        runs: &mut Vec<PageRun>,
        io: &Io<'_>,
    ) -> Result<u64> {
        let Some(served) = &self.served else {
            return Err(Error::new(Kind::Internal, "zero pages before the switch"));
        };
        if header.kind != RecordType::ZerosList.number() {
            if let Some((block, run)) = account.data(header)? {
                served.place_zeros(&block.shared(), run.range())?;
                account.arrived(&run);
            }
            return Ok(u64::from(header.count));
        }
        let mut list = [0; list_len(LIST_RUNS_MAX)];
        let list = &mut list[..list_len(header.count)];
        lane.payload_begins(list, header, io)?;
        if let Some(block) = account.list(header, list, runs)? {
            let block = block.shared();
            for run in &*runs {
                served.place_zeros(&block, run.range())?;
                account.arrived(run);
            }
        }
        Ok(wire::listed_pages(list))
    }

    /// Whether pages are placed as behind the switch to postcopy.
    pub(super) fn is_served(&self) -> bool {
        self.served.is_some()
    }

    /// Reads a run's contents from `lane` and puts them where `account` says. When the block is
    /// gone here, the contents are dropped. When a removal of a block needs the pins (`recall`),
    /// they are let go of.
    pub(super) fn place(
        &mut self,
        lane: &mut Lane,
        account: &mut LaneAccount,
        header: &Header,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<()> {
        // Nothing is pinned now. A removal of a block that begins after this line raises `recall`
        // again.
        recall.lower();
        // The header is checked before its length is believed.
        let place = account.data(header)?;
        let run = place.as_ref().map(|(_, run)| *run);
        let packed = header.kind == RecordType::Compressed.number();
        let placed = if packed || header.is_checked() || self.served.is_some() {
            drop(place);
            self.place_staged(lane, account, header, recall, io)
        } else {
            let ahead = match (&mut self.prefault, &place) {
                (Some(prefault), Some(place)) => prefault.ahead(account, place),
                _ => None,
            };
            direct(lane, account, header, place, ahead, recall, io)
        };
        // Some of the run may have been written, even when placing it failed.
        if let Some(run) = run {
            account.arrived(&run);
        }
        placed
    }

    /// The same for a list of short runs with contents; returns the number of their pages. One call
    /// reads all of their contents, as far as they have arrived, into their places. `runs` is a
    /// buffer that is kept from one record to the next.
    pub(super) fn place_list(
        &mut self,
        lane: &mut Lane,
        account: &mut LaneAccount,
        header: &Header,
        runs: &mut Vec<PageRun>,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<u64> {
        let mut list = [0; list_len(LIST_RUNS_MAX)];
        let list = &mut list[..list_len(header.count)];
        // No pin is held during the read, because the source may take long.
        lane.payload_begins(list, header, io)?;
        recall.lower();
        let block = account.list(header, list, runs)?;
        let pages = wire::listed_pages(list);
        let packed = header.kind == RecordType::CompressedList.number();
        let placed = if packed || header.is_checked() || self.served.is_some() {
            drop(block);
            let list = List {
                header,
                runs,
                pages,
            };
            self.place_staged_list(lane, account, &list, recall, io)
        } else {
            each(lane, account, header, block, runs, recall, io)
        };
        // Some of the runs may have been written, even when placing them failed.
        for run in &*runs {
            account.arrived(run);
        }
        placed.map(|()| pages)
    }

    /// The same for changed pages (DELTA).
    pub(super) fn place_changed(
        &mut self,
        lane: &mut Lane,
        account: &mut LaneAccount,
        header: &Header,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<()> {
        if self.served.is_some() {
            return Err(Error::new(
                Kind::Protocol,
                "DELTA: expected whole pages behind the switch to postcopy, found changes of pages",
            ));
        }
        let length = header.payload as usize;
        let payload = self.staged.read(lane, length, recall, io)?;
        account.changed(header, payload)
    }

    fn place_staged(
        &mut self,
        lane: &mut Lane,
        account: &mut LaneAccount,
        header: &Header,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<()> {
        let length = header.payload as usize;
        let payload = self.staged.read(lane, length, recall, io)?;
        let contents = match RecordType::from_number(header.kind) {
            Some(RecordType::Compressed) => {
                self.staged.unpack(header, u64::from(header.count), length)
            }
            _ if header.is_checked() => header.check_contents(payload),
            _ => Ok(payload),
        };
        let contents = contents.map_err(|e| named(account, header, e))?;
        match account.pin(header)? {
            Some((block, run)) => write(self.served.as_deref(), &block, run, contents),
            None => Ok(()),
        }
    }

    fn place_staged_list(
        &mut self,
        lane: &mut Lane,
        account: &mut LaneAccount,
        list: &List<'_>,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<()> {
        let header = list.header;
        let length = header.payload as usize - list_len(header.count);
        let payload = self.staged.read(lane, length, recall, io)?;
        let contents = match RecordType::from_number(header.kind) {
            Some(RecordType::CompressedList) => self.staged.unpack(header, list.pages, length),
            _ if header.is_checked() => header.check_contents(payload),
            _ => Ok(payload),
        };
        let mut contents = contents.map_err(|e| named(account, header, e))?;
        let Some(block) = account.pin_block(header) else {
            return Ok(());
        };
        for run in list.runs {
            let (first, rest) = contents.split_at(run.count().bytes().0 as usize);
            write(self.served.as_deref(), &block, *run, first)?;
            contents = rest;
        }
        Ok(())
    }

    /// What prefaulting has done so far.
    pub(super) fn prefaulted(&self) -> Backed {
        let mut backed = self.backed;
        backed += self
            .prefault
            .as_ref()
            .map(Prefault::done)
            .unwrap_or_default();
        backed
    }

    /// Called when no more contents come.
    pub(super) fn finish(&mut self) {
        if let Some(prefault) = &mut self.prefault {
            prefault.finish();
        }
    }
}

fn each(
    lane: &mut Lane,
    account: &mut LaneAccount,
    header: &Header,
    mut block: Option<BlockPin>,
    runs: &[PageRun],
    recall: &Recall,
    io: &Io<'_>,
) -> Result<()> {
    let all = header.data_pages() as usize * PAGE_SIZE as usize;
    let mut left = all;
    while left > 0 {
        let Some(pin) = &block else {
            return lane.skip(left, io);
        };
        let mut rooms = Vec::new();
        // One more than the runs, for the place that the lane adds.
        fallible::reserve(&mut rooms, runs.len() + 1, "places of pages")?;
        let mut done = all - left;
        for run in runs {
            let length = run.count().bytes().0 as usize;
            if done < length {
                rooms.push(pin.part_mut(run.range())?.cut(done, usize::MAX));
            }
            done = done.saturating_sub(length);
        }
        let got = lane
            .payload_into_each(rooms, left, recall, io)
            .map_err(|e| {
                let blocks = std::iter::once(&**pin);
                access::name_fault(e, lane.fault(), blocks, Access::Write)
            })?;
        if got < left {
            // Somebody removes a block, perhaps this one.
            recall.lower();
            drop(block);
            block = account.pin_block(header);
        }
        left -= got;
    }
    Ok(())
}

fn direct(
    lane: &mut Lane,
    account: &mut LaneAccount,
    header: &Header,
    mut place: Option<Place>,
    ahead: Option<Ahead<'_>>,
    recall: &Recall,
    io: &Io<'_>,
) -> Result<()> {
    let mut left = header.payload as usize;
    while left > 0 {
        let Some((block, run)) = &place else {
            return lane.skip(left, io);
        };
        let room = block.part_mut(run.range())?;
        let from = header.payload as usize - left;
        let most = match &ahead {
            // The read stops where the backed memory ends: the kernel would take a fault for each
            // page after it.
            Some(ahead) => {
                let page = run.first() + Bytes(from as u64).pages_down();
                let backed = (ahead.reach(block, page) - run.first()).bytes().0 as usize;
                backed - from
            }
            None => usize::MAX,
        };
        let room: PartMut<'_> = room.cut(from, most);
        let got = lane.payload_into(room, left, recall, io).map_err(|e| {
            let blocks = std::iter::once(&**block);
            access::name_fault(e, lane.fault(), blocks, Access::Write)
        })?;
        if got == 0 {
            // Somebody removes a block, perhaps this one.
            recall.lower();
            drop(place);
            place = account.pin(header)?;
        }
        left -= got;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
