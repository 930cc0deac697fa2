//! The gate: vCPU and device threads of a VMM that stand still at a pause.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::structs::{free, handle, lent, put, read, sized, text};
use crate::error::{Error, Kind, Result};
use crate::gate::{Config, Device, Gate, Holder, Vcpu, WAIT_DEFAULT};
use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

/// A gate for the threads of one guest: a pause shuts it, and then vCPUs and device threads stand still
/// in the sense of `brant_ops`. It is optional: a VMM that has a pause of its own needs none. brant
/// makes no thread for it.
///
/// A thread that writes guest memory otherwise calls `brant_gate_device_enter` before it takes its next
/// request, and `brant_gate_device_leave` after the mark of its last write. `brant_guest_use_gate` lets
/// migrations pause, resume, run and kick by the gate; the VMM's own pauses are `brant_gate_pause` and
/// `brant_gate_resume`. All of them may hold the guest at the same time: it runs when nobody does.
///
/// A new gate is shut, because its guest has not started. Threads may be made before: they wait.
/// `brant_gate_start` opens it for a guest that begins here, and `run` of a migration for a guest that
/// arrives.
///
/// The signal: threads in KVM_RUN are taken out by one signal to that thread, `brant_gate_config.signal`.
/// The VMM may use the same signal for its own kicks. The signal needs a handler, which may do nothing;
/// the VMM installs it, or asks for it by BRANT_GATE_INSTALL_HANDLER. A thread of another gate, or of a
/// library, is never sent the signal. Without a handler no signal is sent, and the call says so.
///
/// Threads: any, several at once, except where a function says otherwise. Free the vCPUs and devices
/// first, then the gate; a guest that uses the gate keeps what it needs. `brant_gate_free` is the last
/// call on it.
pub struct brant_gate {
    gate: Arc<Gate>,
}

/// A vCPU at a gate.
///
/// Threads: the one that called `brant_gate_add_vcpu`. `brant_gate_vcpu_free` is the last call on it, on
/// any thread.
pub struct brant_gate_vcpu {
    vcpu: Vcpu,
}

/// A device at a gate: anything whose threads write guest memory.
///
/// Threads: any number. `brant_gate_device_free` is the last call on it, when no thread is inside.
pub struct brant_gate_device {
    device: Device,
}

/// In `brant_gate_config.flags`: install a handler for the signal that does nothing, if the signal has
/// its default action. A handler of the VMM's is left alone. The handler stays when the gate is freed.
pub const BRANT_GATE_INSTALL_HANDLER: u32 = 1;

/// How a gate is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_gate_config {
    /// sizeof(brant_gate_config).
    pub size: usize,
    /// How long `pause` and `kick` of a migration wait for threads, milliseconds. 0 means 5000;
    /// BRANT_NO_LIMIT.
    pub wait_ms: u64,
    /// The signal that takes a thread out of KVM_RUN; 0 means SIGRTMIN + 4.
    pub signal: i32,
    /// BRANT_GATE_*.
    pub flags: u32,
}

sized!(brant_gate_config);

/// In the answer of `brant_gate_get_holds`: the guest has not been started here.
pub const BRANT_HELD_BEFORE_START: u32 = 1;
/// In the answer of `brant_gate_get_holds`: by one `brant_gate_pause` or several.
pub const BRANT_HELD_BY_USER: u32 = 2;
/// In the answer of `brant_gate_get_holds`: by `pause` of a migration or a save. After a hand-over this
/// stays.
pub const BRANT_HELD_BY_MIGRATION: u32 = 4;
/// In the answer of `brant_gate_get_holds`: the guest has shut down.
pub const BRANT_HELD_SHUT_DOWN: u32 = 8;

fn time(ms: u64) -> Option<Duration> {
    (ms != u64::MAX).then_some(Duration::from_millis(ms))
}

/// As long as a wait without an end lasts.
fn wait(ms: u64) -> Duration {
    time(ms).unwrap_or(Duration::MAX)
}

fn config_of(c: &brant_gate_config) -> Result<Config> {
    if c.flags & !BRANT_GATE_INSTALL_HANDLER != 0 {
        return Err(invalid(format!(
            "brant_gate_config.flags is {:#x}; expected 0 or BRANT_GATE_INSTALL_HANDLER",
            c.flags
        )));
    }
    let default = Config::default();
    Ok(Config {
        signal: if c.signal == 0 {
            default.signal
        } else {
            c.signal
        },
        install_handler: c.flags & BRANT_GATE_INSTALL_HANDLER != 0,
        wait: if c.wait_ms == 0 {
            WAIT_DEFAULT
        } else {
            wait(c.wait_ms)
        },
    })
}

/// Makes a gate that is shut. `config` may be NULL: then the VMM installs a handler for SIGRTMIN + 4.
/// BRANT_E_INVALID for a signal that cannot be used (SIGKILL, SIGSTOP, the faults, the C library's),
/// BRANT_E_STATE when a handler is to be installed and the signal is ignored.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_new(
    config: *const brant_gate_config,
    gate: *mut *mut brant_gate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        let config = if config.is_null() {
            Config::default()
        } else {
            // SAFETY: not null, a structure by contract.
            config_of(&unsafe { read(config) }?)?
        };
        if gate.is_null() {
            return Err(invalid("gate is NULL"));
        }
        let made = Box::new(brant_gate {
            gate: Gate::new(config)?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(gate, "gate", Box::into_raw(made)) }
    })
}

/// Frees a gate; NULL is fine. Its vCPUs and devices are freed before. A guest that uses it goes on
/// using it.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_free(gate: *mut brant_gate) {
    boundary!(or(), {
        // SAFETY: null, or from brant_gate_new and not freed before.
        unsafe { free(gate, |_| false) };
    })
}

/// Lets a guest's operations `pause`, `resume`, `run` and `kick` be carried out by the gate. Then the
/// table of operations needs none of them. When the table has one, both are called: the table's `pause`
/// after the gate's, with all vCPUs and devices standing; the table's `resume`, `run` and `kick` before
/// the gate's, with all of them standing still for the first two. When the table's fails, the gate stays
/// as it is. `resume` does not fail by the gate, and leaves a guest paused that its user has paused.
///
/// From then on the gate also knows who has the guest: `brant_gate_start` and `brant_gate_resume` refuse
/// what must not run here. One gate a guest and one guest a gate: a second one is BRANT_E_EXISTS. Call it
/// before the first migration, save or restore of the guest is made.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_use_gate(
    guest: *mut brant_guest,
    gate: *mut brant_gate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or ours by contract.
        let gate = &unsafe { handle(gate, "gate") }?.gate;
        let memory = Arc::downgrade(&guest.memory);
        let owner = move || match memory.upgrade() {
            Some(memory) => memory.runs_here(),
            // The guest object is gone, and with it what it knew.
            None => Ok(()),
        };
        let exists = |what| Err(Error::new(Kind::Exists, what));
        if guest.ops.has_gate() {
            return exists("the guest has a gate already");
        }
        if !gate.set_owner(owner) {
            return exists("the gate has a guest already");
        }
        guest.ops.use_gate(gate);
        Ok(())
    })
}

/// Opens the gate for a guest that begins here, or that was reclaimed (`brant_guest_reclaim`). A pause of
/// the user's stays. With a guest (`brant_guest_use_gate`) this says brant_guest_runs_here too, whose
/// errors it has. BRANT_E_CANCELLED when the guest has shut down.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_start(
    gate: *mut brant_gate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(gate, "gate") }?.gate.start()
    })
}

/// Pauses the guest for a user of the VMM's, and returns when every vCPU is out of KVM_RUN with nothing pending and
/// every device thread is outside. First the vCPUs are waited for, then the devices, because a vCPU in
/// the middle of an exit may need one. A guest that is paused already is fine.
///
/// Pauses are counted: each that returned 0 is taken back by one `brant_gate_resume`. So a snapshot of the VMM's that
/// pauses and resumes does not wake a guest that its operator has paused. After an error there is nothing to take back.
///
/// BRANT_E_TIMEOUT after `timeout_ms` (BRANT_NO_LIMIT: never): the message names the vCPUs or devices
/// that did not come, and the guest runs on as if nothing had been asked. BRANT_E_CALLBACK on a vCPU's
/// thread and inside a device, which would have to stand still for it. BRANT_E_CANCELLED when the guest
/// has shut down, also meanwhile; BRANT_E_STATE when a resume has taken this pause back meanwhile, or when the signal has
/// no handler any more.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_pause(
    gate: *mut brant_gate,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(gate, "gate") }?
            .gate
            .pause(wait(timeout_ms))
    })
}

/// Takes one `brant_gate_pause` back. A guest that another user, a migration or a save has paused stays paused until
/// that lets it go. A guest that no user has paused is fine. BRANT_E_STATE when the guest was handed over or given
/// up: the pause is taken back, so that it does not hold a guest that comes back, and the guest does not run
/// here. BRANT_E_CANCELLED when it has shut down.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_resume(
    gate: *mut brant_gate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(gate, "gate") }?.gate.resume()
    })
}

/// Says that the guest has shut down, on any thread. All functions that wait at this gate return
/// BRANT_E_CANCELLED, vCPUs are taken out of KVM_RUN, and a migration whose `pause` waits or comes later
/// fails by that. A migration that has paused the guest already goes on: let `save` fail if the guest
/// must not arrive. Does not wait for the threads: join them. There is no way back; a guest that starts
/// again needs a new gate.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_shut_down(
    gate: *mut brant_gate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(gate, "gate") }?.gate.shut_down();
        Ok(())
    })
}

/// Puts into `*holds` who holds the guest still: 0, or a sum of BRANT_HELD_*.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_get_holds(
    gate: *const brant_gate,
    holds: *mut u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let found = unsafe { handle(gate, "gate") }?.gate.holds();
        let all = [
            (found.by(Holder::Start), BRANT_HELD_BEFORE_START),
            (found.by(Holder::User), BRANT_HELD_BY_USER),
            (found.by(Holder::Migration), BRANT_HELD_BY_MIGRATION),
            (found.is_shut_down(), BRANT_HELD_SHUT_DOWN),
        ];
        let sum = all.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum();
        // SAFETY: null or a place by contract.
        unsafe { put(holds, "holds", sum) }
    })
}

/// Makes the thread of vCPU `vcpu` come by the VMM's code soon, for a request of the VMM's (an interrupt
/// to inject): set the request first. `brant_gate_vcpu_run` returns with KVM_EXIT_INTR,
/// `brant_gate_vcpu_idle` returns. Never waits; any thread, also in a callback. BRANT_E_NOT_FOUND for a
/// number that is not at the gate.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_kick_vcpu(
    gate: *mut brant_gate,
    vcpu: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(gate, "gate") }?.gate.kick_vcpu(vcpu)
    })
}

/// Adds a vCPU, on its own thread, before it runs; also while the guest is paused. `number` is the VMM's
/// own, unique at the gate. `vcpu_fd` is what KVM_CREATE_VCPU returned; brant keeps a duplicate and maps
/// the first page of its kvm_run. -1 for a vCPU of something else than KVM's, and for no
/// `brant_gate_vcpu_run`. The gate's signal is unblocked on this thread.
///
/// BRANT_E_EXISTS for a number that is in use, BRANT_E_STATE when the signal has no handler or is
/// ignored, BRANT_E_INVALID for a descriptor of no vCPU, BRANT_E_CANCELLED when the guest has shut down.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_add_vcpu(
    gate: *mut brant_gate,
    number: u32,
    vcpu_fd: i32,
    vcpu: *mut *mut brant_gate_vcpu,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let gate = &unsafe { handle(gate, "gate") }?.gate;
        if vcpu.is_null() {
            return Err(invalid("vcpu is NULL"));
        }
        let fd = match vcpu_fd {
            -1 => None,
            // SAFETY: open during the call by contract.
            fd => Some(unsafe { lent(fd, "vcpu_fd") }?),
        };
        let made = Box::new(brant_gate_vcpu {
            vcpu: gate.add_vcpu(number, fd)?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(vcpu, "vcpu", Box::into_raw(made)) }
    })
}

/// Removes a vCPU; NULL is fine. No pause waits for it any more, wherever it was: call it when its
/// thread has left KVM_RUN for good. Any thread, once.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_vcpu_free(vcpu: *mut brant_gate_vcpu) {
    boundary!(or(), {
        // SAFETY: null, or from brant_gate_add_vcpu and not freed before.
        unsafe { free(vcpu, |_| false) };
    })
}

/// Calls KVM_RUN once, when the guest may run, and returns 0 when kvm_run has an exit to handle. Waits
/// while the guest is paused. After a signal, and when there is nothing to handle, `exit_reason` is
/// KVM_EXIT_INTR (a stale reason never stands there): look for requests of the VMM's own, and call this
/// again. Handle the exit before the next call: the next KVM_RUN completes it, also during a pause.
///
/// BRANT_E_CANCELLED when the guest has shut down: end the thread. BRANT_E_STATE on another thread, and
/// for a vCPU without a descriptor. BRANT_E_KERNEL (or a code that fits the errno better) when KVM_RUN
/// fails with something else than EINTR and EAGAIN.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_vcpu_run(
    vcpu: *mut brant_gate_vcpu,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(vcpu, "vcpu") }?.vcpu.run()
    })
}

/// For a VMM that calls KVM_RUN itself, in place of `brant_gate_vcpu_run`: returns 0 when KVM_RUN may be
/// called; call it at once. Waits while the guest is paused and this vCPU owes no retirement of an exit.
/// BRANT_E_CANCELLED when the guest has shut down.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_vcpu_enter(
    vcpu: *mut brant_gate_vcpu,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(vcpu, "vcpu") }?.vcpu.enter()
    })
}

/// After KVM_RUN that followed `brant_gate_vcpu_enter`, before anything else. `interrupted` is not 0 when
/// KVM_RUN failed with EINTR, and only then: an EINTR says that nothing is pending any more, so the vCPU
/// may stand still, and this call waits while the guest is paused. There is no exit to handle after an
/// EINTR, whatever `exit_reason` says. After EAGAIN `interrupted` is 0, and there is none either.
/// BRANT_E_CANCELLED when the guest has shut down.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_vcpu_left(
    vcpu: *mut brant_gate_vcpu,
    interrupted: i32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(vcpu, "vcpu") }?.vcpu.left(interrupted != 0)
    })
}

/// Waits, for a vCPU with nothing to do (KVM_EXIT_HLT without an interrupt controller in the kernel),
/// until `brant_gate_kick_vcpu`, a pause, or `timeout_ms` (BRANT_NO_LIMIT: no end); 0 in each case. The
/// next call is `brant_gate_vcpu_run`. BRANT_E_CANCELLED when the guest has shut down.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_vcpu_idle(
    vcpu: *mut brant_gate_vcpu,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(vcpu, "vcpu") }?.vcpu.idle(time(timeout_ms))
    })
}

/// Adds a device under a `name` of 1 to 128 bytes without control characters, unique at the gate. A
/// pause that waits in vain names it.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_add_device(
    gate: *mut brant_gate,
    name: *const c_char,
    device: *mut *mut brant_gate_device,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let gate = &unsafe { handle(gate, "gate") }?.gate;
        // SAFETY: null or a string by contract.
        let name = unsafe { text(name, "name") }?;
        if device.is_null() {
            return Err(invalid("device is NULL"));
        }
        let made = Box::new(brant_gate_device {
            device: gate.add_device(name)?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(device, "device", Box::into_raw(made)) }
    })
}

/// Removes a device; NULL is fine. No thread is inside.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_device_free(device: *mut brant_gate_device) {
    boundary!(or(), {
        // SAFETY: null, or from brant_gate_add_device and not freed before.
        unsafe { free(device, |_| false) };
    })
}

/// The calling thread comes in: until it has left, no pause returns. Waits while the devices have to
/// stand still, at most `timeout_ms` (BRANT_NO_LIMIT; 0 for a thread that must not wait). A thread that
/// is inside of any device of the gate comes in without waiting; it leaves as often as it came. Costs an
/// atomic addition while nobody pauses. BRANT_E_PENDING when the time is up, BRANT_E_CANCELLED when the
/// guest has shut down.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_device_enter(
    device: *mut brant_gate_device,
    timeout_ms: u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(device, "device") }?
            .device
            .come_in(time(timeout_ms))
    })
}

/// The calling thread leaves, after the mark of its last write. BRANT_E_STATE when it is not inside.
#[no_mangle]
pub unsafe extern "C" fn brant_gate_device_leave(
    device: *mut brant_gate_device,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(device, "device") }?.device.leave()
    })
}
