//! How the kernel treats a slot's bitmap. The model in the unit tests relies on it.

use super::vm::*;
use brant::sys::kvm as sys;
use brant::sys::kvm::{UserMemoryRegion, Vm};

#[test]
fn initially_set_logs_are_all_ones_each_time_logging_is_switched_on() {
    let Some(kvm) = kvm() else { return };
    for pages in [1, 63, 64, 65, 130, 200] {
        let (_vm, mut fd, _ram, on) = one_slot(&kvm, pages);
        if fd.check_extension(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2) & 3 != 3 {
            eprintln!("skipped: this KVM has no initially-set dirty logs");
            return;
        }
        fd.enable_cap(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2, 3)
            .unwrap();
        for _ in 0..2 {
            fd.set_region(&on).unwrap();
            let mut got = words(pages);
            // GET only copies, so a second one returns the same.
            for _ in 0..2 {
                got.fill(0);
                fd.get_dirty_log(0, &mut got).unwrap();
                assert_eq!(got, ones(pages), "{pages} pages");
            }
            fd.clear_dirty_log(0, 0, pages as u32, &got).unwrap();
            fd.get_dirty_log(0, &mut got).unwrap();
            assert_eq!(got, words(pages), "{pages} pages");
            fd.set_region(&UserMemoryRegion { flags: 0, ..on }).unwrap();
            fd.get_dirty_log(0, &mut got).unwrap_err();
        }
    }
}

#[test]
fn clear_takes_whole_words_and_the_end_of_a_slot() {
    let Some(kvm) = kvm() else { return };
    let (_vm, mut fd, _ram, on) = one_slot(&kvm, 130);
    fd.enable_cap(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2, 3)
        .unwrap();
    fd.set_region(&on).unwrap();
    let all = [u64::MAX; 4];
    for (first, pages, fine) in [
        (0, 64, true),
        (64, 66, true),
        (128, 2, true),
        (0, 130, true),
        (1, 64, false),
        (0, 65, false),
        (64, 128, false),
        (128, 64, false),
        (192, 0, false),
    ] {
        let done = fd.clear_dirty_log(0, first, pages, &all);
        assert_eq!(done.is_ok(), fine, "first {first}, pages {pages}: {done:?}");
    }
}

#[test]
fn the_older_mode_starts_with_nothing_set() {
    let Some(kvm) = kvm() else { return };
    for mode in [0, 1] {
        let (_vm, mut fd, _ram, on) = one_slot(&kvm, 130);
        fd.enable_cap(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2, mode)
            .unwrap();
        fd.set_region(&on).unwrap();
        let mut got = words(130);
        fd.get_dirty_log(0, &mut got).unwrap();
        assert_eq!(got, words(130));
    }
}
