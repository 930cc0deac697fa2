//! The state of VFIO devices, against a model of the kernel's side. There was no hardware to try it
//! with.

mod faults;
mod model;
mod order;
mod refusals;
mod steps;
mod walks;
mod whole;
