//! Compression on one lane: the codec, and when it is used.
//!
//! A frame stands for one run of pages. A run that does not become smaller by an eighth is sent as it
//! is: what the destination would save in receiving it loses in decompressing.

use crate::error::Result;
use crate::migrate::params::{Compression, Params};
use crate::migrate::steering::{Batch, Compressing};
use crate::page::compress::Compressor;
use std::time::{Duration, Instant};

/// The longest frame of `length` bytes of contents that is worth being sent.
const fn worth(length: usize) -> usize {
    length / 8 * 7
}

/// See the file's description.
#[derive(Debug)]
pub(super) struct Packing {
    compressor: Compressor,
    /// `None`: always.
    decider: Option<Compressing>,
    begun: Instant,
    /// What was compressed of the batch in the making, before and after, and how long that took.
    before: u64,
    after: u64,
    codec: Duration,
}

impl Packing {
    /// As the parameters want it for each lane; `None` if not at all.
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

    /// A batch begins; whether its contents are to be compressed.
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

    /// Writes a frame of `contents` to the beginning of `room`; its length, or `None` if it is not
    /// worth it.
    pub(super) fn pack(&mut self, contents: &[u8], room: &mut [u8]) -> Option<usize> {
        let begun = Instant::now();
        let length = self.compressor.compress(contents, room);
        self.codec += begun.elapsed();
        self.before += contents.len() as u64;
        self.after += length.unwrap_or(contents.len()) as u64;
        length
    }

    /// The batch was sent: `contents` bytes of pages, in `sent` bytes, in `time`, after which the
    /// socket holds `held`.
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
