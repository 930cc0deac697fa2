//! The internal state of a vhost-user back end, streamed ([`VhostUserDevice`]).
//!
//! A virtio device whose back end is another process has two kinds of state. Its rings and features
//! are known to the VMM, which saves and loads them. What the back end keeps to itself, such as the
//! open files of a file system, only the back end can give and take. The vhost-user protocol has two
//! messages for that (`VHOST_USER_PROTOCOL_F_DEVICE_STATE`): SET_DEVICE_STATE_FD hands over one end
//! of a pipe, and CHECK_DEVICE_STATE asks whether the transfer succeeded.
//!
//! The connection to the back end is the VMM's. Other threads of the VMM send messages on it, each
//! waiting for its reply, and a connection that broke is made anew. So brant never writes to it by
//! itself: it asks the VMM to send the two messages ([`Front`]), and a VMM without code for them
//! calls [`messages`] with its lock held.

pub mod messages;

pub use self::messages::{Direction, PROTOCOL_F_DEVICE_STATE};
pub use crate::device::patience::{SILENCE, SILENCE_MAX};

use crate::device::patience::{self, again, Cancelled, Patience};
use crate::error::{Error, Result};
use crate::runtime::cancel::{wait_ready, Interest};
use crate::runtime::Deadline;
use crate::sys::pipe;
use crate::vmm::device::{Device, Left};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The VMM's connection to one back end. Every ring of the back end has stopped when these are
/// called (GET_VRING_BASE was answered), and none is started before the migration is over here.
pub trait Front: Send + Sync {
    /// Sends SET_DEVICE_STATE_FD with `fd` and waits for the reply. Returns the descriptor that the
    /// back end gave instead, if it gave one. An error when the back end refused, or has not
    /// negotiated [`PROTOCOL_F_DEVICE_STATE`].
    fn set_device_state_fd(&self, direction: Direction, fd: OwnedFd) -> Result<Option<OwnedFd>>;

    /// Sends CHECK_DEVICE_STATE and waits for the reply. An error when the back end says that the
    /// transfer failed.
    fn check_device_state(&self) -> Result<()>;

    /// The migration was cancelled, or its time is over: a call of the other two that is in progress
    /// should return soon, with any error. Called as [`Device::cancel`] is. The functions of
    /// [`messages`] end by themselves, on the thread on which brant calls the other two.
    fn cancel(&self) {}
}

/// A vhost-user back end whose internal state a migration streams, after the pause.
///
/// ```
/// use brant::device::vhost_user::{messages, Direction, Front};
/// use brant::Result;
/// use std::os::fd::{AsFd, OwnedFd};
/// use std::os::unix::net::UnixStream;
/// use std::sync::Mutex;
/// use std::time::Duration;
///
/// /// The VMM's connection. Whoever sends a message holds the lock until its reply is here.
/// struct Connection(Mutex<UnixStream>);
///
/// const PATIENCE: Duration = Duration::from_secs(5);
///
/// impl Front for Connection {
///     fn set_device_state_fd(&self, way: Direction, fd: OwnedFd) -> Result<Option<OwnedFd>> {
///         let socket = self.0.lock().unwrap();
///         messages::set_device_state_fd(socket.as_fd(), way, fd.as_fd(), PATIENCE)
///     }
///     fn check_device_state(&self) -> Result<()> {
///         let socket = self.0.lock().unwrap();
///         messages::check_device_state(socket.as_fd(), PATIENCE)
///     }
/// }
/// ```
pub struct VhostUserDevice {
    front: Arc<dyn Front>,
    inner: Mutex<Inner>,
    cancelled: Cancelled,
}

struct Inner {
    silence: Duration,
    /// How many bytes of state are expected.
    expected: Option<u64>,
    /// How many were read since the stop.
    given: u64,
    transfer: Transfer,
}

/// What goes between brant and the back end.
enum Transfer {
    None,
    /// The back end writes its state, and this is read.
    Saving(OwnedFd),
    /// The back end has given all of its state, and says that it is whole.
    Saved,
    /// This is written, and the back end reads its state.
    Loading(OwnedFd),
}

impl VhostUserDevice {
    /// The back end behind `front`.
    pub fn new(front: Arc<dyn Front>) -> Self {
        VhostUserDevice {
            front,
            inner: Mutex::new(Inner {
                silence: SILENCE,
                expected: None,
                given: 0,
                transfer: Transfer::None,
            }),
            cancelled: Cancelled::default(),
        }
    }

    /// Sets the limit, [`SILENCE`] at first: how long the back end may give no byte of its state or
    /// take none. Beyond it the migration fails.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) outside of 1 ms to [`SILENCE_MAX`].
    pub fn set_silence(&self, limit: Duration) -> Result<()> {
        self.lock().silence = patience::check(limit)?;
        Ok(())
    }

    /// Says how many bytes of state to expect, for the downtime that a pause is planned with. After
    /// each save as many are expected as were given.
    pub fn expect(&self, bytes: u64) {
        self.lock().expected = Some(bytes);
    }

    /// Ends a read, a load or a message that waits, on any thread; a cancel of the migration does. The
    /// next [`begin`](Device::begin), [`end`](Device::end), [`run`](Device::run) or
    /// [`reset`](Device::reset) takes it back.
    pub fn cancel(&self) {
        self.cancelled.set();
        self.front.cancel();
    }

    /// Asks the back end whether the transfer succeeded.
    fn check(&self) -> Result<()> {
        self.cancelled.during(|| self.front.check_device_state())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Hands one end of a new pipe to the back end, and returns the end that stays here.
    fn begin_transfer(&self, direction: Direction) -> Result<OwnedFd> {
        let what = |e| Error::os("a pipe for the state of a vhost-user back end", e);
        let (out, into) = pipe::pipe(0).map_err(what)?;
        let (here, there) = match direction {
            Direction::Save => (out, into),
            Direction::Load => (into, out),
        };
        let given = self
            .cancelled
            .during(|| self.front.set_device_state_fd(direction, there))?;
        // A back end that has a better channel gives its end back, and then the pipe is unused.
        let here = given.unwrap_or(here);
        pipe::set_nonblocking(here.as_fd())
            .map_err(|e| Error::os("the channel for the state of a vhost-user back end", e))?;
        Ok(here)
    }
}

/// Waits for a part of `until`; an error if that has passed or the transfer is cancelled.
fn wait(fd: &OwnedFd, interest: Interest, until: Deadline, patience: &Patience<'_>) -> Result<()> {
    let (what, verb) = match interest {
        Interest::Write => ("load", "took"),
        _ => ("save", "gave"),
    };
    let time = patience.slice(
        until,
        format_args!("the {what} of a vhost-user back end's state"),
        format_args!("the vhost-user back end {verb}"),
    )?;
    wait_ready(fd.as_fd(), interest, None, Deadline::after(time)).map(|_| ())
}

impl Device for VhostUserDevice {
    // Its back end is another process.
    fn writes_unseen(&self) -> bool {
        true
    }

    fn begin(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.transfer = Transfer::None;
        self.cancelled.forget();
        Ok(())
    }

    /// The protocol does not say how long the state is.
    fn left(&self) -> Result<Left> {
        Ok(Left {
            stopped: self.lock().expected,
            ..Left::default()
        })
    }

    /// The VMM's `pause` has stopped all rings already.
    fn stop(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.transfer = Transfer::None;
        inner.given = 0;
        Ok(())
    }

    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut inner = self.lock();
        let patience = Patience {
            limit: inner.silence,
            cancelled: &self.cancelled,
        };
        match inner.transfer {
            Transfer::Saved => return Ok(0),
            Transfer::Saving(_) => {}
            _ => inner.transfer = Transfer::Saving(self.begin_transfer(Direction::Save)?),
        }
        let Transfer::Saving(fd) = &inner.transfer else {
            return Ok(0);
        };
        let until = patience.until();
        let n = loop {
            match pipe::read(fd.as_fd(), buffer) {
                Ok(n) => break n,
                Err(e) if again(&e) => wait(fd, Interest::Read, until, &patience)?,
                Err(e) => return Err(Error::os("reading the state of a vhost-user back end", e)),
            }
        };
        inner.given += n as u64;
        if n == 0 && !buffer.is_empty() {
            self.check()?;
            inner.expected = Some(inner.given);
            inner.transfer = Transfer::Saved;
        }
        Ok(n)
    }

    /// The VMM's `resume` starts the rings.
    fn resume(&self) -> Result<()> {
        self.lock().transfer = Transfer::None;
        Ok(())
    }

    fn cancel(&self) {
        VhostUserDevice::cancel(self);
    }

    fn end(&self) {
        self.lock().transfer = Transfer::None;
        self.cancelled.forget();
    }

    fn load_stopped(&self, mut data: &[u8]) -> Result<()> {
        let mut inner = self.lock();
        let patience = Patience {
            limit: inner.silence,
            cancelled: &self.cancelled,
        };
        if !matches!(inner.transfer, Transfer::Loading(_)) {
            inner.transfer = Transfer::Loading(self.begin_transfer(Direction::Load)?);
        }
        let Transfer::Loading(fd) = &inner.transfer else {
            return Ok(());
        };
        let mut until = patience.until();
        while !data.is_empty() {
            match pipe::write(fd.as_fd(), data) {
                Ok(n) => {
                    data = data.get(n..).unwrap_or(&[]);
                    until = patience.until();
                }
                Err(e) if again(&e) => wait(fd, Interest::Write, until, &patience)?,
                // A back end that refuses the state closes its end, and says so when it is asked.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {
                    inner.transfer = Transfer::None;
                    self.check()?;
                    return Err(Error::os(
                        "the vhost-user back end closed the channel before all of its state was \
                         written, and says that nothing is wrong",
                        e,
                    ));
                }
                Err(e) => return Err(Error::os("writing the state of a vhost-user back end", e)),
            }
        }
        Ok(())
    }

    fn loaded(&self) -> Result<()> {
        let mut inner = self.lock();
        if !matches!(inner.transfer, Transfer::Loading(_)) {
            // A state without a byte is loaded too.
            inner.transfer = Transfer::Loading(self.begin_transfer(Direction::Load)?);
        }
        // The end of the state.
        inner.transfer = Transfer::None;
        self.check()
    }

    /// The VMM's `run` starts the rings.
    fn run(&self) -> Result<()> {
        self.cancelled.forget();
        Ok(())
    }

    fn reset(&self) {
        self.lock().transfer = Transfer::None;
        self.cancelled.forget();
    }
}
