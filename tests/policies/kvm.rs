//! A guest of the real KVM that writes to its pages in turn, one and a half times as fast as the link
//! carries. Its vCPU thread keeps the throttle. Auto-converge makes it converge, and it arrives whole.

use super::{auto_converge, policy, LINK};
use crate::support::link::Link;
use crate::support::time::LONG;
use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::Result;
use brant::kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use brant::vmm::{StateBlob, StateSink, Vmm};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// 16-bit code with 32-bit operands and addresses, in real mode with a data segment of 4 GiB. ESI: the
/// first page; EBX: the end. Adds one to a word of each page, and leaves KVM_RUN.
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
/// The guest writes to the pages from here to its end, so many before each exit.
const FROM: u64 = 256;
const PAGES: u64 = FROM + 2048;
const BURST: u64 = 32;

struct Machine {
    ram: GuestMemoryMmap,
    vm: VmFd,
    vcpu: Mutex<VcpuFd>,
    runs: AtomicBool,
    throttle: AtomicU8,
    most: AtomicU8,
    wrongs: Mutex<Vec<String>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    own: Weak<Machine>,
}

impl Machine {
    fn new(kvm: &Kvm) -> Arc<Self> {
        let size = (PAGES << 12) as usize;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let vm = kvm.create_vm().unwrap();
        let region = GuestMemoryBackend::iter(&ram).next().unwrap();
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region stays mapped as long as the machine has `ram`.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_regs {
            rip: CODE_AT,
            rflags: 2,
            rsi: FROM << 12,
            rbx: (FROM + BURST) << 12,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&regs).unwrap();
        Arc::new_cyclic(|own| Machine {
            ram,
            vm,
            vcpu: Mutex::new(vcpu),
            runs: AtomicBool::new(false),
            throttle: AtomicU8::new(0),
            most: AtomicU8::new(0),
            wrongs: Mutex::default(),
            thread: Mutex::default(),
            own: own.clone(),
        })
    }

    fn memory(&self) -> Arc<Memory> {
        let memory = Arc::new(Memory::new().unwrap());
        memory.add_guest_memory(&self.ram, 0).unwrap();
        memory
    }

    /// Writes one and a half times what the link carries, less the throttle.
    fn run_vcpu(&self) {
        let rate = 1.5 * LINK as f64 / 4096.0;
        let mut next = Instant::now();
        while self.runs.load(Ordering::SeqCst) {
            let mut vcpu = self.vcpu.lock().unwrap();
            match vcpu.run() {
                Ok(VcpuExit::IoOut(0x80, _)) => {}
                other => panic!("the guest ended: {other:?}"),
            }
            // Completes the `out`, so that the registers are those after it.
            vcpu.set_kvm_immediate_exit(1);
            let _ = vcpu.run();
            vcpu.set_kvm_immediate_exit(0);
            let mut regs = vcpu.get_regs().unwrap();
            let from = regs.rbx >> 12;
            let from = if from + BURST > PAGES { FROM } else { from };
            (regs.rsi, regs.rbx) = (from << 12, (from + BURST) << 12);
            vcpu.set_regs(&regs).unwrap();
            drop(vcpu);
            let speed = 1.0 - f64::from(self.throttle.load(Ordering::SeqCst)) / 100.0;
            next = next.max(Instant::now() - Duration::from_millis(20))
                + Duration::from_secs_f64(BURST as f64 / (rate * speed));
            while Instant::now() < next && self.runs.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        let throttle = self.throttle.load(Ordering::SeqCst);
        if throttle > 0 {
            let text = format!("paused while slowed by {throttle} percent");
            self.wrongs.lock().unwrap().push(text);
        }
        self.runs.store(false, Ordering::SeqCst);
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.run()
    }
    fn run(&self) -> Result<()> {
        self.runs.store(true, Ordering::SeqCst);
        let machine = self.own.upgrade().unwrap();
        *self.thread.lock().unwrap() = Some(std::thread::spawn(move || machine.run_vcpu()));
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let regs = self.vcpu.lock().unwrap().get_regs().unwrap();
        let registers = [regs.rip, regs.rsi, regs.rbx, regs.rdi, regs.rflags];
        let data: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).collect();
        sink.put(&StateBlob {
            name: "vcpu",
            instance: 0,
            version: 1,
            data: &data,
        })
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        let (words, _) = blob.data.as_chunks::<8>();
        let word = |n: usize| u64::from_le_bytes(words[n]);
        let regs = kvm_regs {
            rip: word(0),
            rsi: word(1),
            rbx: word(2),
            rdi: word(3),
            rflags: word(4),
            ..kvm_regs::default()
        };
        self.vcpu.lock().unwrap().set_regs(&regs).unwrap();
        Ok(())
    }
    fn throttle(&self, vcpu: Option<u32>, percent: u8) -> Result<()> {
        assert_eq!(vcpu, None);
        self.throttle.store(percent, Ordering::SeqCst);
        self.most.fetch_max(percent, Ordering::SeqCst);
        Ok(())
    }
    fn can_throttle(&self) -> bool {
        true
    }
}

/// Migrates a guest that writes, and checks that it arrives whole and runs on.
fn migrate(kvm: &Kvm, params: Params) -> (Arc<Machine>, Outgoing) {
    let (here, there) = (Machine::new(kvm), Machine::new(kvm));
    here.ram.write_slice(CODE, GuestAddress(CODE_AT)).unwrap();
    here.ram
        .write_slice(&vec![7; 8 << 20], GuestAddress(FROM << 12))
        .unwrap();
    here.run().unwrap();
    let tracker = Tracker::new(here.memory(), Clearing::default()).unwrap();
    tracker
        .add_log(Request::default().open(&here.vm).unwrap().log)
        .unwrap();
    let link = Link::of(LINK, Duration::ZERO, 256 << 10);
    let (near, far) = link.connect();
    let incoming = Incoming::new(there.memory(), there.clone(), Params::default()).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), here.clone(), params).unwrap();
    incoming.start(AcceptFrom::Connected(far)).unwrap();
    outgoing.start(ConnectTo::Connected(near)).unwrap();
    outgoing.wait(Some(LONG)).unwrap();
    incoming.wait(Some(LONG)).unwrap();
    there.pause().unwrap();
    assert!(here.wrongs.lock().unwrap().is_empty(), "{:?}", here.wrongs);
    assert_eq!(here.throttle.load(Ordering::SeqCst), 0);
    // Each page was counted up once in turn, so neighbours differ by one at most where the guest
    // is in the middle of a lap, and the memory there is that of here with what was counted since.
    let bytes = (8usize) << 20;
    let (mut ours, mut theirs) = (vec![0u8; bytes], vec![0u8; bytes]);
    here.ram
        .read_slice(&mut ours, GuestAddress(FROM << 12))
        .unwrap();
    there
        .ram
        .read_slice(&mut theirs, GuestAddress(FROM << 12))
        .unwrap();
    for page in 0..bytes >> 12 {
        let at = page << 12;
        let count = |of: &[u8]| u32::from_le_bytes(of[at..at + 4].try_into().unwrap());
        assert!(count(&theirs) >= count(&ours), "page {page} is an old one");
        assert!(
            ours[at + 4..at + 4096] == theirs[at + 4..at + 4096],
            "page {page}"
        );
    }
    (here, outgoing)
}

#[test]
fn auto_converge_makes_a_kvm_guest_converge_that_dirties_one_and_a_half_times_the_link() {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no /dev/kvm");
        return;
    };
    let (machine, outgoing) = migrate(&kvm, policy(auto_converge()));
    let stats = outgoing.stats();
    let most = machine.most.load(Ordering::SeqCst);
    println!(
        "slowed by {most} percent, {} passes, {:?}",
        stats.pass, stats.elapsed
    );
    assert!(most >= 30, "{most}");
    assert!(
        stats.promised_downtime.unwrap() <= Duration::from_millis(300),
        "{stats:?}"
    );
}

#[test]
fn a_kvm_guest_is_paused_to_finish_by_its_deadline() {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no /dev/kvm");
        return;
    };
    let deadline = Duration::from_millis(3500);
    let finish = brant::migrate::Policy {
        deadline: Some(deadline),
        on_deadline: brant::migrate::OnDeadline::PauseToFinish,
        ..Default::default()
    };
    let (_, outgoing) = migrate(&kvm, policy(finish));
    let stats = outgoing.stats();
    assert!(stats.elapsed < deadline * 2, "{stats:?}");
    assert_eq!(stats.aborted_pauses, 0, "{stats:?}");
}
