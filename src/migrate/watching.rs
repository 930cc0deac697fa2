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

            /// Records this migration as JSON lines to `to`: its figures every
            /// [`interval`](crate::migrate::RecordParams::interval) when they have changed, and each
            /// event. `docs/recording.md` has the lines. The recording ends with the migration, or by
            /// `end_record`, and `to` is closed then.
            ///
            /// A thread of its own ([`Role::Record`](crate::vmm::Role::Record)) writes, and never holds
            /// up the migration: when `to` takes nothing, 256 KiB of lines wait, and further ones are
            /// dropped and counted. Before the start or at any time after it.
            ///
            /// # Errors
            /// [`Kind::Invalid`](crate::Kind::Invalid) for a descriptor that is not open for writing and
            /// for parameters out of range, [`Kind::Exists`](crate::Kind::Exists) when there is a
            /// recording that was not ended.
            pub fn record(
                &self,
                to: std::os::fd::OwnedFd,
                params: crate::migrate::RecordParams,
            ) -> crate::error::Result<()> {
                crate::migrate::record::begin(&self.shared, to, params)
            }

            /// Ends the recording, after the last figures have been written, for which it waits a second
            /// at most when nobody reads. Says what became of it.
            ///
            /// # Errors
            /// [`Kind::State`](crate::Kind::State) when nothing is recorded,
            /// [`Kind::Callback`](crate::Kind::Callback) inside a callback of this migration.
            pub fn end_record(&self) -> crate::error::Result<crate::migrate::Recorded> {
                crate::migrate::record::end(&*self.shared)
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
