//! brant's threads: each starts with every signal masked, and is announced to the VMM before it
//! does anything. No panic leaves it or writes to stderr. The C interface uses the same panic
//! boundary without a thread.
//!
//! Every signal is masked for two reasons. A dirty-ring reset that a signal interrupts loses pages.
//! And the VMM's signal handlers must not run on stacks that they do not know. (If the thread
//! itself causes a SIGSEGV or SIGBUS, the process ends, whatever handler there is: the kernel
//! forces a masked signal, signal(7).)

use crate::error::{Error, Kind, Result};
use crate::sys;
use crate::sys::event::SignalMask;
use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Once;

/// The work of a thread of brant's. The numbers are part of the C ABI, and never change their
/// meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Role {
    /// Walks, decides, and sends when there is only one channel.
    Migration = 1,
    /// Encodes and sends, or receives, on one channel.
    Channel = 2,
    /// Waits for connections.
    Listener = 3,
    /// Backs the destination's memory ahead of what arrives.
    Prefault = 4,
    /// Harvests dirty rings before they fill.
    Reaper = 5,
    /// Serves page faults through userfaultfd.
    Fault = 6,
    /// Saves a guest to an image, or restores one from it.
    Snapshot = 7,
    /// Measures how fast the guest dirties.
    DirtyRate = 8,
    /// Writes pages to an image, or reads them from it.
    Image = 9,
    /// Computes checksums of the destination's memory, for a source that verifies the migration.
    Digest = 10,
    /// Ends calls of devices that outlast a time limit.
    Watch = 11,
    /// Writes the recording of a migration.
    Record = 12,
}

impl Role {
    /// Every role, by number.
    pub const ALL: [Role; 12] = [
        Role::Migration,
        Role::Channel,
        Role::Listener,
        Role::Prefault,
        Role::Reaper,
        Role::Fault,
        Role::Snapshot,
        Role::DirtyRate,
        Role::Image,
        Role::Digest,
        Role::Watch,
        Role::Record,
    ];

    /// The number in the C ABI.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The thread's name. At most 15 bytes, which is what the kernel keeps (`TASK_COMM_LEN` is 16
    /// with the NUL).
    pub const fn name(self) -> &'static str {
        match self {
            Role::Migration => "brant-migration",
            Role::Channel => "brant-channel",
            Role::Listener => "brant-listener",
            Role::Prefault => "brant-prefault",
            Role::Reaper => "brant-reaper",
            Role::Fault => "brant-fault",
            Role::Snapshot => "brant-snapshot",
            Role::DirtyRate => "brant-dirtyrate",
            Role::Image => "brant-image",
            Role::Digest => "brant-digest",
            Role::Watch => "brant-watch",
            Role::Record => "brant-record",
        }
    }

    /// The size of the thread's stack, in bytes. It is documented, so it does not depend on the
    /// environment (`RUST_MIN_STACK`). Threads that call the VMM's operations have the usual size
    /// of a C program's threads. Of the others there may be many, and a VMM may lock all its
    /// memory, so their stacks are smaller.
    pub const fn stack(self) -> usize {
        match self {
            Role::Migration | Role::Snapshot => 8 << 20,
            _ => 2 << 20,
        }
    }
}

/// A thread of brant's, to be joined. If this is dropped without a join, the thread runs on by
/// itself.
#[must_use = "a thread that nobody joins cannot report its failure"]
#[derive(Debug)]
pub struct Join<T> {
    role: Role,
    handle: std::thread::JoinHandle<Result<T>>,
}

impl<T> Join<T> {
    /// Waits for the thread to end, and returns its value.
    ///
    /// # Errors
    /// `Internal` with the panic's message when it panicked; `State` when it would wait for itself.
    pub fn join(self) -> Result<T> {
        if self.handle.thread().id() == std::thread::current().id() {
            return Err(Error::new(
                Kind::State,
                format!("thread {}: cannot wait for itself", self.role.name()),
            ));
        }
        match self.handle.join() {
            Ok(result) => result,
            // Only the destructor of a thread-local can panic here.
            Err(payload) => Err(panicked(payload)),
        }
        .map_err(|e| e.context(format_args!("thread {}", self.role.name())))
    }

    /// Whether the thread has ended, so that a join would not wait.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// The thread's role.
    pub fn role(&self) -> Role {
        self.role
    }
}

/// Starts a thread that calls `announce` with its role, and then `body`. All signals are masked
/// from its first instruction on: this function sets the mask before it makes the thread, which
/// inherits it. On return the caller has its own mask again.
///
/// # Errors
/// `Kernel` (`EAGAIN`: the limit of threads) or `NoMemory` when no thread can be made. Neither
/// closure has run then.
pub fn spawn<T: Send + 'static>(
    role: Role,
    announce: impl FnOnce(Role) + Send + 'static,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<Join<T>> {
    let cannot = |e| Error::os(format_args!("starting thread {}", role.name()), e);
    let masked = SignalMask::full().put().map_err(cannot)?;
    let starters = masked.before();
    let handle = sys::thread::spawn(role.name(), role.stack(), move || {
        STARTERS_MASK.set(Some(starters));
        catch(move || {
            announce(role);
            body()
        })
    });
    drop(masked);
    Ok(Join {
        role,
        handle: handle.map_err(cannot)?,
    })
}

/// Runs `f` with the signal mask of the thread that started this one, if this is a thread of
/// brant's. A thread that `f` makes then has the mask of the VMM's own threads. With brant's mask
/// no signal would ever reach it, and a vCPU thread could not be kicked out of `KVM_RUN`.
pub fn with_starters_mask<T>(f: impl FnOnce() -> T) -> T {
    // If the mask cannot be set, brant's mask stays, which is safe for brant.
    let _mask = STARTERS_MASK.get().and_then(|mask| {
        mask.forget_pending_errors();
        mask.put().ok()
    });
    f()
}

thread_local! {
    // On a thread of brant's: the mask of the thread that started it.
    static STARTERS_MASK: Cell<Option<SignalMask>> = const { Cell::new(None) };
    // Constant and without a destructor, so it needs no allocation and can be used at any time of a
    // thread's life.
    static QUIET: Cell<u32> = const { Cell::new(0) };
    // The place of the last quiet panic.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

static HOOKED: AtomicBool = AtomicBool::new(false);

/// Installs brant's panic hook before the existing one, once per process. It swallows panics inside
/// brant's boundaries, and passes all others on. A hook that the program sets later replaces it,
/// which is the program's choice.
#[allow(clippy::disallowed_methods, reason = "the one hook that brant sets")]
fn hook() {
    static ONCE: Once = Once::new();
    // A thread that is panicking cannot change the hook.
    if HOOKED.load(Ordering::Acquire) || std::thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if QUIET.get() == 0 {
                before(info);
            } else if let Some(at) = info.location() {
                let place = format!("{}:{}", at.file(), at.line());
                let _ = PLACE.try_with(|p| p.set(Some(place)));
            }
        }));
        HOOKED.store(true, Ordering::Release);
    });
}

/// Runs `f` while this thread's panics write nothing to stderr. They still unwind. Costs a
/// thread-local counter.
pub fn quiet_panics<T>(f: impl FnOnce() -> T) -> T {
    struct Loud;
    impl Drop for Loud {
        fn drop(&mut self) {
            QUIET.set(QUIET.get() - 1);
        }
    }
    hook();
    QUIET.set(QUIET.get() + 1);
    let _loud = Loud;
    f()
}

/// Runs `f` inside brant's panic boundary: a panic becomes an error and writes nothing. Allocates
/// only when it catches one. Data that `f` was changing when it panicked may be half changed, so
/// the caller must fail the object that owns it.
///
/// # Errors
/// `Internal` with the panic's message and place.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T> {
    quiet_panics(|| panic::catch_unwind(AssertUnwindSafe(f)).map_err(panicked))
}

fn panicked(payload: Box<dyn Any + Send>) -> Error {
    let text = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        // The payload's destructor is code of another crate, and could panic too.
        std::mem::forget(payload);
        "a panic without a message".to_owned()
    };
    let place = PLACE.try_with(Cell::take).ok().flatten();
    let message = match place {
        Some(place) => format!("panicked at {place}: {text}"),
        None => format!("panicked: {text}"),
    };
    Error::new(Kind::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// The blocked signals of the calling thread, as the kernel prints them.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("SigBlk:")).unwrap();
        u64::from_str_radix(line["SigBlk:".len()..].trim(), 16).unwrap()
    }

    fn bit(signal: i32) -> u64 {
        1 << (signal - 1)
    }

    #[test]
    fn a_thread_starts_with_all_signals_masked_and_leaves_its_parents_mask_alone() {
        let before = blocked();
        let (sender, receiver) = mpsc::channel();
        let join = spawn(
            Role::Reaper,
            move |_| sender.send(blocked()).unwrap(),
            blocked,
        )
        .unwrap();
        assert_eq!(blocked(), before);
        // The kernel never blocks KILL and STOP, the C library never 32 and 33.
        let never = bit(libc::SIGKILL) | bit(libc::SIGSTOP) | bit(32) | bit(33);
        assert_eq!(receiver.recv().unwrap(), !never);
        assert_eq!(join.join().unwrap(), !never);
        assert_eq!(before & bit(libc::SIGTERM), 0, "the test needs it unmasked");
    }

    #[test]
    fn a_thread_made_under_the_starters_mask_can_be_signalled_and_ours_is_masked_again_after_it() {
        let ours = blocked();
        let join = spawn(
            Role::Migration,
            |_| (),
            || {
                let all = blocked();
                let made = with_starters_mask(|| std::thread::spawn(blocked).join().unwrap());
                (all, made, blocked())
            },
        );
        let (all, made, after) = join.unwrap().join().unwrap();
        assert_eq!(made, ours);
        assert_ne!(all, ours);
        assert_eq!(after, all);
        // A thread that is not brant's keeps its mask.
        assert_eq!(with_starters_mask(blocked), ours);
    }

    #[test]
    fn a_signal_for_an_error_that_was_told_does_not_end_the_process_under_the_starters_mask() {
        let join = spawn(
            Role::Snapshot,
            |_| (),
            || {
                for signal in [libc::SIGXFSZ, libc::SIGPIPE] {
                    // As the kernel does after a write past the limit on file sizes. SAFETY:
                    // signals this thread, on which every signal is masked.
                    let result = unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
                    assert_eq!(result, 0);
                }
                with_starters_mask(|| 5)
            },
        );
        assert_eq!(join.unwrap().join().unwrap(), 5);
    }

    #[test]
    fn a_thread_announces_itself_by_role_and_name_before_it_works() {
        for (number, role) in (1..).zip(Role::ALL) {
            assert_eq!(role.number(), number);
            assert!(role.name().len() <= 15);
            let (sender, receiver) = mpsc::channel();
            let later = sender.clone();
            let announce = move |r| {
                let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
                sender.send((Some(r), name)).unwrap();
            };
            let body = move || later.send((None, String::new())).unwrap();
            spawn(role, announce, body).unwrap().join().unwrap();
            let (first, name) = receiver.recv().unwrap();
            assert_eq!((first, name.trim_end()), (Some(role), role.name()));
            assert_eq!(receiver.recv().unwrap().0, None);
        }
    }

    /// The stack size of the calling thread, by the C library.
    fn stack() -> usize {
        // SAFETY: the attributes are filled by the first call, read by the second, and freed.
        unsafe {
            let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
            assert_eq!(
                libc::pthread_getattr_np(libc::pthread_self(), &mut attributes),
                0
            );
            let (mut at, mut size) = (std::ptr::null_mut(), 0);
            libc::pthread_attr_getstack(&attributes, &mut at, &mut size);
            libc::pthread_attr_destroy(&mut attributes);
            size
        }
    }

    #[test]
    fn a_threads_stack_is_as_documented() {
        for role in Role::ALL {
            let size = spawn(role, |_| (), stack).unwrap().join().unwrap();
            // The C library may use a page of the stack, or reuse a larger stack that was freed.
            assert!(size >= role.stack() - 4096, "{role:?}: {size}");
        }
    }

    #[test]
    fn a_panic_in_a_thread_is_its_joins_error() {
        let fail: Result<()> = spawn(Role::Channel, |_| (), || panic!("page {}", 7))
            .unwrap()
            .join();
        let error = fail.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains("brant-channel"), "{error}");
        assert!(error.message().contains("page 7"), "{error}");
        assert!(error.message().contains("thread.rs:"), "{error}");
    }

    #[test]
    fn a_panic_in_the_announcement_keeps_the_body_from_running() {
        let (sender, receiver) = mpsc::channel();
        let join = spawn(
            Role::Listener,
            |_| panic!("no seccomp"),
            move || sender.send(()).unwrap(),
        );
        let error = join.unwrap().join().unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains("no seccomp"), "{error}");
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn a_panic_value_that_panics_when_dropped_is_caught_too() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("bomb");
            }
        }
        let error = catch(|| panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
    }

    #[test]
    fn boundaries_nest_and_leave_the_flag_as_it_was() {
        let outer = catch(|| {
            let inner = catch::<()>(|| panic!("inner"));
            assert_eq!(QUIET.get(), 1);
            inner
        });
        assert!(outer.unwrap().is_err());
        assert_eq!(QUIET.get(), 0);
        assert_eq!(catch(|| 5).unwrap(), 5);
    }

    /// Runs this test again in a process of its own, and returns what that process wrote to stderr.
    fn stderr_of(test: &str, case: &str) -> String {
        let module = module_path!().split_once("::").unwrap().1;
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args([&format!("{module}::{test}"), "--exact", "--nocapture"])
            .env("BRANT_TEST_CASE", case)
            .output()
            .unwrap();
        assert!(out.status.success(), "{case}: {out:?}");
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(stdout.contains("1 passed"), "{stdout}");
        assert!(!stdout.contains("kept quiet"), "{stdout}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    #[test]
    fn nothing_is_written_for_our_panics_and_others_are_as_loud_as_before() {
        let test = "nothing_is_written_for_our_panics_and_others_are_as_loud_as_before";
        let quiet = || {
            assert!(catch(|| panic!("kept quiet")).is_err());
            let join = spawn(Role::Channel, |_| (), || panic!("kept quiet"));
            assert!(join.unwrap().join().is_err());
        };
        match std::env::var("BRANT_TEST_CASE").as_deref() {
            Ok("quiet") => quiet(),
            Ok("loud") => {
                quiet();
                assert!(panic::catch_unwind(|| panic!("meant to be heard")).is_err());
                quiet();
            }
            _ => {
                assert_eq!(stderr_of(test, "quiet"), "");
                let loud = stderr_of(test, "loud");
                assert!(loud.contains("meant to be heard"), "{loud}");
                assert!(!loud.contains("kept quiet"), "{loud}");
            }
        }
    }
}
