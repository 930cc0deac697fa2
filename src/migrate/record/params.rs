//! What a recording is asked for, what it writes of one moment, and what became of it.

use crate::error::{Error, Kind, Result};
use crate::migrate::report::{LaneStats, Stats};
use crate::migrate::steering::forecast::Forecast;
use std::time::Duration;

/// The version of the lines.
pub const RECORD_VERSION: u32 = 1;
/// The longest text that says what is recorded, in bytes.
pub const RECORD_WHAT_MAX: usize = 1024;

/// What a recording is made of.
///
/// ```
/// # use brant::dirty::tracker::{Clearing, Tracker};
/// # use brant::memory::{Memory, NO_SLOT};
/// # use brant::migrate::{Blockers, Incoming, Outgoing, Params, AcceptFrom, ConnectTo};
/// use brant::migrate::{RecordParams, Recorded};
/// # use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// # use brant::vmm::Vmm;
/// # use std::os::unix::net::UnixStream;
/// # use std::sync::Arc;
/// use std::time::Duration;
///
/// # struct Nothing;
/// # impl Vmm for Nothing {
/// #     fn pause(&self) -> brant::Result<()> { Ok(()) }
/// #     fn resume(&self) -> brant::Result<()> { Ok(()) }
/// #     fn run(&self) -> brant::Result<()> { Ok(()) }
/// # }
/// # fn guest() -> brant::Result<Arc<Memory>> {
/// #     let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// #     let memory = Arc::new(Memory::new()?);
/// #     memory.add_guest_memory(&ram, NO_SLOT)?;
/// #     Ok(memory)
/// # }
/// # fn main() -> brant::Result<()> {
/// # let (a, b) = UnixStream::pair()?;
/// # let incoming = Incoming::new(guest()?, Arc::new(Nothing), Params::default())?;
/// # incoming.start(AcceptFrom::Connected(b.into()))?;
/// # let tracker = Tracker::new(guest()?, Clearing::default())?;
/// # let outgoing = Outgoing::new(tracker, Blockers::new(), Arc::new(Nothing), Params::default())?;
/// # let file = tempfile::NamedTempFile::new()?;
/// # let (path, file) = (file.path().to_owned(), file.reopen()?);
/// let how = RecordParams { interval: Duration::from_millis(100), what: "an idle guest".into() };
/// outgoing.record(file.into(), how)?;
/// outgoing.start(ConnectTo::Connected(a.into()))?;
/// outgoing.wait(None)?;
/// let Recorded { lines, dropped, error, .. } = outgoing.end_record()?;
/// assert_eq!((dropped, error), (0, None));
/// assert_eq!(std::fs::read_to_string(path)?.lines().count() as u64, lines);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordParams {
    /// The time between two looks at the figures: 10 ms to 1 h, by default 50 ms, as often as a migration
    /// renews them. Figures that have not changed are not written again.
    pub interval: Duration,
    /// A text that the first line has: what is recorded. At most [`RECORD_WHAT_MAX`] bytes.
    pub what: String,
}

impl Default for RecordParams {
    fn default() -> Self {
        RecordParams {
            interval: Duration::from_millis(50),
            what: String::new(),
        }
    }
}

impl RecordParams {
    pub(super) fn check(&self) -> Result<()> {
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(3600));
        let invalid = |why| Err(Error::new(Kind::Invalid, why));
        if !(least..=most).contains(&self.interval) {
            return invalid(format!(
                "the interval of a recording is 10 to 3600000 ms, not {}",
                self.interval.as_millis()
            ));
        }
        if self.what.len() > RECORD_WHAT_MAX {
            return invalid(format!(
                "what is recorded is said in at most {RECORD_WHAT_MAX} bytes, not {}",
                self.what.len()
            ));
        }
        Ok(())
    }
}

/// What became of a recording.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// Lines that were written.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lines that were dropped, because the descriptor took nothing for too long.
    pub dropped: u64,
    /// Why the recording ended before its time.
    pub error: Option<Error>,
}

/// The figures of one moment.
pub(in crate::migrate) struct Frame {
    pub(in crate::migrate) stats: Stats,
    pub(in crate::migrate) forecast: Option<Forecast>,
    pub(in crate::migrate) lanes: Vec<LaneStats>,
}
