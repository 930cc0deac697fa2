//! A vCPU at a gate, on its own thread: enters the guest when nobody holds it, and stands still when
//! somebody does.

use super::protocol::{Kick, Protocol, VcpuRecord};
use crate::error::{Error, Kind, Result};
use crate::runtime::Deadline;
use crate::sys::kvm_vcpu::{Left, VcpuFd};
use crate::sys::signal::{self, Disposition, Thread};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

/// A vCPU's thread, and its `immediate_exit` when KVM runs it.
struct Out {
    thread: Thread,
    signal: i32,
    fd: Option<Arc<VcpuFd>>,
}

impl Kick for Out {
    fn set_immediate_exit(&self, on: bool) {
        if let Some(fd) = &self.fd {
            fd.set_immediate_exit(on);
        }
    }

    fn signal(&self) {
        // Without a handler the signal would end the process. The gate's caller hears of that otherwise.
        if let Ok(Disposition::Handler) = signal::disposition(self.signal) {
            // When the queue of signals is full, whoever waits asks again.
            let _ = signal::send(self.thread, self.signal);
        }
    }

    fn has_ended(&self) -> bool {
        signal::has_ended(self.thread)
    }
}

thread_local! {
    /// The gates at which this thread is a vCPU.
    static HERE: std::cell::RefCell<Vec<(usize, u32)>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn address(protocol: &Arc<Protocol>) -> usize {
    Arc::as_ptr(protocol) as usize
}

/// Refuses a wait for a vCPU of the calling thread.
pub(super) fn check_other_thread(protocol: &Arc<Protocol>) -> Result<()> {
    let at = address(protocol);
    let here = HERE.with_borrow(|list| list.iter().find(|(gate, _)| *gate == at).copied());
    match here {
        None => Ok(()),
        Some((_, number)) => Err(Error::new(
            Kind::Callback,
            format!(
                "the pause was called on the thread of vCPU {number}, which has to stand still for it: \
                 call it on another thread"
            ),
        )),
    }
}

/// A vCPU, until it is dropped. It belongs to the thread that made it. When it is dropped, the vCPU is
/// gone for the gate: a pause does not wait for it any more.
pub struct Vcpu {
    protocol: Arc<Protocol>,
    record: Arc<VcpuRecord>,
    fd: Option<Arc<VcpuFd>>,
    thread: usize,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("number", &self.record.number)
            .finish_non_exhaustive()
    }
}

impl Vcpu {
    pub(super) fn new(
        protocol: &Arc<Protocol>,
        number: u32,
        fd: Option<BorrowedFd<'_>>,
        signal: i32,
    ) -> Result<Vcpu> {
        let fd = fd.map(VcpuFd::new).transpose()?.map(Arc::new);
        signal::unblock(signal)?;
        let out = Out {
            thread: signal::this_thread(),
            signal,
            fd: fd.clone(),
        };
        let record = protocol.add_vcpu(number, Box::new(out))?;
        HERE.with_borrow_mut(|list| list.push((address(protocol), number)));
        Ok(Vcpu {
            protocol: Arc::clone(protocol),
            record,
            fd,
            thread: crate::sys::thread::address(),
        })
    }

    /// The vCPU's number.
    pub fn number(&self) -> u32 {
        self.record.number
    }

    fn check_thread(&self) -> Result<()> {
        if self.thread == crate::sys::thread::address() {
            return Ok(());
        }
        Err(Error::new(
            Kind::State,
            format!(
                "vCPU {} was added to the gate on another thread, and only that one can be kicked",
                self.record.number
            ),
        ))
    }

    /// Enters the guest once (`KVM_RUN`), and returns when there is an exit to handle. Waits while the
    /// guest is held. When the thread came out by a signal, or there is nothing to handle, the
    /// `exit_reason` in `kvm_run` is `KVM_EXIT_INTR`: a stale reason is never left there. Look for
    /// requests of the VMM's own then, and call this again.
    ///
    /// # Errors
    /// `Cancelled` when the guest has shut down: end the thread. `State` for a vCPU without a descriptor,
    /// or on another thread. `Kernel` and other kinds when `KVM_RUN` failed, with its errno.
    pub fn run(&self) -> Result<()> {
        let Some(fd) = &self.fd else {
            let what = format!("vCPU {} was added without a descriptor", self.record.number);
            return Err(Error::new(Kind::State, what));
        };
        self.enter()?;
        let left = fd.run();
        let interrupted = matches!(left, Ok(Left::Interrupted));
        self.left(interrupted)?;
        match left {
            Ok(Left::Exit) => Ok(()),
            Ok(Left::Interrupted | Left::Again) => {
                fd.strike_out();
                Ok(())
            }
            Err(e) => Err(e.context(format_args!("vCPU {}", self.record.number))),
        }
    }

    /// For a VMM that calls `KVM_RUN` itself: returns when it may be called, at once. Waits while the
    /// guest is held.
    ///
    /// # Errors
    /// `Cancelled` when the guest has shut down, `State` on another thread.
    pub fn enter(&self) -> Result<()> {
        self.check_thread()?;
        self.protocol.enter(&self.record)
    }

    /// After `KVM_RUN`, before the exit is handled. `interrupted` says that it failed with `EINTR`, and
    /// nothing else: only then is nothing pending any more. Waits while the guest is held.
    ///
    /// # Errors
    /// As [`Vcpu::enter`].
    pub fn left(&self, interrupted: bool) -> Result<()> {
        self.check_thread()?;
        self.protocol.left(&self.record, interrupted)
    }

    /// For a vCPU that has nothing to do (it halted, and the VMM handles that): waits until
    /// [`Gate::kick_vcpu`](super::Gate::kick_vcpu), a pause, or the end of `time`, `None` for no end.
    /// Call [`Vcpu::run`] or [`Vcpu::enter`] next.
    ///
    /// # Errors
    /// As [`Vcpu::enter`].
    pub fn idle(&self, time: Option<Duration>) -> Result<()> {
        self.check_thread()?;
        let deadline = time.map_or(Deadline::never(), Deadline::after);
        self.protocol.idle(&self.record, deadline)
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        let here = (address(&self.protocol), self.record.number);
        // On another thread there is no such entry.
        HERE.with_borrow_mut(|list| list.retain(|entry| *entry != here));
        self.protocol.remove_vcpu(&self.record);
    }
}
