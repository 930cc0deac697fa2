//! What a table of loops consists of, and the one step that all of them share. The loops' files
//! fill the tables, and `words` picks one.

/// The width of a table's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, for any architecture.
    Portable,
    /// AVX2 and POPCNT.
    Avx2,
    /// AVX-512 F, VPOPCNTDQ and VBMI2.
    Avx512,
}

impl Level {
    /// All levels, the narrowest first.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];
}

/// Destination, source, mask of groups. Returns the bits that became set, and the bits found.
pub(super) type DrainGroups = fn(&mut [u64], &mut [u64], u64) -> (u64, u64);

/// A table of kernels of one level. It exists only where the machine can run them.
pub struct Kernels {
    pub(super) level: Level,
    pub(super) count: fn(&[u64]) -> u64,
    pub(super) find_not: fn(&[u64], u64) -> Option<usize>,
    pub(super) or: fn(&mut [u64], &[u64]) -> u64,
    pub(super) or_span: fn(&mut [u64], &[u64], &mut Met) -> u64,
    pub(super) or_span_shifted: fn(&mut [u64], &[u64], u64, u32, &mut Met) -> u64,
    /// The two functions above for spans in which some lines have a bit and others have none.
    pub(super) or_span_mixed: fn(&mut [u64], &[u64], &mut Met) -> u64,
    pub(super) or_span_shifted_mixed: fn(&mut [u64], &[u64], u64, u32, &mut Met) -> u64,
    pub(super) or_groups: fn(&mut [u64], &[u64], u64) -> u64,
    pub(super) count_groups: fn(&[u64], u64) -> u64,
    pub(super) drain_groups: DrainGroups,
}

/// What a merge of a span has met, beside the bits that it has set.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// A bit for each group whose source has a bit.
    pub(super) groups: u64,
    /// Bits of the source that the destination had before.
    pub(super) again: u64,
}

/// What the bits of a merge's source were to its destination.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BitCounts {
    /// Bits that became set.
    pub(crate) new: u64,
    /// Bits that were set before.
    pub(crate) again: u64,
}

impl BitCounts {
    /// All bits of the source.
    pub(crate) fn bits(self) -> u64 {
        self.new + self.again
    }

    pub(super) fn word(&mut self, word: &mut u64, value: u64) {
        let new = or_word(word, value);
        self.new += new;
        self.again += u64::from(value.count_ones()) - new;
    }
}

#[inline(always)]
pub(crate) fn or_word(word: &mut u64, value: u64) -> u64 {
    let new = value & !*word;
    if new != 0 {
        *word |= new;
    }
    u64::from(new.count_ones())
}
