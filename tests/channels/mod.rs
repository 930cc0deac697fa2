//! A session of several connections, as a destination sees it. The tests play the source record by
//! record, so that each channel can do anything at any time.

mod arriving;
mod failing;
mod gathering;
mod handed_in;
pub mod scripted;
