//! Memory of every kind, for unit tests: what the integration tests use.

#[path = "../../../tests/support/kinds.rs"]
pub(crate) mod kinds;
