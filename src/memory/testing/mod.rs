//! Memory of every kind for unit tests: the integration tests' own file.

#[path = "../../../tests/support/kinds.rs"]
pub(crate) mod kinds;
