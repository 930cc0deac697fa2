//! [`Merge`]: one full image of an image and those before it in its chain, as a job that is watched,
//! waited for and cancelled; and [`merge`], the same in one call. Neither needs a guest.

use super::report::{State, Stats};
use super::saving::RENEW;
use super::task::{image_path, Ending, Task};
use super::watching::watching;
use crate::error::Result;
use crate::image::Merged;
use crate::runtime::{catch, Cancel};
use crate::sys::disk::Caching;
use crate::units::PAGE_SIZE;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Makes one full image, which gets the name `to`, of the image `from` and the images before it in
/// its [`Chain`](super::Chain): the guest at the moment of `from`. No guest is needed. Returns when the
/// new image is whole and on its device. `to` may be `from` itself, whose file is replaced; images that
/// hold what changed since `from` are of no use then. [`Merge`] does the same on a thread of its own.
///
/// # Errors
/// [`Kind::NotFound`](crate::Kind::NotFound), [`Kind::Image`](crate::Kind::Image) and
/// [`Kind::Version`](crate::Kind::Version) for images that are not there, are damaged, or do not belong
/// together; [`Kind::Invalid`](crate::Kind::Invalid) when `to` is an image before `from`; those of
/// writing. There is no new file then.
pub fn merge(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let from = image_path(from.as_ref())?;
    let to = image_path(to.as_ref())?;
    crate::image::merge(&from, &to, Caching::Direct, &Cancel::new()?, &mut |_| ()).map(drop)
}

/// Parameters of a [`Merge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeParams {
    /// Whether long reads and writes go past the page cache (`O_DIRECT`), if the file system allows it.
    /// On by default.
    pub direct: bool,
}

impl Default for MergeParams {
    fn default() -> Self {
        MergeParams { direct: true }
    }
}

struct Shared {
    params: MergeParams,
    task: Task,
}

/// A merge of an image and those before it into one full image: what [`merge`] does, on a thread of its
/// own. One object, one merge.
///
/// The new file gets its name when it is whole and on its device. Until then a file that had the name
/// stays as it is. A merge that fails or is cancelled leaves no new file. The states of a merge are
/// [`State::Preparing`], [`State::Copying`] while pages are written, [`State::Finishing`], and
/// [`State::Completed`] or [`State::Failed`].
///
/// All methods may be called from any thread.
///
/// ```no_run
/// use brant::snapshot::{Merge, MergeParams};
/// use std::time::Duration;
///
/// # fn main() -> brant::Result<()> {
/// let merge = Merge::new(MergeParams::default())?;
/// merge.start("guest.4", "guest.whole")?;
/// while let Err(e) = merge.wait(Some(Duration::from_secs(1))) {
///     if e.kind() != brant::Kind::Pending {
///         return Err(e);
///     }
///     println!("{:.1} %", f64::from(merge.stats().progress) / 100.0);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Merge {
    shared: Arc<Shared>,
}

watching!(Merge, "merge");

impl Merge {
    /// A merge that was not started.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn new(params: MergeParams) -> Result<Merge> {
        let task = Task::new("merge")?;
        Ok(Merge {
            shared: Arc::new(Shared { params, task }),
        })
    }

    /// Starts to merge the image `from`, and those before it, into one that gets the name `to`, and
    /// returns. [`Merge::wait`] tells how it ends, with the errors of [`merge`].
    ///
    /// # Errors
    /// [`State`](crate::Kind::State) when this merge was started before,
    /// [`Invalid`](crate::Kind::Invalid) for an empty path.
    pub fn start(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let paths = || Ok((image_path(from.as_ref())?, image_path(to.as_ref())?));
        let shared = Arc::clone(&self.shared);
        let run = move |(from, to): (PathBuf, PathBuf)| run(&shared, &from, &to);
        self.shared.task.start(paths, run)
    }

    /// Cancels the merge, and returns when the new file is gone. That takes a tenth of a second at most,
    /// unless a kernel call is in progress. A merge that has ended by itself is left alone.
    pub fn cancel(&self) {
        self.shared.task.cancel(|| self.cancel_devices());
    }

    /// A merge has no devices.
    #[allow(clippy::unused_self)]
    fn cancel_devices(&self) {}

    /// The current figures.
    pub fn stats(&self) -> Stats {
        self.shared.task.stats()
    }
}

/// The body of the merge's thread.
fn run(shared: &Shared, from: &Path, to: &Path) {
    let task = &shared.task;
    let _end = Ending(task);
    let begun = Instant::now();
    let mut renewed: Option<Instant> = None;
    let mut stats = Stats {
        state: State::Preparing,
        ..Stats::default()
    };
    let mut tell = |at: &Merged| {
        let state = match at.finishing {
            true => State::Finishing,
            false => State::Copying,
        };
        let due = state != stats.state || renewed.is_none_or(|last| last.elapsed() >= RENEW);
        (stats.data_pages, stats.zero_pages) = (at.data, at.zero);
        if due {
            renewed = Some(Instant::now());
            stats.state = state;
            stats.state_bytes = at.blobs;
            stats.total_bytes = at.total.bytes().0;
            let done = (at.data + at.zero) * PAGE_SIZE;
            stats.remaining_bytes = stats.total_bytes.saturating_sub(done);
            stats.elapsed = begun.elapsed();
            stats.advance();
            task.publish(&stats);
        }
    };
    let caching = Caching::new(shared.params.direct);
    let merged = catch(|| crate::image::merge(from, to, caching, &task.cancel, &mut tell))
        .and_then(|merged| merged);
    stats.elapsed = begun.elapsed();
    if let Ok(id) = &merged {
        (stats.progress, stats.remaining_bytes) = (10_000, 0);
        stats.file_bytes = id.length;
    }
    task.ends(&stats, merged.err());
}
