//! A busy guest of the real KVM: one vCPU writes memory at a set rate, and another one may read it.
//! KVM logs its writes by bitmap or by dirty rings. Tests and benchmarks of convergence use this file;
//! it knows nothing of tests.
//!
//! The guest's code goes round a range of pages and comes out of `KVM_RUN` after a batch of them. The
//! vCPU's thread then waits until the next batch is due. The wait stands for computing: a vCPU that
//! is throttled does not catch up with what it missed.
#![allow(dead_code)]

use super::link::Link;
use brant::dirty::kvm::ring::{self, Rings};
use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::{Error, Kind, Result};
use brant::kvm_bindings::{kvm_regs, kvm_userspace_memory_region, KVM_CAP_DIRTY_LOG_RING_ACQ_REL};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params, Stats};
use brant::vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use brant::vmm::{Event, StateBlob, StateSink, Vmm};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// The first page that vCPUs touch. Their code lies below.
const FROM: u64 = 256;
const WRITER_AT: u64 = 0x1000;
const READER_AT: u64 = 0x2000;
/// A batch takes about as long, of a vCPU with a rate.
const BATCH: Duration = Duration::from_micros(500);
/// Pages of a batch of a vCPU without a rate.
const FLAT_OUT: u64 = 64;
/// Bytes of a vCPU's dirty ring, 1,024 entries. A small one, because each sync lets a limited vCPU write
/// one ring more than its limit: what fits the downtime limit must be more than that.
const RING: u64 = 16 << 10;
/// `KVM_EXIT_DIRTY_RING_FULL`.
const RING_FULL: u32 = 31;

/// 16-bit code with 32-bit operands and addresses. ESI: the first address; EBX: the end; EDI: the next;
/// EDX: pages of a batch. The bytes at 3 to 6 are the access.
const CODE: [u8; 30] = [
    0x66, 0x89, 0xd1, //                         again: mov ecx, edx
    0x67, 0x66, 0xff, 0x07, //                   next:  inc dword [edi]
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //        add edi, 4096
    0x66, 0x39, 0xdf, //                                cmp edi, ebx
    0x72, 0x03, //                                      jb on
    0x66, 0x89, 0xf7, //                                mov edi, esi
    0x66, 0x49, //                               on:    dec ecx
    0x75, 0xe9, //                                      jnz next
    0xe6, 0x80, //                                      out 0x80, al
    0xeb, 0xe2, //                                      jmp again
];
/// `mov eax, [edi]`, the reader's access.
const READ: [u8; 4] = [0x67, 0x66, 0x8b, 0x07];

/// A guest and its load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pages of guest memory.
    pub pages: u64,
    /// Pages that the vCPUs go round; at least [`FROM`] fewer.
    pub region: u64,
    /// Pages a second that the writer writes; `None`: as many as it can.
    pub writes: Option<f64>,
    /// Pages a second that a second vCPU reads. `None`: there is no second vCPU.
    pub reads: Option<f64>,
    /// KVM logs writes by dirty rings, else by a bitmap.
    pub rings: bool,
    /// Bytes of device state.
    pub state: usize,
}

struct Vcpu {
    fd: Mutex<VcpuFd>,
    /// Pages of a batch, and the time from one batch to the next.
    batch: u64,
    period: Option<Duration>,
    /// Pages written, or read.
    work: AtomicU64,
    /// The percentage of its time that it sleeps.
    throttle: AtomicU8,
}

/// See the file's description. Its threads end when it is paused or dropped.
pub struct Machine {
    // Before the memory, which it uses.
    vcpus: Vec<Vcpu>,
    vm: VmFd,
    ram: GuestMemoryMmap,
    shape: Shape,
    rings: OnceLock<Rings>,
    runs: Mutex<bool>,
    /// Ends sleeps: the guest is paused, or is slowed otherwise.
    wake: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// It was told to run.
    ran: AtomicBool,
    /// The largest throttle so far.
    most: AtomicU8,
    events: Mutex<Vec<Event>>,
    own: Weak<Machine>,
}

/// Whether this KVM has dirty rings.
pub fn has_rings(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into()) > 0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Machine {
    /// A guest that stands still. Each word of its memory is `fill` times its number.
    fn new(kvm: &Kvm, shape: Shape, fill: u64) -> Arc<Machine> {
        assert!(shape.region + FROM <= shape.pages, "{shape:?}");
        let length = (shape.pages * PAGE) as usize;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]).unwrap();
        if fill != 0 {
            let words = (0..PAGE / 8).map(|word| (word + 1).wrapping_mul(fill));
            let page: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            for n in 0..shape.pages {
                ram.write_slice(&page, GuestAddress(n * PAGE)).unwrap();
            }
        }
        let mut reader = CODE;
        reader[3..7].copy_from_slice(&READ);
        ram.write_slice(&CODE, GuestAddress(WRITER_AT)).unwrap();
        ram.write_slice(&reader, GuestAddress(READER_AT)).unwrap();
        let vm = kvm.create_vm().unwrap();
        if shape.rings {
            // Before the first slot and the first vCPU.
            ring::enable(&vm, RING).unwrap();
        }
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
        let mut vcpus = vec![Vcpu::new(&vm, 0, WRITER_AT, &shape, shape.writes)];
        if shape.reads.is_some() {
            vcpus.push(Vcpu::new(&vm, 1, READER_AT, &shape, shape.reads));
        }
        Arc::new_cyclic(|own| Machine {
            vcpus,
            vm,
            ram,
            shape,
            rings: OnceLock::new(),
            runs: Mutex::new(false),
            wake: Condvar::new(),
            threads: Mutex::default(),
            ran: AtomicBool::new(false),
            most: AtomicU8::new(0),
            events: Mutex::default(),
            own: own.clone(),
        })
    }

    /// Its memory, for a migration.
    pub fn memory(&self) -> Arc<Memory> {
        let memory = Arc::new(Memory::new().unwrap());
        memory.add_guest_memory(&self.ram, 0).unwrap();
        memory
    }

    /// A tracker with KVM's log. Called once, before the guest runs.
    fn tracker(&self) -> Arc<Tracker> {
        let tracker = Tracker::new(self.memory(), Clearing::default()).unwrap();
        let opened = Request::default().open(&self.vm).unwrap();
        assert_eq!(opened.used.rings.is_some(), self.shape.rings);
        if let Some(rings) = opened.used.rings {
            for (number, vcpu) in (0..).zip(&self.vcpus) {
                rings.add_vcpu(number, &lock(&vcpu.fd)).unwrap();
            }
            self.rings.set(rings).unwrap();
        }
        tracker.add_log(opened.log).unwrap();
        tracker
    }

    /// Whether it was told to run.
    pub fn ran(&self) -> bool {
        self.ran.load(Ordering::SeqCst)
    }

    /// The largest percentage by which the operation `throttle` has slowed a vCPU so far.
    pub fn most_throttled(&self) -> u8 {
        self.most.load(Ordering::SeqCst)
    }

    /// The throttle of a vCPU now, in percent.
    pub fn throttle_of(&self, vcpu: usize) -> u8 {
        self.vcpus[vcpu].throttle.load(Ordering::SeqCst)
    }

    /// Pages that vCPU 0 has written so far, or vCPU 1 read.
    pub fn work(&self, vcpu: usize) -> u64 {
        let vcpu = self.vcpus.get(vcpu);
        vcpu.map_or(0, |vcpu| vcpu.work.load(Ordering::SeqCst))
    }

    /// The texts of the events so far.
    pub fn told(&self) -> Vec<String> {
        lock(&self.events)
            .iter()
            .map(|e| e.message.clone())
            .collect()
    }

    /// All of its memory.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.shape.pages * PAGE) as usize];
        self.ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// Starts the vCPUs' threads.
    fn go(&self) {
        *lock(&self.runs) = true;
        let mut threads = lock(&self.threads);
        for number in 0..self.vcpus.len() {
            let machine = self.own.upgrade().unwrap();
            threads.push(std::thread::spawn(move || machine.run_vcpu(number)));
        }
    }

    /// Stops them, in the middle of a sleep too.
    pub fn halt(&self) {
        *lock(&self.runs) = false;
        self.wake.notify_all();
        for thread in lock(&self.threads).drain(..) {
            thread.join().unwrap();
        }
    }

    fn run_vcpu(&self, number: usize) {
        let vcpu = &self.vcpus[number];
        let mut fd = lock(&vcpu.fd);
        let (mut begun, mut due) = (Instant::now(), Instant::now());
        while *lock(&self.runs) {
            match fd.run() {
                Ok(VcpuExit::IoOut(0x80, _)) => {
                    vcpu.work.fetch_add(vcpu.batch, Ordering::SeqCst);
                }
                Ok(VcpuExit::Unsupported(RING_FULL)) => {
                    let rings = self.rings.get().unwrap();
                    rings.full(number as u32).unwrap();
                    continue;
                }
                Err(e) if e.errno() == libc::EINTR => continue,
                other => panic!("the guest ended: {other:?}"),
            }
            if let Some(period) = vcpu.period {
                let now = Instant::now();
                // A little is caught up with, because threads are woken late.
                due = (due + period).max(now.checked_sub(10 * BATCH).unwrap_or(now));
                self.sleep(due, None);
            }
            let percent = vcpu.throttle.load(Ordering::SeqCst);
            if percent > 0 {
                let (now, share) = (Instant::now(), f64::from(percent) / 100.0);
                let rest = (now - begun).mul_f64(share / (1.0 - share));
                self.sleep(now + rest, Some((&vcpu.throttle, percent)));
                due += now.elapsed();
            }
            begun = Instant::now();
        }
        // Completes the exit of the last `out`.
        fd.set_kvm_immediate_exit(1);
        let _ = fd.run();
        fd.set_kvm_immediate_exit(0);
    }

    /// Sleeps until then, or the guest is paused, or the throttle is not that percentage any more.
    fn sleep(&self, until: Instant, throttle: Option<(&AtomicU8, u8)>) {
        let mut runs = lock(&self.runs);
        let as_told = || throttle.is_none_or(|(now, then)| now.load(Ordering::SeqCst) == then);
        while *runs && as_told() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.wake.wait_timeout(runs, left);
            runs = woken.unwrap_or_else(|e| e.into_inner()).0;
        }
    }
}

impl Vcpu {
    fn new(vm: &VmFd, number: u64, code: u64, shape: &Shape, rate: Option<f64>) -> Vcpu {
        let fd = vm.create_vcpu(number).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        // Real mode, with a data segment that covers all memory.
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
        fd.set_sregs(&sregs).unwrap();
        let batch = rate.map_or(FLAT_OUT, |rate| (rate * BATCH.as_secs_f64()).ceil() as u64);
        let period = rate.map(|rate| Duration::from_secs_f64(batch as f64 / rate));
        let regs = kvm_regs {
            rip: code,
            rflags: 2,
            rsi: FROM * PAGE,
            rdi: FROM * PAGE,
            rbx: (FROM + shape.region) * PAGE,
            rdx: batch,
            ..kvm_regs::default()
        };
        fd.set_regs(&regs).unwrap();
        Vcpu {
            fd: Mutex::new(fd),
            batch,
            period,
            work: AtomicU64::new(0),
            throttle: AtomicU8::new(0),
        }
    }

    fn registers(&self) -> [u64; 8] {
        let r = lock(&self.fd).get_regs().unwrap();
        [r.rip, r.rflags, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi]
    }

    fn set_registers(&self, words: &[[u8; 8]; 8]) {
        let [rip, rflags, rax, rbx, rcx, rdx, rsi, rdi] = words.map(u64::from_le_bytes);
        let regs = kvm_regs {
            rip,
            rflags,
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            ..kvm_regs::default()
        };
        lock(&self.fd).set_regs(&regs).unwrap();
    }
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.halt();
        match (0..self.vcpus.len()).find(|vcpu| self.throttle_of(*vcpu) > 0) {
            Some(vcpu) => Err(Error::new(
                Kind::Vmm,
                format!("paused while vCPU {vcpu} is slowed"),
            )),
            None => Ok(()),
        }
    }
    fn resume(&self) -> Result<()> {
        self.go();
        Ok(())
    }
    /// Starts no vCPU, so that the memory that arrived can be compared.
    fn run(&self) -> Result<()> {
        self.ran.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn throttle(&self, vcpu: Option<u32>, percent: u8) -> Result<()> {
        for (number, one) in (0..).zip(&self.vcpus) {
            if vcpu.is_none_or(|vcpu| vcpu == number) {
                one.throttle.store(percent, Ordering::SeqCst);
            }
        }
        self.most.fetch_max(percent, Ordering::SeqCst);
        // A vCPU that has not seen it yet holds the lock until it sleeps.
        drop(lock(&self.runs));
        self.wake.notify_all();
        Ok(())
    }
    fn can_throttle(&self) -> bool {
        true
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        for (instance, vcpu) in (0..).zip(&self.vcpus) {
            let data: Vec<u8> = vcpu
                .registers()
                .iter()
                .flat_map(|r| r.to_le_bytes())
                .collect();
            sink.put(&StateBlob {
                name: "vcpu",
                instance,
                version: 1,
                data: &data,
            })?;
        }
        sink.put(&StateBlob {
            name: "device",
            instance: 0,
            version: 1,
            data: &vec![7; self.shape.state],
        })
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        if blob.name == "device" {
            return Ok(());
        }
        let vcpu = self.vcpus.get(blob.instance as usize);
        match (
            vcpu,
            <&[[u8; 8]; 8]>::try_from(blob.data.as_chunks::<8>().0),
        ) {
            (Some(vcpu), Ok(words)) => {
                vcpu.set_registers(words);
                Ok(())
            }
            _ => Err(Error::new(Kind::Unsupported, "another vCPU")),
        }
    }
    fn event(&self, event: &Event) {
        lock(&self.events).push(event.clone());
    }
}

/// A guest that runs, its tracker, and a machine of the same shape that it can move to. There it stands
/// still.
pub fn pair(kvm: &Kvm, shape: Shape) -> ([Arc<Machine>; 2], Arc<Tracker>) {
    let machines = [3, 0].map(|fill| Machine::new(kvm, shape, fill));
    let tracker = machines[0].tracker();
    machines[0].go();
    (machines, tracker)
}

/// A migration that is over.
pub struct Moved {
    pub stats: Stats,
    pub ended: Result<()>,
    /// From the start to the end of the source's side.
    pub took: Duration,
    /// Pages that each vCPU wrote or read meanwhile.
    pub work: [u64; 2],
    /// The host took a processor away meanwhile.
    pub stolen: bool,
}

/// Longer than any migration of these takes.
const LONG: Duration = Duration::from_secs(120);

/// Migrates a guest that runs already over `link`. Nobody is halted afterwards.
pub fn migrate(
    tracker: Arc<Tracker>,
    machines: [&Arc<Machine>; 2],
    link: &Link,
    params: &Params,
) -> Moved {
    let wait = |outgoing: &Outgoing| outgoing.wait(Some(LONG));
    migrate_and(wait, tracker, machines, link, params)
}

/// [`migrate`], with a look at the source's side each 20 ms until it is over.
pub fn migrate_watched(
    tracker: Arc<Tracker>,
    machines: [&Arc<Machine>; 2],
    link: &Link,
    params: &Params,
    mut look: impl FnMut(&Outgoing),
) -> Moved {
    let wait = |outgoing: &Outgoing| loop {
        match outgoing.wait(Some(Duration::from_millis(20))) {
            Err(error) if error.kind() == Kind::Pending => look(outgoing),
            ended => return ended,
        }
    };
    migrate_and(wait, tracker, machines, link, params)
}

/// [`migrate`], whose end `wait` waits for.
fn migrate_and(
    wait: impl FnOnce(&Outgoing) -> Result<()>,
    tracker: Arc<Tracker>,
    [source, destination]: [&Arc<Machine>; 2],
    link: &Link,
    params: &Params,
) -> Moved {
    let (near, far) = link.connect();
    let there = destination.memory();
    let incoming = Incoming::new(there, Arc::clone(destination) as _, Params::default()).unwrap();
    let vmm = Arc::clone(source) as _;
    let outgoing = Outgoing::new(tracker, Blockers::new(), vmm, params.clone()).unwrap();
    let steal = stolen();
    let before = [0, 1].map(|vcpu| source.work(vcpu));
    incoming.start(AcceptFrom::Connected(far)).unwrap();
    let begun = Instant::now();
    outgoing.start(ConnectTo::Connected(near)).unwrap();
    let ended = wait(&outgoing);
    let took = begun.elapsed();
    let after = [0, 1].map(|vcpu| source.work(vcpu));
    if ended.is_err() {
        // A destination waits for more only as long as the link is there.
        link.cut();
    }
    let _ = incoming.wait(Some(LONG));
    Moved {
        stats: outgoing.stats(),
        ended,
        took,
        work: [0, 1].map(|vcpu| after[vcpu] - before[vcpu]),
        stolen: stolen() > steal,
    }
}

/// The time that the host has taken the processors away so far, in ticks of 10 ms.
pub fn stolen() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let field = stat
        .lines()
        .next()
        .and_then(|cpu| cpu.split_whitespace().nth(8));
    field.and_then(|field| field.parse().ok()).unwrap_or(0)
}
