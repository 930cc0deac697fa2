//! What each of KVM's logs costs on this machine, measured with a guest of brant's own. The VMM
//! needs to know before it decides: once rings are enabled on a VM, no bitmap works there any more.
//!
//! A throw-away virtual machine with one vCPU ([`crate::sys::kvm_machine`]) writes to 4 MiB, under
//! each kind of bitmap in turn. A second machine, with rings enabled, does so under rings. No
//! thread is made: the reaper's work beside the guest (a round when a quarter of the ring is in
//! use) is done here between two entries. Times are processor times of this thread, so that other
//! load on the machine counts little. They are medians, so that single disturbances do not count.
//!
//! This file measures; [`costs`] decides what the figures recommend.

pub mod costs;
#[cfg(test)]
mod tests;

pub use costs::{Cost, Costs, Measured, Workload};

use super::mode::KvmMode;
use crate::error::{Error, Kind, Result};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The usual limit of a measurement.
pub const LIMIT: Duration = Duration::from_millis(200);
/// The shortest and the longest limit.
pub const LIMITS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));

/// Measures the costs of KVM's logs for about `limit` (usually [`LIMIT`]; 20 ms to 10 s), and
/// recommends one for `workload`. `kvm` is `/dev/kvm`, borrowed; with `None` it is opened.
///
/// The measurement runs on the calling thread and makes no other. It creates two virtual machines,
/// each with 4 MiB of touched memory, and removes them whatever happens. Virtual machines of the
/// caller are not touched. Call it before rings are enabled ([`super::ring::enable`]).
///
/// # Errors
/// `Unsupported` where brant has no guest program (all but x86-64), or where KVM does not run it;
/// `Timeout` if no kind could be measured within the limit; `Invalid` for a limit out of range, or
/// for a descriptor of another kind of file; `Kernel` when KVM refuses a call.
///
/// ```
/// use brant::dirty::kvm::{measure, ring, KvmMode, Request, Workload};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(kvm) = kvm_ioctls::Kvm::new() else { return Ok(()) };
/// # if !cfg!(target_arch = "x86_64") { return Ok(()) }
/// // A guest of which nothing is known: the worst case is one that writes all the time.
/// let measured = measure::measure(None, Workload::default(), Duration::from_secs(1))?;
/// println!("{:?}: {}", measured.choice.mode, measured.choice.reason);
///
/// let vm = kvm.create_vm()?;
/// if measured.choice.mode == KvmMode::Ring {
///     ring::enable(&vm, 0)?;
/// }
/// // Later, when the guest is tracked: Auto goes by the same figures.
/// let opened = Request { measured: Some(measured), ..Request::default() }.open(&vm)?;
/// # let _ = opened;
/// # Ok(())
/// # }
/// ```
pub fn measure(
    kvm: Option<BorrowedFd<'_>>,
    workload: Workload,
    limit: Duration,
) -> Result<Measured> {
    if !(LIMITS.0..=LIMITS.1).contains(&limit) {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "measuring KVM's logs: a limit of {} to {} ms expected, found {} ms",
                LIMITS.0.as_millis(),
                LIMITS.1.as_millis(),
                limit.as_millis()
            ),
        ));
    }
    let (costs, missing) = trial::measure(kvm, limit)?;
    let Some(mut measured) = Measured::of(costs, workload) else {
        let why: Vec<String> = missing.iter().map(|(_, e)| e.to_string()).collect();
        let kind = missing.first().map_or(Kind::Timeout, |(_, e)| e.kind());
        return Err(Error::new(
            kind,
            format!("none of KVM's logs was measured: {}", why.join("; ")),
        ));
    };
    measured.choice.reason += &not_measured(&missing);
    Ok(measured)
}

/// A sentence's end on missing figures, with each reason once: "; dirty rings, get-and-clear
/// bitmaps were not measured: …".
fn not_measured(missing: &[(KvmMode, Error)]) -> String {
    let mut text = String::new();
    let mut left: Vec<&(KvmMode, Error)> = missing.iter().collect();
    while let Some((_, why)) = left.first().copied() {
        let same = |other: &&(KvmMode, Error)| other.1.message() == why.message();
        let (names, others): (Vec<_>, Vec<_>) = left.into_iter().partition(same);
        let names: Vec<&str> = names.iter().map(|(mode, _)| mode.name()).collect();
        text += &format!(
            "; {} were not measured: {}",
            names.join(", "),
            why.message()
        );
        left = others;
    }
    text
}

#[cfg(not(target_arch = "x86_64"))]
mod trial {
    use super::*;

    pub fn measure(
        _: Option<BorrowedFd<'_>>,
        _: Duration,
    ) -> Result<(Costs, Vec<(KvmMode, Error)>)> {
        Err(Error::new(
            Kind::Unsupported,
            "measuring KVM's logs: expected x86-64, for which brant has a guest program",
        ))
    }
}

#[cfg(target_arch = "x86_64")]
mod trial;
