//! One VFIO device as the kernel sees it: its state, the open transfer, and the calls that change
//! either. Each error names what was asked, from which state, and what the kernel answered.
//!
//! This file knows what a call does. When a call is made is [`super`]'s business.

use crate::device::patience::{again, Patience};
use crate::error::{Error, Kind, Result};
use crate::runtime::Deadline;
use crate::sys::vfio_migration::{self as sys, Flow, PrecopyInfo, State, Transfer};

/// What a read of a transfer gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing until the running device changes (`ENOMSG`).
    Drained,
    /// Nothing yet (`EAGAIN`).
    NotYet,
    /// The end of the state.
    End,
}

/// A device with its state and its transfer.
pub struct Machine {
    device: Box<dyn sys::Device>,
    /// The bits `CAN_*`, or why there are none.
    can: Result<u64>,
    /// The state after the last call.
    state: State,
    transfer: Option<Box<dyn Transfer>>,
}

impl Machine {
    /// Asks the device what it can do. An answer of "nothing" is kept for [`Machine::can`].
    pub fn new(mut device: Box<dyn sys::Device>) -> Self {
        let can = sys::capabilities(&mut *device).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP) => Error::new(
                Kind::Unsupported,
                format!(
                    "VFIO_DEVICE_FEATURE_MIGRATION: {e}; expected a VFIO device whose driver can \
                     migrate (Linux 5.18 or later)"
                ),
            ),
            _ => Error::os("VFIO_DEVICE_FEATURE_MIGRATION", e),
        });
        let can = can.and_then(|can| match can & sys::CAN_STOP_COPY {
            0 => Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the VFIO device's driver says of migration {can:#x}; expected \
                     VFIO_MIGRATION_STOP_COPY (0x1) among it"
                ),
            )),
            _ => Ok(can),
        });
        Machine {
            device,
            can,
            state: State::RUNNING,
            transfer: None,
        }
    }

    /// What the device can do: the bits `CAN_*`.
    pub fn can(&self) -> Result<u64> {
        self.can.clone()
    }

    fn has(&self, bit: u64) -> bool {
        self.can.as_ref().is_ok_and(|can| can & bit != 0)
    }

    /// Whether its state can be read while it runs.
    pub fn precopies(&self) -> bool {
        self.has(sys::CAN_PRE_COPY)
    }

    /// Whether it has the states without peer-to-peer DMA.
    pub fn p2p(&self) -> bool {
        self.has(sys::CAN_P2P)
    }

    /// The state after the last call.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether a transfer is open.
    pub fn open(&self) -> bool {
        self.transfer.is_some()
    }

    /// Asks the kernel for the state.
    pub fn look(&mut self) -> Result<State> {
        let state = sys::state(&mut *self.device)
            .map_err(|e| Error::os("asking for the state of the VFIO device", e))?;
        self.state = state;
        Ok(state)
    }

    /// Brings the device into `to`, with a transfer exactly if `opens`.
    fn set(&mut self, to: State, opens: bool) -> Result<()> {
        let from = self.state;
        let done = sys::set_state(&mut *self.device, to);
        let transfer = match done {
            Ok(transfer) => transfer,
            Err(e) => {
                let now = match self.look() {
                    Ok(now) => format!("it is in {} now", now.name()),
                    Err(unknown) => format!("its state is unknown: {unknown}"),
                };
                return Err(Error::os(
                    format_args!(
                        "bringing the VFIO device from {} to {} ({now})",
                        from.name(),
                        to.name()
                    ),
                    e,
                ));
            }
        };
        self.state = to;
        match (transfer, opens) {
            (None, false) => Ok(()),
            (Some(transfer), true) => {
                self.transfer = Some(transfer);
                Ok(())
            }
            (found, _) => Err(Error::new(
                Kind::Kernel,
                format!(
                    "from {} to {} the VFIO device opened {} transfer; expected {}",
                    from.name(),
                    to.name(),
                    if found.is_some() { "a" } else { "no" },
                    if opens { "one" } else { "none" },
                ),
            )),
        }
    }

    /// To a state in which the transfer that is open goes on, if one is.
    pub fn keep(&mut self, to: State) -> Result<()> {
        self.set(to, false)
    }

    /// To a state that opens a transfer.
    pub fn open_transfer(&mut self, to: State) -> Result<()> {
        self.transfer = None;
        self.set(to, true)
    }

    /// To a state without a transfer. The open one ends.
    pub fn close(&mut self, to: State) -> Result<()> {
        let done = self.set(to, false);
        if done.is_ok() {
            self.transfer = None;
        }
        done
    }

    /// Resets the device, and sees that it is RUNNING.
    pub fn reset(&mut self) -> Result<()> {
        self.transfer = None;
        let done = sys::reset(&mut *self.device);
        let now = self.look()?;
        done.map_err(|e| {
            Error::os(
                format_args!("VFIO_DEVICE_RESET (the device is in {})", now.name()),
                e,
            )
        })?;
        match now {
            State::RUNNING => Ok(()),
            _ => Err(Error::new(
                Kind::Kernel,
                format!(
                    "after VFIO_DEVICE_RESET the device is in {}; expected RUNNING",
                    now.name()
                ),
            )),
        }
    }

    /// What the running device has to send.
    pub fn precopy_info(&mut self) -> Result<PrecopyInfo> {
        let state = self.state.name();
        sys::precopy_info(self.transfer()?)
            .map_err(|e| Error::os(format_args!("VFIO_MIG_GET_PRECOPY_INFO in {state}"), e))
    }

    /// The bytes that the device will send once it is stopped, if the kernel can say.
    pub fn data_size(&mut self) -> Result<Option<u64>> {
        match sys::data_size(&mut *self.device) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP) => Ok(None),
                _ => Err(Error::os(
                    format_args!("VFIO_DEVICE_FEATURE_MIG_DATA_SIZE in {}", self.state.name()),
                    e,
                )),
            },
        }
    }

    fn transfer(&mut self) -> Result<&mut dyn Transfer> {
        let state = self.state.name();
        match &mut self.transfer {
            Some(transfer) => Ok(&mut **transfer),
            None => Err(Error::new(
                Kind::State,
                format!("the VFIO device is in {state} and has no open transfer"),
            )),
        }
    }

    /// Reads what there is, without waiting.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Read> {
        let state = self.state.name();
        let transfer = self.transfer()?;
        // A signal handler can end a read of the VMM's thread.
        for _ in 0..100 {
            return match transfer.read(buffer) {
                Ok(0) => Ok(Read::End),
                Ok(n) => Ok(Read::Bytes(n.min(buffer.len()))),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => Ok(Read::NotYet),
                    Some(libc::ENOMSG) => Ok(Read::Drained),
                    _ => Err(Error::os(
                        format_args!("reading the state of the VFIO device in {state}"),
                        e,
                    )),
                },
            };
        }
        Ok(Read::NotYet)
    }

    /// Reads, and waits until there are bytes or the end.
    pub fn read_waiting(&mut self, buffer: &mut [u8], patience: &Patience<'_>) -> Result<usize> {
        let until = patience.until();
        loop {
            match self.read(buffer)? {
                Read::Bytes(n) => return Ok(n),
                Read::End => return Ok(0),
                Read::NotYet => self.wait(Flow::Out, until, patience)?,
                Read::Drained => {
                    return Err(Error::new(
                        Kind::Kernel,
                        format!(
                            "reading the state of the VFIO device in {}: ENOMSG; expected bytes or \
                             the end of the state",
                            self.state.name()
                        ),
                    ))
                }
            }
        }
    }

    /// Writes all of `data`, and waits where the device takes nothing.
    pub fn write(&mut self, mut data: &[u8], patience: &Patience<'_>) -> Result<()> {
        let state = self.state.name();
        let mut until = patience.until();
        while !data.is_empty() {
            match self.transfer()?.write(data) {
                Ok(0) => self.wait(Flow::In, until, patience)?,
                Ok(n) => {
                    data = data.get(n..).unwrap_or(&[]);
                    until = patience.until();
                }
                Err(e) if again(&e) => self.wait(Flow::In, until, patience)?,
                Err(e) => {
                    return Err(Error::os(
                        format_args!("writing the state of the VFIO device in {state}"),
                        e,
                    ))
                }
            }
        }
        Ok(())
    }

    fn wait(&mut self, flow: Flow, until: Deadline, patience: &Patience<'_>) -> Result<()> {
        let state = self.state.name();
        let (verb, what) = match flow {
            Flow::Out => ("gave", "reading"),
            Flow::In => ("took", "writing"),
        };
        let time = patience.slice(
            until,
            format_args!("{what} the state of the VFIO device in {state}"),
            format_args!("the VFIO device in {state} {verb}"),
        )?;
        self.transfer()?.wait(flow, time).map_err(|e| {
            Error::os(
                format_args!("waiting for the state of the VFIO device in {state}"),
                e,
            )
        })
    }
}
