//! Writes that the kernel makes for a process, and writes that page tables do not see.

use super::watched::{asked_of_a_child, in_a_child, map, tracked, Ram, PAGE};
use brant::memory::BlockId;
use brant::units::{Bytes, PAGE_SIZE};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

#[test]
fn what_the_kernel_writes_for_somebody_is_found() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(64)]) else {
        return;
    };
    t.start();
    let zero = File::open("/dev/zero").unwrap();
    for (block, ram) in t.blocks.iter().enumerate() {
        // A read(2) into the memory, across two pages.
        // SAFETY: inside the mapping.
        let got = unsafe {
            let to = ram.at.add(10 * PAGE - 8);
            libc::read(zero.as_raw_fd(), to.cast(), 16)
        };
        assert_eq!(got, 16);
        assert_eq!(t.found(), BTreeSet::from([(block, 9), (block, 10)]));
        // Another process that writes into this one.
        let parent = std::process::id() as libc::pid_t;
        // SAFETY: takes numbers only. Some systems allow this write only for named processes;
        // others do not have the call.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        let written = asked_of_a_child(|| {
            let from = [7u8; 8];
            let local = libc::iovec {
                iov_base: from.as_ptr().cast_mut().cast(),
                iov_len: 8,
            };
            let remote = libc::iovec {
                iov_base: ram.at.wrapping_add(20 * PAGE).cast(),
                iov_len: 8,
            };
            // SAFETY: the parent has it mapped.
            unsafe { libc::process_vm_writev(parent, &local, 1, &remote, 1, 0) == 8 }
        });
        if !written {
            eprintln!("skipped: no process may write into another here");
            continue;
        }
        assert_eq!(t.found(), BTreeSet::from([(block, 20)]));
    }
}

#[test]
fn what_page_tables_do_not_see_is_missed_as_documented_and_found_when_marked() {
    let Some(t) = tracked(vec![Ram::shared(64)]) else {
        return;
    };
    let ram = &t.blocks[0];
    let file = ram.file.as_ref().unwrap();
    for page in 0..64 {
        ram.write(page, 1);
    }
    t.start();
    let other = map(64 * PAGE, libc::MAP_SHARED, Some(file)).unwrap();
    let hidden: [(&str, &dyn Fn(u64)); 4] = [
        ("another mapping", &|page| {
            // SAFETY: inside that mapping.
            unsafe { other.add(page as usize * PAGE).write_volatile(9) };
        }),
        ("pwrite", &|page| {
            file.write_all_at(b"hidden", page * PAGE_SIZE).unwrap();
        }),
        ("another process", &|page| {
            in_a_child(|| {
                // SAFETY: inherited, and shared.
                unsafe { ram.at.add(page as usize * PAGE).write_volatile(9) };
                true
            });
        }),
        ("a hole that is punched", &|page| {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (at, length) = ((page * PAGE_SIZE) as i64, PAGE as i64);
            // SAFETY: changes the file.
            let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, at, length) };
            assert_eq!(result, 0);
        }),
    ];
    for (i, (what, write)) in hidden.iter().enumerate() {
        let page = 7 * i as u64;
        write(page);
        assert_eq!(
            t.found(),
            BTreeSet::new(),
            "{what} is seen here: mend the documentation"
        );
        t.consumer
            .mark_block(BlockId(0), Bytes(page * PAGE_SIZE), PAGE_SIZE);
        assert_eq!(t.found(), BTreeSet::from([(0, page as usize)]), "{what}");
    }
    // SAFETY: this test's own mapping.
    unsafe { libc::munmap(other.cast(), 64 * PAGE) };
}
