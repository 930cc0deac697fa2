//! Compression on one lane: the codec, and when it is used.
//!
//! A frame stands for one run of pages. When compression saves less than an eighth of a run, the
//! run is sent as it is: the destination would lose more time in decompressing than it saves in
//! receiving.

use crate::error::Result;
use crate::migrate::params::{Compression, Params};
use crate::migrate::steering::{Batch, Compressing};
use crate::page::compress::Compressor;
use std::time::{Duration, Instant};

/// The longest frame that is worth sending for `length` bytes of contents.
const fn worth(length: usize) -> usize {
    length / 8 * 7
}

/// See the file's description.
#[derive(Debug)]
pub(super) struct Packing {
    compressor: Compressor,
    /// `None`: contents are always compressed.
    decider: Option<Compressing>,
    begun: Instant,
    /// Of the current batch: the bytes before compression, the bytes after it, and the time it
    /// took.
    before: u64,
    after: u64,
    codec: Duration,
}

impl Packing {
    /// The compression that the parameters ask for, for one lane; `None` when they ask for none.
    pub(super) fn of(params: &Params) -> Result<Option<Packing>> {
        let lanes = f64::from(params.channels);
        let cap = params.max_bandwidth.map(|all| all as f64 / lanes);
        let decider = match params.compression {
            Compression::Off => return Ok(None),
            Compression::Adaptive => Some(Compressing::new(cap)),
            Compression::Always => None,
        };
        Ok(Some(Packing {
            compressor: Compressor::new(params.level())?,
            decider,
            begun: Instant::now(),
            before: 0,
            after: 0,
            codec: Duration::ZERO,
        }))
    }

    /// Begins a batch. Returns whether its contents are to be compressed.
    pub(super) fn wanted(&mut self) -> bool {
        (self.before, self.after, self.codec) = (0, 0, Duration::ZERO);
        let now = self.begun.elapsed();
        self.decider
            .as_mut()
            .is_none_or(|decider| decider.next(now))
    }

    /// How much room a frame of `length` bytes of contents needs.
    pub(super) fn room(length: usize) -> usize {
        worth(length)
    }

    /// Writes a frame of `contents` to the beginning of `room`. Returns the length of the frame, or
    /// `None` when the frame is too long to be worth sending.
    pub(super) fn pack(&mut self, contents: &[u8], room: &mut [u8]) -> Option<usize> {
        let begun = Instant::now();
        let length = self.compressor.compress(contents, room);
        self.codec += begun.elapsed();
        self.before += contents.len() as u64;
        self.after += length.unwrap_or(contents.len()) as u64;
        length
    }

    /// Records that the batch was sent: `contents` bytes of pages became `sent` bytes and took
    /// `time`. After that the socket's buffer holds `held` bytes.
    pub(super) fn sent(&mut self, contents: u64, sent: u64, held: u64, time: Duration) {
        let Some(decider) = &mut self.decider else {
            return;
        };
        let batch = Batch {
            contents,
            before: self.before,
            after: self.after,
            sent,
            held,
            codec: self.codec,
            time,
        };
        decider.sent(self.begun.elapsed(), &batch);
    }
}
