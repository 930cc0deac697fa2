//! Which version and features two sides use, decided from what each offers.
//!
//! Pure functions over [`Hello`] and [`HelloReply`]; the handshake itself is in `migrate`. An
//! unknown requirement is refused by name, so that a reader of the message knows what to upgrade or
//! switch off.

use super::records::{Hello, HelloReply};
use crate::error::{Error, Kind, Result};
use crate::units::PAGE_SHIFT;

/// The oldest protocol version that this library speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest protocol version that this library speaks.
pub const VERSION_MAX: u16 = 1;

/// Bit of "zero-runs": ZEROS records stand for zero pages. Version 1 requires it.
pub const FEATURE_ZERO_RUNS: u64 = 1 << 0;

/// Bit of "ballooned": BALLOONED records say which pages are ballooned. Without it these pages are
/// sent as zeros.
pub const FEATURE_BALLOONED: u64 = 1 << 1;

/// Bit of "zstd": COMPRESSED records bring contents as zstd frames.
pub const FEATURE_ZSTD: u64 = 1 << 2;

/// Bit of "delta": DELTA records say what has changed in a page.
pub const FEATURE_DELTA: u64 = 1 << 3;

/// Bit of "verify": DIGEST records say what the destination's pages hold.
pub const FEATURE_VERIFY: u64 = 1 << 4;

/// Bit of "page-checksums": PAGES and PAGES_LIST have a checksum behind their contents.
pub const FEATURE_PAGE_CHECKSUMS: u64 = 1 << 5;

/// Bit of "device-streams": DEVICE records bring the state of devices.
pub const FEATURE_DEVICE_STREAMS: u64 = 1 << 6;

/// Bit of "postcopy": the guest may run at the destination before all of its pages are there.
pub const FEATURE_POSTCOPY: u64 = 1 << 7;
/// Bit of "descriptors": BLOCK_FD records bring the file of a block's memory as a descriptor, and no
/// page of such a block is sent. Only over a unix socket.
pub const FEATURE_DESCRIPTORS: u64 = 1 << 8;

/// A feature with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Feature {
    /// The number of its bit.
    pub bit: u32,
    /// Its name in messages and in the specification.
    pub name: &'static str,
}

/// Every feature that has a name. A bit is never reused.
pub const FEATURES: &[Feature] = &[
    Feature {
        bit: 0,
        name: "zero-runs",
    },
    Feature {
        bit: 1,
        name: "ballooned",
    },
    Feature {
        bit: 2,
        name: "zstd",
    },
    Feature {
        bit: 3,
        name: "delta",
    },
    Feature {
        bit: 4,
        name: "verify",
    },
    Feature {
        bit: 5,
        name: "page-checksums",
    },
    Feature {
        bit: 6,
        name: "device-streams",
    },
    Feature {
        bit: 7,
        name: "postcopy",
    },
    Feature {
        bit: 8,
        name: "descriptors",
    },
];

/// What one side can use, and what it requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ours {
    /// The oldest version acceptable.
    pub version_min: u16,
    /// The newest version acceptable.
    pub version_max: u16,
    /// Feature bits that this side can use.
    pub offered: u64,
    /// Feature bits without which this side refuses.
    pub required: u64,
}

impl Default for Ours {
    /// Everything that this library speaks, and what version 1 requires.
    fn default() -> Self {
        Ours {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            offered: FEATURE_ZERO_RUNS
                | FEATURE_BALLOONED
                | FEATURE_ZSTD
                | FEATURE_DELTA
                | FEATURE_VERIFY
                | FEATURE_PAGE_CHECKSUMS
                | FEATURE_DEVICE_STREAMS
                | FEATURE_POSTCOPY
                | FEATURE_DESCRIPTORS,
            required: FEATURE_ZERO_RUNS,
        }
    }
}

impl Ours {
    /// The offer that also requires `features`.
    pub fn requiring(self, features: u64) -> Ours {
        Ours {
            required: self.required | features,
            ..self
        }
    }

    /// The offer without features that this side was told not to use.
    pub fn without(self, features: u64) -> Ours {
        Ours {
            offered: self.offered & !features,
            ..self
        }
    }
}

/// The features in `bits` for a message: their names, or bit numbers for unknown ones, or "none"
/// for 0.
pub fn feature_names(bits: u64) -> String {
    let mut names = String::new();
    for bit in (0..u64::BITS).filter(|bit| bits >> bit & 1 != 0) {
        if !names.is_empty() {
            names.push_str(", ");
        }
        match FEATURES.iter().find(|feature| feature.bit == bit) {
            Some(feature) => {
                names.push_str(feature.name);
                names.push_str(&format!(" (bit {bit})"));
            }
            None => names.push_str(&format!("unknown feature bit {bit}")),
        }
    }
    if names.is_empty() {
        names.push_str("none");
    }
    names
}

fn refuse(message: String) -> Error {
    Error::new(Kind::Version, message)
}

/// The destination's answer to `hello`: the highest version in both ranges, and the features that
/// both sides offer.
///
/// # Errors
/// [`Kind::Version`] if the version ranges do not overlap, or if one side requires a feature that
/// the other does not offer; [`Kind::Unsupported`] for pages of another size than 4 KiB.
pub fn negotiate(hello: &Hello, ours: &Ours) -> Result<(u16, u64)> {
    let version = hello.version_max.min(ours.version_max);
    if version < hello.version_min.max(ours.version_min) {
        return Err(refuse(format!(
            "no common protocol version: the source speaks {} to {}, this side {} to {}",
            hello.version_min, hello.version_max, ours.version_min, ours.version_max
        )));
    }
    if u32::from(hello.page_shift) != PAGE_SHIFT {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "expected pages of 2^{PAGE_SHIFT} bytes, found 2^{} at the source",
                hello.page_shift
            ),
        ));
    }
    let not_here = hello.features_required & !ours.offered;
    if not_here != 0 {
        return Err(refuse(format!(
            "the source requires features that are not offered here: {}",
            feature_names(not_here)
        )));
    }
    let not_there = ours.required & !hello.features_offered;
    if not_there != 0 {
        return Err(refuse(format!(
            "this side requires features that the source does not offer: {}",
            feature_names(not_there)
        )));
    }
    Ok((version, hello.features_offered & ours.offered))
}

/// Whether `reply` is acceptable to the source, which offered `ours`.
///
/// # Errors
/// [`Kind::Version`] for a version outside the offered range, a feature that was not offered, or a
/// required one that is missing.
pub fn check_reply(reply: &HelloReply, ours: &Ours) -> Result<()> {
    if !(ours.version_min..=ours.version_max).contains(&reply.version) {
        return Err(refuse(format!(
            "expected the destination to choose a protocol version from {} to {}, found {}",
            ours.version_min, ours.version_max, reply.version
        )));
    }
    let uninvited = reply.features & !ours.offered;
    if uninvited != 0 {
        return Err(refuse(format!(
            "the destination chose features that were not offered: {}",
            feature_names(uninvited)
        )));
    }
    let missing = ours.required & !reply.features;
    if missing != 0 {
        return Err(refuse(format!(
            "the destination left out required features: {}",
            feature_names(missing)
        )));
    }
    Ok(())
}
