use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

/// Ranges, sorted by their start, with a number that tells values of one key apart.
struct Ranges;

type Value = (u64, u64, u32);

impl Index for Ranges {
    type Value = Value;
    type Key = u64;
    type Reach = u64;
    fn key(value: &Value) -> u64 {
        value.0
    }
    fn reach(value: &Value) -> u64 {
        value.1
    }
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64, u64),
    Remove(u64),
    /// The tree is compared with its present state from now on.
    Remember,
}

fn op(keys: u64) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..keys, prop_oneof![1u64..4, 1u64..10_000]).prop_map(|(k, n)| Op::Insert(k, n)),
        4 => (0..keys).prop_map(Op::Remove),
        1 => Just(Op::Remember),
    ]
}

/// Checks the invariants of a node, and returns its height.
fn check_node(node: &Node<Ranges>, root: bool) -> usize {
    assert!(node.places() <= MOST);
    assert!(root || node.places() >= FEWEST, "{} places", node.places());
    match node {
        Node::Leaf(places) => {
            assert!(!places.is_empty());
            assert!(places.windows(2).all(|pair| pair[0].first < pair[1].first));
            0
        }
        Node::Inner(places) => {
            assert!(places.len() > 1);
            let heights: Vec<usize> = places
                .iter()
                .map(|place| check_node(&place.what, false))
                .collect();
            assert!(heights.iter().all(|h| *h == heights[0]));
            heights[0] + 1
        }
    }
}

fn check(tree: &Tree<Ranges>, model: &BTreeMap<u64, Value>) {
    if let Some(root) = &tree.0 {
        check_node(root, true);
    }
    assert_eq!(tree.len(), model.len());
    assert!(tree.iter().eq(model.values()));
    assert_eq!(tree.reach(), model.values().map(|v| v.1).max());
}

fn missing(of: &BTreeMap<u64, Value>, from: &BTreeMap<u64, Value>) -> Vec<Value> {
    let all = of.iter().filter(|(k, v)| from.get(k) != Some(v));
    all.map(|(_, v)| *v).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 48 } else { 512 }))]

    /// Every operation, compared with the standard library's map and with a search through all
    /// values.
    #[test]
    fn a_tree_is_a_sorted_map_whose_ranges_are_found(
        keys in prop_oneof![Just(30u64), Just(5000u64)],
        seeds in prop::collection::vec(op(5000), 0..1500),
        looks in prop::collection::vec((0u64..6000, 0u64..3000, any::<bool>()), 20),
    ) {
        let mut tree: Tree<Ranges> = Tree::default();
        let mut model = BTreeMap::new();
        let mut before = (tree.clone(), model.clone());
        for (i, op) in seeds.into_iter().enumerate() {
            match op {
                Op::Insert(key, length) => {
                    let key = key % keys;
                    let value = (key, key + length, i as u32);
                    tree.insert(value);
                    model.insert(key, value);
                }
                Op::Remove(key) => {
                    let key = key % keys;
                    prop_assert_eq!(tree.remove(&key), model.remove(&key));
                }
                Op::Remember => before = (tree.clone(), model.clone()),
            }
        }
        check(&tree, &model);
        check(&before.0, &before.1);
        let equal = |a: &Value, b: &Value| a == b;
        prop_assert_eq!(tree.not_in(&before.0, equal).unwrap(), missing(&model, &before.1));
        prop_assert_eq!(before.0.not_in(&tree, equal).unwrap(), missing(&before.1, &model));
        prop_assert_eq!(tree.not_in(&Tree::default(), equal).unwrap().len(), model.len());
        for (from, length, whole) in looks {
            prop_assert_eq!(tree.get(&from), model.get(&from));
            prop_assert_eq!(tree.nth(from as usize), model.values().nth(from as usize));
            let end = if whole { u64::MAX } else { from + length };
            let expected: Vec<Value> = model
                .values()
                .filter(|v| v.0 < end && v.1 > from)
                .copied()
                .collect();
            let mut found: Vec<Value> = Vec::new();
            while let Some(next) =
                tree.next_reaching(found.last().map(|v| &v.0), &end, from)
            {
                found.push(*next);
            }
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_change_copies_the_way_to_it_and_a_comparison_looks_at_nothing_else() {
    let mut tree: Tree<Ranges> = Tree::default();
    for i in 0..50_000 {
        tree.insert((i, i + 1, 0));
    }
    fn all(node: &Node<Ranges>, into: &mut HashSet<usize>) {
        into.insert(node.address());
        if let Node::Inner(places) = node {
            for place in places.iter() {
                all(&place.what, into);
            }
        }
    }
    let nodes = |tree: &Tree<Ranges>| {
        let mut found = HashSet::new();
        all(tree.0.as_ref().unwrap(), &mut found);
        found
    };
    let before = tree.clone();
    tree.insert((30_000, 99_000, 1));
    assert!(tree.remove(&12).is_some());
    let fresh = nodes(&tree).difference(&nodes(&before)).count();
    assert!(fresh <= 24, "{fresh} nodes of {}", nodes(&tree).len());
    // The number of comparisons of two values tells how many values were looked at.
    let compared = std::cell::Cell::new(0);
    let equal = |a: &Value, b: &Value| {
        compared.set(compared.get() + 1);
        a == b
    };
    assert_eq!(tree.not_in(&before, equal).unwrap(), [(30_000, 99_000, 1)]);
    assert_eq!(
        before.not_in(&tree, equal).unwrap(),
        [(12, 13, 0), (30_000, 30_001, 0)]
    );
    assert!(compared.get() < 400, "{} comparisons", compared.get());
}

std::thread_local! {
    static COMPARED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// A key that counts its comparisons.
#[derive(Clone, PartialEq, Eq)]
struct Counted(u64);

impl PartialOrd for Counted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Counted {
    fn cmp(&self, other: &Self) -> Ordering {
        COMPARED.set(COMPARED.get() + 1);
        self.0.cmp(&other.0)
    }
}

struct Numbers;

impl Index for Numbers {
    type Value = u64;
    type Key = Counted;
    type Reach = u64;
    fn key(value: &u64) -> Counted {
        Counted(*value)
    }
    fn reach(value: &u64) -> u64 {
        value + 1
    }
}

/// Work is counted here, so a busy machine does not matter. The logarithm of 16,000 is 1.3 times
/// that of 2,000.
#[test]
fn eight_times_as_many_values_make_a_change_dearer_by_the_logarithm_and_no_more() {
    let work = |n: u64| {
        let mut tree: Tree<Numbers> = Tree::default();
        let mut done = [0; 4];
        let mut counted = |which: usize, what: &mut dyn FnMut()| {
            let before = COMPARED.get();
            what();
            done[which] += COMPARED.get() - before;
        };
        for value in 0..n {
            let before = tree.clone();
            counted(0, &mut || tree.insert(value));
            counted(1, &mut || {
                assert_eq!(tree.not_in(&before, |a, b| a == b).unwrap(), [value]);
                assert!(before.not_in(&tree, |a, b| a == b).unwrap().is_empty());
            });
            counted(2, &mut || {
                let found = tree.next_reaching(None, &Counted(u64::MAX), value);
                assert_eq!(found, Some(&value));
            });
        }
        for value in 0..n {
            counted(3, &mut || assert!(tree.remove(&Counted(value)).is_some()));
        }
        done.map(|work| work as f64 / n as f64)
    };
    let (small, large) = (work(500), work(4_000));
    for (which, (small, large)) in small.into_iter().zip(large).enumerate() {
        assert!(large <= small * 1.5, "{which}: {small} and {large}");
    }
}
