//! Limits of time, and what holds whoever is in no hurry: peers that are slow in any manner, a
//! block removed while its pages trickle, and strangers at a listener.

#[path = "../support/mod.rs"]
mod support;

mod destination;
mod removal;
mod slow;
mod source;
mod strangers;
