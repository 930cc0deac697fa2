//! The loop that the models of a tracker share: a course is played step by step, and an oracle says
//! whether a write was lost. The oracle itself is tried with engines that have known mistakes.
//!
//! Each model has its own world, steps and final check.

use super::the_run;
use crate::dirty::run::Run;
use crate::dirty::taken::Taken;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::fmt::Debug;
use std::ops::Range;

/// The oracle's verdict. An error is a mistake that it found.
pub type Verdict = Result<(), String>;

/// A tracker, its guest, and a copy made of the pages that it hands out.
pub trait Model: Sized {
    /// The state at the beginning.
    type Setup: Debug;
    /// A step of a course.
    type Step: Debug;
    /// The engine's mistake.
    type Mistake: Copy;

    /// The world at the beginning, with an engine that makes this mistake.
    fn begin(setup: &Self::Setup, mistake: Self::Mistake) -> Self;
    /// Plays one step.
    fn step(&mut self, step: &Self::Step) -> Verdict;
    /// Lets every page arrive, and checks whether a write was lost.
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

/// The oracle's finding in any of `cases` random courses, always the same ones; `None` if it finds
/// nothing.
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

/// One run arrives: each of its pages is looked at, and then it is delivered.
pub fn arrives(taken: Taken, mut each: impl FnMut(&Run<'_>, u64)) {
    let run = the_run(&taken);
    for page in run.pages.first().0..run.pages.end().0 {
        each(&run, page);
    }
    taken.delivered();
}

/// Removes any one of the values on their way.
pub fn any_of<T>(on_its_way: &mut Vec<T>, selector: u32) -> Option<T> {
    let n = on_its_way.len();
    (n > 0).then(|| on_its_way.swap_remove(selector as usize % n))
}
