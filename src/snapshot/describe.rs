//! What is in an image, for who looks at a file.

use super::task::image_path;
use crate::error::Result;
use crate::image::Description;
use std::path::Path;

/// Describes an image: which image it is, its blocks, the VMM's state and the images before it, without a
/// guest. Headers, indexes and tables are checked, pages and state are not.
///
/// # Errors
/// [`Kind::NotFound`](crate::Kind::NotFound); [`Kind::Image`](crate::Kind::Image) and
/// [`Kind::Version`](crate::Kind::Version) for a file that is no image, is not whole, or is damaged in its
/// header or index; [`Kind::Invalid`](crate::Kind::Invalid) for an empty path. A missing image before it
/// is no error: [`Description::complete`].
///
/// ```
/// use brant::dirty::tracker::{Clearing, Tracker};
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::migrate::Blockers;
/// use brant::snapshot::{describe, Save, SaveParams};
/// use brant::snapshot::{BlockFound, Description, LayerFound, StateFound};
/// use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// # use brant::vmm::Vmm;
/// use std::sync::Arc;
///
/// /// What an operator wants to know of a file.
/// fn print(image: &Description) {
///     println!("{} image of {} MiB", image.kind, image.memory_bytes >> 20);
///     let sizes = |block: &BlockFound| println!("block {}: {} bytes", block.name, block.bytes);
///     image.blocks.iter().for_each(sizes);
///     let states = |state: &StateFound| println!("{} {}", state.kind, state.name);
///     image.states.iter().for_each(states);
///     let since = |layer: &LayerFound| println!("since {}, found: {}", layer.file, layer.found);
///     image.parents.iter().for_each(since);
/// }
///
/// # struct Nothing;
/// # impl Vmm for Nothing {
/// #     fn pause(&self) -> brant::Result<()> { Ok(()) }
/// #     fn resume(&self) -> brant::Result<()> { Ok(()) }
/// #     fn run(&self) -> brant::Result<()> { Ok(()) }
/// # }
/// # fn main() -> brant::Result<()> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("guest");
/// # let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// # let memory = Arc::new(Memory::new()?);
/// # memory.add_guest_memory(&ram, NO_SLOT)?;
/// let tracker = Tracker::new(memory, Clearing::default())?;
/// let save = Save::new(tracker, Blockers::new(), Arc::new(Nothing), SaveParams::default())?;
/// save.start(&path)?;
/// save.wait(None)?;
///
/// let image = describe(&path)?;
/// print(&image);
/// assert!(image.complete && image.parents.is_empty());
/// assert_eq!(image.memory_bytes, 1 << 20);
/// # Ok(())
/// # }
/// ```
pub fn describe(path: impl AsRef<Path>) -> Result<Description> {
    crate::image::describe(&image_path(path.as_ref())?)
}
