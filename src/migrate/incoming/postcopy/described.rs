//! The pages that the source still has to send when the guest is handed over: what MISSING records
//! describe, collected as one set of pages for each block.
//!
//! Example of what a hostile description could do: a run that ends past its block would have memory
//! of somebody else discarded, and a run that is repeated for ever would keep this side busy. So
//! records ascend, lie inside their block, and have at least one page each ([`wire::Described`]). A
//! set takes one bit for each page of a block of ours, whatever the source says.
//!
//! The host's pages may be larger than 4 KiB. Such a page is discarded as a whole, so all of it is
//! described as missing.

use crate::bits::Stretches;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::served::Absent;
use crate::migrate::incoming::targets::{unknown, Targets};
use crate::units::Pages;
use crate::wire::{self, MissingEnd};
use std::sync::Arc;

/// The missing pages of a block of ours.
pub(in crate::migrate::incoming) struct Lacking {
    /// The source's number of the block.
    pub(in crate::migrate::incoming) id: u32,
    pub(in crate::migrate::incoming) absent: Absent,
}

/// The description so far, as the file's description says.
#[derive(Default)]
pub(in crate::migrate::incoming) struct Description {
    told: wire::Described,
    blocks: Vec<Lacking>,
}

impl Description {
    /// Takes the next record.
    ///
    /// # Errors
    /// `Protocol` for a record that breaks a rule of the file's description; `NoMemory`.
    pub(in crate::migrate::incoming) fn take(
        &mut self,
        targets: &Targets,
        missing: &wire::Missing,
    ) -> Result<()> {
        let id = missing.block;
        let target = targets.get(&id).ok_or_else(|| unknown(id))?;
        self.told.take(missing, target.pages)?;
        // A block that both sides have removed has no pages here.
        let Some(block) = &target.block else {
            return Ok(());
        };
        // Records ascend, so the block of this one is the last one or a new one.
        if self.blocks.last().is_none_or(|last| last.id != id) {
            let absent = Absent {
                block: Arc::clone(block),
                pages: Stretches::new(target.pages.index())?,
            };
            let lacking = Lacking { id, absent };
            fallible::push(&mut self.blocks, lacking, "blocks with missing pages")?;
        }
        let Some(Lacking { absent, .. }) = self.blocks.last() else {
            return Ok(());
        };
        let unit = block.page_size().pages_down().0.max(1);
        for run in missing.runs() {
            let (first, end) = (run.start.0, run.end.0);
            let ends = end.is_multiple_of(unit) || end == target.pages.0;
            if !(first.is_multiple_of(unit) && ends) {
                return Err(Error::new(
                    Kind::Protocol,
                    format!(
                        "MISSING: block `{}`: expected whole pages of the host's, of {unit} pages each; \
                         found pages {first} to {end}",
                        target.name
                    ),
                ));
            }
            absent
                .pages
                .set_range(first as usize, (end - first) as usize);
        }
        Ok(())
    }

    /// Takes the record that ends the description. Returns the missing pages of each block that is
    /// here, and how many pages are missing.
    pub(in crate::migrate::incoming) fn end(
        self,
        end: &MissingEnd,
    ) -> Result<(Vec<Lacking>, Pages)> {
        if end.epoch != 0 {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "MISSING_END: expected epoch 0, that of the switch, found {}",
                    end.epoch
                ),
            ));
        }
        self.told.end(end)?;
        Ok((self.blocks, end.pages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::testing::Guest;
    use crate::migrate::incoming::account::Account;

    const PAGES: u64 = 1030;

    struct World {
        _guest: Guest,
        account: Account,
    }

    impl World {
        fn new() -> World {
            let guest = Guest::new(PAGES as usize);
            guest.block("ram", PAGES);
            let mut account = Account::new(Arc::clone(&guest.memory));
            account.add(7, &guest.memory.map().blocks()[0]).unwrap();
            World {
                _guest: guest,
                account,
            }
        }

        fn take(&self, description: &mut Description, missing: &wire::Missing) -> Result<()> {
            description.take(&self.account.targets(), missing)
        }
    }

    /// The records of a block of `pages` pages in which the pages of `runs` are missing.
    fn records(block: u32, pages: u64, runs: &[std::ops::Range<u64>]) -> Vec<wire::Missing> {
        let mut words = vec![0u64; pages.div_ceil(64) as usize];
        for page in runs.iter().cloned().flatten() {
            words[page as usize / 64] |= 1 << (page % 64);
        }
        let mut all = Vec::new();
        wire::describe(block, &words, Pages(pages), |missing| {
            all.push(missing.clone());
            Ok(())
        })
        .unwrap();
        all
    }

    fn end(pages: u64) -> MissingEnd {
        MissingEnd {
            pages: Pages(pages),
            epoch: 0,
        }
    }

    #[test]
    fn the_described_pages_are_the_missing_ones_and_no_others() {
        let world = World::new();
        let mut description = Description::default();
        for missing in records(7, PAGES, &[0..1, 5..10, 511..PAGES]) {
            world.take(&mut description, &missing).unwrap();
        }
        let count = 6 + PAGES - 511;
        let (lacking, pages) = description.end(&end(count)).unwrap();
        assert_eq!((lacking.len(), lacking[0].id, pages), (1, 7, Pages(count)));
        for page in 0..PAGES {
            let missing = page == 0 || (5..10).contains(&page) || page >= 511;
            assert_eq!(
                lacking[0].absent.pages.is_set(page as usize),
                missing,
                "page {page}"
            );
        }
    }

    #[test]
    fn a_description_beyond_its_block_or_of_an_unknown_block_or_twice_is_refused() {
        let world = World::new();
        let beyond = records(7, PAGES + 1, &[3..4]);
        let unknown = records(8, PAGES, &[3..4]);
        for wrong in [beyond, unknown] {
            let error = world
                .take(&mut Description::default(), &wrong[0])
                .unwrap_err();
            assert_eq!(error.kind(), Kind::Protocol, "{error}");
        }
        let mut description = Description::default();
        let missing = records(7, PAGES, &[3..4]);
        world.take(&mut description, &missing[0]).unwrap();
        assert!(world.take(&mut description, &missing[0]).is_err());
    }

    #[test]
    fn a_description_with_another_sum_is_refused() {
        let world = World::new();
        let mut description = Description::default();
        world
            .take(&mut description, &records(7, PAGES, &[0..4])[0])
            .unwrap();
        let error = description.end(&end(5)).err().unwrap();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
    }
}
