//! How many pages one batch has at most.
//!
//! Each batch has a fixed cost: a call to send it, a look at what is mapped, the wake-up of the
//! destination. That is little beside 2 MiB of contents, but a fifth of the time to read 2 MiB of
//! zeros. So batches grow while only zero pages go.

use super::outlet::Put;
use crate::units::Pages;

/// The most pages in one batch: 2 MiB, a millisecond or less on a link worth its name.
pub const BATCH_PAGES: Pages = Pages(512);
/// The most pages in one batch after batches of zero pages only. If contents follow after all, 8
/// MiB of them are sent at once.
const ZEROS_PAGES: Pages = Pages(2048);

/// The most pages of the next batch. The last batch had at most `most` pages, and `put` says what
/// became of them.
pub fn next_size(put: &Put, most: Pages) -> Pages {
    match (put.data_pages, put.zero_pages) {
        // All of it is still on its way to whoever looks at it.
        (0, 0) => most,
        (0, _) => Pages(most.0 * 2).clamp(BATCH_PAGES, ZEROS_PAGES),
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
        assert_eq!(next_size(&put(0, 0), ZEROS_PAGES), ZEROS_PAGES);
    }
}
