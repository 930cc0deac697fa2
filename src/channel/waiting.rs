//! Waiting for many connections together: for a listener and newcomers, or for channels.

use super::connection::Channel;
use super::listener::Listener;
use super::listener_limits::LOOKED_AT;
use super::newcomer::Newcomer;
use crate::error::Result;
use crate::fallible;
use crate::runtime::cancel::{cancelled, wait_for};
use crate::runtime::{Cancel, Deadline, Wake};
use crate::sys::event::{self, Poll};
use std::io;

/// Waits for the first of these: a connection at `listener`, bytes of one of `newcomers` (at most
/// [`LOOKED_AT`] of them), the cancel, the deadline. Returns which newcomers have bytes, in their
/// order. A signal may end the wait early.
///
/// # Errors
/// The kernel's: more descriptors than the process may have, or no memory.
pub fn wait_for_any<'n>(
    listener: Option<&Listener>,
    newcomers: impl IntoIterator<Item = &'n Newcomer>,
    cancel: &Cancel,
    until: Deadline,
) -> io::Result<[bool; LOOKED_AT]> {
    let mut polls = [Poll::none(); LOOKED_AT + 2];
    polls[0] = Poll::new(cancel.fd(), event::READABLE);
    if let Some(listener) = listener {
        polls[1] = Poll::new(listener.fd(), event::READABLE);
    }
    let mut count = 2;
    for (newcomer, poll) in newcomers.into_iter().zip(&mut polls[2..]) {
        *poll = Poll::new(newcomer.fd(), event::READABLE);
        count += 1;
    }
    match event::poll(&mut polls[..count], until.remaining()) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok([false; LOOKED_AT]),
        Err(e) => return Err(e),
    }
    let mut ready = [false; LOOKED_AT];
    for (ready, poll) in ready.iter_mut().zip(&polls[2..count]) {
        *ready = poll.found() != 0;
    }
    Ok(ready)
}

/// Waits until one of `channels` has bytes, or has ended; for the cancel, and for the deadline.
///
/// # Errors
/// `NoMemory` when there is none for the descriptors, and `Kernel` when the wait itself fails.
pub fn wait_for_channels<'c>(
    channels: impl IntoIterator<Item = &'c Channel>,
    cancel: Option<&Cancel>,
    until: Deadline,
) -> Result<Wake> {
    let what = "the connections that are waited for";
    let mut polls = Vec::new();
    for cancel in cancelled(cancel) {
        fallible::push(&mut polls, cancel, what)?;
    }
    for channel in channels {
        let fd = channel.kind.fd_to_read();
        fallible::push(&mut polls, Poll::new(fd, event::READABLE), what)?;
    }
    wait_for(&mut polls, cancel, until)
}
