//! The promises of saves and restores.

mod damage;
mod endings;
mod faults;
mod instant;
mod lazy;
mod unseen;
mod whole;
