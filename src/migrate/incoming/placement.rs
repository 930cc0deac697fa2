//! How the contents of a run of pages get from a lane into guest memory.

use super::lane::Lane;
use super::prefault::{Ahead, Prefault};
use super::sink::{Place, Sink};
use crate::channel::{Io, IoPart as _, PartMut};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access::{self, Access};
use crate::memory::{BlockPin, PageRun};
use crate::runtime::Recall;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::wire::{list_len, Header, LIST_RUNS_MAX};

/// See the file's description.
pub(super) enum Placement {
    /// Read straight into guest memory: what comes is what the pages hold. With what has it backed
    /// ahead.
    Direct(Option<Prefault>),
    /// Read into a buffer and decoded there first.
    // Every record that is agreed on today is plain contents.
    #[cfg_attr(not(test), allow(dead_code))]
    Staged(Staged),
}

/// Makes pages of what came for them.
pub(super) trait Decode: Send {
    /// Fills `contents`, which is as long as the run's pages. After an error none of it is used.
    fn decode(&mut self, header: &Header, payload: &[u8], contents: &mut [u8]) -> Result<()>;
}

/// What is between a lane and guest memory where contents come encoded.
pub(super) struct Staged {
    decoder: Box<dyn Decode>,
    /// The decoded pages of one run; a run lies inside one stretch, so this stays small.
    contents: Vec<u8>,
}

impl Staged {
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) fn new(decoder: Box<dyn Decode>) -> Self {
        Staged {
            decoder,
            contents: Vec::new(),
        }
    }

    fn place(
        &mut self,
        lane: &mut Lane,
        sink: &mut Sink,
        header: &Header,
        io: &Io<'_>,
    ) -> Result<()> {
        // No pin is held while the source takes its time.
        let payload = lane.payload(header, io)?;
        let length = Pages(u64::from(header.count)).bytes().0;
        self.contents.clear();
        self.contents
            .try_reserve_exact(length as usize)
            .map_err(|_| Error::no_memory("decoded pages", length))?;
        self.contents.resize(length as usize, 0);
        self.decoder.decode(header, &payload, &mut self.contents)?;
        let Some((block, run)) = sink.pin(header)? else {
            return Ok(());
        };
        access::writable(&block, run.range())?;
        let room = block.slice(run.first(), run.count())?;
        room.copy_from(&self.contents);
        Ok(())
    }
}

impl Placement {
    /// Takes a run's contents off `lane` and puts them where `sink` says; nowhere if the block is
    /// gone here. No pin outlives the moment in which somebody wants it (`recall`).
    pub(super) fn place(
        &mut self,
        lane: &mut Lane,
        sink: &mut Sink,
        header: &Header,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<()> {
        // Nothing is pinned now: whoever removes a block from here on and waits for us is heard.
        recall.lower();
        // What the run is to be is checked before anything is believed of its length.
        let place = sink.data(header)?;
        let run = place.as_ref().map(|(_, run)| *run);
        let placed = match self {
            Placement::Direct(prefault) => {
                let ahead = match (prefault, &place) {
                    (Some(prefault), Some(place)) => prefault.ahead(sink, place),
                    _ => None,
                };
                direct(lane, sink, header, place, ahead, recall, io)
            }
            Placement::Staged(staged) => {
                drop(place);
                staged.place(lane, sink, header, io)
            }
        };
        // Whatever became of it, some of it may have been written.
        if let Some(run) = run {
            sink.arrived(&run);
        }
        placed
    }

    /// The same for a list of short runs: all their contents go to their places with one call, as
    /// far as they are there. `runs` is room for them that is kept from one record to the next.
    pub(super) fn place_list(
        &mut self,
        lane: &mut Lane,
        sink: &mut Sink,
        header: &Header,
        runs: &mut Vec<PageRun>,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<()> {
        if !matches!(self, Placement::Direct(_)) {
            return Err(Error::new(
                Kind::Protocol,
                "PAGES_LIST: expected only where contents come plain",
            ));
        }
        let mut list = [0; list_len(LIST_RUNS_MAX)];
        let list = &mut list[..list_len(header.count)];
        // No pin is held while the source takes its time.
        lane.payload_begins(list, io)?;
        recall.lower();
        let block = sink.list(header, list, runs)?;
        let placed = each(lane, sink, header, block, runs, recall, io);
        // Whatever became of it, some of it may have been written.
        for run in &*runs {
            sink.arrived(run);
        }
        placed
    }

    /// No more contents come.
    pub(super) fn finish(&mut self) {
        if let Placement::Direct(Some(prefault)) = self {
            prefault.finish();
        }
    }
}

fn each(
    lane: &mut Lane,
    sink: &mut Sink,
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
        fallible::reserve(&mut rooms, runs.len(), "places of pages")?;
        let mut done = all - left;
        for run in runs {
            let length = run.count().bytes().0 as usize;
            if done < length {
                rooms.push(pin.part_mut(run.range())?.cut(done, usize::MAX));
            }
            done = done.saturating_sub(length);
        }
        let got = lane
            .payload_into_each(&rooms, left, recall, io)
            .map_err(|e| {
                let blocks = std::iter::once(&**pin);
                access::name_fault(e, lane.fault(), blocks, Access::Write)
            })?;
        if got == 0 {
            // Somebody removes a block, perhaps this one.
            recall.lower();
            drop(rooms);
            drop(block);
            block = sink.pin_block(header);
        }
        left -= got;
    }
    Ok(())
}

fn direct(
    lane: &mut Lane,
    sink: &mut Sink,
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
            // Not past what is backed: the kernel would take a fault for each page there.
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
            place = sink.pin(header)?;
        }
        left -= got;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
