//! Threads that write at full speed among signals lose nothing.

use super::watched::{ten_blocks, tracked, Ram, Random};
use brant::dirty::When;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

extern "C" fn on_signal(_: libc::c_int) {}

/// Sends a signal to a thread again and again, as long as it lives. The thread's system calls are
/// interrupted, and not restarted.
struct Pester {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Pester {
    fn this_thread() -> Pester {
        // SAFETY: a handler that does nothing, without SA_RESTART.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            assert_eq!(
                libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()),
                0
            );
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // SAFETY: no arguments.
        let target = unsafe { libc::pthread_self() } as usize;
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                // SAFETY: the thread is alive until this one is joined.
                unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGUSR2) };
                sent += 1;
                std::thread::yield_now();
            }
            sent
        });
        Pester {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Pester {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Threads write at full speed while another syncs, takes and copies, and all of them are
/// interrupted by signals.
fn writers_lose_nothing(blocks: Vec<Ram>) {
    const WRITERS: usize = 4;
    let Some(t) = tracked(blocks) else { return };
    t.start();
    let mut copies: Vec<Vec<u64>> = t
        .blocks
        .iter()
        .map(|ram| {
            let mut copy = vec![0; ram.pages * 512];
            for (page, to) in copy.chunks_exact_mut(512).enumerate() {
                ram.copy(page, to);
            }
            copy
        })
        .collect();
    let (stop, ready) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut seen = BTreeSet::new();
    let mut taken = 0;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let (blocks, stop, ready) = (&t.blocks, &stop, &ready);
                scope.spawn(move || {
                    let _pester = Pester::this_thread();
                    let mut random = Random(n as u64 + 1);
                    let mut record = BTreeSet::new();
                    let mut value = 0;
                    while !stop.load(Ordering::Relaxed) {
                        value += 1;
                        let block = random.below(blocks.len());
                        let page = random.below(blocks[block].pages);
                        // Each writer in a word of its own, so that each write changes something.
                        let word = blocks[block].word(page, n * 64 + page % 64);
                        word.store(value, Ordering::Relaxed);
                        record.insert((block, page));
                        if value == 1000 {
                            ready.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    record
                })
            })
            .collect();
        let _pester = Pester::this_thread();
        let mut syncs = 0;
        while syncs < 25 || ready.load(Ordering::Relaxed) < WRITERS as u64 {
            syncs += 1;
            for (block, page) in t.found_while_written() {
                let to = &mut copies[block][page * 512..][..512];
                t.blocks[block].copy(page, to);
                seen.insert((block, page));
                taken += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let records: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        t.sync(When::Stopped);
        for (block, page) in t.take() {
            t.blocks[block].copy(page, &mut copies[block][page * 512..][..512]);
            seen.insert((block, page));
            taken += 1;
        }
        for record in records {
            assert!(record.len() > 100);
            let lost: Vec<_> = record.difference(&seen).take(5).collect();
            assert!(lost.is_empty(), "written and never found: {lost:?}");
        }
    });
    println!("{taken} pages taken");
    assert_eq!(
        t.sync(When::Stopped),
        0,
        "a page was found though nobody writes"
    );
    let mut now = vec![0; 512];
    for (block, ram) in t.blocks.iter().enumerate() {
        for page in 0..ram.pages {
            ram.copy(page, &mut now);
            assert!(
                now == copies[block][page * 512..][..512],
                "block {block}, page {page}: its last write was not found"
            );
        }
    }
}

#[test]
fn writers_at_full_speed_lose_nothing_among_signals() {
    writers_lose_nothing(ten_blocks());
}

#[test]
fn writers_of_few_pages_lose_nothing_among_signals() {
    writers_lose_nothing(vec![Ram::anonymous(5), Ram::shared(4), Ram::huge(512)]);
}
