//! A VMM of a few hundred lines that migrates its guest into another process:
//! `cargo run --release --example rustvmm` (needs /dev/kvm).
//!
//! Without arguments it is the source: it starts itself once more as the destination (`receive`),
//! and moves its guest there over TCP while the guest runs. On two hosts, start the destination
//! first: `rustvmm receive tcp:ADDRESS:PORT`, then `rustvmm send tcp:ADDRESS:PORT`.
//!
//! The guest has one vCPU and 64 MiB, and writes a growing number to one page after another. So
//! whoever reads its memory sees whether a page is missing or old: the destination does, before the
//! guest runs and again afterwards.

use brant::dirty::kvm::Request;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::dirty::WriteMarks;
use brant::error::{Error, Kind};
use brant::kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use brant::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use brant::memory::Memory;
use brant::migrate::{Blockers, ConnectTo, Endpoint, Incoming, Outgoing, Params};
use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use brant::vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use brant::vmm::{Event, EventKind, StateBlob, StateSink, Vmm};
use brant::Result;
use std::io::{BufRead, BufReader};
use std::os::unix::thread::JoinHandleExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

const MIB: usize = 1 << 20;
const RAM: usize = 64 * MIB;
const CODE_AT: u64 = 0x1000;
/// Where the guest writes, and how many pages.
const WRITTEN: u64 = 16 << 20;
const PAGES: u64 = 4096;
/// Real mode, with a data segment of 4 GiB that begins at [`WRITTEN`].
const CODE: &[u8] = &[
    0x66, 0x43, //                               again: inc ebx
    0x67, 0x66, 0x89, 0x1f, //                          mov [edi], ebx
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //        add edi, 4096
    0x66, 0x81, 0xe7, 0xff, 0xff, 0xff, 0x00, //        and edi, 16 MiB - 1
    0xeb, 0xea, //                                      jmp again
];

/// vm-memory's guest memory. Its bitmap tells brant what this process writes to it.
type Ram = GuestMemoryMmap<WriteMarks>;

// --- the machine, which knows nothing of migration ---------------------------------------------

struct Machine {
    ram: Ram,
    vm: VmFd,
    vcpu: Mutex<VcpuFd>,
    runs: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// For the vCPU's thread.
    own: Weak<Machine>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    fn new() -> Result<Arc<Self>> {
        // Above the first MiB, a second region, so that the guest has two KVM slots.
        let ram = Ram::from_ranges(&[
            (GuestAddress(0), MIB),
            (GuestAddress(MIB as u64), RAM - MIB),
        ])?;
        let vm = Kvm::new()?.create_vm()?;
        for (slot, region) in (0..).zip(ram.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region stays mapped as long as the machine has `ram`.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        let vcpu = Mutex::new(vm.create_vcpu(0)?);
        Ok(Arc::new_cyclic(|own| Machine {
            ram,
            vm,
            vcpu,
            runs: AtomicBool::new(false),
            thread: Mutex::new(None),
            own: own.clone(),
        }))
    }

    /// The guest's first state.
    fn boot(&self) -> Result<()> {
        self.ram.write_slice(CODE, GuestAddress(CODE_AT))?;
        let vcpu = locked(&self.vcpu);
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.base, sregs.ds.limit, sregs.ds.g) = (WRITTEN, u32::MAX, 1);
        vcpu.set_sregs(&sregs)?;
        Ok(vcpu.set_regs(&kvm_regs {
            rip: CODE_AT,
            rflags: 2,
            ..kvm_regs::default()
        })?)
    }

    fn start(&self) {
        self.runs.store(true, Ordering::SeqCst);
        let machine = self.own.upgrade().expect("somebody starts it");
        let thread = std::thread::spawn(move || {
            let mut vcpu = locked(&machine.vcpu);
            while machine.runs.load(Ordering::SeqCst) {
                match vcpu.run() {
                    // The signal of `stop`, or one of somebody else's.
                    Err(e) if e.errno() == libc::EINTR => {}
                    Ok(VcpuExit::Intr) => {}
                    // This guest has no devices. A VMM that has some emulates them here, and
                    // retires the last exit before the vCPU counts as paused.
                    other => panic!("the guest ended: {other:?}"),
                }
            }
        });
        *locked(&self.thread) = Some(thread);
    }

    fn stop(&self) {
        self.runs.store(false, Ordering::SeqCst);
        let Some(thread) = locked(&self.thread).take() else {
            return;
        };
        // A signal that comes just before KVM_RUN does not end it. So it is repeated.
        while !thread.is_finished() {
            // SAFETY: the thread was not joined; `ignore_kicks` has made the signal harmless.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
            std::thread::sleep(Duration::from_micros(100));
        }
        if thread.join().is_err() {
            eprintln!("the vCPU's thread has panicked");
        }
    }

    /// How many numbers the guest has written, if its memory is whole: each page has the number
    /// that comes before that of the next page.
    fn check(&self) -> Result<u32> {
        let number = |page: u64| -> Result<u32> {
            Ok(self
                .ram
                .read_obj(GuestAddress(WRITTEN + page % PAGES * 4096))?)
        };
        let regs = locked(&self.vcpu).get_regs()?;
        let newest = regs.rbx as u32;
        // The page of the newest number; it may not be written yet, or the guest not one further.
        let mut page = regs.rdi / 4096 % PAGES;
        if number(page)? != newest {
            page += PAGES - 1;
        }
        let last = number(page)?;
        for before in 0..PAGES.min(last.into()) {
            let (found, expected) = (number(page + PAGES - before)?, last - before as u32);
            if found != expected || newest.wrapping_sub(last) > 1 {
                let at = (page + PAGES - before) % PAGES;
                let what = format!("page {at} has {found}, not {expected} (the vCPU: {newest})");
                return Err(Error::new(Kind::Vmm, what));
            }
        }
        Ok(newest)
    }
}

/// A handler that does nothing, so that SIGUSR1 interrupts KVM_RUN and ends no process.
fn ignore_kicks() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nothing as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing. Without SA_RESTART, as `signal` would set it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

// --- what migration needs of it ----------------------------------------------------------------

/// KVM's structures as bytes, and back: they are plain numbers without padding.
fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: any initialised value can be read as bytes; the types below have no padding.
    unsafe { std::slice::from_raw_parts((value as *const T).cast(), size_of::<T>()) }.to_vec()
}

fn from_bytes<T: Copy>(blob: &StateBlob<'_>) -> Result<T> {
    if blob.version != 1 || blob.data.len() != size_of::<T>() {
        let what = format!("`{}`: version {} or its length", blob.name, blob.version);
        return Err(Error::new(Kind::Unsupported, what));
    }
    // SAFETY: of the type's length, and any bytes are a value of KVM's structures.
    Ok(unsafe { blob.data.as_ptr().cast::<T>().read_unaligned() })
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        self.stop();
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.start();
        Ok(())
    }

    /// This guest's state. A complete guest has more: MSRs, XSAVE, the LAPIC, the chips.
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        let vcpu = locked(&self.vcpu);
        let mut put = |name, data: Vec<u8>| {
            sink.put(&StateBlob {
                name,
                instance: 0,
                version: 1,
                data: &data,
            })
        };
        put("sregs", bytes_of(&vcpu.get_sregs()?))?;
        put("fpu", bytes_of(&vcpu.get_fpu()?))?;
        put("regs", bytes_of(&vcpu.get_regs()?))
    }

    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        let vcpu = locked(&self.vcpu);
        match blob.name {
            "sregs" => vcpu.set_sregs(&from_bytes::<kvm_sregs>(blob)?)?,
            "fpu" => vcpu.set_fpu(&from_bytes::<kvm_fpu>(blob)?)?,
            "regs" => vcpu.set_regs(&from_bytes::<kvm_regs>(blob)?)?,
            other => {
                let what = format!("`{other}` is no state of this machine");
                return Err(Error::new(Kind::Unsupported, what));
            }
        }
        Ok(())
    }

    /// The last chance to refuse the guest: here it is the place to look at its memory.
    fn loaded(&self) -> Result<()> {
        println!("the guest is here, whole, with {} numbers", self.check()?);
        Ok(())
    }

    fn run(&self) -> Result<()> {
        self.start();
        Ok(())
    }

    fn event(&self, event: &Event) {
        if event.kind == EventKind::Pass || event.kind == EventKind::Warning {
            println!("{}", event.message);
        }
    }
}

/// The memory as brant knows it: a block for each region, a KVM slot for each block.
fn memory_of(machine: &Machine) -> Result<Arc<Memory>> {
    let memory = Arc::new(Memory::new()?);
    memory.add_guest_memory(&machine.ram, 0)?;
    Ok(memory)
}

fn receive(endpoint: &str) -> Result<()> {
    let machine = Machine::new()?;
    let incoming = Incoming::new(memory_of(&machine)?, machine.clone(), Params::default())?;
    println!("{}", incoming.listen(&Endpoint::parse(endpoint)?)?);
    incoming.wait(None)?;
    // It runs here. Some time later it has written more.
    let before = machine.ram.read_obj::<u32>(GuestAddress(WRITTEN))?;
    while machine.ram.read_obj::<u32>(GuestAddress(WRITTEN))? == before {
        std::thread::yield_now();
    }
    machine.stop();
    println!("it ran on, to {} numbers", machine.check()?);
    Ok(())
}

fn send(endpoint: &str) -> Result<()> {
    let machine = Machine::new()?;
    machine.boot()?;
    machine.start();

    let tracker = Tracker::new(memory_of(&machine)?, Clearing::default())?;
    WriteMarks::connect(&machine.ram, &tracker); // what this process writes
    let opened = Request::default().open(&machine.vm)?; // what the guest writes
    println!("KVM's log: {:?}", opened.used.choice.mode);
    tracker.add_log(opened.log)?;

    let params = Params {
        downtime_limit: Duration::from_millis(500),
        ..Params::default()
    };
    let outgoing = Outgoing::new(tracker, Blockers::new(), machine.clone(), params)?;
    outgoing.start(ConnectTo::Endpoint(Endpoint::parse(endpoint)?))?;
    match outgoing.wait(None) {
        Ok(()) => {
            let stats = outgoing.stats();
            println!(
                "moved after {} passes; it stood still for {:?}",
                stats.pass,
                stats.downtime.unwrap_or_default()
            );
            Ok(())
        }
        Err(e) if e.kind() == Kind::Unanswered => {
            // Whether it runs there is for whoever manages both hosts to find out; here it is paused.
            Err(e)
        }
        Err(e) => {
            // The guest runs on here, as if nothing had been.
            machine.stop();
            println!("it ran on here, to {} numbers", machine.check()?);
            Err(e)
        }
    }
}

/// Both sides: the destination in a process of its own, which says where it listens.
fn both() -> Result<()> {
    let mut destination = Command::new(std::env::current_exe()?)
        .args(["receive", "tcp:127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(destination.stdout.take().expect("a pipe")).lines();
    let endpoint = lines.next().transpose()?.unwrap_or_default();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(|line| line.ok()) {
            println!("destination: {line}");
        }
    });
    let sent = send(&endpoint);
    if sent.is_err() {
        destination.kill()?;
    }
    let status = destination.wait()?;
    let _ = reader.join();
    sent?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Vmm, format!("the destination: {status}"))),
    }
}

fn main() -> Result<()> {
    ignore_kicks();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => both(),
        ["receive", endpoint] => receive(endpoint),
        ["send", endpoint] => send(endpoint),
        _ => Err(Error::new(
            Kind::Invalid,
            "rustvmm, rustvmm receive ENDPOINT, or rustvmm send ENDPOINT",
        )),
    }
}
