//! The downtime limit over links that have a rate, a delay and a buffer: it is kept, or the
//! migration says at once which part alone exceeds it. And the promise: what is expected before a
//! pause stands beside what happened, part by part.
//!
//! Times are bounded loosely from above, because the machine may be busy. From below they are exact:
//! a link is never faster than it is said to be.

mod aborted;
mod faults;
mod kept;
mod kvm;
mod promise;
