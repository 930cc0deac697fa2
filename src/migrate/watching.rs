//! The VMM's queries about a migration in progress, which are the same at both sides.

/// The queries of a type whose `shared` is a [`Migration`](super::common::Migration).
macro_rules! watching {
    ($migration:ident, $state:ty) => {
        impl $migration {
            /// The migration state.
            pub fn state(&self) -> $state {
                self.shared.handle.state()
            }

            /// The current figures.
            pub fn stats(&self) -> crate::migrate::Stats {
                self.shared.handle.stats(self.standing())
            }

            /// The current figures as JSON: those of [`Stats::to_json`], and `forecast`, an object
            /// or `null` where there is none.
            ///
            /// [`Stats::to_json`]: crate::migrate::Stats::to_json
            pub fn stats_json(&self) -> crate::error::Result<String> {
                self.stats().to_json_with(self.forecast().as_ref())
            }

            /// The current figures as one line for a person, of at most
            /// [`LINE_MAX`](crate::migrate::LINE_MAX) bytes, such as "copying, pass 3, 87.1 %, 1.2
            /// GB/s, guest writes 310 MB/s, 2.1 GB to send, downtime would be 120 ms of 300 ms, about
            /// 12 s left". Its words may change; the figures are for programs.
            pub fn line(&self) -> String {
                crate::migrate::line::line(&self.stats(), self.forecast().as_ref())
            }

            /// An eventfd that becomes readable when the figures have changed. The migration owns
            /// the eventfd; reading it resets it.
            pub fn notify_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.shared.handle.notify.fd()
            }

            /// Whether this thread is inside one of this migration's callbacks.
            pub fn in_callback(&self) -> bool {
                self.shared.handle.in_callback()
            }
        }

        impl std::fmt::Debug for $migration {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($migration))
                    .field("state", &self.state())
                    .finish_non_exhaustive()
            }
        }
    };
}
pub(super) use watching;
