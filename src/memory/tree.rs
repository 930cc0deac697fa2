//! A sorted index whose copies share what they have in common.
//!
//! The memory map is immutable, and a change replaces it as a whole. With plain vectors each block
//! that is plugged would copy the list of all others: for thousands of blocks, each costs a little
//! more than the one before. In this index a copy is a pointer, and a change makes anew only the
//! few nodes on the way to it. It also follows that comparing two maps costs only their difference:
//! a node that both have is skipped, with everything below it.
//!
//! The index is a B+ tree. Its values are in the leaves, at most [`MOST`] in each, in the order of
//! their keys. Each place in a node also knows how far the values up to it *reach*. So the value
//! that holds an address is found without looking at all values that begin before it
//! ([`Tree::next_reaching`]).

use crate::error::Result;
use crate::fallible;
use std::cmp::Ordering;
use std::sync::Arc;

/// The most entries or children in a node. A change counts a reference to each entry of the nodes
/// on its way, so small nodes make changes cheap.
const MOST: usize = 8;
/// The fewest entries in a node that has a neighbour.
const FEWEST: usize = 3;

/// The values that are sorted, and their order.
pub(crate) trait Index {
    /// What is kept. It is cloned when a neighbour changes, so it should be cheap to clone.
    type Value: Clone;
    /// Unique among the values of one tree.
    type Key: Ord + Clone;
    /// The end of the range that begins at a value's key.
    type Reach: Ord + Copy;
    fn key(value: &Self::Value) -> Self::Key;
    fn reach(value: &Self::Value) -> Self::Reach;
}

/// See the file's description.
pub(crate) struct Tree<I: Index>(Option<Node<I>>);

enum Node<I: Index> {
    Leaf(Arc<[Place<I, I::Value>]>),
    Inner(Arc<[Place<I, Node<I>>]>),
}

/// A place in a node.
struct Place<I: Index, T> {
    /// The key of the value, or of the first value below.
    first: I::Key,
    /// The reach of the value or of those below, and how many values these are. Kept here so that a
    /// node is made anew without a look at its children, each of which would be a cache miss.
    here: I::Reach,
    len: usize,
    /// The reach of all values up to here, including those before it in the node.
    reach: I::Reach,
    /// How many values there are up to here, including those before it in the node.
    count: usize,
    what: T,
}

impl<I: Index> Clone for Tree<I> {
    fn clone(&self) -> Self {
        Tree(self.0.clone())
    }
}

impl<I: Index> Default for Tree<I> {
    fn default() -> Self {
        Tree(None)
    }
}

impl<I: Index> Clone for Node<I> {
    fn clone(&self) -> Self {
        match self {
            Node::Leaf(places) => Node::Leaf(Arc::clone(places)),
            Node::Inner(places) => Node::Inner(Arc::clone(places)),
        }
    }
}

impl<I: Index, T> Place<I, T> {
    /// A place outside of any node, until [`in_line`] puts it into one.
    fn new(first: I::Key, here: I::Reach, len: usize, what: T) -> Self {
        Place {
            first,
            here,
            len,
            reach: here,
            count: len,
            what,
        }
    }
}

impl<I: Index, T: Clone> Clone for Place<I, T> {
    fn clone(&self) -> Self {
        Place {
            first: self.first.clone(),
            what: self.what.clone(),
            ..*self
        }
    }
}

/// The places of a node, each with the sum over those before it.
fn in_line<I: Index, T>(mut places: Vec<Place<I, T>>) -> Arc<[Place<I, T>]> {
    let mut before: Option<(I::Reach, usize)> = None;
    for place in &mut places {
        let (reach, count) = match before {
            Some((reach, count)) => (reach.max(place.here), count + place.len),
            None => (place.here, place.len),
        };
        (place.reach, place.count) = (reach, count);
        before = Some((reach, count));
    }
    places.into()
}

/// The index of the place for `key`: the last that begins at or before it, or else the first.
fn place_of<I: Index, T>(places: &[Place<I, T>], key: &I::Key) -> usize {
    places
        .partition_point(|place| place.first <= *key)
        .saturating_sub(1)
}

impl<I: Index> Node<I> {
    fn leaf(places: Vec<Place<I, I::Value>>) -> Self {
        Node::Leaf(in_line(places))
    }

    fn inner(places: Vec<Place<I, Node<I>>>) -> Self {
        Node::Inner(in_line(places))
    }

    /// A place for this node in the node above; `None` for an empty node.
    fn placed(self) -> Option<Place<I, Node<I>>> {
        let (first, here, len) = self.summary()?;
        Some(Place::new(first, here, len, self))
    }

    /// The first key, the reach and the number of values; `None` for an empty node.
    fn summary(&self) -> Option<(I::Key, I::Reach, usize)> {
        match self {
            Node::Leaf(places) => {
                let (first, last) = (places.first()?, places.last()?);
                Some((first.first.clone(), last.reach, last.count))
            }
            Node::Inner(places) => {
                let (first, last) = (places.first()?, places.last()?);
                Some((first.first.clone(), last.reach, last.count))
            }
        }
    }

    fn places(&self) -> usize {
        match self {
            Node::Leaf(places) => places.len(),
            Node::Inner(places) => places.len(),
        }
    }

    /// One leaf with these places, or two if they are too many.
    fn leaves(mut places: Vec<Place<I, I::Value>>) -> (Self, Option<Self>) {
        let after = (places.len() > MOST).then(|| places.split_off(places.len() / 2));
        (Node::leaf(places), after.map(Node::leaf))
    }

    /// One inner node with these places, or two if they are too many.
    fn inners(mut places: Vec<Place<I, Node<I>>>) -> (Self, Option<Self>) {
        let after = (places.len() > MOST).then(|| places.split_off(places.len() / 2));
        (Node::inner(places), after.map(Node::inner))
    }

    fn insert(&self, key: &I::Key, value: I::Value) -> (Self, Option<Self>) {
        match self {
            Node::Leaf(places) => {
                let place = Place::new(key.clone(), I::reach(&value), 1, value);
                let mut new = places.to_vec();
                match places.binary_search_by(|place| place.first.cmp(key)) {
                    Ok(at) => new[at] = place,
                    Err(at) => new.insert(at, place),
                }
                Self::leaves(new)
            }
            Node::Inner(places) => {
                let at = place_of(places, key);
                let (node, after) = places[at].what.insert(key, value);
                let mut new = places.to_vec();
                let made = [Some(node), after].into_iter().flatten();
                new.splice(at..at + 1, made.filter_map(Node::placed));
                Self::inners(new)
            }
        }
    }

    /// A copy without the value at `key`, which is there. It may have too few entries, or none.
    fn remove(&self, key: &I::Key) -> Self {
        match self {
            Node::Leaf(places) => {
                let mut new = places.to_vec();
                if let Ok(at) = places.binary_search_by(|place| place.first.cmp(key)) {
                    new.remove(at);
                }
                Node::leaf(new)
            }
            Node::Inner(places) => {
                let at = place_of(places, key);
                let node = places[at].what.remove(key);
                let mut new = places.to_vec();
                if node.places() < FEWEST && new.len() > 1 {
                    // Joined with the neighbour, the two become one node or two halves.
                    let first = at.min(new.len() - 2);
                    let (node, after) = match first == at {
                        true => node.joined(&new[at + 1].what),
                        false => new[first].what.joined(&node),
                    };
                    let made = [Some(node), after].into_iter().flatten();
                    new.splice(first..first + 2, made.filter_map(Node::placed));
                } else {
                    new.splice(at..at + 1, node.placed());
                }
                Node::inner(new)
            }
        }
    }

    /// Joins two neighbours of one height.
    fn joined(&self, next: &Self) -> (Self, Option<Self>) {
        match (self, next) {
            (Node::Leaf(a), Node::Leaf(b)) => Self::leaves([&a[..], &b[..]].concat()),
            (Node::Inner(a), Node::Inner(b)) => Self::inners([&a[..], &b[..]].concat()),
            // Does not happen: all leaves are equally deep.
            (a, b) => (a.clone(), Some(b.clone())),
        }
    }

    fn next_reaching(
        &self,
        after: Option<&I::Key>,
        before: &I::Key,
        past: I::Reach,
    ) -> Option<&I::Value> {
        // The first place whose reach is far enough. No value before it reaches that far.
        match self {
            Node::Leaf(places) => {
                let first = places.partition_point(|place| place.reach <= past);
                let begun = after.map_or(0, |after| {
                    places.partition_point(|place| place.first <= *after)
                });
                places[first.max(begun)..]
                    .iter()
                    .take_while(|place| place.first < *before)
                    .find(|place| place.here > past)
                    .map(|place| &place.what)
            }
            Node::Inner(places) => {
                let first = places.partition_point(|place| place.reach <= past);
                let begun = after.map_or(0, |after| place_of(places, after));
                places[first.max(begun)..]
                    .iter()
                    .take_while(|place| place.first < *before)
                    .filter(|place| place.here > past)
                    .find_map(|place| place.what.next_reaching(after, before, past))
            }
        }
    }

    fn height(&self) -> usize {
        match self {
            Node::Leaf(_) => 0,
            Node::Inner(places) => 1 + places.first().map_or(0, |place| place.what.height()),
        }
    }

    /// The first key; `None` for an empty node.
    fn first(&self) -> Option<&I::Key> {
        match self {
            Node::Leaf(places) => places.first().map(|place| &place.first),
            Node::Inner(places) => places.first().map(|place| &place.first),
        }
    }

    fn address(&self) -> usize {
        match self {
            Node::Leaf(places) => places.as_ptr() as usize,
            Node::Inner(places) => places.as_ptr() as usize,
        }
    }
}

impl<I: Index> Tree<I> {
    /// Adds a value. It replaces a value with the same key.
    pub(crate) fn insert(&mut self, value: I::Value) {
        self.0 = Some(match self.0.take() {
            None => Node::leaf(vec![Place::new(I::key(&value), I::reach(&value), 1, value)]),
            Some(root) => match root.insert(&I::key(&value), value) {
                (root, None) => root,
                (first, Some(second)) => {
                    let both = [first, second].into_iter();
                    Node::inner(both.filter_map(Node::placed).collect())
                }
            },
        });
    }

    /// Removes and returns the value with a key.
    pub(crate) fn remove(&mut self, key: &I::Key) -> Option<I::Value> {
        let found = self.get(key)?.clone();
        let mut root = self.0.as_ref().map(|root| root.remove(key));
        loop {
            root = match root {
                Some(Node::Inner(places)) if places.len() == 1 => Some(places[0].what.clone()),
                Some(node) if node.places() == 0 => None,
                other => {
                    self.0 = other;
                    return Some(found);
                }
            }
        }
    }

    /// The value with a key.
    pub(crate) fn get(&self, key: &I::Key) -> Option<&I::Value> {
        self.get_by(|other| other.cmp(key))
    }

    /// The value whose key compares as equal. `compare` has to agree with the order of keys.
    pub(crate) fn get_by(&self, compare: impl Fn(&I::Key) -> Ordering) -> Option<&I::Value> {
        let mut node = self.0.as_ref()?;
        loop {
            match node {
                Node::Leaf(places) => {
                    let at = places
                        .binary_search_by(|place| compare(&place.first))
                        .ok()?;
                    return Some(&places[at].what);
                }
                Node::Inner(places) => {
                    let at = places.partition_point(|place| compare(&place.first).is_le());
                    node = &places[at.saturating_sub(1)].what;
                }
            }
        }
    }

    /// The first value whose key lies after `after` (from the beginning without one) and before
    /// `before`, and that reaches past `past`. Allocates nothing.
    pub(crate) fn next_reaching(
        &self,
        after: Option<&I::Key>,
        before: &I::Key,
        past: I::Reach,
    ) -> Option<&I::Value> {
        self.0.as_ref()?.next_reaching(after, before, past)
    }

    /// The reach of all values together.
    pub(crate) fn reach(&self) -> Option<I::Reach> {
        self.0.as_ref()?.summary().map(|(_, reach, _)| reach)
    }

    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        let summary = self.0.as_ref().and_then(Node::summary);
        summary.map_or(0, |(_, _, count)| count)
    }

    /// The `n`th value, from 0.
    pub(crate) fn nth(&self, mut n: usize) -> Option<&I::Value> {
        let mut node = self.0.as_ref()?;
        loop {
            match node {
                Node::Leaf(places) => return places.get(n).map(|place| &place.what),
                Node::Inner(places) => {
                    let at = places.partition_point(|place| place.count <= n);
                    n -= at.checked_sub(1).map_or(0, |before| places[before].count);
                    node = &places.get(at)?.what;
                }
            }
        }
    }

    /// All values, by key.
    pub(crate) fn iter(&self) -> Iter<'_, I> {
        let mut iter = Iter {
            above: Vec::new(),
            leaf: [].iter(),
        };
        if let Some(root) = &self.0 {
            iter.descend(root);
        }
        iter
    }

    /// Whether both are one tree in memory, and so equal.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => a.address() == b.address(),
            _ => false,
        }
    }

    /// The values that `other` lacks, by key. `equal` says whether two values with one key are the
    /// same. If one tree was made from the other, this costs only their difference.
    pub(crate) fn not_in(
        &self,
        other: &Self,
        equal: impl Fn(&I::Value, &I::Value) -> bool,
    ) -> Result<Vec<I::Value>> {
        const WHAT: &str = "what two maps differ in";
        let (mut ours, mut theirs): (Vec<&Node<I>>, Vec<&Node<I>>) =
            (self.0.iter().collect(), other.0.iter().collect());
        while !ours.is_empty() {
            let height = |nodes: &[&Node<I>]| nodes.first().map_or(0, |node| node.height());
            let (a, b) = (height(&ours), height(&theirs));
            if a == b {
                without_shared(&mut ours, &mut theirs);
                if a == 0 {
                    break;
                }
            }
            // The taller tree is descended first, until both have one height, and then both are.
            if a >= b {
                ours = below(&ours)?;
            }
            if b >= a {
                theirs = below(&theirs)?;
            }
        }
        let mut theirs = theirs.iter().flat_map(|node| node.entries()).peekable();
        let mut missing = Vec::new();
        for (key, value) in ours.iter().flat_map(|node| node.entries()) {
            while theirs.next_if(|(other, _)| *other < key).is_some() {}
            let found = theirs.peek().filter(|(other, _)| *other == key);
            if !found.is_some_and(|(_, other)| equal(value, other)) {
                fallible::push(&mut missing, value.clone(), WHAT)?;
            }
        }
        Ok(missing)
    }
}

/// Removes from two lists the nodes that are in both. Both lists are in the order of keys, and a
/// node has the same first key in each, so one walk through both finds them.
fn without_shared<I: Index>(ours: &mut Vec<&Node<I>>, theirs: &mut Vec<&Node<I>>) {
    let (mut a, mut b) = (0, 0);
    // How many of the earlier nodes stay.
    let (mut kept, mut left) = (0, 0);
    while a < ours.len() && b < theirs.len() {
        let order = ours[a].first().cmp(&theirs[b].first());
        let shared = ours[a].address() == theirs[b].address();
        if order.is_le() {
            if !shared {
                ours[kept] = ours[a];
                kept += 1;
            }
            a += 1;
        }
        if order.is_ge() {
            if !shared {
                theirs[left] = theirs[b];
                left += 1;
            }
            b += 1;
        }
    }
    ours.drain(kept..a);
    theirs.drain(left..b);
}

/// The children of `nodes`. Leaves stay themselves.
fn below<'a, I: Index>(nodes: &[&'a Node<I>]) -> Result<Vec<&'a Node<I>>> {
    const WHAT: &str = "what two maps differ in";
    let mut below = Vec::new();
    for node in nodes {
        match node {
            Node::Leaf(_) => fallible::push(&mut below, *node, WHAT)?,
            Node::Inner(places) => {
                for place in places.iter() {
                    fallible::push(&mut below, &place.what, WHAT)?;
                }
            }
        }
    }
    Ok(below)
}

impl<I: Index> Node<I> {
    /// The keys and values of a leaf.
    fn entries(&self) -> impl Iterator<Item = (&I::Key, &I::Value)> {
        let places = match self {
            Node::Leaf(places) => &places[..],
            Node::Inner(_) => &[],
        };
        places.iter().map(|place| (&place.first, &place.what))
    }
}

/// See [`Tree::iter`].
pub(crate) struct Iter<'a, I: Index> {
    above: Vec<std::slice::Iter<'a, Place<I, Node<I>>>>,
    leaf: std::slice::Iter<'a, Place<I, I::Value>>,
}

impl<'a, I: Index> Iter<'a, I> {
    fn descend(&mut self, mut node: &'a Node<I>) {
        loop {
            match node {
                Node::Leaf(places) => {
                    self.leaf = places.iter();
                    return;
                }
                Node::Inner(places) => {
                    let mut rest = places.iter();
                    let Some(first) = rest.next() else {
                        return;
                    };
                    self.above.push(rest);
                    node = &first.what;
                }
            }
        }
    }
}

impl<'a, I: Index> Iterator for Iter<'a, I> {
    type Item = &'a I::Value;
    fn next(&mut self) -> Option<&'a I::Value> {
        loop {
            if let Some(place) = self.leaf.next() {
                return Some(&place.what);
            }
            let next = loop {
                match self.above.last_mut()?.next() {
                    Some(place) => break &place.what,
                    None => self.above.pop(),
                };
            };
            self.descend(next);
        }
    }
}

#[cfg(test)]
#[path = "tree/tests.rs"] // tests/loom has this file elsewhere
mod tests;
