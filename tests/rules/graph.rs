//! Circles in a graph of files: sets of files that all reach one another.

use std::collections::{BTreeMap, BTreeSet};

/// From each file, the files that it imports.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// The strongly connected components of more than one file, each sorted, and sorted themselves.
pub fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let mut search = Search {
        graph,
        index: BTreeMap::new(),
        low: BTreeMap::new(),
        stack: Vec::new(),
        found: Vec::new(),
    };
    for file in graph.keys() {
        if !search.index.contains_key(file.as_str()) {
            search.visit(file);
        }
    }
    search.found.sort();
    search.found
}

/// Tarjan's algorithm ("Depth-first search and linear graph algorithms", 1972).
struct Search<'a> {
    graph: &'a Graph,
    index: BTreeMap<&'a str, usize>,
    low: BTreeMap<&'a str, usize>,
    stack: Vec<&'a str>,
    found: Vec<Vec<String>>,
}

impl<'a> Search<'a> {
    fn visit(&mut self, file: &'a str) {
        let at = self.index.len();
        self.index.insert(file, at);
        self.low.insert(file, at);
        self.stack.push(file);
        for next in self.graph.get(file).into_iter().flatten() {
            let lowest = match self.index.get(next.as_str()) {
                None => {
                    self.visit(next);
                    self.low[next.as_str()]
                }
                Some(at) if self.stack.contains(&next.as_str()) => *at,
                Some(_) => continue,
            };
            let low = self.low[file].min(lowest);
            self.low.insert(file, low);
        }
        if self.low[file] < at {
            return;
        }
        let first = self.stack.iter().position(|f| *f == file).unwrap();
        let mut circle: Vec<String> = self.stack.drain(first..).map(str::to_owned).collect();
        if circle.len() > 1 {
            circle.sort();
            self.found.push(circle);
        }
    }
}

#[test]
fn a_circle_is_found_and_a_chain_is_none() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*to).to_owned()).or_default();
            let targets = graph.entry((*from).to_owned()).or_default();
            targets.insert((*to).to_owned());
        }
        graph
    };
    let chain = graph(&[("a", "b"), ("b", "c"), ("a", "c"), ("d", "a")]);
    assert_eq!(circles(&chain), Vec::<Vec<String>>::new());
    let two = graph(&[
        ("a", "b"),
        ("b", "a"),
        ("b", "c"),
        ("c", "d"),
        ("d", "e"),
        ("e", "c"),
        ("f", "a"),
    ]);
    assert_eq!(circles(&two), [vec!["a", "b"], vec!["c", "d", "e"]]);
}
