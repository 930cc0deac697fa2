//! Growth with the number of blocks and slots: adding and removing them, untracked, tracked, and
//! with each log that keeps data of the map; and the exchange of layouts.

use super::moving::Migration;
use super::{block, row, slot, Growth, MIB, NOWHERE};
use crate::machine::Reserved;
use crate::report::Report;
use brant::dirty::consumer::Consumer;
use brant::dirty::iommufd::IommufdLog;
use brant::dirty::iova::Iovas;
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::vhost::{LogMemory, VhostBackEnds, VhostLog};
use brant::dirty::DirtyLog;
use brant::memory::Memory;
use brant::sys::ioctl::Ioctl;
use brant::units::PAGE_SIZE;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// A guest may have eight times as many.
const BLOCKS: u64 = 512;
/// KVM has about eight times as many in one address space.
const SLOTS: u64 = 4000;
/// The number of the one slot in the other address space.
const HIGH: u32 = 1 << 16;

/// A back end that logs nothing.
struct Idle;

impl VhostBackEnds for Idle {
    fn log_on(&self, _: &LogMemory) -> brant::Result<()> {
        Ok(())
    }
    fn log_off(&self) -> brant::Result<()> {
        Ok(())
    }
}

/// A device that has written nothing.
struct Clean;

impl Ioctl for Clean {
    unsafe fn ioctl(&mut self, _: u32, _: *mut u8, _: usize) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a guest is tracked while its slots change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Nobody,
    Marks,
    Vhost,
    Iommufd,
}

impl By {
    fn log(self) -> Option<Box<dyn DirtyLog>> {
        match self {
            By::Nobody | By::Marks => None,
            By::Vhost => Some(Box::new(VhostLog::new(Arc::new(Idle), 0).unwrap())),
            By::Iommufd => {
                let log = IommufdLog::new(Box::new(Clean), 1, Iovas::Guest);
                Some(Box::new(log.unwrap()))
            }
        }
    }
}

/// A guest of one block. Only one slot exists yet, which shows all of it in the other address
/// space: a long slot, above which all others lie.
fn unplugged(count: u64, by: By) -> (Arc<Memory>, Consumer) {
    let memory = Arc::new(Memory::new().unwrap());
    block(&memory, "ram", NOWHERE as *mut u8, count * MIB);
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    if let Some(log) = by.log() {
        tracker.add_log(log).unwrap();
    }
    let consumer = tracker.consumer();
    if by != By::Nobody {
        consumer.start(StartWith::Nothing).unwrap();
    }
    slot(&memory, HIGH, "ram", 0, count * MIB, 0);
    (memory, consumer)
}

fn plug(count: u64, memory: &Memory) {
    (0..count).for_each(|i| slot(memory, i as u32, "ram", i * MIB, MIB, i * MIB));
}

fn plugged(count: u64, by: By) -> (Arc<Memory>, Consumer) {
    let made = unplugged(count, by);
    plug(count, &made.0);
    made
}

fn blocks(report: &mut Report) {
    let none = |_| Arc::new(Memory::new().unwrap());
    let add = |count: u64, memory: &mut Arc<Memory>| {
        for i in 0..count {
            let host = (NOWHERE + i * MIB) as *mut u8;
            block(memory, &format!("b{i}"), host, MIB);
        }
    };
    row(report, "add_blocks", BLOCKS, Growth::Linear, none, add);
    let all = |count| {
        let mut memory = none(count);
        add(count, &mut memory);
        memory
    };
    row(
        report,
        "remove_blocks",
        BLOCKS,
        Growth::Linear,
        all,
        |n, memory| {
            (0..n).for_each(|i| {
                memory
                    .remove_block(memory.find_block(&format!("b{i}")).unwrap())
                    .unwrap()
            });
        },
    );
    let many = |n| {
        // One page for each block, which is never touched.
        let sides = [Reserved::new(n * PAGE_SIZE), Reserved::new(n * PAGE_SIZE)];
        let made = sides.each_ref().map(|side| {
            let memory = Arc::new(Memory::new().unwrap());
            for i in 0..n {
                let host = side.address().wrapping_add((i * PAGE_SIZE) as usize);
                block(&memory, &format!("b{i}"), host, PAGE_SIZE);
            }
            memory
        });
        let [here, there] = made;
        (Migration::new(here, there), sides)
    };
    let exchange = |_, it: &mut (Migration, _)| it.0.run();
    let growth = Growth::Beside(1);
    row(report, "layout_exchange", BLOCKS, growth, many, exchange);
}

fn slots(report: &mut Report) {
    for (by, suffix) in [
        (By::Nobody, ""),
        (By::Marks, "/tracked"),
        (By::Vhost, "/vhost"),
        (By::Iommufd, "/iommufd"),
    ] {
        let name = format!("add_slots{suffix}");
        let none = |n| unplugged(n, by);
        let add = |n, it: &mut (Arc<Memory>, _)| plug(n, &it.0);
        row(report, &name, SLOTS, Growth::Linear, none, add);
        if by == By::Nobody {
            continue;
        }
        let name = format!("remove_slots{}", suffix.replace("/tracked", ""));
        let all = |n| plugged(n, by);
        row(report, &name, SLOTS, Growth::Linear, all, |n, it| {
            for i in 0..n {
                it.0.remove_slot(i as u32, GuestAddress(i * MIB)).unwrap();
            }
        });
    }
    let tracked = |n| plugged(n, By::Marks);
    let growth = Growth::None;
    row(report, "mark_last_slot", SLOTS, growth, tracked, |n, it| {
        let last = GuestAddress((n - 1) * MIB);
        (0..100_000).for_each(|_| it.1.mark_guest(last, 1));
    });
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    blocks(report);
    slots(report);
}
