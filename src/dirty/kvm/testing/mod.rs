//! What tests of KVM's logs share.

pub(crate) mod model;
