//! Devices with a state of their own that a migration streams: the trait [`Device`], and the list
//! of a guest's devices.
//!
//! Small device state goes through [`Vmm::save`](super::Vmm::save) as blobs. A [`Device`] is for
//! state that is too large for that: a part of it may be sent while the guest runs, and the rest is
//! sent in pieces after the pause. `docs/devices.md` has the order of all calls.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

/// The most devices of one guest.
pub const DEVICES_MAX: usize = 256;
/// The longest name of a device, in bytes.
pub const DEVICE_NAME_MAX: usize = 128;

/// How much state a device has left to give, at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Bytes that the destination has to load before the guest is paused, and that
    /// [`Device::read_running`] has not given yet. They are a part of `running`. The guest is not
    /// paused before this is 0 and the destination has loaded all that was given until then. There may
    /// be such bytes again later, and after an aborted pause: they are waited for in the same way.
    pub initial: u64,
    /// Bytes that [`Device::read_running`] would give now.
    pub running: u64,
    /// Bytes that only [`Device::read_stopped`] gives, if the device stopped now. The bytes of
    /// `running` are not among them. `None` when the device does not know: that counts as 0.
    pub stopped: Option<u64>,
}

/// A device whose state a migration streams. Its state is the sequence of the bytes that
/// [`read_running`](Device::read_running) and then [`read_stopped`](Device::read_stopped) give.
/// Whatever `read_running` has not given, `read_stopped` gives: a device may be stopped at any
/// time, and a save to an image never calls `read_running`.
///
/// A device without a running part leaves the defaults of `read_running`, `load_running` and
/// `begin`.
///
/// **Order at the source.** `begin` of every device; `left` and `read_running` again and again while
/// the guest runs; the VMM's `pause`; `quiesce` of every device, `stop` of every device; a sync of all
/// dirty logs; the VMM's `save`; the last sync; `read_stopped` of one device after the other. When the
/// pause is aborted, or the migration fails: `wake` of every device that was quiesced, `resume` of
/// each, then the VMM's `resume`. `end` comes last, whatever the outcome. An aborted pause is followed
/// by further rounds of `read_running`: a device begins its stream anew only in `begin`.
///
/// **Order at the destination.** `load_running` while memory arrives; when all of memory is here,
/// `load_stopped` of one device after the other in the order in which the source added them; the
/// VMM's `load` of all blobs; `loaded` of every device; the VMM's `loaded`. After the hand-over: `wake` of
/// every device, `run` of each, and the VMM's `run`. When the migration fails before that: `reset`
/// of every device.
///
/// **Threads.** All calls at the source run on the migration's thread, one at a time; `wake` and
/// `resume` after [`Outgoing::resolve`](crate::migrate::Outgoing::resolve) run on its caller's. At
/// the destination, `load_running` and `load_stopped` run on any thread of the migration, one call
/// at a time for one device, and `load_running` of different devices at the same time. All signals
/// are masked. A call may block, and delays the migration by that; `read_running` also delays
/// pages, which get at least as much time as the reads. Rules for locks and waits are those of
/// [`Vmm`](super::Vmm). A panic is caught and counts as a failure. `cancel` runs on any thread, at
/// any time.
pub trait Device: Send + Sync {
    /// Source: a migration begins. Called before the first page is sent.
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    /// Source: how much is left. Called before each round of reads, and after a pause.
    fn left(&self) -> Result<Left>;

    /// Source, guest running: puts the next bytes into `buffer` and returns their number; 0 when
    /// there is nothing now.
    fn read_running(&self, buffer: &mut [u8]) -> Result<usize> {
        let _ = buffer;
        Ok(0)
    }

    /// Source, after the VMM's `pause`: begin nothing that reaches another device, but still answer
    /// other devices (VFIO: `RUNNING_P2P`). Called for every device before the first `stop`. A
    /// device may write guest memory until its `stop` has returned.
    fn quiesce(&self) -> Result<()> {
        Ok(())
    }

    /// Source, all devices quiesced: stop, and write no guest memory from the return on. The last
    /// sync of the dirty logs follows the `stop` of all devices.
    fn stop(&self) -> Result<()>;

    /// Source, stopped: puts the next bytes into `buffer` and returns their number; 0 at the end of
    /// the state. A pause is aborted only before the first call of this.
    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize>;

    /// Source before `resume`, destination before `run`: answer other devices, and begin nothing yet
    /// (VFIO: `RUNNING_P2P`). Called for every device before the first `resume` or `run`.
    fn wake(&self) -> Result<()> {
        Ok(())
    }

    /// Source: run on, after an aborted pause or a migration that failed. Called once after each
    /// `quiesce`, whether or not that and `stop` succeeded, unless the guest went away.
    /// brant does not know whether the guest stood still before: a device of a guest that its user
    /// has paused stays paused, as with [`Vmm::resume`](super::Vmm::resume).
    fn resume(&self) -> Result<()>;

    /// Source: the migration is over, whatever its outcome. Called once after each `begin`, whether
    /// or not that succeeded. After an unanswered hand-over `wake` and `resume` may still follow,
    /// when the VMM resolves the migration that way.
    fn end(&self) {}

    /// Either side: the migration, save or restore was cancelled, or a time limit of the migration has
    /// passed while a device was in a call. A call of this device that is in progress should return
    /// soon, with any error: the cancel waits for it, and a time limit holds no sooner. Called once, on
    /// the thread that cancels or on one of brant's ([`Role::Watch`](super::Role::Watch)), possibly at
    /// the same time as any other call; must not block, and must call nothing of this migration. Comes
    /// only after `begin` and before `end`, or from the agreement on devices to `run` or `reset`, and
    /// never after the hand-over. Those three make the device as new: the next migration knows
    /// nothing of this cancel.
    fn cancel(&self) {}

    /// Whether the running device may write guest memory in a way that page tables of this process do
    /// not see: by DMA, or through a mapping of another process. Such a device and a save whose
    /// instant is its start exclude each other.
    fn writes_unseen(&self) -> bool {
        false
    }

    /// Destination: takes the next bytes of the running part. Must not write guest memory, where
    /// later pages would overwrite it, and must not depend on another device. The bytes are those of
    /// the source in the same order, divided in any way.
    fn load_running(&self, data: &[u8]) -> Result<()> {
        Err(Error::new(
            Kind::Vmm,
            format!(
                "takes no state while the guest runs, and the source sent {} bytes of it",
                data.len()
            ),
        ))
    }

    /// Destination: takes the next bytes of the stopped part. All of the guest's memory has arrived,
    /// and every device that the source added before this one has all of its state.
    fn load_stopped(&self, data: &[u8]) -> Result<()>;

    /// Destination: the state is complete, and so are all other devices and blobs. An error is the
    /// last chance to refuse the guest.
    fn loaded(&self) -> Result<()> {
        Ok(())
    }

    /// Destination: the guest is this side's; run. The VMM's `run` follows, which starts the vCPUs.
    fn run(&self) -> Result<()>;

    /// Destination: the migration failed, and the guest does not run here. Drop what was loaded, so
    /// that another migration can begin.
    fn reset(&self) {}
}

/// A device as it was added to a guest.
pub(crate) struct Registered {
    name: String,
    instance: u32,
    version: u32,
    pub(crate) device: Arc<dyn Device>,
}

impl Registered {
    /// The name that both sides of a migration know the device by, together with its instance.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn instance(&self) -> u32 {
        self.instance
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Whether it is the device of this name and instance.
    pub(crate) fn is(&self, name: &str, instance: u32) -> bool {
        self.name == name && self.instance == instance
    }
}

impl fmt::Display for Registered {
    /// The device in messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", described(&self.name, self.instance))
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} of version {}", self.version)
    }
}

/// A device in messages: its instance is left out where it is 0.
pub(crate) fn described(name: &str, instance: u32) -> String {
    match instance {
        0 => format!("device `{name}`"),
        _ => format!("device `{name}` {instance}"),
    }
}

#[derive(Default)]
struct List {
    devices: Vec<Arc<Registered>>,
    /// How many migrations, saves and restores use the list.
    users: usize,
}

/// The devices of one guest, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Devices(Arc<Mutex<List>>);

/// The devices as one migration, save or restore uses them. While this exists, none is added or
/// removed.
pub(crate) struct InUse {
    list: Arc<Mutex<List>>,
    devices: Vec<Arc<Registered>>,
}

fn lock(list: &Mutex<List>) -> MutexGuard<'_, List> {
    list.lock().unwrap_or_else(|e| e.into_inner())
}

impl List {
    fn check_unused(&self, what: &str) -> Result<()> {
        match self.users {
            0 => Ok(()),
            _ => Err(Error::new(
                Kind::Busy,
                format!(
                    "{what}: a migration, a save or a restore uses the guest's devices; add and \
                     remove none until it is over"
                ),
            )),
        }
    }

    fn at(&self, name: &str, instance: u32) -> Option<usize> {
        self.devices.iter().position(|d| d.is(name, instance))
    }
}

impl Devices {
    pub(crate) fn add(
        &self,
        name: &str,
        instance: u32,
        version: u32,
        device: Arc<dyn Device>,
    ) -> Result<()> {
        let invalid = |why: String| Err(Error::new(Kind::Invalid, why));
        if !(1..=DEVICE_NAME_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
            return invalid(format!(
                "a device's name has 1 to {DEVICE_NAME_MAX} bytes and no control characters; found \
                 `{}`",
                name.escape_debug()
            ));
        }
        let mut list = lock(&self.0);
        let what = described(name, instance);
        list.check_unused(&what)?;
        if list.at(name, instance).is_some() {
            return invalid(format!(
                "{what}: there is one of this name and instance already"
            ));
        }
        if list.devices.len() >= DEVICES_MAX {
            return invalid(format!("{what}: a guest has at most {DEVICES_MAX} devices"));
        }
        let registered = Arc::new(Registered {
            name: name.to_owned(),
            instance,
            version,
            device,
        });
        fallible::push(&mut list.devices, registered, "the list of devices")
    }

    pub(crate) fn remove(&self, name: &str, instance: u32) -> Result<()> {
        let mut list = lock(&self.0);
        let what = described(name, instance);
        list.check_unused(&what)?;
        let Some(at) = list.at(name, instance) else {
            return Err(Error::new(
                Kind::NotFound,
                format!("{what}: this guest has no such device"),
            ));
        };
        list.devices.remove(at);
        Ok(())
    }

    /// The devices for a migration, a save or a restore.
    pub(crate) fn in_use(&self) -> InUse {
        let mut list = lock(&self.0);
        list.users += 1;
        InUse {
            devices: list.devices.clone(),
            list: Arc::clone(&self.0),
        }
    }
}

impl InUse {
    /// The devices in the order in which they were added.
    pub(crate) fn all(&self) -> &[Arc<Registered>] {
        &self.devices
    }

    pub(crate) fn find(&self, name: &str, instance: u32) -> Option<&Arc<Registered>> {
        self.devices.iter().find(|d| d.is(name, instance))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        lock(&self.list).users -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;

    impl Device for Plain {
        fn left(&self) -> Result<Left> {
            Ok(Left::default())
        }
        fn stop(&self) -> Result<()> {
            Ok(())
        }
        fn read_stopped(&self, _: &mut [u8]) -> Result<usize> {
            Ok(0)
        }
        fn resume(&self) -> Result<()> {
            Ok(())
        }
        fn load_stopped(&self, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn run(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn devices_keep_their_order_and_their_names_are_unique() {
        let devices = Devices::default();
        let add = |name, instance| devices.add(name, instance, 1, Arc::new(Plain));
        add("gpu", 0).unwrap();
        add("nic", 0).unwrap();
        add("gpu", 1).unwrap();
        let twice = add("gpu", 1).unwrap_err();
        assert_eq!(twice.kind(), Kind::Invalid);
        assert!(twice.message().contains("device `gpu` 1"), "{twice}");
        let names: Vec<String> = devices
            .in_use()
            .all()
            .iter()
            .map(|d| d.to_string())
            .collect();
        assert_eq!(names, ["device `gpu`", "device `nic`", "device `gpu` 1"]);
        devices.remove("nic", 0).unwrap();
        assert_eq!(devices.remove("nic", 0).unwrap_err().kind(), Kind::NotFound);
        for bad in ["", "a\nb", &"n".repeat(DEVICE_NAME_MAX + 1)] {
            assert_eq!(add(bad, 0).unwrap_err().kind(), Kind::Invalid);
        }
    }

    #[test]
    fn devices_that_a_migration_uses_are_neither_added_nor_removed() {
        let devices = Devices::default();
        devices.add("gpu", 0, 1, Arc::new(Plain)).unwrap();
        let used = devices.in_use();
        let added = devices.add("nic", 0, 1, Arc::new(Plain)).unwrap_err();
        assert_eq!(added.kind(), Kind::Busy);
        assert_eq!(devices.remove("gpu", 0).unwrap_err().kind(), Kind::Busy);
        drop(used);
        devices.add("nic", 0, 1, Arc::new(Plain)).unwrap();
    }

    #[test]
    fn a_guest_has_at_most_as_many_devices_as_the_limit_says() {
        let devices = Devices::default();
        for instance in 0..DEVICES_MAX as u32 {
            devices.add("vf", instance, 1, Arc::new(Plain)).unwrap();
        }
        let more = devices.add("vf", DEVICES_MAX as u32, 1, Arc::new(Plain));
        assert!(more.unwrap_err().message().contains("at most 256"));
    }
}
