//! Which vector instructions the loops over a page use.

/// How wide a loop over a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx512,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx2,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Sse2,
    #[cfg_attr(all(target_arch = "x86_64", not(miri)), allow(dead_code))]
    Words,
}

impl Level {
    /// The widest level of this machine. The standard library caches the detection.
    #[inline]
    pub(super) fn best() -> Level {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            // Every processor with AVX-512 BW has AVX-512 F.
            if std::arch::is_x86_feature_detected!("avx512bw") {
                Level::Avx512
            } else if std::arch::is_x86_feature_detected!("avx2") {
                Level::Avx2
            } else {
                Level::Sse2
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        Level::Words
    }

    /// Every level of this machine, the portable one included.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Level> {
        let mut levels = vec![Level::Words];
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            levels.push(Level::Sse2);
            if std::arch::is_x86_feature_detected!("avx2") {
                levels.push(Level::Avx2);
            }
            if std::arch::is_x86_feature_detected!("avx512bw") {
                levels.push(Level::Avx512);
            }
        }
        levels
    }
}
