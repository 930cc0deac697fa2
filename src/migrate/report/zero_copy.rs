//! Whether pages are sent without a copy, as a figure.

use crate::channel::{Copying, ZeroCopy};
use serde::{Serialize, Serializer};

/// Whether pages are sent without a copy
/// ([`Params::zero_copy`](crate::migrate::Params::zero_copy)), and why not. The numbers are part of
/// the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
#[non_exhaustive]
pub enum ZeroCopyState {
    /// Sending without a copy was not asked for.
    #[default]
    Off = 0,
    /// Pages are sent without a copy, but for [`Stats::encoded_pages`](super::Stats::encoded_pages) and records of fewer than four
    /// pages.
    On = 1,
    /// The kernel cannot send without a copy on this kind of connection.
    Unsupported = 2,
    /// The kernel copied every page all the same, so brant has pages copied at once.
    Copied = 3,
    /// Not even the memory of one send may be locked (`RLIMIT_MEMLOCK`, `net.core.optmem_max`).
    Limit = 4,
    /// Nothing can go without a copy, and so far nothing has: pages travel with a checksum,
    /// compressed or as deltas ([`Stats::encoded_pages`](super::Stats::encoded_pages)). With checksums that stays so. With
    /// compression, the first pages that are not worth compressing turn this into
    /// [`ZeroCopyState::On`].
    Encoded = 5,
}

impl ZeroCopyState {
    /// The state of a source that asked to send without a copy. `checksums`: no page goes without
    /// a checksum. `encoded`: some pages went from a copy that brant made.
    pub(in crate::migrate) fn of(
        found: &ZeroCopy,
        checksums: bool,
        encoded: bool,
    ) -> ZeroCopyState {
        match found.copying {
            Copying::Asked => ZeroCopyState::Off,
            Copying::No if found.calls == 0 && (checksums || encoded) => ZeroCopyState::Encoded,
            Copying::No => ZeroCopyState::On,
            Copying::Unsupported => ZeroCopyState::Unsupported,
            Copying::Anyway => ZeroCopyState::Copied,
            Copying::Limit => ZeroCopyState::Limit,
        }
    }

    /// Why pages are copied although sending without a copy was asked for.
    pub(in crate::migrate) fn why_off(self) -> Option<&'static str> {
        match self {
            ZeroCopyState::Off | ZeroCopyState::On => None,
            ZeroCopyState::Unsupported => {
                Some("the kernel cannot send without a copy on this kind of connection")
            }
            ZeroCopyState::Copied => Some(
                "the kernel copied each time although it was asked not to, as it does on loopback",
            ),
            ZeroCopyState::Limit => Some(
                "not even one send's memory may be locked: raise RLIMIT_MEMLOCK or \
                 net.core.optmem_max",
            ),
            ZeroCopyState::Encoded => Some(
                "pages travel with a checksum, compressed or as deltas, and those bytes are copies \
                 already",
            ),
        }
    }
}

impl Serialize for ZeroCopyState {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_u64(*self as u64)
    }
}
