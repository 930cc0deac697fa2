//! The ways in which contents can travel, all combinations; and a guest that re-sends pages, so that
//! deltas and frames travel too.

use super::deciders::Scripted;
use super::memory::PAGE;
use super::pair::Pair;
use super::random::Random;
use super::time::MS;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{Compression, Decider, PageChecksums, Params};
use std::sync::Arc;

/// One way in which contents can travel.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub compression: Compression,
    pub delta: bool,
    pub checksums: bool,
    pub channels: u32,
}

impl Way {
    /// Every way: 36. The last of them have several channels.
    pub fn all() -> Vec<Way> {
        let mut all = Vec::new();
        for channels in [1, 2, 8] {
            for n in 0..12 {
                all.push(Way {
                    compression: [Compression::Off, Compression::Always, Compression::Adaptive]
                        [n % 3],
                    delta: n / 3 % 2 == 0,
                    checksums: n / 6 == 0,
                    channels,
                });
            }
        }
        all
    }

    /// `params` for this way. The cache is small, so that some pages miss.
    pub fn set(self, params: Params) -> Params {
        Params {
            channels: self.channels,
            compression: self.compression,
            delta_cache_bytes: self.delta.then_some(1 << 20),
            page_checksums: match self.checksums {
                true => PageChecksums::On,
                false => PageChecksums::Off,
            },
            ..params
        }
    }
}

/// Switches over after `passes` passes, between which the guest writes a word to each of `count` hot
/// pages of each block: those at multiples of its stride, which stands behind its name.
pub fn hot_pages(
    pair: &Pair,
    seed: u64,
    passes: u32,
    count: usize,
    blocks: [(&'static str, usize); 2],
) -> Box<dyn Decider> {
    let source = Arc::downgrade(&pair.source);
    let mut random = Random(seed);
    Box::new(Scripted(move |facts: &Facts| {
        if facts.moment != Moment::Synced {
            return Next::GoOn;
        }
        if facts.pass >= passes {
            return Next::SwitchOver { expected: MS };
        }
        let source = source.upgrade().unwrap();
        for n in 0..count {
            for (name, stride) in blocks {
                let at = n * stride * PAGE + random.below(512) * 8;
                source.poke(name, at, random.next());
            }
        }
        Next::GoOn
    }))
}
