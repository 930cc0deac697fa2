//! What tests of the ring share.

pub(crate) mod model;
