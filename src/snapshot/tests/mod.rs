//! What saves and restores promise.

mod damage;
mod endings;
mod faults;
mod whole;
