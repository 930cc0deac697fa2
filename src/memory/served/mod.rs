//! The guest's memory, served by fault: the guest runs here, and some of its pages have not arrived.
//! A thread that touches such a page waits until the page is here.
//!
//! Postcopy uses it at the destination (pages come from the source), and fast restore (pages come
//! from an image). Both implement [`Supplier`], and put what arrives into memory by
//! [`Served::place`] and [`Served::place_zeros`].
//!
//! **The danger is memory that is wrong without a fault.** Example: precopy has sent page 5, and the
//! guest wrote to it again before it moved. Page 5 is absent, and its old contents are in memory. So
//! [`Served::begin`] takes away every absent page, whether or not anything was ever written to it:
//!
//! | memory | how an absent page is taken away | how contents get in |
//! |---|---|---|
//! | private | `MADV_DONTNEED` | `UFFDIO_COPY` |
//! | shared tmpfs, with a descriptor to write to | its entry in the page tables only; the next touch is a minor fault | `UFFDIO_COPY` where the file has nothing, else a write to the file and `UFFDIO_CONTINUE` |
//! | other shared memory, and where other processes map it | `MADV_REMOVE`: a hole in the file | `UFFDIO_COPY` |
//!
//! Transparent huge pages are switched off first (`MADV_NOHUGEPAGE`): with them the first write to a
//! page makes 512 pages present, and those that never arrived would read as zero without a fault.
//!
//! Three marks of each page decide what happens, under a lock of its part of the block: *absent*,
//! *placing* (somebody fills it at this moment) and *waiting* (a thread waits for it, so the supplier
//! has been asked). Whoever finds a page absent and nobody placing it may fill it; so a page is
//! filled once, by the first arrival. A page that is not absent and nowhere in memory reads as zero:
//! the VMM has discarded it, or it arrived as a page of zeros, which nobody writes before somebody
//! touches it.
//!
//! | file | what |
//! |---|---|
//! | `kind` | which memory can be served, and how |
//! | `marks` | the three marks of a block's pages |
//! | `staging` | huge pages that have arrived in part |
//! | `supplier` | who brings pages, and by what they get into memory |
//! | `arrivals` | pages that arrive, checked |
//! | `placing` | contents into memory, and the waking of threads |
//! | `meter` | faults, how long threads waited |
//! | `faulting` | the thread that serves faults |
//! | `service` | [`Served`]: beginning, ending, the parts together |

mod arrivals;
mod faulting;
mod kind;
mod marks;
mod meter;
mod placing;
mod service;
mod staging;
mod supplier;
#[cfg(test)]
mod tests;

pub use kind::Checked;
pub use meter::{Blocked, Faulted, Latency};
pub use placing::{Absent, Theirs};
pub use service::{Announce, How, Served};
pub use supplier::{Place, Supplier};
