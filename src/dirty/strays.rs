//! Reported pages that no block has: they are counted, and passed on to the sink, which ignores
//! them.
//!
//! Reports by guest address or IOVA are not looked at here. Devices also write to addresses without
//! RAM, and the logs of such addresses count their own strays.

use super::{Origin, Sink};
use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::memory::{BlockId, Map};
use crate::runtime::Cancel;
use crate::units::Pages;

/// A sink that counts strays before it passes reports on to another sink.
pub(super) struct Counting<'a> {
    map: &'a Map,
    sink: &'a mut dyn Sink,
    /// Reported pages that their slot or block does not have.
    pub(super) strays: u64,
}

impl<'a> Counting<'a> {
    /// Counts by the slots and blocks of `map`, and passes on to `sink`.
    pub(super) fn new(map: &'a Map, sink: &'a mut dyn Sink) -> Self {
        Counting {
            map,
            sink,
            strays: 0,
        }
    }

    /// How many pages there are from `origin` on; `None` for origins that are not looked at.
    fn room(&self, origin: Origin) -> Option<u64> {
        let (pages, from) = match origin {
            Origin::Slot { slot, page } => (self.map.slot(slot).map(|s| s.pages.0), page.0),
            Origin::Block { block, page } => (self.map.block(block).map(|b| b.pages().0), page.0),
            Origin::Guest(_) | Origin::Iova(_) => return None,
        };
        Some(pages.unwrap_or(0).saturating_sub(from))
    }
}

impl Counting<'_> {
    fn count_bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages) {
        let said = pages.0.min(words.len() as u64 * 64);
        if let Some(room) = self.room(origin).filter(|room| *room < said) {
            let runs = crate::bits::runs::of_words(words, said as usize);
            self.strays += runs
                .map(|run| (run.end as u64).saturating_sub(room.max(run.start as u64)))
                .sum::<u64>();
        }
    }
}

impl Sink for Counting<'_> {
    fn bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages) {
        self.count_bitmap(origin, words, pages);
        self.sink.bitmap(origin, words, pages);
    }
    fn lasting_bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages, known: Pages) -> u64 {
        self.count_bitmap(origin, words, pages);
        self.sink.lasting_bitmap(origin, words, pages, known)
    }

    fn list(&mut self, origin: Origin, pages: &[u64]) {
        if let Some(room) = self.room(origin) {
            self.strays += pages.iter().filter(|page| **page >= room).count() as u64;
        }
        self.sink.list(origin, pages);
    }

    fn block(
        &mut self,
        block: BlockId,
        merge: &mut dyn FnMut(&mut Bitmap) -> Result<u64>,
    ) -> Result<()> {
        self.sink.block(block, merge)
    }

    fn everything(&mut self, origin: Origin, pages: Pages) {
        self.sink.everything(origin, pages);
    }

    fn given_up(&self) -> Option<Cancel> {
        self.sink.given_up()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing;
    use crate::dirty::tracker::StartWith;
    use crate::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, When};
    use crate::memory::SlotDescription;
    use crate::units::Bytes;
    use vm_memory::GuestAddress;

    /// A log that reports pages which do not exist beside one that does.
    struct Wild(BlockId);

    impl DirtyLog for Wild {
        fn kind(&self) -> LogKind {
            LogKind::Vhost
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            Ok(Initial::Clean)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
            let at = |block, page| Origin::Block {
                block,
                page: Pages(page),
            };
            sink.list(at(self.0, 0), &[5, 64, u64::MAX - 1, u64::MAX, u64::MAX]);
            sink.list(at(BlockId(77), 0), &[0, 1]);
            let slot = Origin::Slot {
                slot: 9,
                page: Pages(0),
            };
            sink.list(slot, &[3]);
            sink.bitmap(at(self.0, 63), &[0b110], Pages(3));
            sink.bitmap(at(self.0, u64::MAX), &[0b11], Pages(2));
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn pages_that_no_block_has_are_counted_and_harm_nobody() {
        let ram = testing::Guest::new(64);
        let block = ram.block("ram", 64);
        let consumer = ram.tracker(Box::new(Wild(block)));
        consumer.start(StartWith::Nothing).unwrap();
        let found = testing::sync_all(&consumer);
        assert_eq!(found, [(block.0, 5)].into());
        // Four of the first list, all of the other two lists, two of each bitmap.
        assert_eq!(consumer.stray_marks(), 4 + 2 + 1 + 2 + 2);
    }

    /// A log that reports, beside one page, pages that do not exist, by every origin and in every
    /// way.
    struct Far(BlockId);

    impl DirtyLog for Far {
        fn kind(&self) -> LogKind {
            LogKind::Other
        }
        fn start(&mut self, _: &Map) -> Result<Initial> {
            Ok(Initial::Clean)
        }
        fn stop(&mut self, _: &Map) -> Result<()> {
            Ok(())
        }
        fn harvest(&mut self, _: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
            const FAR: u64 = 1 << 40;
            let (block, slot) = (self.0, 9);
            sink.list(
                Origin::Block {
                    block,
                    page: Pages(0),
                },
                &[5, 64, FAR, FAR + 1],
            );
            for page in [64, FAR, u64::MAX] {
                let page = Pages(page);
                let address = page.0.checked_mul(4096).unwrap_or(u64::MAX - 4095);
                for origin in [
                    Origin::Block { block, page },
                    Origin::Slot { slot, page },
                    Origin::Slot { slot: 10, page },
                    Origin::Guest(GuestAddress(address)),
                    Origin::Iova(address),
                ] {
                    sink.list(origin, &[0, 1, FAR]);
                    sink.bitmap(origin, &[0b111], Pages(3));
                    assert_eq!(sink.lasting_bitmap(origin, &[1], Pages(1), Pages(1)), 0);
                    sink.everything(origin, Pages(3));
                }
            }
            // A bitmap that begins in the block and in the slot, and has bits past their ends.
            let page = Pages(63);
            sink.bitmap(Origin::Block { block, page }, &[0b110], Pages(3));
            sink.bitmap(Origin::Slot { slot, page }, &[0b110], Pages(3));
            Ok(Harvested::Complete)
        }
        fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
        fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn pages_that_no_block_has_do_not_count_as_written() {
        let ram = testing::Guest::new(64);
        let block = ram.block("ram", 64);
        ram.memory
            .add_slot(&SlotDescription {
                slot: 9,
                flags: 0,
                block,
                offset: Bytes(0),
                length: Pages(64).bytes(),
                guest_address: GuestAddress(0),
            })
            .unwrap();
        let consumer = ram.tracker(Box::new(Far(block)));
        consumer.start(StartWith::Nothing).unwrap();
        let report = consumer.sync(When::Running).unwrap();
        assert_eq!((report.found, report.pending), (Pages(1), Pages(1)));
        assert_eq!(report.written, Pages(1));
    }
}
