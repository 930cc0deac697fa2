//! Records dirty traces of real KVM guests, with a tracker.
//!
//! The guest runs real-mode code that adds one to a word of each page of a range, from the first to the
//! last, and tells the VMM after each lap. The VMM then changes the range or lets the guest rest, so
//! a trace has phases.

use super::trace::{Recording, Trace};
use brant::dirty::consumer::Cursor;
use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit};
use brant::memory::Memory;
use brant::units::Pages;
use brant::vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// 16-bit code with 32-bit operands and addresses. ESI: the first page; EBX: the end.
const CODE: &[u8] = &[
    0x66, 0x89, 0xf7, //                         again: mov edi, esi
    0x67, 0x66, 0xff, 0x07, //                   next:  inc dword [edi]
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //        add edi, 4096
    0x66, 0x39, 0xdf, //                                cmp edi, ebx
    0x72, 0xf0, //                                      jb next
    0xe6, 0x80, //                                      out 0x80, al
    0xeb, 0xe9, //                                      jmp again
];
const CODE_AT: u64 = 0x1000;
const PAGES: usize = 16384;
const INTERVAL: Duration = Duration::from_millis(100);
const INTERVALS: usize = 60;
/// The first page that the guest writes.
const FROM: u64 = 256;

/// For so many milliseconds the guest writes so many pages in turn; 0: it rests.
type Phases = &'static [(u64, u64)];

const GUESTS: &[(&str, Phases)] = &[
    ("steady", &[(1000, 4096)]),
    ("bursts", &[(300, 8192), (900, 0)]),
    ("phases", &[(1500, 512), (1500, 12288)]),
];

/// Records each guest into a file of the directory.
pub fn record(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for (name, phases) in GUESTS {
        let trace = run(name, phases)?;
        let path = directory.join(format!("{name}.jsonl"));
        std::fs::write(&path, trace.to_text())?;
        println!("{}: {} intervals", path.display(), trace.lines.len());
    }
    Ok(())
}

/// Runs a guest and records what it writes.
pub fn run(name: &str, phases: Phases) -> Result<Trace, Box<dyn std::error::Error>> {
    let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PAGES << 12)])?;
    ram.write_slice(CODE, GuestAddress(CODE_AT))?;
    let vm = Kvm::new()?.create_vm()?;
    let region = ram.iter().next().ok_or("no memory")?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: `ram` stays mapped until after the virtual machine is dropped.
    unsafe { vm.set_user_memory_region(slot) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    // Real mode, with a data segment that covers all memory.
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
    vcpu.set_sregs(&sregs)?;
    let range = |pages: u64| kvm_regs {
        rip: CODE_AT,
        rflags: 2,
        rsi: FROM << 12,
        rbx: (FROM + pages.max(1)) << 12,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&range(phases[0].1))?;

    let memory = Arc::new(Memory::new()?);
    memory.add_guest_memory(&ram, 0)?;
    let tracker = Tracker::new(memory, Clearing::default())?;
    tracker.add_log(Request::default().open(&vm)?.log)?;
    let consumer = tracker.consumer();
    let ends = AtomicBool::new(false);
    let mut recording = Recording::new(PAGES);
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
        let running = scope.spawn(|| -> Result<(), String> {
            let all: u64 = phases.iter().map(|phase| phase.0).sum();
            while !ends.load(Ordering::SeqCst) {
                let mut at = begun.elapsed().as_millis() as u64 % all;
                let mut pages = 0;
                for phase in phases {
                    pages = phase.1;
                    if at < phase.0 {
                        break;
                    }
                    at -= phase.0;
                }
                if pages == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                let mut regs = vcpu.get_regs().map_err(|e| e.to_string())?;
                regs.rbx = (FROM + pages) << 12;
                vcpu.set_regs(&regs).map_err(|e| e.to_string())?;
                match vcpu.run() {
                    Ok(VcpuExit::IoOut(0x80, _)) => {}
                    other => return Err(format!("the guest ended: {other:?}")),
                }
            }
            Ok(())
        });
        let mut record = || -> brant::Result<()> {
            consumer.start(StartWith::Nothing)?;
            let begun = Instant::now();
            for interval in 1..=INTERVALS {
                let at = INTERVAL * interval as u32;
                std::thread::sleep(at.saturating_sub(begun.elapsed()));
                consumer.sync(When::Running)?;
                let (mut cursor, mut written) = (Cursor::default(), Vec::new());
                loop {
                    let taken = consumer.take(&mut cursor, 1024, Pages(1 << 20))?;
                    if taken.is_empty() {
                        break;
                    }
                    for run in taken.runs() {
                        let first = run.pages.first().index();
                        written.extend(first..first + run.pages.count().index());
                    }
                    taken.delivered();
                }
                recording.interval(written);
            }
            Ok(())
        };
        let recorded = record();
        ends.store(true, Ordering::SeqCst);
        running.join().map_err(|_| "the vCPU's thread panicked")??;
        Ok(recorded?)
    })?;
    Ok(Trace {
        name: name.to_owned(),
        pages: PAGES as u64,
        interval: INTERVAL,
        lines: recording.lines,
    })
}
