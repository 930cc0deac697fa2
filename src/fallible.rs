//! Functions that grow a collection and return an error when there is no memory.
//!
//! `Vec::push`, `collect` and `insert` of the standard library end the process then. That is
//! acceptable only for a collection of a fixed small size. Code that collects blocks, slots, runs
//! or names calls these functions: a guest's size or a peer decides how many there are.

use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash};

/// `list.reserve(more)`; `what` is for the error.
pub fn reserve<T>(list: &mut Vec<T>, more: usize, what: &str) -> Result<()> {
    list.try_reserve(more)
        .map_err(|_| grown::<T>(what, list.len().saturating_add(more)))
}

/// `list.push(value)`; `what` is for the error.
pub fn push<T>(list: &mut Vec<T>, value: T, what: &str) -> Result<()> {
    reserve(list, 1, what)?;
    list.push(value);
    Ok(())
}

/// `queue.reserve(more)`; `what` is for the error.
pub fn reserve_back<T>(queue: &mut VecDeque<T>, more: usize, what: &str) -> Result<()> {
    queue
        .try_reserve(more)
        .map_err(|_| grown::<T>(what, queue.len().saturating_add(more)))
}

/// `values.collect()`; `what` is for the error.
pub fn collect<T>(values: impl Iterator<Item = T>, what: &str) -> Result<Vec<T>> {
    let mut list = Vec::new();
    reserve(&mut list, values.size_hint().0, what)?;
    for value in values {
        push(&mut list, value, what)?;
    }
    Ok(list)
}

/// `map.insert(key, value)`; `what` is for the error.
pub fn insert<K: Eq + Hash, V, S: BuildHasher>(
    map: &mut HashMap<K, V, S>,
    key: K,
    value: V,
    what: &str,
) -> Result<Option<V>> {
    map.try_reserve(1)
        .map_err(|_| grown::<(K, V)>(what, map.len() + 1))?;
    Ok(map.insert(key, value))
}

/// `set.insert(value)`; `what` is for the error.
pub fn add<T: Eq + Hash, S: BuildHasher>(
    set: &mut HashSet<T, S>,
    value: T,
    what: &str,
) -> Result<bool> {
    set.try_reserve(1)
        .map_err(|_| grown::<T>(what, set.len() + 1))?;
    Ok(set.insert(value))
}

/// The error: no memory for `count` values of `T`.
#[cold]
fn grown<T>(what: &str, count: usize) -> Error {
    Error::no_memory(what, size_of::<T>().saturating_mul(count) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    /// An iterator whose promised length needs more memory than there is.
    struct Promises;

    impl Iterator for Promises {
        type Item = u64;
        fn next(&mut self) -> Option<u64> {
            None
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            (usize::MAX / 8, None)
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error_that_names_it() {
        let errors = [
            collect(Promises, "promises").unwrap_err(),
            reserve::<u64>(&mut Vec::new(), usize::MAX / 2, "promises").unwrap_err(),
            reserve_back::<u64>(&mut VecDeque::new(), usize::MAX / 2, "promises").unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), Kind::NoMemory);
            assert!(error.message().starts_with("promises: "), "{error}");
        }
    }

    #[test]
    fn what_can_be_had_is_as_without() {
        assert_eq!(collect(3..6, "numbers").unwrap(), [3, 4, 5]);
        let mut list = vec![1];
        push(&mut list, 2, "numbers").unwrap();
        assert_eq!(list, [1, 2]);
        let (mut map, mut set) = (HashMap::new(), HashSet::new());
        assert_eq!(insert(&mut map, 1, 2, "numbers").unwrap(), None);
        assert_eq!(insert(&mut map, 1, 3, "numbers").unwrap(), Some(2));
        assert!(add(&mut set, 1, "numbers").unwrap());
        assert!(!add(&mut set, 1, "numbers").unwrap());
    }
}
