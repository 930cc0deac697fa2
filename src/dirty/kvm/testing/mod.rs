//! Helpers for tests of KVM's logs.

pub(crate) mod model;
