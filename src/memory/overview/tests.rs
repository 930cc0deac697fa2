//! What an overview reports of pages, compared with a scan of each run by itself.

use super::*;

fn runs(list: &[(u64, u64)]) -> impl Iterator<Item = Range<Pages>> + '_ {
    list.iter()
        .map(|(first, count)| Pages(*first)..Pages(first + count))
}

#[test]
fn one_look_is_made_for_runs_that_ascend_and_lie_near_each_other() {
    let every = |stride: u64, count: u64| -> Vec<(u64, u64)> {
        (0..count).map(|i| (i * stride, 1)).collect()
    };
    for (list, expected) in [
        (vec![], 0),
        (every(2, 256), 256),
        (every(NEAR + 1, 256), 256),
        // Too far from each other.
        (every(NEAR + 2, 256), 1),
        // A run that is far away is not included.
        ([every(2, 9), vec![(10_000, 1)]].concat(), 9),
        // A run that does not ascend is not included.
        ([every(2, 9), vec![(3, 1)]].concat(), 9),
        // This many pages, and not one more.
        (
            vec![(0, PAGES_MAX - 1), (PAGES_MAX, 1), (PAGES_MAX + 2, 1)],
            2,
        ),
        (vec![(0, PAGES_MAX + 1), (PAGES_MAX + 2, 1)], 0),
        ((0..9).map(|i| (i * 60, 60)).collect(), 8),
    ] {
        assert_eq!(Overview::reach(runs(&list)), expected, "{list:?}");
    }
}

#[test]
fn short_runs_with_much_between_them_are_looked_up_and_no_others() {
    let overview = Overview::default();
    let every = |stride: u64, count: u64| -> Vec<(u64, u64)> {
        (0..count).map(|i| (i * stride, 1)).collect()
    };
    for (list, expected) in [
        (vec![], 0),
        (every(2, 256), 0),
        (every(LOOKED_UP, 256), 0),
        (every(LOOKED_UP + 2, 256), 256),
        (every(10_000, 256), 256),
        (every(10_000, 1), 0),
        // No more pages than one look may be made for.
        (every(10_000, 600), PAGES_MAX as usize),
        // A long run is scanned, and so is what comes after one that goes back.
        ([every(10_000, 9), vec![(100_000, SHORT + 1)]].concat(), 9),
        ([every(10_000, 9), vec![(3, 1)]].concat(), 9),
        (vec![(0, SHORT + 1), (10_000, 1), (20_000, 1)], 0),
    ] {
        assert_eq!(overview.apart(runs(&list)), expected, "{list:?}");
    }
    let refused = Overview {
        refused: true,
        ..Overview::default()
    };
    assert_eq!(refused.apart(runs(&every(10_000, 256))), 0);
}

#[test]
fn runs_are_all_there_only_where_every_page_of_them_is() {
    let region = |start, end, categories| PageRegion {
        start,
        end,
        categories,
    };
    let overview = Overview {
        span: 10..40,
        regions: vec![
            region(10, 12, PRESENT),
            region(12, 14, PRESENT | WRITTEN),
            region(15, 16, PRESENT | PFNZERO),
            region(20, 22, SWAPPED),
            region(30, 40, PRESENT),
        ],
        found: 5,
        ..Overview::default()
    };
    let range = |range: Range<u64>| Pages(range.start)..Pages(range.end);
    for (pages, there) in [
        (10..11, true),
        (10..14, true),
        (11..13, true),
        (10..15, false),
        (14..15, false),
        (15..16, false),
        (20..21, false),
        (29..31, false),
        (30..40, true),
    ] {
        assert_eq!(
            overview.has_pages(&range(pages.clone())),
            there,
            "{pages:?}"
        );
    }
    assert!(overview.covers(&range(10..40)) && !overview.covers(&range(9..11)));
    assert!(!overview.covers(&range(39..41)));
    let found = |pages: Range<u64>, query: Query| {
        let mut found = Vec::new();
        let each = |run: Range<Pages>, is| {
            found.push((run.start.0, run.end.0, is));
            Ok(())
        };
        overview.entries(range(pages), &query, each).unwrap();
        found
    };
    let any = Query {
        any: PRESENT | SWAPPED,
        ..Query::default()
    };
    let all = Query {
        all: PRESENT,
        ..Query::default()
    };
    let expected = [(15, 16, PRESENT | PFNZERO), (20, 21, SWAPPED)];
    assert_eq!(found(14..21, any), expected);
    assert_eq!(found(14..21, all), expected[..1]);
    assert_eq!(found(22..30, any), []);
    let none = Overview::default();
    assert!(!none.covers(&range(0..1)));
}
