//! The state of a device that is passed through with VFIO, streamed by the kernel's migration
//! protocol ([`VfioDevice`]).
//!
//! **Source.** Where the driver can, the device's state is read while it runs (`PRE_COPY`). After the
//! VMM's pause all devices stop their DMA to each other (`PRE_COPY_P2P`, or `RUNNING_P2P` without
//! `PRE_COPY`) before the first of them stops (`STOP_COPY`). Then the rest of the state is read to
//! its end.
//!
//! **Destination.** The device is in `RESUMING` from the first byte on. After the last one it goes to
//! `STOP`, where its driver checks the state as a whole. After the hand-over all devices enter
//! `RUNNING_P2P`, where they answer each other, before the first of them is `RUNNING`.
//!
//! **Failures.** A device that the kernel could not move is left wherever the kernel says. At the
//! source it is brought back to `RUNNING`; from `ERROR` only a reset leads there, which loses the
//! device's state ([`VfioDevice::on_reset`]). There was no hardware to try this with: the tests have
//! a model of the kernel's side.

mod frames;
mod machine;

pub use crate::device::patience::{SILENCE, SILENCE_MAX};

use self::frames::{Part, Parts, HEAD};
use self::machine::{Machine, Read};
use crate::device::patience::{self, Cancelled, Patience};
use crate::error::{Error, Kind, Result};
use crate::sys::ioctl::Descriptor;
use crate::sys::vfio_migration::{self as sys, State};
use crate::vmm::device::{Device, Left};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The most bytes of state that a stopped device may give; see [`VfioDevice::set_limits`].
pub const STATE_MAX: u64 = 1 << 40;

/// The shortest buffer that is filled in place: heads and a byte, with room to spare. Shorter ones
/// are given what was put into a buffer of this length.
const BUFFER_MIN: usize = 64;

/// What a device's driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// The device's state can be read while it runs (`VFIO_MIGRATION_PRE_COPY`).
    pub pre_copy: bool,
    /// The device can stop its DMA to other devices while it still answers theirs
    /// (`VFIO_MIGRATION_P2P`). Where a guest has several devices, all should have this.
    pub p2p: bool,
}

/// A VFIO device whose state a migration streams. Linux 5.18; state that is sent while the device
/// runs needs 6.2.
///
/// The device's dirty pages are a log of their own
/// ([`VfioDeviceLog`](crate::dirty::vfio::VfioDeviceLog)): add both.
///
/// ```no_run
/// use brant::device::vfio::VfioDevice;
/// use brant::memory::Memory;
/// use std::os::fd::BorrowedFd;
/// use std::sync::Arc;
///
/// /// `device` is what VFIO_GROUP_GET_DEVICE_FD returned.
/// fn add(memory: &Memory, device: BorrowedFd<'_>) -> brant::Result<()> {
///     let device = VfioDevice::from_fd(device.try_clone_to_owned()?)?;
///     memory.add_device("nic", 0, 1, Arc::new(device))
/// }
/// ```
pub struct VfioDevice {
    inner: Mutex<Inner>,
    cancelled: Cancelled,
}

/// Told after a device was reset, with the reason.
type OnReset = Box<dyn Fn(&Error) + Send>;

struct Inner {
    machine: Machine,
    silence: Duration,
    state_max: u64,
    on_reset: Option<OnReset>,
    side: Side,
}

/// What the device does in a migration.
enum Side {
    Neither,
    Source(Source),
    Destination(Parts),
}

struct Source {
    /// The state from before: RUNNING, or STOP for a guest that its user had paused.
    home: State,
    /// Between `begin` and `end`.
    begun: bool,
    /// The head of a beginning has still to be sent.
    announce: bool,
    /// Initial bytes that the kernel still counted when the transfer had nothing more to give.
    stale: u64,
    /// Bytes read since the device was stopped.
    stopped: u64,
    /// The end has been read, and its head was given.
    ended: bool,
    /// Bytes of the stream that were too many for a short buffer.
    carry: Carry,
    /// The device runs, and the next question about its state opens a transfer anew: after a pause that
    /// may have been aborted. If the migration has failed instead, nobody asks, and the device is left
    /// as it is.
    opens: bool,
}

impl Source {
    fn new(home: State) -> Self {
        Source {
            home,
            begun: true,
            announce: true,
            stale: 0,
            stopped: 0,
            ended: false,
            carry: Carry::default(),
            opens: false,
        }
    }

    /// The stream begins anew.
    fn anew(&mut self) {
        *self = Source {
            begun: self.begun,
            ..Source::new(self.home)
        };
    }
}

/// A few bytes of the stream that wait for the next read.
#[derive(Default)]
struct Carry {
    bytes: Vec<u8>,
}

impl Carry {
    /// Moves what fits into `buffer`.
    fn give(&mut self, buffer: &mut [u8]) -> usize {
        let n = buffer.len().min(self.bytes.len());
        for (place, byte) in buffer.iter_mut().zip(self.bytes.drain(..n)) {
            *place = byte;
        }
        n
    }

    /// Has `fill` fill `buffer`, or a longer one whose rest waits here.
    fn filled(
        source: &mut Source,
        buffer: &mut [u8],
        fill: impl FnOnce(&mut Source, &mut [u8]) -> Result<usize>,
    ) -> Result<usize> {
        let waited = source.carry.give(buffer);
        if waited > 0 || buffer.is_empty() {
            return Ok(waited);
        }
        if buffer.len() >= BUFFER_MIN {
            return fill(source, buffer);
        }
        let mut longer = [0; BUFFER_MIN];
        let n = fill(source, &mut longer)?;
        source.carry.bytes.extend_from_slice(&longer[..n]);
        Ok(source.carry.give(buffer))
    }
}

impl VfioDevice {
    /// The device behind a descriptor, which brant owns from now on. [`Kind::Unsupported`] if it is no
    /// VFIO device. Whether the device can migrate is another question:
    /// [`VfioDevice::abilities`].
    pub fn from_fd(device: OwnedFd) -> Result<Self> {
        let mut device = Descriptor::new(device);
        sys::is_device(&mut device).map_err(|e| {
            let expected = "expected the descriptor of a VFIO device";
            Error::new(
                Kind::Unsupported,
                format!("VFIO_DEVICE_GET_INFO: {e}; {expected}"),
            )
        })?;
        Ok(VfioDevice::new(Box::new(device)))
    }

    /// [`VfioDevice::from_fd`] for whatever answers as a VFIO device.
    #[doc(hidden)]
    pub fn new(device: Box<dyn sys::Device>) -> Self {
        VfioDevice {
            inner: Mutex::new(Inner {
                machine: Machine::new(device),
                silence: SILENCE,
                state_max: STATE_MAX,
                on_reset: None,
                side: Side::Neither,
            }),
            cancelled: Cancelled::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What the device's driver can do. [`Kind::Unsupported`] if the device cannot migrate at all:
    /// then a migration fails when it begins. To say so earlier, use the message as a
    /// [blocker](crate::migrate::Blockers::block).
    pub fn abilities(&self) -> Result<Abilities> {
        let inner = self.lock();
        inner.machine.can()?;
        Ok(Abilities {
            pre_copy: inner.machine.precopies(),
            p2p: inner.machine.p2p(),
        })
    }

    /// Sets the limits, [`SILENCE`] and [`STATE_MAX`] at first: how long a device may give no byte or
    /// take none while it is stopped, and how many bytes it may give in all. Beyond them the
    /// migration fails.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a silence outside of 1 ms to [`SILENCE_MAX`].
    pub fn set_limits(&self, silence: Duration, state_max: u64) -> Result<()> {
        let silence = patience::check(silence)?;
        let mut inner = self.lock();
        (inner.silence, inner.state_max) = (silence, state_max);
        Ok(())
    }

    /// Has `told` called after a device of the source was reset, with the reason: its state was lost,
    /// as after a reset of the function, and the guest's driver has to set it up anew. The VMM
    /// restores what it keeps of the device (configuration space, interrupts), and may tell the
    /// guest. When the guest was paused, this is called before the VMM's `resume`, on the thread that
    /// resumes the device. When the migration fails while the guest runs, it is called in
    /// [`end`](Device::end), and the guest runs meanwhile. In either case the device's lock is held: call
    /// nothing of this device in it.
    pub fn on_reset(&self, told: impl Fn(&Error) + Send + 'static) {
        self.lock().on_reset = Some(Box::new(told));
    }

    /// Ends a read or a load that waits, on any thread; a cancel of the migration does. The next
    /// [`begin`](Device::begin), [`end`](Device::end), [`run`](Device::run) or
    /// [`reset`](Device::reset) takes it back.
    pub fn cancel(&self) {
        self.cancelled.set();
    }
}

impl Inner {
    /// The source's side, which a migration has begun.
    fn source(&mut self) -> Result<(&mut Machine, &mut Source)> {
        match &mut self.side {
            Side::Source(source) => Ok((&mut self.machine, source)),
            _ => Err(Error::new(
                Kind::State,
                "the VFIO device is not the source of a migration",
            )),
        }
    }

    /// The source's side, whose transfer is open if the device is to have one.
    fn reopened(&mut self) -> Result<(&mut Machine, &mut Source)> {
        let (machine, source) = self.source()?;
        if source.opens {
            Inner::open(machine, source)?;
            source.opens = false;
        }
        Ok((machine, source))
    }

    /// Opens a transfer of the running device, if its driver can and the device runs.
    fn open(machine: &mut Machine, source: &mut Source) -> Result<()> {
        match machine.precopies() && source.home == State::RUNNING {
            true => machine.open_transfer(State::PRE_COPY),
            false => Ok(()),
        }
    }

    /// Brings the device to `to`, with a reset if nothing else helps. A reset device is RUNNING.
    fn recover(&mut self, to: State) -> Result<()> {
        let first = match self.machine.close(to) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        // The kernel may have stopped half-way, and then a second try can help.
        if self.machine.state() != State::ERROR && self.machine.close(to).is_ok() {
            return Ok(());
        }
        self.machine
            .reset()
            .map_err(|e| first.clone().context(format_args!("{e}; before that")))?;
        if let Some(told) = &self.on_reset {
            told(&first);
        }
        match to {
            State::RUNNING => Ok(()),
            _ => self.machine.close(to),
        }
    }
}

/// Puts the head of a piece, and has `read` fill what follows. Returns the bytes used: none if
/// `read` gave none.
fn piece(buffer: &mut [u8], mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<usize> {
    let Some((head, room)) = buffer.split_first_chunk_mut::<HEAD>() else {
        return Ok(0);
    };
    let most = room.len().min(frames::PIECE_MAX);
    let mut filled = 0;
    while filled < most {
        match read(&mut room[filled..most])? {
            0 => break,
            n => filled += n,
        }
    }
    if filled == 0 {
        return Ok(0);
    }
    *head = frames::data(filled);
    Ok(HEAD + filled)
}

/// The place for what is read, after the heads that come before it.
fn announced(buffer: &mut [u8], source: &mut Source) -> usize {
    if !std::mem::take(&mut source.announce) {
        return 0;
    }
    buffer[..HEAD].copy_from_slice(&frames::begins());
    HEAD
}

impl Device for VfioDevice {
    // By DMA.
    fn writes_unseen(&self) -> bool {
        true
    }

    fn begin(&self) -> Result<()> {
        let mut inner = self.lock();
        self.cancelled.forget();
        inner.machine.can()?;
        let home = inner.machine.look()?;
        if ![State::RUNNING, State::STOP].contains(&home) {
            return Err(Error::new(
                Kind::State,
                format!(
                    "the VFIO device is in {}; expected RUNNING, or STOP for a guest that is paused",
                    home.name()
                ),
            ));
        }
        inner.side = Side::Source(Source::new(home));
        let (machine, source) = inner.source()?;
        Inner::open(machine, source)
    }

    fn left(&self) -> Result<Left> {
        let mut inner = self.lock();
        let (machine, source) = inner.reopened()?;
        let stopped = machine.data_size()?;
        if ![State::PRE_COPY, State::PRE_COPY_P2P].contains(&machine.state()) {
            return Ok(Left {
                initial: 0,
                running: 0,
                stopped,
            });
        }
        let info = machine.precopy_info()?;
        // The kernel's figures are estimates. A transfer that had nothing more to give had no initial
        // bytes left, whatever the estimate said. More than that are new ones.
        source.stale = source.stale.min(info.initial_bytes);
        let initial = info.initial_bytes - source.stale;
        let waiting = source.carry.bytes.len() as u64;
        let initial = initial.saturating_add(waiting);
        Ok(Left {
            initial,
            running: initial.saturating_add(info.dirty_bytes),
            stopped,
        })
    }

    fn read_running(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut inner = self.lock();
        let (machine, source) = inner.reopened()?;
        if machine.state() != State::PRE_COPY {
            return Ok(0);
        }
        Carry::filled(source, buffer, |source, buffer| {
            let before = announced(buffer, source);
            let mut drained = false;
            let n = piece(&mut buffer[before..], |room| {
                Ok(match machine.read(room)? {
                    Read::Bytes(n) => n,
                    Read::NotYet => 0,
                    // A driver that ends the stream here has nothing more before it is stopped.
                    Read::Drained | Read::End => {
                        drained = true;
                        0
                    }
                })
            })?;
            if drained {
                source.stale = machine.precopy_info()?.initial_bytes;
            }
            Ok(before + n)
        })
    }

    fn quiesce(&self) -> Result<()> {
        let mut inner = self.lock();
        let (machine, source) = inner.source()?;
        if !machine.p2p() || source.home == State::STOP {
            return Ok(());
        }
        machine.keep(match machine.state() {
            State::PRE_COPY => State::PRE_COPY_P2P,
            _ => State::RUNNING_P2P,
        })
    }

    fn stop(&self) -> Result<()> {
        let mut inner = self.lock();
        let (machine, _) = inner.source()?;
        // A transfer that was opened while the device ran goes on.
        match machine.open() {
            true => machine.keep(State::STOP_COPY),
            false => machine.open_transfer(State::STOP_COPY),
        }
    }

    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut inner = self.lock();
        let (silence, most) = (inner.silence, inner.state_max);
        let (machine, source) = inner.source()?;
        let patience = Patience {
            limit: silence,
            cancelled: &self.cancelled,
        };
        Carry::filled(source, buffer, |source, buffer| {
            if source.ended {
                return Ok(0);
            }
            let before = announced(buffer, source);
            let mut some = false;
            let mut ended = false;
            let n = piece(&mut buffer[before..], |room| {
                // Bytes that are here do not wait for more.
                let n = match some {
                    false => machine.read_waiting(room, &patience)?,
                    true => match machine.read(room)? {
                        Read::Bytes(n) => n,
                        _ => return Ok(0),
                    },
                };
                some = true;
                ended = n == 0;
                Ok(n)
            })?;
            source.stopped = source.stopped.saturating_add(n as u64);
            if source.stopped > most {
                return Err(Error::new(
                    Kind::Kernel,
                    format!(
                        "the stopped VFIO device gave more than {most} bytes of state, which is \
                         the limit, and no end"
                    ),
                ));
            }
            if ended {
                buffer[before..before + HEAD].copy_from_slice(&frames::ends());
                source.ended = true;
                return Ok(before + HEAD);
            }
            Ok(before + n)
        })
    }

    fn wake(&self) -> Result<()> {
        let mut inner = self.lock();
        let p2p = inner.machine.p2p();
        match &inner.side {
            Side::Source(source) => {
                let running = source.home == State::RUNNING;
                match inner.machine.state() {
                    // Quiesced and not stopped: its transfer goes on.
                    State::RUNNING | State::RUNNING_P2P => Ok(()),
                    State::PRE_COPY | State::PRE_COPY_P2P => Ok(()),
                    _ if running && p2p => inner.recover(State::RUNNING_P2P),
                    _ => Ok(()),
                }
            }
            Side::Destination(_) if p2p => inner.machine.keep(State::RUNNING_P2P),
            _ => Ok(()),
        }
    }

    fn resume(&self) -> Result<()> {
        let mut inner = self.lock();
        if !matches!(inner.side, Side::Source(_)) {
            // It did not even begin.
            return Ok(());
        }
        let (_, source) = inner.source()?;
        let home = source.home;
        inner.recover(home)?;
        let (_, source) = inner.source()?;
        // Whether the pause was aborted or the migration has failed is unknown here. A transfer that was
        // opened now would have to be closed after the guest runs, and a device that fails then is reset
        // under the guest.
        source.anew();
        source.opens = source.begun;
        Ok(())
    }

    fn cancel(&self) {
        VfioDevice::cancel(self);
    }

    fn end(&self) {
        let mut inner = self.lock();
        self.cancelled.forget();
        let Side::Source(source) = &mut inner.side else {
            return;
        };
        source.begun = false;
        let home = source.home;
        match inner.machine.state() {
            State::PRE_COPY | State::PRE_COPY_P2P | State::ERROR => {
                // Nobody hears of an error here. The next migration finds the device as it is.
                let _ = inner.recover(home);
            }
            // The guest went away, or may have: nothing here may run it.
            State::STOP_COPY => {
                let _ = inner.machine.close(State::STOP);
            }
            _ => {}
        }
    }

    fn load_running(&self, data: &[u8]) -> Result<()> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !matches!(inner.side, Side::Destination(_)) {
            inner.machine.can()?;
            inner.machine.look()?;
            inner.side = Side::Destination(Parts::default());
        }
        let Side::Destination(parts) = &mut inner.side else {
            return Ok(());
        };
        let machine = &mut inner.machine;
        let patience = Patience {
            limit: inner.silence,
            cancelled: &self.cancelled,
        };
        parts.take(data, |part| match part {
            Part::Begins => {
                // The bytes of two transfers make no state, and only a reset ends RESUMING.
                if machine.open() {
                    machine.reset()?;
                }
                machine.open_transfer(State::RESUMING)
            }
            Part::Data(bytes) => machine.write(bytes, &patience),
            Part::Ends => Ok(()),
        })
    }

    fn load_stopped(&self, data: &[u8]) -> Result<()> {
        self.load_running(data)
    }

    fn loaded(&self) -> Result<()> {
        let mut inner = self.lock();
        let complete = match &inner.side {
            Side::Destination(parts) => parts.complete(),
            _ => false,
        };
        if !complete {
            return Err(Error::new(
                Kind::Protocol,
                "the state of the VFIO device ends in the middle",
            ));
        }
        // Here the driver checks the state as a whole.
        inner.machine.close(State::STOP)
    }

    fn run(&self) -> Result<()> {
        let mut inner = self.lock();
        self.cancelled.forget();
        inner.machine.keep(State::RUNNING)?;
        inner.side = Side::Neither;
        Ok(())
    }

    fn reset(&self) {
        let mut inner = self.lock();
        self.cancelled.forget();
        if !matches!(inner.side, Side::Destination(_)) {
            return;
        }
        inner.side = Side::Neither;
        // Also a device in ERROR is RUNNING and without state after this. Nobody hears of an error
        // here: the next migration to this device says what state it finds.
        let _ = inner.machine.reset();
    }
}
