//! What is in an image, for a person or a program that looks at a file: which image it is, its blocks,
//! the VMM's state, and the images before it.
//!
//! Headers, indexes and the file's own tables of checksums are read and checked. Pages, blobs and the
//! tables of the images before it are not.

use super::format::{
    piece_count, BlobEntry, BlobKind, BlockEntry, AS_BEFORE, PIECE_PAGES, VERSION, VERSION_CHANGES,
    ZERO,
};
use super::identity::ImageId;
use super::layer::Layer;
use super::reader::{next_layer, Image};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::sys::disk::Caching;
use crate::sys::file;
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is in an image. Sizes are bytes, pages 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Description {
    /// `"full"`: it holds all of the guest's memory. `"changes"`: what changed since the image before.
    pub kind: &'static str,
    /// The version of its format.
    pub format: u32,
    /// Whether the file, its tables and all images before it are there and belong together, so that a
    /// restore can begin. Pages and state are not read.
    pub complete: bool,
    /// Why it is not complete.
    pub problem: Option<String>,
    /// The random number that tells it from all other images, in hexadecimal; zeros in an image of older
    /// software.
    pub id: String,
    /// The checksum of its header, in hexadecimal, which covers the checksums of everything else.
    pub checksum: String,
    /// How long the file is.
    pub file_bytes: u64,
    /// What the file takes on its disk. Zero pages take nothing.
    pub disk_bytes: u64,
    /// Whether its zero pages are zeros in the file, so that a VMM that trusts the image may map it
    /// (`trusted`).
    pub mappable: bool,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// The VMM's state.
    pub state_bytes: u64,
    /// The guest's blocks, in the order of the file.
    pub blocks: Vec<BlockFound>,
    /// The VMM's state and its devices', in the order in which they were saved.
    pub states: Vec<StateFound>,
    /// The images before it, the newest first, down to a full one or to the first that is not there.
    pub parents: Vec<LayerFound>,
}

/// A block in an image. The counts are unknown where the table of the block's checksums is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlockFound {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The host's pages behind the block when it was saved.
    pub page_size: u64,
    /// Whether the guest cannot write it.
    pub rom: bool,
    /// Where its first page is in the file.
    pub offset: u64,
    /// Pages whose contents are in this file.
    pub data_pages: Option<u64>,
    /// Pages that are zero, which are holes of the file.
    pub zero_pages: Option<u64>,
    /// Pages that are as in the image before.
    pub unchanged_pages: Option<u64>,
}

/// A piece of the VMM's state in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StateFound {
    /// `"early"`: early configuration. `"device"`: a device's own stream. `"state"`: a blob of `save`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Tells those of one name apart.
    pub instance: u32,
    /// The VMM's version of its layout.
    pub version: u32,
    /// How much it is.
    pub bytes: u64,
}

/// An image before the one that is described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LayerFound {
    /// Its file's name, in the same directory.
    pub file: String,
    /// Whether that file is there and is this image.
    pub found: bool,
    /// Its random number, in hexadecimal.
    pub id: String,
    /// Its header's checksum, in hexadecimal.
    pub checksum: String,
    /// How long its file is.
    pub file_bytes: u64,
}

impl Description {
    /// It as one JSON object, with a field for each of the structure's. What is unknown is `null`.
    ///
    /// # Errors
    /// [`Kind::Internal`], which does not come.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::new(Kind::Internal, format!("JSON: {e}")))
    }
}

/// Describes the image at `path`.
///
/// # Errors
/// [`Kind::NotFound`], and [`Kind::Image`] or [`Kind::Version`] for a file that is no image, is not whole
/// or is damaged in its header or index. Images before it that are missing are no error:
/// [`Description::complete`].
pub fn describe(path: &Path) -> Result<Description> {
    let mut layers = Vec::new();
    let first = Layer::open(path, Caching::Cached)?;
    let file =
        file::look(path).map_err(|e| Error::path(format_args!("image `{}`", path.display()), e))?;
    fallible::push(&mut layers, first, "images")?;
    let mut problem = loop {
        match next_layer(&layers, Caching::Cached) {
            Ok(Some(layer)) => fallible::push(&mut layers, layer, "images")?,
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let is_whole = problem.is_none();
    let mut parents = Vec::new();
    for (layer, has_parent) in layers.iter().zip(1..) {
        if let Some(parent) = &layer.parent {
            let found = found(
                &parent.id,
                has_parent < layers.len() || is_whole,
                parent.name.to_string_lossy().into_owned(),
            );
            fallible::push(&mut parents, found, "images")?;
        }
    }
    let layer = &layers[0];
    let mut blocks = Vec::new();
    for block in &layer.index.blocks {
        let counts = counts(layer, block)
            .map_err(|error| problem.get_or_insert(error))
            .ok();
        let block = BlockFound {
            name: block.name.clone(),
            bytes: block.length,
            page_size: block.page_size,
            rom: block.rom,
            offset: block.offset,
            data_pages: counts.map(|counts| counts.data),
            zero_pages: counts.map(|counts| counts.zero),
            unchanged_pages: counts.map(|counts| counts.unchanged),
        };
        fallible::push(&mut blocks, block, "an image's blocks")?;
    }
    let mut description = Description {
        kind: match layer.parent {
            None => "full",
            Some(_) => "changes",
        },
        format: match layer.parent {
            None => VERSION,
            Some(_) => VERSION_CHANGES,
        },
        complete: false,
        problem: None,
        id: number(&layer.id),
        checksum: checksum(&layer.id),
        file_bytes: layer.id.length,
        disk_bytes: file.blocks() * 512,
        mappable: layer.zeros && layer.parent.is_none(),
        memory_bytes: layer.index.blocks.iter().map(|block| block.length).sum(),
        state_bytes: layer.index.blobs.iter().map(|blob| blob.length).sum(),
        blocks,
        states: states(&layer.index.blobs)?,
        parents,
    };
    // Whether blocks of one image go on in the image before.
    if is_whole {
        if let Err(error) = Image::of(layers) {
            problem.get_or_insert(error);
        }
    }
    description.complete = problem.is_none();
    description.problem = problem.map(|error| error.message().to_owned());
    Ok(description)
}

fn number(id: &ImageId) -> String {
    format!("{:032x}", u128::from_be_bytes(id.number))
}

fn checksum(id: &ImageId) -> String {
    format!("{:08x}", id.sum)
}

fn found(id: &ImageId, found: bool, file: String) -> LayerFound {
    LayerFound {
        file,
        found,
        id: number(id),
        checksum: checksum(id),
        file_bytes: id.length,
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    data: u64,
    zero: u64,
    unchanged: u64,
}

impl Counts {
    /// Counts the pages of a table's piece.
    fn add(&mut self, sums: &[u8], changes: bool) {
        for sum in sums.chunks_exact(4) {
            let sum = u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
            let count = match sum {
                AS_BEFORE if changes => &mut self.unchanged,
                ZERO if changes => &mut self.zero,
                0 => &mut self.zero,
                _ => &mut self.data,
            };
            *count += 1;
        }
    }
}

fn counts(layer: &Layer, block: &BlockEntry) -> Result<Counts> {
    let mut counts = Counts::default();
    for piece in 0..piece_count(block.pages()) {
        let table = layer.table(block, piece as usize)?;
        let pages = (block.pages() - piece * PIECE_PAGES).min(PIECE_PAGES);
        counts.add(&table.bytes()[..pages as usize * 4], block.changes);
    }
    Ok(counts)
}

/// Blobs as the VMM knows them: the pieces of a device's stream are one.
fn states(blobs: &[BlobEntry]) -> Result<Vec<StateFound>> {
    let mut states: Vec<StateFound> = Vec::new();
    for blob in blobs {
        let kind = match blob.kind {
            BlobKind::Early => "early",
            BlobKind::State => "state",
            BlobKind::Device => "device",
        };
        match states.last_mut() {
            Some(last)
                if blob.kind == BlobKind::Device
                    && (last.kind, &last.name, last.instance)
                        == (kind, &blob.name, blob.instance) =>
            {
                last.bytes += blob.length;
            }
            _ => {
                let state = StateFound {
                    kind,
                    name: blob.name.clone(),
                    instance: blob.instance,
                    version: blob.version,
                    bytes: blob.length,
                };
                fallible::push(&mut states, state, "an image's state")?;
            }
        }
    }
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_by_the_kind_of_their_table() {
        let words = |words: [u32; 5]| words.map(u32::to_le_bytes).concat();
        let mut full = Counts::default();
        full.add(&words([0, 1, 7, 0, u32::MAX]), false);
        let expected = Counts {
            data: 3,
            zero: 2,
            unchanged: 0,
        };
        assert_eq!(full, expected);
        let mut changes = Counts::default();
        changes.add(&words([0, 1, 7, 0, u32::MAX]), true);
        let expected = Counts {
            data: 2,
            zero: 1,
            unchanged: 2,
        };
        assert_eq!(changes, expected);
    }

    #[test]
    fn the_pieces_of_a_devices_stream_are_one_state() {
        let blob = |kind, name: &str, length| BlobEntry {
            kind,
            name: name.to_owned(),
            instance: 0,
            version: 1,
            offset: 0,
            length,
            sum: 0,
        };
        let blobs = [
            blob(BlobKind::Early, "cpuid", 5),
            blob(BlobKind::Device, "net", 100),
            blob(BlobKind::Device, "net", 20),
            blob(BlobKind::Device, "gpu", 3),
            blob(BlobKind::State, "net", 7),
            blob(BlobKind::State, "net", 8),
        ];
        let states = states(&blobs).unwrap();
        let found: Vec<_> = states
            .iter()
            .map(|s| (s.kind, &s.name[..], s.bytes))
            .collect();
        let expected = [
            ("early", "cpuid", 5),
            ("device", "net", 120),
            ("device", "gpu", 3),
            ("state", "net", 7),
            ("state", "net", 8),
        ];
        assert_eq!(found, expected);
    }
}
