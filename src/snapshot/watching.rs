//! What the VMM asks of a save or a restore while it is in progress, the same words for both.

/// The questions of a type whose `shared` has a [`Task`](super::task::Task), its `Debug` and its
/// `Drop`, which calls `$before` first. `$what` is its name in the documentation.
macro_rules! watching {
    ($task:ident, $what:literal) => {
        watching!($task, $what, |_: &$task| ());
    };
    ($task:ident, $what:literal, $before:expr) => {
        impl $task {
            #[doc = concat!("Waits until the ", $what, " is over.")]
            /// After `limit` the wait ends with [`Pending`](crate::Kind::Pending).
            ///
            /// # Errors
            #[doc = concat!("The error of a ", $what, " that failed;")]
            /// [`Callback`](crate::Kind::Callback) inside an operation that
            #[doc = concat!("this ", $what, " called.")]
            pub fn wait(&self, limit: Option<std::time::Duration>) -> crate::error::Result<()> {
                self.shared.task.wait(limit)
            }

            /// An eventfd that becomes readable when the figures have changed. A read resets it.
            #[doc = concat!("The ", $what, " owns it.")]
            pub fn notify_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.shared.task.notify.fd()
            }

            /// Whether this thread is inside an operation that
            #[doc = concat!("this ", $what, " called.")]
            pub fn in_callback(&self) -> bool {
                self.shared.task.in_callback()
            }

            /// Whether a cancel was asked for.
            #[cfg(test)]
            pub(super) fn is_cancelled(&self) -> bool {
                self.shared.task.cancel.is_cancelled()
            }
        }

        impl std::fmt::Debug for $task {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($task))
                    .field("stats", &self.stats())
                    .finish_non_exhaustive()
            }
        }

        impl Drop for $task {
            #[doc = concat!("Cancels a ", $what, " in progress and waits for its end.")]
            fn drop(&mut self) {
                ($before)(&*self);
                self.shared.task.shut_down(|| self.cancel_devices());
            }
        }
    };
}
pub(super) use watching;
