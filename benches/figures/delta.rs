//! Changed pages: how fast they are encoded and how long the encodings are, beside an encoder in C
//! that compares a word at a time (`benches/xbzrle.c`).
//!
//! The pages are more than a processor's cache holds, as re-sent pages are.

use crate::report::{alternate, Report, Runs};
use crate::stream::bare;
use brant::page::delta::{self, PAGE};
use std::time::Instant;

const PAGES: usize = 16 << 10;
const RUNS: usize = 7;

type Encode = unsafe extern "C" fn(*const u8, *const u8, usize, *mut u8, usize) -> libc::c_long;

/// A way in which guests write: its name, how many places in a page, and how many bytes at each.
const CHANGES: [(&str, usize, usize); 8] = [
    ("none", 0, 0),
    ("1-byte", 1, 1),
    ("1-word", 1, 8),
    ("8-words", 8, 8),
    ("64-words", 64, 8),
    ("256-bytes", 256, 1),
    ("1-kib", 1, 1024),
    ("all", 1, PAGE),
];

type Page = [u8; PAGE];

struct Pages {
    base: Vec<Page>,
    now: Vec<Page>,
}

impl Pages {
    fn new(places: usize, length: usize) -> Pages {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut base = vec![[0; PAGE]; PAGES];
        for word in base.as_flattened_mut().chunks_exact_mut(8) {
            word.copy_from_slice(&random().to_le_bytes());
        }
        let mut now = base.clone();
        for page in &mut now {
            for _ in 0..places {
                let at = random() as usize % (PAGE - length + 1) / length.min(8) * length.min(8);
                page[at..at + length].iter_mut().for_each(|b| *b = !*b);
            }
        }
        Pages { base, now }
    }
}

/// All figures of encoding.
pub fn measure(report: &mut Report) {
    let wanted: Vec<_> = CHANGES
        .iter()
        .filter(|(name, ..)| {
            report.wants(&format!("delta.gbps/{name}"))
                || report.wants(&format!("delta.size/{name}"))
        })
        .collect();
    if wanted.is_empty() {
        return;
    }
    if std::env::var_os("BRANT_BARE").is_none() {
        return report.skipped("delta.gbps/", "BRANT_BARE is not set; use make bench");
    }
    // SAFETY: the function has this type in xbzrle.c.
    let theirs: Encode = unsafe { std::mem::transmute(bare(c"xbzrle_encode")) };
    for (name, places, length) in wanted {
        let pages = Pages::new(*places, *length);
        // What does not fit is sent as a page.
        let mut out = [0; PAGE];
        let mut sizes = [0; 2];
        let [ours, scalar]: [Runs; 2] = alternate(RUNS, |contender| {
            let begun = Instant::now();
            let mut size = 0;
            for (base, page) in pages.base.iter().zip(&pages.now) {
                let length = match contender {
                    0 => delta::encode(base, page, &mut out),
                    // SAFETY: two pages, and room as long as is said.
                    _ => usize::try_from(unsafe {
                        theirs(base.as_ptr(), page.as_ptr(), PAGE, out.as_mut_ptr(), PAGE)
                    })
                    .ok(),
                };
                size += length.unwrap_or(PAGE);
                std::hint::black_box(&mut out);
            }
            sizes[contender] = size;
            (PAGES * PAGE) as f64 / begun.elapsed().as_nanos() as f64
        });
        let peer = "a scalar encoder in C";
        report.compared(&format!("delta.gbps/{name}"), "GB/s", &ours, peer, &scalar);
        // An unchanged page is nothing to both.
        if sizes[1] > 0 {
            let [ours, theirs] = sizes.map(|size| Runs::of(size as f64 / PAGES as f64));
            report.compared(
                &format!("delta.size/{name}"),
                "B/page",
                &ours,
                peer,
                &theirs,
            );
        }
    }
}
