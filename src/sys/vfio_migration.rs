//! The ioctls by which a VFIO device's state is saved and loaded: the kernel's migration protocol
//! version 2 (Linux 5.18; peer-to-peer states 5.18, PRE_COPY and the size of the data 6.2).
//!
//! A device is in one of a few states ([`State`]). The user sets the next one; the kernel goes there
//! by itself, through other states where there is no direct way. Some ways open a **transfer**: a
//! descriptor, `data_fd`, from which the device's state is read or to which it is written. The rules
//! are those of `linux/vfio.h`; a test lets the C compiler compare numbers and layouts as far as the
//! installed header knows them. `device::vfio`, the only caller, knows which state comes next.

use super::event::{self, Poll};
use super::ioctl::{Descriptor, Ioctl};
use super::pipe;
use super::vfio::{call, DEVICE_FEATURE, FEATURE_GET, FEATURE_SET};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// `VFIO_DEVICE_FEATURE_MIGRATION`.
pub const MIGRATION: u32 = 1;
/// `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`.
pub const MIG_DEVICE_STATE: u32 = 2;
/// `VFIO_DEVICE_FEATURE_MIG_DATA_SIZE`.
pub const MIG_DATA_SIZE: u32 = 9;
/// `VFIO_DEVICE_GET_INFO`, on a device.
pub const DEVICE_GET_INFO: u32 = 0x3b6b;
/// `VFIO_DEVICE_RESET`, on a device. It takes no argument.
pub const DEVICE_RESET: u32 = 0x3b6f;
/// `VFIO_MIG_GET_PRECOPY_INFO`, on a transfer's descriptor.
pub const GET_PRECOPY_INFO: u32 = 0x3b79;

/// `VFIO_MIGRATION_STOP_COPY`: the states STOP, STOP_COPY and RESUMING.
pub const CAN_STOP_COPY: u64 = 1 << 0;
/// `VFIO_MIGRATION_P2P`: the states RUNNING_P2P and, with [`CAN_PRE_COPY`], PRE_COPY_P2P.
pub const CAN_P2P: u64 = 1 << 1;
/// `VFIO_MIGRATION_PRE_COPY`: the state PRE_COPY.
pub const CAN_PRE_COPY: u64 = 1 << 2;

/// A state of a device: `enum vfio_device_mig_state`. A later kernel may have more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State(pub u32);

impl State {
    /// The device has failed, and only a reset helps.
    pub const ERROR: State = State(0);
    /// The device does nothing, and nothing in it changes.
    pub const STOP: State = State(1);
    /// The device works.
    pub const RUNNING: State = State(2);
    /// Stopped, and its state can be read.
    pub const STOP_COPY: State = State(3);
    /// Stopped, and its state is written.
    pub const RESUMING: State = State(4);
    /// Running, and it begins no DMA to other devices. It still takes theirs.
    pub const RUNNING_P2P: State = State(5);
    /// Running, and its state can be read meanwhile.
    pub const PRE_COPY: State = State(6);
    /// [`State::PRE_COPY`] without DMA to other devices.
    pub const PRE_COPY_P2P: State = State(7);

    /// The name in the kernel's header, without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            State::ERROR => "ERROR",
            State::STOP => "STOP",
            State::RUNNING => "RUNNING",
            State::STOP_COPY => "STOP_COPY",
            State::RESUMING => "RESUMING",
            State::RUNNING_P2P => "RUNNING_P2P",
            State::PRE_COPY => "PRE_COPY",
            State::PRE_COPY_P2P => "PRE_COPY_P2P",
            _ => "a state that this version does not know",
        }
    }
}

/// `vfio_device_feature` with 8 bytes of data: `vfio_device_feature_migration`,
/// `vfio_device_feature_mig_data_size`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FeatureWord {
    argsz: u32,
    flags: u32,
    word: u64,
}

/// `vfio_device_feature` with `vfio_device_feature_mig_state`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FeatureState {
    argsz: u32,
    flags: u32,
    device_state: u32,
    data_fd: i32,
}

/// `vfio_precopy_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Info {
    argsz: u32,
    flags: u32,
    initial_bytes: u64,
    dirty_bytes: u64,
}

/// `vfio_device_info` as far as every kernel fills it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DeviceInfo {
    argsz: u32,
    flags: u32,
    num_regions: u32,
    num_irqs: u32,
}

/// What a device that runs has to send now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Bytes that should be sent before the device is stopped.
    pub initial_bytes: u64,
    /// Bytes that have changed since they were read.
    pub dirty_bytes: u64,
}

/// The direction of a wait on a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The device's state comes out.
    Out,
    /// The device's state goes in.
    In,
}

/// A transfer: the descriptor over which a device's state goes. Its end closes it.
pub trait Transfer: Ioctl {
    /// Reads what there is, without waiting. `EAGAIN`: nothing yet; `ENOMSG`: nothing until the
    /// running device changes; 0: the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits, without waiting.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;
    /// Waits until a call in that direction may succeed, at most for `time`.
    fn wait(&mut self, flow: Flow, time: Duration) -> io::Result<()>;
}

/// A VFIO device.
pub trait Device: Ioctl {
    /// Takes over the transfer that the kernel has just opened as descriptor `data_fd`.
    fn transfer(&mut self, data_fd: RawFd) -> io::Result<Box<dyn Transfer>>;
}

impl Device for Descriptor {
    fn transfer(&mut self, data_fd: RawFd) -> io::Result<Box<dyn Transfer>> {
        // SAFETY: the kernel has just made this descriptor for us, closed on exec.
        let fd = unsafe { OwnedFd::from_raw_fd(data_fd) };
        pipe::set_nonblocking(fd.as_fd())?;
        Ok(Box::new(DataFile {
            file: Descriptor::new(fd),
        }))
    }
}

/// A transfer of the kernel's.
struct DataFile {
    file: Descriptor,
}

impl Ioctl for DataFile {
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.file.ioctl(request, argument, size) }
    }
}

impl Transfer for DataFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        pipe::read(self.file.as_fd(), buffer)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        pipe::write(self.file.as_fd(), data)
    }

    fn wait(&mut self, flow: Flow, time: Duration) -> io::Result<()> {
        let events = match flow {
            Flow::Out => event::READABLE,
            Flow::In => event::WRITABLE,
        };
        let mut polls = [Poll::new(self.file.as_fd(), events)];
        match event::poll(&mut polls, Some(time)) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(()),
        }
    }
}

fn word(device: &mut dyn Device, feature: u32) -> io::Result<u64> {
    let mut get = FeatureWord {
        argsz: size_of::<FeatureWord>() as u32,
        flags: FEATURE_GET | feature,
        word: 0,
    };
    // SAFETY: head and data without padding or pointers.
    unsafe { call(device, DEVICE_FEATURE, &mut get) }?;
    Ok(get.word)
}

/// Whether the descriptor is a VFIO device: `ENOTTY` and others if not. Changes nothing.
pub fn is_device(device: &mut dyn Device) -> io::Result<()> {
    let mut info = DeviceInfo {
        argsz: size_of::<DeviceInfo>() as u32,
        flags: 0,
        num_regions: 0,
        num_irqs: 0,
    };
    // SAFETY: a structure without padding or pointers.
    unsafe { call(device, DEVICE_GET_INFO, &mut info) }
}

/// What the device's driver can do for a migration: the bits `CAN_*`. `ENOTTY` if nothing.
pub fn capabilities(device: &mut dyn Device) -> io::Result<u64> {
    word(device, MIGRATION)
}

/// How many bytes the device estimates that it will send once it is stopped. `ENOTTY` or `EINVAL`
/// before Linux 6.2.
pub fn data_size(device: &mut dyn Device) -> io::Result<u64> {
    word(device, MIG_DATA_SIZE)
}

fn state_call(device: &mut dyn Device, flags: u32, state: State) -> io::Result<FeatureState> {
    let mut call_ = FeatureState {
        argsz: size_of::<FeatureState>() as u32,
        flags: flags | MIG_DEVICE_STATE,
        device_state: state.0,
        data_fd: -1,
    };
    // SAFETY: head and data without padding or pointers.
    unsafe { call(device, DEVICE_FEATURE, &mut call_) }?;
    Ok(call_)
}

/// The device's state.
pub fn state(device: &mut dyn Device) -> io::Result<State> {
    Ok(State(
        state_call(device, FEATURE_GET, State(0))?.device_state,
    ))
}

/// Brings the device into `state`, and returns the transfer that this opened. After an error the
/// device is in any state on the way, or in [`State::ERROR`].
pub fn set_state(device: &mut dyn Device, state: State) -> io::Result<Option<Box<dyn Transfer>>> {
    match state_call(device, FEATURE_SET, state)?.data_fd {
        ..0 => Ok(None),
        fd => device.transfer(fd).map(Some),
    }
}

/// Resets the device: its state is lost, and it is RUNNING.
pub fn reset(device: &mut dyn Device) -> io::Result<()> {
    // SAFETY: this call takes no argument.
    unsafe { device.ioctl(DEVICE_RESET, std::ptr::null_mut(), 0) }
}

/// What a running device has to send. `EINVAL` unless the device is in a PRE_COPY state.
pub fn precopy_info(transfer: &mut dyn Transfer) -> io::Result<PrecopyInfo> {
    let mut info = Info {
        argsz: size_of::<Info>() as u32,
        flags: 0,
        initial_bytes: 0,
        dirty_bytes: 0,
    };
    // SAFETY: a structure without padding or pointers.
    unsafe { call(transfer, GET_PRECOPY_INFO, &mut info) }?;
    Ok(PrecopyInfo {
        initial_bytes: info.initial_bytes,
        dirty_bytes: info.dirty_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;
    use std::os::fd::IntoRawFd;

    /// Numbers and layouts as C sees them, for the compiler to compare. Each group is compared where
    /// the installed header has it.
    fn layouts() -> String {
        let mut c = String::from(
            "#include <stddef.h>\n#include <linux/vfio.h>\n#define IS(a, b) \
             _Static_assert((a) == (b), #a)\n",
        );
        let mut group = |condition: &str, facts: &[(&str, u64)]| {
            c.push_str(&format!("#if {condition}\n"));
            for (what, value) in facts {
                c.push_str(&format!("IS({what}, {value}ull);\n"));
            }
            c.push_str("#endif\n");
        };
        let head = size_of::<u32>() as u64 * 2;
        group(
            "1",
            &[
                ("VFIO_DEVICE_RESET", DEVICE_RESET.into()),
                ("VFIO_DEVICE_GET_INFO", DEVICE_GET_INFO.into()),
                (
                    "offsetof(struct vfio_device_info, num_irqs)",
                    offset_of!(DeviceInfo, num_irqs) as u64,
                ),
            ],
        );
        group(
            "defined VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
            &[
                ("VFIO_DEVICE_FEATURE_MIGRATION", MIGRATION.into()),
                (
                    "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
                    MIG_DEVICE_STATE.into(),
                ),
                ("VFIO_MIGRATION_STOP_COPY", CAN_STOP_COPY),
                ("VFIO_MIGRATION_P2P", CAN_P2P),
                ("VFIO_DEVICE_STATE_ERROR", State::ERROR.0.into()),
                ("VFIO_DEVICE_STATE_STOP", State::STOP.0.into()),
                ("VFIO_DEVICE_STATE_RUNNING", State::RUNNING.0.into()),
                ("VFIO_DEVICE_STATE_STOP_COPY", State::STOP_COPY.0.into()),
                ("VFIO_DEVICE_STATE_RESUMING", State::RESUMING.0.into()),
                ("VFIO_DEVICE_STATE_RUNNING_P2P", State::RUNNING_P2P.0.into()),
                (
                    "sizeof(struct vfio_device_feature_migration)",
                    size_of::<FeatureWord>() as u64 - head,
                ),
                (
                    "sizeof(struct vfio_device_feature_mig_state)",
                    size_of::<FeatureState>() as u64 - head,
                ),
                (
                    "offsetof(struct vfio_device_feature_mig_state, device_state)",
                    offset_of!(FeatureState, device_state) as u64 - head,
                ),
                (
                    "offsetof(struct vfio_device_feature_mig_state, data_fd)",
                    offset_of!(FeatureState, data_fd) as u64 - head,
                ),
                (
                    "offsetof(struct vfio_device_feature, data)",
                    offset_of!(FeatureWord, word) as u64,
                ),
            ],
        );
        group(
            "defined VFIO_MIGRATION_PRE_COPY",
            &[
                ("VFIO_MIGRATION_PRE_COPY", CAN_PRE_COPY),
                ("VFIO_DEVICE_STATE_PRE_COPY", State::PRE_COPY.0.into()),
                (
                    "VFIO_DEVICE_STATE_PRE_COPY_P2P",
                    State::PRE_COPY_P2P.0.into(),
                ),
                ("VFIO_MIG_GET_PRECOPY_INFO", GET_PRECOPY_INFO.into()),
                ("sizeof(struct vfio_precopy_info)", size_of::<Info>() as u64),
                (
                    "offsetof(struct vfio_precopy_info, initial_bytes)",
                    offset_of!(Info, initial_bytes) as u64,
                ),
                (
                    "offsetof(struct vfio_precopy_info, dirty_bytes)",
                    offset_of!(Info, dirty_bytes) as u64,
                ),
            ],
        );
        group(
            "defined VFIO_DEVICE_FEATURE_MIG_DATA_SIZE",
            &[
                ("VFIO_DEVICE_FEATURE_MIG_DATA_SIZE", MIG_DATA_SIZE.into()),
                (
                    "sizeof(struct vfio_device_feature_mig_data_size)",
                    size_of::<FeatureWord>() as u64 - head,
                ),
            ],
        );
        // The numbers of this group are built as the header builds them, whatever its age.
        group(
            "1",
            &[
                ("_IO(VFIO_TYPE, VFIO_BASE + 21)", GET_PRECOPY_INFO.into()),
                ("_IO(VFIO_TYPE, VFIO_BASE + 11)", DEVICE_RESET.into()),
            ],
        );
        c
    }

    #[test]
    fn numbers_and_layouts_are_those_of_the_system_s_header() {
        crate::sys::ioctl::assert_compiles(&layouts());
    }

    #[test]
    fn a_descriptor_that_is_no_vfio_device_says_so_at_each_call() {
        let file = tempfile::tempfile().unwrap();
        let mut device = Descriptor::new(file.into());
        let errno = |e: io::Error| e.raw_os_error();
        assert_eq!(
            capabilities(&mut device).map_err(errno),
            Err(Some(libc::ENOTTY))
        );
        assert_eq!(
            data_size(&mut device).map_err(errno),
            Err(Some(libc::ENOTTY))
        );
        assert_eq!(state(&mut device).map_err(errno), Err(Some(libc::ENOTTY)));
        assert_eq!(reset(&mut device).map_err(errno), Err(Some(libc::ENOTTY)));
        let set = set_state(&mut device, State::STOP_COPY).map(|_| ());
        assert_eq!(set.map_err(errno), Err(Some(libc::ENOTTY)));
    }

    #[test]
    fn a_transfer_does_not_wait_and_says_what_the_descriptor_says() {
        let (out, into) = pipe::pipe(0).unwrap();
        let (out, into) = (out.into_raw_fd(), into.into_raw_fd());
        let mut device = Descriptor::new(tempfile::tempfile().unwrap().into());
        let mut into = device.transfer(into).unwrap();
        let mut out = device.transfer(out).unwrap();
        let mut buffer = [0; 8];
        let nothing = out.read(&mut buffer).unwrap_err();
        assert_eq!(nothing.raw_os_error(), Some(libc::EAGAIN));
        out.wait(Flow::Out, Duration::from_millis(1)).unwrap();
        assert_eq!(into.write(b"state").unwrap(), 5);
        out.wait(Flow::Out, Duration::from_secs(60)).unwrap();
        assert_eq!(out.read(&mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"state");
        let info = precopy_info(&mut *out).unwrap_err();
        assert_eq!(info.raw_os_error(), Some(libc::ENOTTY));
        drop(into);
        assert_eq!(out.read(&mut buffer).unwrap(), 0);
    }
}
