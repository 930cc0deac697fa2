//! One full image of an image and the images before it.
//!
//! Pages are copied one run after the other, each checked, in the order of the new file. Zero pages
//! are holes of the new file. The state is that of the newest image.

use super::buffer::Buffer;
use super::deal::{Deal, PAGES_AT_ONCE};
use super::format::{table_length, Index, ALIGN, HEADER_LEN};
use super::identity::ImageId;
use super::pool::Area;
use super::reader::Image;
use super::table::Table;
use super::unfinished::Unfinished;
use super::writer::{end, table};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::runtime::Cancel;
use crate::sys::disk::Caching;
use crate::sys::file;
use crate::units::Pages;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and number of the file at a path, if there is one.
pub fn file_at(path: &Path) -> Option<(u64, u64)> {
    let found = file::look(path).ok()?;
    let device = found.dev();
    let device = u64::from(libc::major(device)) << 32 | u64::from(libc::minor(device));
    Some((device, found.ino()))
}

/// How far a merge is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// The guest's memory.
    pub total: Pages,
    /// Pages with contents that were written.
    pub data: u64,
    /// Zero pages.
    pub zero: u64,
    /// Bytes of the VMM's blobs.
    pub blobs: u64,
    /// All pages are written, and the file is made whole.
    pub finishing: bool,
}

/// Makes one full image, which gets the name `to`, of the image `from` and the images before it.
/// `to` may be `from` itself. `tell` is called after each run of pages.
///
/// # Errors
/// Those of opening, reading and writing. [`Kind::Invalid`] when `to` is an image before `from`,
/// without which `from` and others are of no use. No file is left then.
pub fn merge(
    from: &Path,
    to: &Path,
    caching: Caching,
    cancel: &Cancel,
    tell: &mut dyn FnMut(&Merged),
) -> Result<ImageId> {
    cancel.check("merging images")?;
    let image = Image::open(from, caching)?;
    if let Some(file) = file_at(to) {
        if image.layer_in_file(file)?.is_some_and(|layer| layer > 0) {
            let (from, to) = (from.display(), to.display());
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "image `{to}`: expected another name: image `{from}` holds what changed since it"
                ),
            ));
        }
    }
    let file = Unfinished::begin(to, caching)?;
    let mut buffer = Buffer::new(Pages(PAGES_AT_ONCE).bytes().0 as usize)?;
    let mut areas = Vec::new();
    let mut at = HEADER_LEN as u64;
    for block in &image.index().blocks {
        let offset = at.next_multiple_of(ALIGN);
        at = offset + block.length + table_length(block.pages());
        let area = Area {
            name: block.name.clone(),
            length: block.length,
            page_size: block.page_size,
            rom: block.rom,
            offset,
            table: Table::new(block.pages(), false)?,
        };
        fallible::push(&mut areas, area, "an image's blocks")?;
    }
    file.set_length(at)?;
    let mut deal = Deal::default();
    let blocks = &image.index().blocks;
    let mut merged = Merged {
        total: Pages(blocks.iter().map(|block| block.pages()).sum()),
        blobs: image.index().blobs.iter().map(|blob| blob.length).sum(),
        ..Merged::default()
    };
    tell(&merged);
    while let Some(hand) = deal.next(blocks, |entry, piece| image.sums(entry, piece))? {
        cancel.check("merging images")?;
        let pages = hand.pages.end - hand.pages.start;
        let Some(layer) = hand.source else {
            merged.zero += pages;
            tell(&merged);
            continue;
        };
        let bytes = &mut buffer.bytes_mut()[..Pages(pages).bytes().0 as usize];
        image.checked(&hand, layer, bytes)?;
        let area = &areas[hand.entry];
        area.table.set(hand.pages.start, bytes)?;
        let offset = area.offset + Pages(hand.pages.start).bytes().0;
        file.write(bytes, offset).map_err(|e| {
            let doing = format!("block `{}`: writing at {offset}", area.name);
            file.failed(&doing, e)
        })?;
        merged.data += pages;
        tell(&merged);
    }
    merged.finishing = true;
    tell(&merged);
    let mut index = Index::default();
    for area in &areas {
        let entry = table(&file, area)?;
        fallible::push(&mut index.blocks, entry, "an image's blocks")?;
    }
    for blob in &image.index().blobs {
        cancel.check("merging images")?;
        let data = image.blob(blob)?;
        file.write(&data, at)
            .map_err(|e| file.failed(&format!("writing state `{}`", blob.name), e))?;
        let mut entry = blob.clone();
        entry.offset = at;
        at += entry.length;
        fallible::push(&mut index.blobs, entry, "an image's blobs")?;
    }
    end(file, &index, at, None, cancel)
}
