//! Helpers for tests that make a migration fail from inside.

pub(crate) mod planted;
