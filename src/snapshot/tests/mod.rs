//! The promises of saves and restores.

mod chain;
mod chain_damage;
mod damage;
mod endings;
mod faults;
mod instant;
mod lazy;
mod merge;
mod trusted;
mod unseen;
mod whole;
