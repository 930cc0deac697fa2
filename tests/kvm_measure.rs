//! Measuring KVM's logs before rings are enabled, on the real KVM: the figures are complete, the
//! caller's VM and process are unchanged, and a time limit is kept.

use crate::support::alone::alone;
use brant::dirty::kvm::measure::{measure, LIMIT, LIMITS};
use brant::dirty::kvm::{KvmMode, Measured, Request, Workload};
use brant::units::Bytes;
use brant::Kind;
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// One test at a time, because two measurements slow each other down.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> Option<(MutexGuard<'static, ()>, kvm_ioctls::Kvm)> {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    match kvm_ioctls::Kvm::new() {
        Ok(kvm) if cfg!(target_arch = "x86_64") => Some((turn, kvm)),
        _ => {
            eprintln!("skipped: no /dev/kvm, or no x86-64");
            None
        }
    }
}

/// The time limit of a test in a process of its own.
const LONG: Duration = Duration::from_secs(120);

const KINDS: [KvmMode; 4] = [
    KvmMode::GetAndClear,
    KvmMode::ManualProtect,
    KvmMode::InitiallySet,
    KvmMode::Ring,
];

/// Whether this KVM has a mode.
fn offered(kvm: &kvm_ioctls::Kvm, mode: KvmMode) -> bool {
    let manual = kvm.check_extension_raw(168);
    match mode {
        KvmMode::Ring => kvm.check_extension_raw(223) > 0 || kvm.check_extension_raw(192) > 0,
        KvmMode::ManualProtect => manual & 1 != 0,
        KvmMode::InitiallySet => manual & 3 == 3,
        _ => true,
    }
}

/// Descriptors and mappings of this process that are KVM's or of a measuring guest's size.
fn held() -> (Vec<String>, usize) {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let target = std::fs::read_link(entry.unwrap().path());
        open.extend(target.map(|t| t.to_string_lossy().into_owned()));
    }
    // The directory itself is open during the read, and threads of the test harness come and go.
    open.retain(|name| name.contains("kvm"));
    open.sort();
    let status = std::fs::read_to_string("/proc/self/maps").unwrap();
    let large = status.lines().filter(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        // 1 GiB that is never touched, and KVM's mappings of a vCPU.
        hex(to) - hex(from) >= 1 << 30 || line.contains("kvm")
    });
    let large = large.count();
    (open, large)
}

fn generous() -> Measured {
    measure(None, Workload::default(), LIMITS.1).unwrap()
}

#[test]
fn every_kind_that_this_kvm_has_is_measured_and_the_recommendation_is_one_of_them() {
    let Some((_turn, kvm)) = turn() else { return };
    let measured = generous();
    let costs = &measured.costs;
    assert!(!costs.untracked_write.is_zero());
    for mode in KINDS {
        let cost = costs.of(mode);
        assert_eq!(
            cost.is_some(),
            offered(&kvm, mode),
            "{mode:?}: {measured:?}"
        );
        let Some(cost) = cost else { continue };
        for figure in [cost.first_write, cost.busy_write, cost.sync_page] {
            assert!(!figure.is_zero(), "{mode:?}: {cost:?}");
            // A plausible time: a fault takes microseconds.
            assert!(figure < Duration::from_millis(10), "{mode:?}: {cost:?}");
        }
        assert_eq!(cost.sync_gib.is_zero(), mode == KvmMode::Ring, "{cost:?}");
    }
    assert!(costs.of(measured.choice.mode).is_some(), "{measured:?}");
    assert!(!measured.choice.reason.is_empty());
}

#[test]
fn what_was_measured_is_what_auto_goes_by_and_says() {
    let Some((_turn, kvm)) = turn() else { return };
    let measured = generous();
    let vm = kvm.create_vm().unwrap();
    let request = Request {
        measured: Some(measured.clone()),
        ..Request::default()
    };
    let used = request.open(&vm).unwrap().used;
    assert!(used.choice.reason.contains("measured"), "{used:?}");
    if measured.choice.mode != KvmMode::Ring {
        assert_eq!(used.choice.mode, measured.choice.mode, "{used:?}");
    }
}

#[test]
fn a_huge_guest_that_writes_little_is_recommended_what_its_figures_say() {
    let Some((_turn, kvm)) = turn() else { return };
    let workload = Workload {
        memory: Bytes(64 << 40),
        dirty_pages_per_second: Some(1),
    };
    let measured = measure(Some(borrowed(&kvm)), workload, LIMITS.1).unwrap();
    assert_eq!(measured.workload, workload);
    // On any machine, reading 2 GiB of bitmaps ten times a second costs more than one page in a
    // ring.
    let expected = offered(&kvm, KvmMode::Ring);
    assert_eq!(
        measured.choice.mode == KvmMode::Ring,
        expected,
        "{measured:?}"
    );
}

fn borrowed(kvm: &kvm_ioctls::Kvm) -> BorrowedFd<'_> {
    // SAFETY: open as long as `kvm` is.
    unsafe { BorrowedFd::borrow_raw(kvm.as_raw_fd()) }
}

#[test]
fn nothing_stays_of_a_measurement_whatever_became_of_it() {
    // Descriptors and mappings of the whole process are counted.
    alone(LONG, || {
        let Some((_turn, kvm)) = turn() else { return };
        let before = held();
        for limit in [LIMITS.0, LIMITS.0, LIMIT, LIMITS.1] {
            match measure(Some(borrowed(&kvm)), Workload::default(), limit) {
                Ok(measured) => assert_ne!(measured.choice.mode, KvmMode::Auto),
                Err(e) => assert_eq!(e.kind(), Kind::Timeout, "{e}"),
            }
            assert_eq!(held(), before, "{limit:?}");
        }
        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = measure(Some(null.as_fd()), Workload::default(), LIMIT).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
        assert!(refused.message().contains("/dev/kvm"), "{refused}");
        assert_eq!(held(), before);
        assert_eq!(kvm.get_api_version(), 12, "the descriptor was borrowed");
    });
}

#[test]
fn the_limit_bounds_the_measurement() {
    let Some((_turn, _kvm)) = turn() else { return };
    let begun = Instant::now();
    // The result does not matter.
    let _ = measure(None, Workload::default(), LIMITS.0);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_callers_machine_is_as_it_was_with_its_log_and_its_rings() {
    let Some((_turn, kvm)) = turn() else { return };
    let vm = kvm.create_vm().unwrap();
    let memory = Area::new(64 * 4096);
    let region = kvm_userspace_memory_region {
        slot: 1,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: 2 << 20,
        memory_size: 64 * 4096,
        userspace_addr: memory.0 as u64,
    };
    // SAFETY: the memory outlives the VM, which is dropped first.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    dirty(&vcpu, (2 << 20) + 5 * 4096);
    generous();
    dirty(&vcpu, (2 << 20) + 9 * 4096);
    let log = vm.get_dirty_log(1, 64 * 4096).unwrap();
    assert_eq!(log[0], 1 << 5 | 1 << 9);
    drop(vcpu);
    drop(vm);
    drop(memory);
}

/// Lets KVM write a page: that of the wall clock.
fn dirty(vcpu: &kvm_ioctls::VcpuFd, address: u64) {
    let entry = kvm_bindings::kvm_msr_entry {
        index: 0x4b56_4d00,
        data: address,
        ..Default::default()
    };
    let msrs = kvm_bindings::Msrs::from_entries(&[entry]).unwrap();
    assert_eq!(vcpu.set_msrs(&msrs).unwrap(), 1);
}

struct Area(*mut u8, usize);

impl Area {
    fn new(length: usize) -> Area {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Area(at.cast(), length)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// Ends the thread that sends signals, also when the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn signals_that_come_all_the_time_do_not_end_it() {
    let Some((_turn, _kvm)) = turn() else { return };
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: a handler that does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let stop = AtomicBool::new(false);
    // SAFETY: asks for the thread's own id.
    let target = unsafe { libc::pthread_self() };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                // SAFETY: the thread waits for this one in the scope.
                unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
                std::thread::park_timeout(Duration::from_micros(500));
            }
        });
        let _stops = Stops(&stop);
        let measured = generous();
        assert!(measured.costs.initially_set.is_some() || measured.costs.get_and_clear.is_some());
    });
}
