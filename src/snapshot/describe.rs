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
/// ```no_run
/// # fn main() -> brant::Result<()> {
/// let image = brant::snapshot::describe("guest.3")?;
/// println!("{} image of {} MiB", image.kind, image.memory_bytes >> 20);
/// for parent in &image.parents {
///     println!("since {} ({})", parent.file, parent.checksum);
/// }
/// # Ok(())
/// # }
/// ```
pub fn describe(path: impl AsRef<Path>) -> Result<Description> {
    crate::image::describe(&image_path(path.as_ref())?)
}
