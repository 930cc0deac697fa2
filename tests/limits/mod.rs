//! Time limits, and waits that must be short: peers that are slow in any manner, a block that is
//! removed while its pages trickle, and strangers at a listener.

mod destination;
mod removal;
mod slow;
mod source;
mod strangers;
