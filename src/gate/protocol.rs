//! How threads and a pause meet: what vCPU threads, device threads and a pausing thread share, and in
//! which order they look at it. There is no system call here: `Kick` is how a thread is taken out of
//! `KVM_RUN`, and `tests/loom` tries this file in every order with a model of the kernel.
//!
//! **vCPUs.** A vCPU has a word of three bits. *Inside*: from before the call of `KVM_RUN` to after its
//! return. *Owes*: an exit may not be retired yet; set with *inside*, taken back by an `EINTR` alone.
//! *Asked*: somebody wants the vCPU out. A vCPU *stands* when it is neither inside nor owes anything.
//!
//! Example of the loss without an order: a thread looks whether a pause has come, none has, and it is
//! about to call `KVM_RUN`. The pause comes and sends its signal, which finds a thread that is not in
//! the kernel and does nothing. The thread enters the guest, and nobody takes it out. So a pause sets
//! `immediate_exit` first, then *asked*, and then signals whoever is *inside*. The vCPU sets *inside*
//! before it enters. Both are changes of one word, so either the pause sees *inside*, or the vCPU sees
//! *asked*, and then `immediate_exit` is set already.
//!
//! Once asked, `immediate_exit` stays set until `KVM_RUN` has returned `EINTR`: the retirement of one
//! exit can be followed by another exit. Only that return takes *asked* back, and only when nobody holds
//! the guest. So whoever asked is sure that the thread has come by its VMM's own code afterwards.
//!
//! **Devices.** A device's word is the number of its threads that are inside, times two, plus one while
//! the gate is closed. vCPUs come first: a vCPU may be waiting for a device thread in the middle of an
//! exit, so devices are closed only when every vCPU stands.

use super::holds::{Holder, Holds};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::runtime::deadline::Deadline;
use crate::runtime::sync::{Arc, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use std::collections::VecDeque;
use std::time::Duration;

const INSIDE: u64 = 1;
const OWES: u64 = 2;
const ASKED: u64 = 4;

const CLOSED: u64 = 1;
const ONE_THREAD: u64 = 2;

/// A signal may be refused (a full queue), so a wait sends it again after this time.
const AGAIN: Duration = Duration::from_millis(20);
/// So many of the missing are named in an error.
const NAMED: usize = 8;

/// How a vCPU's thread is taken out of `KVM_RUN`.
pub trait Kick: Send + Sync {
    /// The next `KVM_RUN` returns `EINTR` at once, or not.
    fn set_immediate_exit(&self, on: bool);
    /// Sends the signal to the thread.
    fn signal(&self);
    /// The thread has ended.
    fn has_ended(&self) -> bool;
}

/// What is shared about one vCPU.
pub struct VcpuRecord {
    pub number: u32,
    word: AtomicU64,
    /// How often it was out of `KVM_RUN` since it was asked. Changed under the lock.
    outs: AtomicU64,
    kick: Box<dyn Kick>,
    /// For its own thread.
    wake: Condvar,
}

/// What is shared about one device.
pub struct DeviceRecord {
    pub name: String,
    word: AtomicU64,
    wake: Condvar,
}

struct Room {
    holds: Holds,
    /// The numbers of users' pauses that wait, the oldest first. A resume takes back a pause that has
    /// returned, or else the oldest of these.
    waiting: VecDeque<u64>,
    /// How many users' pauses there were.
    pauses: u64,
    /// How often a migration or a save has held the guest.
    migrations: u64,
    /// No thread comes into a device: before the start, and in a pause from when all vCPUs stand.
    devices_closed: bool,
    vcpus: Vec<Arc<VcpuRecord>>,
    devices: Vec<Arc<DeviceRecord>>,
}

/// The gate's shared part.
pub struct Protocol {
    lock: Mutex<Room>,
    /// For those who wait for vCPUs and devices.
    came: Condvar,
}

pub(super) fn shut_down() -> Error {
    Error::new(Kind::Cancelled, "the guest has shut down")
}

impl VcpuRecord {
    fn new(number: u32, kick: Box<dyn Kick>, asked: bool) -> Self {
        kick.set_immediate_exit(asked);
        VcpuRecord {
            number,
            word: AtomicU64::new(if asked { ASKED } else { 0 }),
            outs: AtomicU64::new(0),
            kick,
            wake: Condvar::new(),
        }
    }

    /// Asks the vCPU to come out. Returns whether it is inside. Called under the lock.
    fn ask(&self) -> bool {
        self.kick.set_immediate_exit(true);
        // Release: whoever sees `ASKED` sees `immediate_exit`.
        let inside = self.word.fetch_or(ASKED, Ordering::AcqRel) & INSIDE != 0;
        if inside {
            self.kick.signal();
        }
        inside
    }

    fn stands(&self) -> bool {
        // Acquire: what the thread wrote before is seen by whoever found it standing.
        self.word.load(Ordering::Acquire) & (INSIDE | OWES) == 0
    }

    fn missing(&self) -> String {
        let number = self.number;
        if self.kick.has_ended() {
            format!("vCPU {number} (its thread has ended without leaving the gate)")
        } else if self.word.load(Ordering::Acquire) & INSIDE != 0 {
            format!("vCPU {number} (in KVM_RUN)")
        } else {
            format!("vCPU {number} (its exit is being handled)")
        }
    }
}

impl DeviceRecord {
    fn inside(&self) -> u64 {
        self.word.load(Ordering::Acquire) / ONE_THREAD
    }

    fn missing(&self) -> String {
        match self.inside() {
            1 => format!("device `{}` (a thread is inside)", self.name),
            n => format!("device `{}` ({n} threads are inside)", self.name),
        }
    }
}

impl Room {
    /// Asks every vCPU to come out.
    fn ask_all(&self) {
        for vcpu in &self.vcpus {
            vcpu.ask();
            vcpu.wake.notify_all();
        }
    }

    fn vcpu(&self, number: u32) -> Result<&Arc<VcpuRecord>> {
        let found = self.vcpus.iter().find(|vcpu| vcpu.number == number);
        found.ok_or_else(|| {
            let what = format!("vCPU {number} is not at this gate");
            Error::new(Kind::NotFound, what)
        })
    }

    /// A user's pause begins to wait. Returns its number.
    fn begin_waiting(&mut self) -> Result<u64> {
        fallible::reserve_back(&mut self.waiting, 1, "a pause")?;
        self.pauses += 1;
        self.waiting.push_back(self.pauses);
        Ok(self.pauses)
    }

    fn end_waiting(&mut self, number: Option<u64>) {
        self.waiting.retain(|waiting| Some(*waiting) != number);
    }

    /// One of the users' holds is lifted: that of the oldest pause that waits, when none has returned.
    fn take_one_back(&mut self) {
        if self.holds.user_pauses() as usize == self.waiting.len() {
            self.waiting.pop_front();
        }
    }

    /// Lets everybody in again, if nobody holds the guest.
    fn open(&mut self) {
        if !self.holds.is_open() {
            return;
        }
        self.devices_closed = false;
        for device in &self.devices {
            device.word.fetch_and(!CLOSED, Ordering::AcqRel);
            device.wake.notify_all();
        }
        for vcpu in &self.vcpus {
            vcpu.wake.notify_all();
        }
    }

    /// Whether everything stands. Closes the devices when the vCPUs do.
    fn all_stand(&mut self) -> bool {
        if !self.vcpus.iter().all(|vcpu| vcpu.stands()) {
            return false;
        }
        if !self.devices_closed {
            self.devices_closed = true;
            for device in &self.devices {
                device.word.fetch_or(CLOSED, Ordering::AcqRel);
            }
        }
        self.devices.iter().all(|device| device.inside() == 0)
    }

    fn missing(&self) -> String {
        let vcpus = self.vcpus.iter().filter(|vcpu| !vcpu.stands());
        let mut all: Vec<String> = vcpus.map(|vcpu| vcpu.missing()).collect();
        // Devices were not asked before.
        if all.is_empty() {
            let devices = self.devices.iter().filter(|device| device.inside() > 0);
            all.extend(devices.map(|device| device.missing()));
        }
        named(all)
    }
}

fn named(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let list = all.join(", ");
    match more {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}

fn late(what: &str, length: Duration, missing: &str) -> Error {
    let ms = length.as_millis();
    Error::new(
        Kind::Timeout,
        format!("{what}: after {ms} ms these had not come: {missing}"),
    )
}

impl Default for Protocol {
    fn default() -> Self {
        Protocol::new()
    }
}

impl Protocol {
    pub fn new() -> Self {
        Protocol {
            lock: Mutex::new(Room {
                holds: Holds::new(),
                waiting: VecDeque::new(),
                pauses: 0,
                migrations: 0,
                // The guest has not started: nobody writes its memory, into which one may be arriving.
                devices_closed: true,
                vcpus: Vec::new(),
                devices: Vec::new(),
            }),
            came: Condvar::new(),
        }
    }

    /// A thread that panics under this lock would have to be one of brant's functions, none of which
    /// leaves the room half changed.
    fn room(&self) -> MutexGuard<'_, Room> {
        self.lock.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn holds(&self) -> Holds {
        self.room().holds
    }

    /// How often a migration or a save has held the guest.
    pub fn migrations(&self) -> u64 {
        self.room().migrations
    }

    pub fn has_vcpus(&self) -> bool {
        !self.room().vcpus.is_empty()
    }

    // ---- the side that holds ----

    /// Holds the guest, and returns when everything stands.
    ///
    /// # Errors
    /// `Timeout` with the names of those who did not come. This hold is taken back then, and the guest runs
    /// on unless somebody holds it. `Cancelled` when the guest has shut down, `State` when the hold was lifted meanwhile.
    pub fn hold(&self, holder: Holder, length: Duration) -> Result<()> {
        let deadline = Deadline::after(length);
        let mut room = self.room();
        // A user's hold is one more. Another holder that has the guest already keeps it, whatever comes.
        let before = holder != Holder::User && room.holds.by(holder);
        if room.holds.is_shut_down() {
            return Err(shut_down());
        }
        let number = match holder {
            Holder::User => Some(room.begin_waiting()?),
            _ => None,
        };
        room.holds.take(holder);
        room.migrations += u64::from(holder == Holder::Migration);
        room.ask_all();
        loop {
            if room.holds.is_shut_down() {
                return Err(shut_down());
            }
            let held = match number {
                Some(number) => room.waiting.contains(&number),
                None => room.holds.by(holder),
            };
            if !held {
                let what = "the pause: the guest was resumed before everything stood";
                return Err(Error::new(Kind::State, what));
            }
            if room.all_stand() {
                room.end_waiting(number);
                return Ok(());
            }
            if deadline.expired() {
                let error = late("the pause", length, &room.missing());
                room.end_waiting(number);
                if !before {
                    room.holds.lift(holder);
                    room.open();
                }
                return Err(error);
            }
            let again;
            (room, again) = self.wait_for_some(room, deadline);
            let missing = room.vcpus.iter().filter(|vcpu| again && !vcpu.stands());
            missing.for_each(|vcpu| {
                vcpu.ask();
            });
        }
    }

    /// Lifts one hold. The guest runs on when it was the last one.
    pub fn lift(&self, holder: Holder) -> Result<()> {
        let mut room = self.room();
        if room.holds.is_shut_down() {
            return Err(shut_down());
        }
        if holder == Holder::User {
            room.take_one_back();
        }
        room.holds.lift(holder);
        room.open();
        // Another thread may be waiting for its pause, which is over.
        self.came.notify_all();
        Ok(())
    }

    /// The guest runs here: lifts all holds but the users'. `seen` is the number of migrations for which
    /// the caller knows that they are over; `None` for all.
    pub fn start(&self, seen: Option<u64>) -> Result<()> {
        let mut room = self.room();
        if room.holds.is_shut_down() {
            return Err(shut_down());
        }
        if seen.is_some_and(|seen| room.holds.by(Holder::Migration) && seen != room.migrations) {
            let what = "a migration or a save has paused the guest meanwhile";
            return Err(Error::new(Kind::Busy, what));
        }
        room.holds.lift(Holder::Start);
        room.holds.lift(Holder::Migration);
        room.open();
        self.came.notify_all();
        Ok(())
    }

    /// The guest has shut down: everybody leaves, and nobody comes in again.
    pub fn shut_down(&self) {
        let mut room = self.room();
        room.holds.shut_down();
        room.ask_all();
        for device in &room.devices {
            device.word.fetch_or(CLOSED, Ordering::AcqRel);
            device.wake.notify_all();
        }
        self.came.notify_all();
    }

    /// Takes every vCPU that is in `KVM_RUN` out of it once.
    pub fn kick_all(&self, length: Duration) -> Result<()> {
        let deadline = Deadline::after(length);
        let mut room = self.room();
        let outs = |vcpu: &VcpuRecord| vcpu.outs.load(Ordering::Relaxed);
        let mut wanted = Vec::new();
        for vcpu in &room.vcpus {
            let before = outs(vcpu);
            if vcpu.ask() {
                wanted.push((Arc::clone(vcpu), before));
            }
        }
        loop {
            let here = |of: &Arc<VcpuRecord>| room.vcpus.iter().any(|v| Arc::ptr_eq(v, of));
            wanted.retain(|(vcpu, before)| outs(vcpu) == *before && here(vcpu));
            if wanted.is_empty() || room.holds.is_shut_down() {
                return Ok(());
            }
            if deadline.expired() {
                let missing = wanted.iter().map(|(vcpu, _)| vcpu.missing()).collect();
                return Err(late("the kick", length, &named(missing)));
            }
            let again;
            (room, again) = self.wait_for_some(room, deadline);
            wanted.iter().filter(|_| again).for_each(|(vcpu, _)| {
                vcpu.ask();
            });
        }
    }

    /// Makes one vCPU's thread come by its VMM's code soon. Waits for nothing.
    pub fn kick_one(&self, number: u32) -> Result<()> {
        let room = self.room();
        let vcpu = room.vcpu(number)?;
        vcpu.ask();
        vcpu.wake.notify_all();
        Ok(())
    }

    /// Fails with `NotFound` when there is no vCPU of that number.
    pub fn check_vcpu(&self, number: u32) -> Result<()> {
        self.room().vcpu(number).map(drop)
    }

    /// Waits for somebody to come. The second value says that nobody came for so long that it is time
    /// to ask again.
    fn wait_for_some<'a>(
        &'a self,
        room: MutexGuard<'a, Room>,
        deadline: Deadline,
    ) -> (MutexGuard<'a, Room>, bool) {
        wait(&self.came, room, deadline.earlier(Deadline::after(AGAIN)))
    }

    // ---- vCPU threads ----

    pub fn add_vcpu(&self, number: u32, kick: Box<dyn Kick>) -> Result<Arc<VcpuRecord>> {
        let mut room = self.room();
        if room.holds.is_shut_down() {
            return Err(shut_down());
        }
        if room.vcpus.iter().any(|vcpu| vcpu.number == number) {
            let what = format!("vCPU {number} is at this gate already");
            return Err(Error::new(Kind::Exists, what));
        }
        let vcpu = Arc::new(VcpuRecord::new(number, kick, !room.holds.is_open()));
        room.vcpus.push(Arc::clone(&vcpu));
        Ok(vcpu)
    }

    /// The vCPU is gone, wherever it was.
    pub fn remove_vcpu(&self, vcpu: &Arc<VcpuRecord>) {
        self.room().vcpus.retain(|v| !Arc::ptr_eq(v, vcpu));
        self.came.notify_all();
    }

    /// Before `KVM_RUN`. Waits while the guest is held, unless an exit has to be retired.
    pub fn enter(&self, vcpu: &VcpuRecord) -> Result<()> {
        let before = vcpu.word.fetch_or(INSIDE | OWES, Ordering::AcqRel);
        if before & ASKED == 0 || before & OWES != 0 {
            return Ok(());
        }
        // Nothing is owed, and somebody asked. `ASKED` and `immediate_exit` stay, so this KVM_RUN will
        // return at once, and the VMM looks for what it was asked.
        vcpu.word.fetch_and(!(INSIDE | OWES), Ordering::AcqRel);
        let (_room, open) = self.stand(vcpu);
        open?;
        // Still under the lock: whoever asks next finds this vCPU inside.
        vcpu.word.fetch_or(INSIDE | OWES, Ordering::AcqRel);
        Ok(())
    }

    /// After `KVM_RUN`, which was `interrupted` if it failed with `EINTR`. Then waits while the guest is
    /// held.
    pub fn left(&self, vcpu: &VcpuRecord, interrupted: bool) -> Result<()> {
        let gone = if interrupted { INSIDE | OWES } else { INSIDE };
        // Release: all that this thread wrote before is seen by whoever finds it standing.
        let before = vcpu.word.fetch_and(!gone, Ordering::AcqRel);
        if before & ASKED == 0 {
            return Ok(());
        }
        if !interrupted {
            let _room = self.room();
            self.tell_out(vcpu);
            return Ok(());
        }
        let (_room, open) = self.stand(vcpu);
        open?;
        vcpu.kick.set_immediate_exit(false);
        vcpu.word.fetch_and(!ASKED, Ordering::AcqRel);
        Ok(())
    }

    /// Tells whoever waits that this vCPU is out. Called under the lock.
    fn tell_out(&self, vcpu: &VcpuRecord) {
        let outs = vcpu.outs.load(Ordering::Relaxed);
        vcpu.outs.store(outs + 1, Ordering::Relaxed);
        self.came.notify_all();
    }

    /// Stands until nobody holds the guest. The lock is held on return.
    fn stand(&self, vcpu: &VcpuRecord) -> (MutexGuard<'_, Room>, Result<()>) {
        let mut room = self.room();
        self.tell_out(vcpu);
        loop {
            if room.holds.is_shut_down() {
                return (room, Err(shut_down()));
            }
            if room.holds.is_open() {
                return (room, Ok(()));
            }
            room = wait(&vcpu.wake, room, Deadline::never()).0;
        }
    }

    /// A vCPU that has nothing to do waits until somebody asks for it, or its time is up.
    pub fn idle(&self, vcpu: &VcpuRecord, deadline: Deadline) -> Result<()> {
        let mut room = self.room();
        loop {
            if room.holds.is_shut_down() {
                return Err(shut_down());
            }
            let asked = vcpu.word.load(Ordering::Relaxed) & ASKED != 0;
            if asked || deadline.expired() {
                return Ok(());
            }
            room = wait(&vcpu.wake, room, deadline).0;
        }
    }

    // ---- device threads ----

    pub fn add_device(&self, name: String) -> Result<Arc<DeviceRecord>> {
        let mut room = self.room();
        if room.holds.is_shut_down() {
            return Err(shut_down());
        }
        if room.devices.iter().any(|device| device.name == name) {
            let what = format!("device `{name}` is at this gate already");
            return Err(Error::new(Kind::Exists, what));
        }
        let device = Arc::new(DeviceRecord {
            name,
            word: AtomicU64::new(if room.devices_closed { CLOSED } else { 0 }),
            wake: Condvar::new(),
        });
        room.devices.push(Arc::clone(&device));
        Ok(device)
    }

    pub fn remove_device(&self, device: &Arc<DeviceRecord>) {
        self.room().devices.retain(|d| !Arc::ptr_eq(d, device));
        self.came.notify_all();
    }

    /// A thread of the device comes in, and waits before that while the devices are closed.
    ///
    /// # Errors
    /// `Pending` when the time is up first, `Cancelled` when the guest has shut down.
    pub fn come_in(&self, device: &DeviceRecord, deadline: Deadline) -> Result<()> {
        if device.word.fetch_add(ONE_THREAD, Ordering::AcqRel) & CLOSED == 0 {
            return Ok(());
        }
        self.go_out(device);
        let mut room = self.room();
        loop {
            if room.holds.is_shut_down() {
                return Err(shut_down());
            }
            if !room.devices_closed {
                device.word.fetch_add(ONE_THREAD, Ordering::AcqRel);
                return Ok(());
            }
            if deadline.expired() {
                let what = format!("device `{}`: the guest is paused", device.name);
                return Err(Error::new(Kind::Pending, what));
            }
            room = wait(&device.wake, room, deadline).0;
        }
    }

    /// A thread of the device that is inside needs no more room to come in once more.
    pub fn come_in_again(&self, device: &DeviceRecord) {
        device.word.fetch_add(ONE_THREAD, Ordering::AcqRel);
    }

    /// A thread of the device goes out.
    pub fn go_out(&self, device: &DeviceRecord) {
        let before = device.word.fetch_sub(ONE_THREAD, Ordering::AcqRel);
        if before & CLOSED != 0 {
            // The lock: a pause that has just looked at the word is waiting when this notifies.
            let _room = self.room();
            self.came.notify_all();
        }
    }
}

/// Waits until it is woken, or until the deadline. The second value says that it was the deadline.
fn wait<'a>(
    condvar: &Condvar,
    room: MutexGuard<'a, Room>,
    deadline: Deadline,
) -> (MutexGuard<'a, Room>, bool) {
    match deadline.remaining() {
        None => {
            let room = condvar.wait(room).unwrap_or_else(|e| e.into_inner());
            (room, false)
        }
        Some(left) => {
            let waited = condvar.wait_timeout(room, left);
            let (room, late) = waited.unwrap_or_else(|e| e.into_inner());
            (room, late.timed_out())
        }
    }
}
