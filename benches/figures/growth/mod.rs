//! Operations that cost more than necessary when a guest is larger, or has more blocks, slots,
//! vCPUs or runs. Each operation is made at two sizes, eight times apart. The figure is its cost at
//! the larger size over what linear growth (or none) allows. A ratio of 1 grows as it should; 8 is
//! one factor of the size too many; 1.3 is the most that is accepted.
//!
//! **What is counted** is the process' time on processors, all threads together. Time by the clock
//! depends on the other load of the machine (three busy loops on two processors turned 1.2 into
//! 3.2). It is reported beside the figure, because waiting costs no processor.
//!
//! **The sizes take turns.** An operation that may cost eight times as much at the larger size is
//! made eight times at the smaller one, for eight guests that all exist before the clock starts. So
//! both turns go through the same amount of memory: the dirty bitmap of one small guest would stay
//! in a processor cache that is too small for the larger bitmap. The ratio is taken turn by turn;
//! the figure is the median, and the middle half of the ratios is its range.
//!
//! **Fixed costs** (threads, sockets, a handshake) would hide growth, because the small side has
//! them eight times. Where there are fixed costs, the operation is also made at almost no size, and
//! that cost is subtracted from both sides. If it is more than half of the small side, the
//! difference would be noise. Then the whole large side is compared with the fixed cost plus the
//! allowed growth of the rest.
//!
//! **The logarithm.** The map finds blocks and slots in trees, so a change costs the logarithm of
//! their number: eight times as many cost 1.25 of the linear growth at 32,000, and 1.38 at 2,000.
//! The sizes are those of the limits (4,096 blocks; 32,764 slots).
//!
//! Memory that is not read is reserved and never touched. Memory that a migration reads was touched
//! before.

mod map;
mod moving;
mod tracking;

use crate::report::{Report, Runs};
use brant::memory::{BlockDescription, HostMemory, Memory, SlotDescription};
use brant::units::Bytes;
use std::time::Instant;
use vm_memory::GuestAddress;

const FAMILY: &str = "growth.";
/// The ratio of the two sizes.
const APART: u64 = 8;
const RUNS: usize = 7;
const MIB: u64 = 1 << 20;

/// How much the operation may cost at the larger size.
enum Growth {
    /// As much as at the smaller size.
    None,
    /// Eight times as much.
    Linear,
    /// Eight times as much, beyond its cost at this size, which is almost none.
    Beside(u64),
}

/// The time of one turn, in microseconds.
#[derive(Clone, Copy)]
struct Turn {
    /// On processors.
    cpu: f64,
    /// By the clock.
    wall: f64,
}

/// One row: `work` is done with what `prepare` has made for a size.
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

/// [`row`] for work that returns its own time.
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

/// A function of its own, so that a tool that counts instructions can count in here alone.
#[inline(never)]
fn timed(work: impl FnOnce()) -> Turn {
    let (cpu, begun) = (on_processors(), Instant::now());
    work();
    Turn {
        cpu: (on_processors() - cpu) as f64 / 1e3,
        wall: begun.elapsed().as_secs_f64() * 1e6,
    }
}

/// Nanoseconds for which all threads of this process were on processors.
fn on_processors() -> u64 {
    nanoseconds(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Nanoseconds for which this thread was on a processor.
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
    // SAFETY: mapped as long as the memory is used, or never accessed.
    let host = unsafe { HostMemory::new(host) };
    let block = BlockDescription::new(name, host, Bytes(length));
    memory.add_block(block).unwrap();
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

/// An address without a mapping, for blocks that are never accessed.
const NOWHERE: u64 = 0x2000_0000_0000;

/// Has the allocator return freed memory to the kernel at once, at both sizes. Otherwise the allocator
/// of glibc, after the first large block that is freed, keeps blocks of up to 32 MiB: then the bitmap of
/// the smaller guest costs nothing to free, and the larger guest seems to grow by more than its size.
fn give_memory_back() {
    // The allocator's own first threshold, in bytes; setting it keeps it from changing.
    const KEPT: libc::c_int = 128 << 10;
    // SAFETY: no memory is involved.
    let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT) };
    assert_eq!(set, 1, "the allocator takes the threshold");
}

/// All figures of growth.
pub fn measure(report: &mut Report) {
    if report.wants_any(FAMILY) {
        give_memory_back();
        map::measure(report);
        tracking::measure(report);
        moving::measure(report);
    }
}
