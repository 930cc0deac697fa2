//! How many pages one batch has at most.
//!
//! A batch costs something beside its pages: a call to send it, a look at what is mapped, a
//! destination that wakes up. Beside 2 MiB of contents that is little, beside the reading of 2 MiB of
//! zeros it is a fifth. So batches grow while nothing but zeros goes.

use super::outlet::Put;
use crate::units::Pages;

/// The most pages in one batch: 2 MiB, a millisecond or less on a link worth its name.
pub const BATCH_PAGES: Pages = Pages(512);
/// The same where the batches before held nothing but zeros: 8 MiB, should it be contents after all.
const ZEROS_PAGES: Pages = Pages(2048);

/// What the next batch has at most, after one of at most `most` pages of which `put` became.
pub fn next_size(put: &Put, most: Pages) -> Pages {
    match put.data_pages {
        0 => Pages(most.0 * 2).clamp(BATCH_PAGES, ZEROS_PAGES),
        _ => BATCH_PAGES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_nothing_but_zeros_goes_and_are_small_again_with_the_first_data() {
        let put = |data_pages, zero_pages| Put {
            data_pages,
            zero_pages,
            ..Put::default()
        };
        let mut most = BATCH_PAGES;
        for _ in 0..20 {
            let next = next_size(&put(0, most.0), most);
            assert!(next >= most && next <= ZEROS_PAGES);
            most = next;
        }
        assert_eq!(most, ZEROS_PAGES);
        assert_eq!(next_size(&put(1, most.0 - 1), most), BATCH_PAGES);
        assert_eq!(next_size(&put(512, 0), BATCH_PAGES), BATCH_PAGES);
    }
}
