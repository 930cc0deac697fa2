//! The loop that models of a tracker share: a course is played, step by step, and an oracle says
//! whether anything was lost. The oracle itself is tried by engines with known mistakes.
//!
//! What a model's world holds, which steps there are and what must be true at the end is its own.

use super::the_run;
use crate::dirty::run::Run;
use crate::dirty::taken::Taken;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::fmt::Debug;
use std::ops::Range;

/// What the oracle says: an error is a mistake found.
pub type Verdict = Result<(), String>;

/// A tracker, what it tracks, and a copy made from what it hands out.
pub trait Model: Sized {
    /// What there is at the beginning.
    type Setup: Debug;
    /// What can happen.
    type Step: Debug;
    /// What can be wrong with the engine.
    type Mistake: Copy;

    /// The world at the beginning, with an engine that makes this mistake.
    fn begin(setup: &Self::Setup, mistake: Self::Mistake) -> Self;
    /// Something happens.
    fn step(&mut self, step: &Self::Step) -> Verdict;
    /// Everything arrives: is anything lost?
    fn end(&mut self) -> Verdict;
}

/// Plays a course to its end.
pub fn verdict<M: Model>(setup: &M::Setup, steps: &[M::Step], mistake: M::Mistake) -> Verdict {
    let mut model = M::begin(setup, mistake);
    for step in steps {
        model.step(step)?;
    }
    model.end()
}

/// What the oracle finds in any of `cases` random courses, always the same ones; `None` if it
/// acquits them all.
pub fn condemned<M: Model>(
    setups: impl Strategy<Value = M::Setup>,
    steps: impl Strategy<Value = M::Step>,
    length: Range<usize>,
    mistake: M::Mistake,
    cases: u32,
) -> Option<String> {
    let config = Config {
        cases,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let courses = (setups, prop::collection::vec(steps, length));
    let result = TestRunner::new_with_rng(config, rng).run(&courses, |(setup, steps)| {
        verdict::<M>(&setup, &steps, mistake).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => None,
        Err(TestError::Fail(reason, _)) => Some(reason.to_string()),
        Err(other) => panic!("{other}"),
    }
}

/// One run arrives: each of its pages is looked at, and it is delivered.
pub fn arrives(taken: Taken, mut each: impl FnMut(&Run<'_>, u64)) {
    let run = the_run(&taken);
    for page in run.pages.first().0..run.pages.end().0 {
        each(&run, page);
    }
    taken.delivered();
}

/// Any of what is on its way.
pub fn any_of<T>(on_its_way: &mut Vec<T>, selector: u32) -> Option<T> {
    let n = on_its_way.len();
    (n > 0).then(|| on_its_way.swap_remove(selector as usize % n))
}
