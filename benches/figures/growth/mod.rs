//! What costs more than it must where a guest is larger, or has more blocks, slots, vCPUs or runs:
//! each operation at two sizes, eight times apart, over what linear growth (or none) allows. A ratio
//! of 1 grows as it should; 8 is one factor of the size too many; 1.3 is the most that is accepted.
//!
//! **What is counted** is the process' time on processors, all threads together. The time by the
//! clock depends on who else is on the machine (three busy loops on two processors made 3.2 of 1.2).
//! It stands beside the figure, because waiting costs no processor.
//!
//! **The sizes take turns.** What may cost eight times as much at the larger size is done eight times
//! at the smaller one, to eight guests that are all there before the clock starts. So both turns go
//! through as much memory: the dirty bitmap of a small guest stays in a cache of the processor that a
//! bitmap eight times as large does not fit in. The ratio is taken turn by turn; the figure is the
//! middle one, and the middle half of them is its range.
//!
//! **Fixed costs** (threads, sockets, a handshake) would hide growth: the small side has them eight
//! times. Where there are such, the operation is also done at next to no size, and its cost is
//! subtracted from both sides. Where that is more than half of the small side, what is left would be
//! noise: then the whole of the large side is held against the fixed cost and the allowed growth of
//! the rest.
//!
//! **The logarithm.** The map finds blocks and slots in trees, so a change costs the logarithm of
//! their number: eight times as many cost 1.25 of the linear growth at 32,000 and 1.38 at 2,000. The
//! sizes are those that the limits are for (4,096 blocks; 32,764 slots).
//!
//! Memory of which nothing is read is reserved and never touched; what a migration reads was
//! touched before.

mod map;
mod moving;
mod tracking;

use crate::report::{Report, Runs};
use brant::memory::{
    BackingFile, BlockDescription, BlockFlags, HostMemory, Memory, SlotDescription,
};
use brant::units::{Bytes, PAGE_SIZE};
use std::time::Instant;
use vm_memory::GuestAddress;

const FAMILY: &str = "growth.";
/// How far apart the two sizes are.
const APART: u64 = 8;
const RUNS: usize = 7;
const MIB: u64 = 1 << 20;

/// How much the larger size may cost.
enum Growth {
    /// As much as the smaller one.
    None,
    /// Eight times as much.
    Linear,
    /// The same, beside what it costs at this size, which is next to none.
    Beside(u64),
}

/// What one turn took, in microseconds.
#[derive(Clone, Copy)]
struct Turn {
    /// On processors.
    cpu: f64,
    /// By the clock.
    wall: f64,
}

/// One row: `work` is done at a size, to what `prepare` has made for that size.
fn row<T>(
    report: &mut Report,
    name: &str,
    small: u64,
    growth: Growth,
    prepare: impl FnMut(u64) -> T,
    mut work: impl FnMut(u64, &mut T),
) {
    row_of(report, name, small, growth, prepare, |size, made| {
        timed(|| made.iter_mut().for_each(|it| work(size, it)))
    });
}

/// The same where the work, done to each that was made, says what it took.
fn row_of<T>(
    report: &mut Report,
    name: &str,
    small: u64,
    growth: Growth,
    mut prepare: impl FnMut(u64) -> T,
    mut work: impl FnMut(u64, &mut [T]) -> Turn,
) {
    let name = format!("{FAMILY}{name}");
    if !report.wants(&name) {
        return;
    }
    let (often, nothing) = match growth {
        Growth::None => (1, None),
        Growth::Linear => (APART, None),
        Growth::Beside(nothing) => (APART, Some(nothing)),
    };
    let mut turn = |size: u64, times: u64| {
        let mut made: Vec<T> = (0..times).map(|_| prepare(size)).collect();
        work(size, &mut made)
    };
    let [mut cpu, mut wall, mut fixed_share]: [Runs; 3] = Default::default();
    let [mut large_cpu, mut allowed_cpu]: [Runs; 2] = Default::default();
    for i in 0..=RUNS {
        let large = turn(small * APART, 1);
        let small = turn(small, often);
        let fixed = nothing.map(|size| turn(size, often).cpu / often as f64);
        // The first turn touches memory.
        if i == 0 {
            continue;
        }
        let fixed = fixed.unwrap_or(0.0);
        let rest = (small.cpu - fixed * often as f64).max(0.0);
        let (grown, allowed) = match rest > small.cpu / 2.0 {
            true => (large.cpu - fixed, rest),
            false => (large.cpu, fixed + rest),
        };
        cpu.push(grown / allowed);
        wall.push(large.wall / small.wall);
        large_cpu.push(grown);
        allowed_cpu.push(allowed);
        fixed_share.push(1.0 - rest / small.cpu);
    }
    report.grown(
        &name,
        "us",
        [&large_cpu, &allowed_cpu],
        &cpu,
        &wall,
        &fixed_share,
    );
}

/// A function of its own, so that what counts instructions can be told to count in here alone.
#[inline(never)]
fn timed(work: impl FnOnce()) -> Turn {
    let (cpu, begun) = (on_processors(), Instant::now());
    work();
    Turn {
        cpu: (on_processors() - cpu) as f64 / 1e3,
        wall: begun.elapsed().as_secs_f64() * 1e6,
    }
}

/// Nanoseconds that all threads of this process were on processors.
fn on_processors() -> u64 {
    nanoseconds(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The same of this thread.
fn on_a_processor() -> u64 {
    nanoseconds(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn nanoseconds(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the structure.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn block(memory: &Memory, name: &str, host: *mut u8, length: u64) {
    backed(memory, name, host, length, PAGE_SIZE, None);
}

fn backed(
    memory: &Memory,
    name: &str,
    host: *mut u8,
    length: u64,
    page_size: u64,
    file: Option<BackingFile>,
) {
    memory
        .add_block(BlockDescription {
            name: name.into(),
            // SAFETY: mapped as long as the memory is used, or never looked at.
            host: unsafe { HostMemory::new(host) },
            length: Bytes(length),
            page_size: Bytes(page_size),
            file,
            flags: BlockFlags::default(),
        })
        .unwrap();
}

fn slot(memory: &Memory, number: u32, name: &str, offset: u64, length: u64, guest: u64) {
    memory
        .add_slot(&SlotDescription {
            slot: number,
            flags: 0,
            block: memory.find_block(name).unwrap(),
            offset: Bytes(offset),
            length: Bytes(length),
            guest_address: GuestAddress(guest),
        })
        .unwrap();
}

/// An address that nothing is mapped at, for blocks that nobody looks at.
const NOWHERE: u64 = 0x2000_0000_0000;

/// All figures of growth.
pub fn measure(report: &mut Report) {
    if report.wants_any(FAMILY) {
        map::measure(report);
        tracking::measure(report);
        moving::measure(report);
    }
}
