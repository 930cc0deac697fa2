//! The state of VFIO devices, streamed by the kernel's migration protocol.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::structs::{duplicated, handle, read, sized, text};
use crate::device::vfio::{VfioDevice, SILENCE, STATE_MAX};
use crate::error::{Error, Result};
use crate::migrate::Blocker;
use crate::vmm::device::{described, Device, Left};
use std::ffi::{c_char, c_void, CString};
use std::sync::Arc;
use std::time::Duration;

/// A device that is passed through with VFIO.
///
/// Experimental: tested against a model of the kernel's side only, because no such hardware was
/// available. What real devices need may change it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_vfio_device {
    /// sizeof(brant_vfio_device).
    pub size: usize,
    /// 1 to 128 bytes of UTF-8 without control characters; copied. Name and `instance` together
    /// name the device at both sides.
    pub name: *const c_char,
    /// Tells devices of one name apart.
    pub instance: u32,
    /// The descriptor of the device. brant keeps a duplicate.
    pub fd: i32,
    /// How long the stopped device may give no byte of its state, or take none, before the
    /// migration fails; milliseconds, 1 to 3600000. 0: 10000.
    pub silence_ms: u32,
    /// 0.
    pub reserved: u32,
    /// The most bytes of state that the stopped device may give. 0: 2^40.
    pub state_max: u64,
    /// Passed to `was_reset`, until the device is removed or the guest freed.
    pub opaque: *mut c_void,
    /// Source: the device has failed in a migration, and was reset so that it runs again. Its state
    /// is lost, as after a reset of the function: restore what the VMM keeps of it (configuration
    /// space, interrupts), and let the guest's driver set it up anew. `why` is a sentence, valid
    /// during the call. When the guest was paused, runs before `resume`, on the thread that resumes the
    /// guest. When the migration fails while the guest runs, runs at the migration's end on its thread,
    /// while the guest runs. Must call nothing of brant's. NULL: the VMM need not know.
    pub was_reset: Option<unsafe extern "C" fn(opaque: *mut c_void, why: *const c_char)>,
}

sized!(brant_vfio_device);

/// The function that hears of a reset.
struct WasReset {
    opaque: *mut c_void,
    call: unsafe extern "C" fn(*mut c_void, *const c_char),
}

// SAFETY: the VMM gave both for use on brant's threads; that is the contract of
// `brant_vfio_device`.
unsafe impl Send for WasReset {}

impl WasReset {
    fn tell(&self, why: &Error) {
        // A NUL byte in a message would be a defect; the VMM hears of the reset all the same.
        let why = CString::new(why.message()).unwrap_or_default();
        // SAFETY: the VMM's function, called as the structure says; the text outlives the call.
        unsafe { (self.call)(self.opaque, why.as_ptr()) };
    }
}

/// A device with the reason why its guest cannot migrate, if it has one. The reason goes with the
/// device.
struct Added {
    device: VfioDevice,
    _blocker: Option<Blocker>,
}

impl Added {
    /// Blocks the guest's migrations if the device cannot migrate.
    fn new(guest: &brant_guest, name: &str, instance: u32, device: VfioDevice) -> Added {
        let blocker = device.abilities().err().map(|e| {
            let what = described(name, instance);
            let reason = format!("{what} cannot migrate: {}", e.message());
            guest.blockers.block(&reason)
        });
        Added {
            device,
            _blocker: blocker,
        }
    }
}

impl Device for Added {
    fn writes_unseen(&self) -> bool {
        self.device.writes_unseen()
    }
    fn begin(&self) -> Result<()> {
        self.device.begin()
    }
    fn left(&self) -> Result<Left> {
        self.device.left()
    }
    fn read_running(&self, buffer: &mut [u8]) -> Result<usize> {
        self.device.read_running(buffer)
    }
    fn quiesce(&self) -> Result<()> {
        self.device.quiesce()
    }
    fn stop(&self) -> Result<()> {
        self.device.stop()
    }
    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize> {
        self.device.read_stopped(buffer)
    }
    fn wake(&self) -> Result<()> {
        self.device.wake()
    }
    fn resume(&self) -> Result<()> {
        self.device.resume()
    }
    fn end(&self) {
        self.device.end();
    }
    fn cancel(&self) {
        Device::cancel(&self.device);
    }
    fn load_running(&self, data: &[u8]) -> Result<()> {
        self.device.load_running(data)
    }
    fn load_stopped(&self, data: &[u8]) -> Result<()> {
        self.device.load_stopped(data)
    }
    fn loaded(&self) -> Result<()> {
        self.device.loaded()
    }
    fn run(&self) -> Result<()> {
        self.device.run()
    }
    fn reset(&self) {
        self.device.reset();
    }
}

/// The version of the stream of a VFIO device as brant sends it.
const VERSION: u32 = 1;

/// Adds a VFIO device whose state migrations of this guest stream, by the kernel's migration protocol
/// (VFIO_DEVICE_FEATURE_MIGRATION; Linux 5.18). Otherwise as brant_guest_add_device, which see:
/// brant_guest_remove_device takes it away.
///
/// brant changes the device's migration state, and nobody else does while a migration or a save of
/// the guest runs. At the source the device is RUNNING when a migration begins (or STOP, when its
/// guest is paused); it is left RUNNING after a failure, and in STOP after the guest has gone. At the
/// destination it is RUNNING and fresh, and RUNNING with its state when `run` of the VMM is called.
/// Where the driver can, state is sent while the device runs (VFIO_MIGRATION_PRE_COPY; Linux 6.2), and
/// all devices stop their DMA to each other before one of them stops (VFIO_MIGRATION_P2P). The size
/// that the driver states (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE) counts in the downtime.
///
/// The pages that the device writes are another matter: add its log, too
/// (brant_tracker_add_vfio_device, brant_tracker_add_vfio_container or brant_tracker_add_iommufd).
///
/// A device that cannot migrate is added all the same, and blocks: until it is removed, a migration
/// or a save is refused with BRANT_E_BLOCKED, the device's name and the kernel's answer.
/// BRANT_E_UNSUPPORTED when `fd` is no VFIO device. Threads: any. Not tried on hardware: tested
/// against a model of the interface in the kernel's header.
///
/// Experimental: tested against a model of the kernel's side only, because no such hardware was
/// available. What real devices need may change it.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_add_vfio_device(
    guest: *mut brant_guest,
    device: *const brant_vfio_device,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let asked = unsafe { read(device) }?;
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        let name = unsafe { text(asked.name, "brant_vfio_device.name") }?;
        if asked.size < std::mem::offset_of!(brant_vfio_device, silence_ms) {
            return Err(invalid("brant_vfio_device.fd is no descriptor"));
        }
        if asked.reserved != 0 {
            return Err(invalid("brant_vfio_device.reserved is not 0"));
        }
        // SAFETY: open during the call by contract.
        let fd = unsafe { duplicated(asked.fd, "brant_vfio_device.fd") }?;
        let device = VfioDevice::from_fd(fd)?;
        let silence = match asked.silence_ms {
            0 => SILENCE,
            ms => Duration::from_millis(ms.into()),
        };
        let state_max = match asked.state_max {
            0 => STATE_MAX,
            bytes => bytes,
        };
        device.set_limits(silence, state_max)?;
        if let Some(call) = asked.was_reset {
            let told = WasReset {
                opaque: asked.opaque,
                call,
            };
            device.on_reset(move |why| told.tell(why));
        }
        let added = Added::new(guest, name, asked.instance, device);
        guest
            .memory
            .add_device(name, asked.instance, VERSION, Arc::new(added))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::guest::{brant_guest_free, brant_guest_new};
    use crate::error::Kind;
    use crate::sys::ioctl::Ioctl;
    use crate::sys::vfio_migration as sys;
    use std::io;
    use std::ptr::{null, null_mut};

    /// A VFIO device whose driver cannot migrate.
    struct Cannot;

    impl Ioctl for Cannot {
        unsafe fn ioctl(&mut self, _: u32, _: *mut u8, _: usize) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::ENOTTY))
        }
    }

    impl sys::Device for Cannot {
        fn transfer(&mut self, _: i32) -> io::Result<Box<dyn sys::Transfer>> {
            Err(io::Error::from_raw_os_error(libc::ENOTTY))
        }
    }

    #[test]
    fn a_device_that_cannot_migrate_blocks_by_its_name_until_it_is_removed() {
        let mut guest = null_mut();
        // SAFETY: a place for the handle; the rest may be null.
        let code = unsafe { brant_guest_new(null(), null_mut(), &mut guest, null_mut()) };
        assert_eq!(code, 0);
        // SAFETY: just made.
        let made = unsafe { &*guest };
        let device = VfioDevice::new(Box::new(Cannot));
        let added = Added::new(made, "nic", 2, device);
        let error = made.blockers.check().unwrap_err();
        assert_eq!(error.kind(), Kind::Blocked);
        for word in ["device `nic` 2 cannot", "VFIO_DEVICE_FEATURE_MIGRATION"] {
            assert!(error.message().contains(word), "{error}");
        }
        made.memory
            .add_device("nic", 2, 1, Arc::new(added))
            .unwrap();
        assert!(made.blockers.check().is_err());
        made.memory.remove_device("nic", 2).unwrap();
        made.blockers.check().unwrap();
        // SAFETY: the last use.
        unsafe { brant_guest_free(guest) };
    }
}
