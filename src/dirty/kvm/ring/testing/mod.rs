//! Helpers for tests of the rings.

pub(crate) mod model;
