//! A guest of KVM that checks its own memory: each vCPU goes round the same pages in an order of its own,
//! and compares in each page what must be there before it counts its visit.
//!
//! A page has its own guest address in its first 32 bits, and a counter for each vCPU. A vCPU that comes to
//! a page for the n-th time must find n in its counter. An old version of a page, a page of zeros and a
//! lost write each show at the next visit. The vCPU then comes out with the number of the page.

use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::{Error, Kind, Result};
use brant::kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use brant::vmm::{Event, StateBlob, StateSink, Vmm};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

const PAGE: u64 = 4096;
/// The first page that vCPUs check. Their code lies below, a page for each.
pub const FROM: u64 = 16;
/// Pages that they check: a power of two.
pub const REGION: u64 = 2048;
/// All pages of the guest.
pub const PAGES: u64 = FROM + REGION + 500;
/// Where the counters lie in a page.
const COUNTERS: u64 = 16;

/// In which order a vCPU goes round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Each page once, far from the last one.
    Random,
    Upwards,
    /// One page again and again.
    Hot,
}

/// 16-bit code with 32-bit operands and addresses. EDI: the number of the page; EBX: the address of the
/// first one; EBP: the largest number; ESI: earlier visits; EDX: pages until the next round; ECX: pages
/// of a round.
const CODE: [u8; 73] = [
    0x66, 0x89, 0xf8, //                                     0 next: mov eax, edi
    0x66, 0xc1, 0xe0, 0x0c, //                               3       shl eax, 12
    0x66, 0x01, 0xd8, //                                     7       add eax, ebx
    0x67, 0x66, 0x39, 0x00, //                              10       cmp [eax], eax
    0x75, 0x35, //                                          14       jne bad
    0x67, 0x66, 0x39, 0xb0, 0x00, 0x00, 0x00, 0x00, //      16       cmp [eax + counter], esi
    0x75, 0x2b, //                                          24       jne bad
    0x67, 0x66, 0xff, 0x80, 0x00, 0x00, 0x00, 0x00, //      26       inc dword [eax + counter]
    0x66, 0x69, 0xff, 0x00, 0x00, 0x00, 0x00, //            34       imul edi, edi, factor
    0x66, 0x81, 0xc7, 0x00, 0x00, 0x00, 0x00, //            41       add edi, step
    0x66, 0x21, 0xef, //                                    48       and edi, ebp
    0x66, 0x4a, //                                          51       dec edx
    0x75, 0x05, //                                          53       jnz on
    0x66, 0x46, //                                          55       inc esi
    0x66, 0x89, 0xca, //                                    57       mov edx, ecx
    0xf6, 0xc2, 0x3f, //                                    60 on:   test dl, 63
    0x75, 0xbf, //                                          63       jnz next
    0xe6, 0x80, //                                          65       out 0x80, al
    0xeb, 0xbb, //                                          67       jmp next
    0xe6, 0x81, //                                          69 bad:  out 0x81, al
    0xeb, 0xfc, //                                          71       jmp bad
];

fn code(number: u64, order: Order) -> [u8; CODE.len()] {
    let mut code = CODE;
    let mut put = |at: usize, value: u32| code[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let counter = (COUNTERS + 4 * number) as u32;
    put(20, counter);
    put(30, counter);
    // Every number comes once in a round: the factor is one more than a multiple of 4, the step odd.
    let (factor, step) = match order {
        Order::Random => (1_664_525, 1_013_904_223),
        Order::Upwards => (1, 1),
        Order::Hot => (1, 0),
    };
    put(37, factor);
    put(44, step);
    if order == Order::Hot {
        // Each visit is a round: the jump leads to the next instruction, and EDX becomes ESI.
        code[54] = 0;
        code[59] = 0xf2;
    }
    code
}

/// See the file's description. Its threads end when it is paused or dropped.
pub struct Machine {
    // Before the memory, which it uses.
    vcpus: Vec<Mutex<VcpuFd>>,
    vm: VmFd,
    ram: GuestMemoryMmap,
    orders: Vec<Order>,
    /// Batches of 64 pages.
    work: Vec<AtomicU64>,
    runs: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    wrong: Mutex<Vec<String>>,
    events: Mutex<Vec<String>>,
    own: Weak<Machine>,
}

impl Machine {
    /// A guest that stands still. Without `filled`, all its memory is zero.
    fn new(kvm: &Kvm, orders: &[Order], filled: bool) -> Arc<Machine> {
        let length = (PAGES * PAGE) as usize;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]).unwrap();
        for page in (0..PAGES).filter(|_| filled) {
            let mut bytes: Vec<u8> = (0..PAGE / 8)
                .flat_map(|word| {
                    (word + page)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .to_le_bytes()
                })
                .collect();
            bytes[..COUNTERS as usize + 4 * orders.len()].fill(0);
            bytes[..4].copy_from_slice(&((page * PAGE) as u32).to_le_bytes());
            ram.write_slice(&bytes, GuestAddress(page * PAGE)).unwrap();
        }
        let vm = kvm.create_vm().unwrap();
        let region = GuestMemoryBackend::iter(&ram).next().unwrap();
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the machine drops `vm` before `ram`.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let mut vcpus = Vec::new();
        for (number, order) in (0..).zip(orders) {
            let at = (1 + number) * PAGE;
            if filled {
                ram.write_slice(&code(number, *order), GuestAddress(at))
                    .unwrap();
            }
            let fd = vm.create_vcpu(number).unwrap();
            let mut sregs = fd.get_sregs().unwrap();
            // Real mode, with a data segment that covers all memory.
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
            fd.set_sregs(&sregs).unwrap();
            let first = if *order == Order::Hot { 1 } else { REGION };
            let regs = kvm_regs {
                rip: at,
                rflags: 2,
                rbx: FROM * PAGE,
                rbp: REGION - 1,
                rcx: REGION,
                rdx: first,
                rdi: number * 700 % REGION,
                ..kvm_regs::default()
            };
            fd.set_regs(&regs).unwrap();
            vcpus.push(Mutex::new(fd));
        }
        Arc::new_cyclic(|own| Machine {
            vm,
            ram,
            orders: orders.to_vec(),
            work: vcpus.iter().map(|_| AtomicU64::new(0)).collect(),
            vcpus,
            runs: AtomicBool::new(false),
            threads: Mutex::default(),
            wrong: Mutex::default(),
            events: Mutex::default(),
            own: own.clone(),
        })
    }

    /// A guest that runs, its tracker, and a machine of the same shape that it can move to.
    pub fn pair(kvm: &Kvm, orders: &[Order]) -> ([Arc<Machine>; 2], Arc<Tracker>) {
        let machines = [true, false].map(|filled| Machine::new(kvm, orders, filled));
        let tracker = Tracker::new(machines[0].memory(), Clearing::default()).unwrap();
        let opened = Request::default().open(&machines[0].vm).unwrap();
        tracker.add_log(opened.log).unwrap();
        machines[0].go();
        (machines, tracker)
    }

    /// Its memory, for a migration.
    pub fn memory(&self) -> Arc<Memory> {
        let memory = Arc::new(Memory::new().unwrap());
        memory.add_guest_memory(&self.ram, 0).unwrap();
        memory
    }

    /// Pages that the vCPU with the fewest has visited here.
    pub fn work(&self) -> u64 {
        let work = self
            .work
            .iter()
            .map(|work| 64 * work.load(Ordering::SeqCst));
        work.min().unwrap_or(0)
    }

    /// What the vCPUs have found that must not be.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// The texts of the events so far.
    pub fn told(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }

    fn go(&self) {
        self.runs.store(true, Ordering::SeqCst);
        let mut threads = self.threads.lock().unwrap();
        for number in 0..self.vcpus.len() {
            let machine = self.own.upgrade().unwrap();
            threads.push(std::thread::spawn(move || machine.run_vcpu(number)));
        }
    }

    /// Stops the vCPUs. Those that wait for a page stop when it has come.
    pub fn halt(&self) {
        self.runs.store(false, Ordering::SeqCst);
        for thread in self.threads.lock().unwrap().drain(..) {
            thread.join().unwrap();
        }
    }

    fn run_vcpu(&self, number: usize) {
        let mut fd = self.vcpus[number].lock().unwrap();
        let mut bad = None;
        while self.runs.load(Ordering::SeqCst) && bad.is_none() {
            bad = match fd.run() {
                Ok(VcpuExit::IoOut(0x80, _)) => {
                    self.work[number].fetch_add(1, Ordering::SeqCst);
                    None
                }
                Err(e) if e.errno() == libc::EINTR => None,
                Ok(VcpuExit::IoOut(0x81, _)) => Some("another page than it should be".to_owned()),
                other => Some(format!("{other:?}")),
            };
        }
        if let Some(bad) = bad {
            let r = fd.get_regs().unwrap();
            let order = self.orders[number];
            let text = format!(
                "vCPU {number} ({order:?}), page {}, {} visits before: {bad}",
                FROM + r.rdi,
                r.rsi
            );
            self.wrong.lock().unwrap().push(text);
        }
        // Completes the exit of the last `out`.
        fd.set_kvm_immediate_exit(1);
        let _ = fd.run();
        fd.set_kvm_immediate_exit(0);
    }

    /// Looks at all of the memory of a guest that stands still, beside the one that it began as.
    pub fn assert_exact(&self, original: &Machine, what: &str) {
        assert_eq!(self.wrong(), [""; 0], "{what}");
        let visits =
            |number: usize| self.vcpus[number].lock().unwrap().get_regs().unwrap().rsi as u32;
        let visits: Vec<u32> = (0..self.vcpus.len()).map(visits).collect();
        let [mut here, mut there] = [vec![0; PAGE as usize], vec![0; PAGE as usize]];
        for page in 0..PAGES {
            self.ram
                .read_slice(&mut here, GuestAddress(page * PAGE))
                .unwrap();
            original
                .ram
                .read_slice(&mut there, GuestAddress(page * PAGE))
                .unwrap();
            if (FROM..FROM + REGION).contains(&page) {
                for (number, order) in self.orders.iter().enumerate() {
                    let at = COUNTERS as usize + 4 * number;
                    let counter = u32::from_le_bytes(here[at..at + 4].try_into().unwrap());
                    let round = visits[number];
                    let hot = number as u64 * 700 % REGION == page - FROM;
                    let good = match order {
                        Order::Hot => counter == if hot { round } else { 0 },
                        _ => counter == round || counter == round + 1,
                    };
                    assert!(
                        good,
                        "{what}: page {page}: vCPU {number}: {counter} of {round} visits"
                    );
                    here[at..at + 4].fill(0);
                    there[at..at + 4].fill(0);
                }
            }
            assert!(here == there, "{what}: page {page} differs");
        }
    }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.halt();
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.go();
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.go();
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        for (instance, vcpu) in (0..).zip(&self.vcpus) {
            let r = vcpu.lock().unwrap().get_regs().unwrap();
            let words = [
                r.rip, r.rflags, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp,
            ];
            let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            sink.put(&StateBlob {
                name: "vcpu",
                instance,
                version: 1,
                data: &data,
            })?;
        }
        Ok(())
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        let words: Vec<u64> = blob
            .data
            .as_chunks::<8>()
            .0
            .iter()
            .map(|w| u64::from_le_bytes(*w))
            .collect();
        let (Some(vcpu), &[rip, rflags, rax, rbx, rcx, rdx, rsi, rdi, rbp]) =
            (self.vcpus.get(blob.instance as usize), words.as_slice())
        else {
            return Err(Error::new(Kind::Unsupported, "another vCPU"));
        };
        let regs = kvm_regs {
            rip,
            rflags,
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            ..kvm_regs::default()
        };
        vcpu.lock().unwrap().set_regs(&regs).unwrap();
        Ok(())
    }
    fn event(&self, event: &Event) {
        self.events.lock().unwrap().push(event.message.clone());
    }
}
