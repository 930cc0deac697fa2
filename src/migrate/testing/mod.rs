//! What makes a migration fail from inside, for tests.

pub(crate) mod planted;
