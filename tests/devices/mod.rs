//! Devices whose state is streamed: while the guest runs, after the pause, over several channels,
//! and with a failure at every step.

mod buffer;
mod cancelled;
mod downtime;
mod failing;
mod image;
mod late;
mod model;
mod order;
mod refused;
mod resolved;
mod sides;
