//! The kernel touches missing pages through a whole migration: system calls that read and write memory,
//! and threads of the kernel's own, as those of vhost. They wait for pages as vCPUs do.
//!
//! vhost itself takes a device and a driver. io_uring has the part that matters here: a thread of the
//! kernel's that uses the process's memory. So it stands for vhost.

use super::uring::Uring;
use super::whole::{allowed, pair, CopiesOn, Sides};
use crate::support::memory::{Ram, PAGE};
use crate::support::random::Random;
use crate::support::time::LONG;
use brant::migrate::{Params, SourceState};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// How the kernel is brought to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// `write(2)` from the page.
    Write,
    /// `read(2)` into a part of it.
    Read,
    /// The page is pinned, as for DMA: `process_vm_readv(2)`.
    Pinned,
    /// A thread of the kernel's reads the page.
    ThreadRead,
    /// A thread of the kernel's writes to a part of it.
    ThreadWrite,
}

const ALL: [By; 5] = [
    By::Write,
    By::Read,
    By::Pinned,
    By::ThreadRead,
    By::ThreadWrite,
];

/// What is written to pages here, and where.
const NEW: [u8; 8] = [0xa5; 8];
const AT: usize = 256;

struct Caller {
    here: Arc<Ram>,
    there: Arc<Ram>,
    by: By,
    pipe: (PipeReader, PipeWriter),
    uring: Option<Uring>,
}

impl Caller {
    fn touch(&mut self, page: usize) -> Result<(), String> {
        let at = self.here.host().wrapping_add(page * PAGE);
        let into = at.wrapping_add(AT);
        let [out, back] = [self.pipe.0.as_raw_fd(), self.pipe.1.as_raw_fd()];
        let mut found = vec![0; PAGE];
        let done = match self.by {
            // SAFETY: a page of the test's own memory.
            By::Write => unsafe { libc::write(back, at.cast(), PAGE) },
            By::ThreadRead => self.uring.as_mut().unwrap().write(back, at, PAGE),
            By::Read | By::ThreadWrite => {
                self.pipe.1.write_all(&NEW).unwrap();
                match &mut self.uring {
                    Some(uring) => uring.read(out, into, NEW.len()),
                    // SAFETY: as above.
                    None => unsafe { libc::read(out, into.cast(), NEW.len()) },
                }
            }
            By::Pinned => {
                let part = |base: *mut u8| libc::iovec {
                    iov_base: base.cast(),
                    iov_len: PAGE,
                };
                let (local, remote) = (part(found.as_mut_ptr()), part(at));
                // SAFETY: `found` has room for a page.
                unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) }
            }
        };
        let wrong = |what: String| Err(format!("{:?}, page {page}: {what}", self.by));
        if matches!(self.by, By::Read | By::ThreadWrite) {
            if done != NEW.len() as isize {
                return wrong(format!("{done}, {}", std::io::Error::last_os_error()));
            }
            found.copy_from_slice(self.here.page(page));
            if found[AT..AT + NEW.len()] != NEW {
                return wrong("what was written is not there".to_owned());
            }
            found[AT..AT + NEW.len()].copy_from_slice(&self.there.page(page)[AT..AT + NEW.len()]);
        } else {
            if done != PAGE as isize {
                return wrong(format!("{done}, {}", std::io::Error::last_os_error()));
            }
            if self.by != By::Pinned {
                self.pipe.0.read_exact(&mut found).unwrap();
            }
        }
        match found == self.there.page(page) {
            true => Ok(()),
            false => wrong("other contents".to_owned()),
        }
    }
}

#[test]
fn the_kernel_and_its_threads_find_every_page_while_memory_arrives() {
    let mut ways = ALL.to_vec();
    if let Err(why) = Uring::new() {
        eprintln!("skipped: threads of the kernel's: no io_uring here: {why}");
        ways.retain(|by| !matches!(by, By::ThreadRead | By::ThreadWrite));
    }
    for (name, switch_after) in [("ram", 0), ("ram", 3000), ("shared", 0)] {
        let params = Params {
            max_bandwidth: Some(12 << 20),
            switchover_max_bandwidth: Some(12 << 20),
            ..allowed(1)
        };
        let sides = Sides::start_with(pair(), &params, Some(Box::new(CopiesOn)));
        sides.wait_until(|sides| {
            let stats = sides.out.stats();
            sides.out.state() == SourceState::Copying && stats.data_pages >= switch_after
        });
        sides.out.start_postcopy().unwrap();
        assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Serving));
        let (here, there) = (
            sides.pair.destination.ram(name),
            sides.pair.source.ram(name),
        );
        // Each page by one of the ways, in random order.
        let mut order: Vec<usize> = (0..here.spec.pages).collect();
        let mut random = Random(switch_after + 1);
        for n in (1..order.len()).rev() {
            order.swap(n, random.below(n + 1));
        }
        let share = order.len().div_ceil(ways.len());
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let callers = ways.iter().zip(order.chunks(share)).map(|(by, pages)| {
                let threaded = matches!(by, By::ThreadRead | By::ThreadWrite);
                let mut caller = Caller {
                    here: Arc::clone(&here),
                    there: Arc::clone(&there),
                    by: *by,
                    pipe: std::io::pipe().unwrap(),
                    uring: threaded.then(|| Uring::new().unwrap()),
                };
                scope.spawn(move || {
                    let touched = pages.iter().map(|page| caller.touch(*page));
                    touched.filter_map(Result::err).collect::<Vec<_>>()
                })
            });
            let callers: Vec<_> = callers.collect();
            callers
                .into_iter()
                .flat_map(|caller| caller.join().unwrap())
                .collect()
        });
        assert!(
            wrong.is_empty(),
            "{name}: {} wrong: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
        // The figures are renewed some times a second.
        sides.wait_until(|sides| sides.inc.stats().faults > 0);
        let stats = sides.inc.stats();
        println!(
            "{name}, after {switch_after} pages: {} faults",
            stats.faults
        );
        assert!(stats.faults > 0, "{name}: {stats:?}");
        sides.out.set_max_bandwidth(None).unwrap();
        sides.out.wait(Some(LONG)).unwrap();
        // What was written here is taken back.
        for (by, pages) in ways.iter().zip(order.chunks(share)) {
            for page in pages
                .iter()
                .filter(|_| matches!(by, By::Read | By::ThreadWrite))
            {
                let offset = page * PAGE + AT;
                let was = there.word(offset).load(Ordering::SeqCst);
                let now = here.word(offset).swap(was, Ordering::SeqCst);
                assert_eq!(now.to_le_bytes(), NEW, "{name} page {page}: {by:?} is lost");
            }
        }
        sides.assert_whole(name);
    }
}
