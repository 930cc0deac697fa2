//! A session of several connections, as a destination sees it: the sources here are played by the
//! tests, record by record, so that each channel does what it likes when it likes.

#[path = "../support/mod.rs"]
mod support;

mod arriving;
mod failing;
mod gathering;
mod handed_in;
mod scripted;
