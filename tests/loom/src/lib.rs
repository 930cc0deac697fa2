//! brant's lock-free files, compiled a second time with loom's atomics instead of the processor's.
//! `tests/protocols.rs` tries them in every order that threads and memory allow.
//!
//! Word for word from brant: `bits/concurrent.rs` (the reported bitmap), `runtime/snapshot.rs` (the
//! map's cell), `dirty/reported.rs` (when marks are recorded), `dirty/kvm/ring/protocol.rs` (a
//! dirty ring, whose other side is the kernel), `gate/protocol.rs` (a pause, vCPU and device threads,
//! with a model of `KVM_RUN`) and, checked apart from the others,
//! `runtime/grace.rs` (grace periods). Replaced are: `runtime/sync.rs` by loom's types;
//! `bits/cells.rs` by words that notice races; `runtime/grace.rs`, for the files that use it, by a
//! simpler epoch with the same promise, because the real one has too many steps to be tried in
//! every order together with theirs; and the few types of `memory` and `dirty` that `reported.rs`
//! names; and `sys::own`.
#![allow(dead_code, missing_docs)]

#[path = "../../../src/error.rs"]
pub mod error;
#[path = "../../../src/fallible.rs"]
#[allow(dead_code)]
mod fallible;
#[path = "../../../src/units.rs"]
pub mod units;

#[path = "."]
pub mod runtime {
    #[path = "../../../src/runtime/deadline.rs"]
    pub mod deadline;
    #[path = "grace.rs"]
    pub mod grace;
    #[path = "../../../src/runtime/snapshot.rs"]
    pub mod snapshot;
    #[path = "sync.rs"]
    pub mod sync;

    /// No model cancels.
    pub struct Cancel;

    impl Cancel {
        pub fn is_cancelled(&self) -> bool {
            false
        }
    }

    /// brant's own grace periods, over two counters.
    #[path = "."]
    pub mod real {
        use super::sync;
        #[path = "../../../src/runtime/grace.rs"]
        pub mod grace;
        #[path = "readers.rs"]
        mod readers;
        #[path = "../../../src/runtime/round.rs"]
        mod round;
    }
}

#[path = "."]
pub mod bits {
    #[path = "cells.rs"]
    mod cells;
    #[path = "../../../src/bits/concurrent.rs"]
    pub mod concurrent;
    #[path = "../../../src/bits/heap.rs"]
    mod heap;
    #[path = "../../../src/bits/runs.rs"]
    pub mod runs;
    #[path = "../../../src/bits/summary.rs"]
    pub mod summary;
    #[path = "../../../src/bits/words.rs"]
    pub mod words;

    // As in brant's bits/mod.rs.
    pub(crate) const WORD_BITS: usize = 64;
    pub(crate) const GROUP_WORDS: usize = 8;
    pub(crate) const GROUP_BITS: usize = GROUP_WORDS * WORD_BITS;
    pub(crate) const SPAN_WORDS: usize = GROUP_WORDS * WORD_BITS;

    pub(crate) fn group_rounded_words(nbits: usize) -> usize {
        nbits.div_ceil(GROUP_BITS) * GROUP_WORDS
    }

    pub(crate) fn cut(start: usize, n: usize, len: usize) -> std::ops::Range<usize> {
        let start = start.min(len);
        start..start.saturating_add(n).min(len)
    }
}

#[path = "."]
pub mod gate {
    #[path = "../../../src/gate/holds.rs"]
    pub mod holds;
    #[path = "../../../src/gate/protocol.rs"]
    pub mod protocol;
}

pub mod memory;

/// Of brant's `sys`, an entry of a dirty ring, and memory on huge pages.
pub mod sys {
    pub mod kvm_ring {
        use crate::runtime::sync::{AtomicU32, AtomicU64};

        pub struct Entry {
            pub flags: AtomicU32,
            pub slot: AtomicU32,
            pub offset: AtomicU64,
        }
    }

    /// No model has so many bits that their memory comes from here.
    pub mod own {
        use crate::error::{Error, Result};
        use std::ptr::NonNull;

        pub enum OwnMemory {}

        // As little of it as is used.
        #[allow(clippy::len_without_is_empty)]
        impl OwnMemory {
            pub fn new(length: usize, what: &str) -> Result<OwnMemory> {
                Err(Error::no_memory(what, length as u64))
            }
            pub fn first(&self) -> NonNull<u8> {
                match *self {}
            }
            pub fn len(&self) -> usize {
                match *self {}
            }
        }
    }
}

#[path = "."]
pub mod dirty {
    #[path = "../../../src/dirty/reported.rs"]
    pub mod reported;

    #[path = "../../../src/dirty/kvm/ring/protocol.rs"]
    pub mod protocol;

    #[path = "log.rs"]
    mod log;
    pub use log::*;
}
