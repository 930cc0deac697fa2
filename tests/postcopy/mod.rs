//! Postcopy: the guest runs at the destination before all of its memory is there.

mod checker;
mod cuts;
mod destination;
mod huge;
mod kernel;
mod kvm;
mod limited;
mod lost;
mod orders;
mod other_process;
mod processes;
mod recovered;
mod refused;
mod reunited;
mod scripted;
mod stopped;
mod storm;
mod uring;
mod vcpus;
mod waited;
mod whole;
mod wires;
