//! Which brant this is, and what it can do.

use std::ffi::{c_char, CStr};

/// Version of this header.
pub const BRANT_VERSION_MAJOR: u32 = 0;
/// Version of this header.
pub const BRANT_VERSION_MINOR: u32 = 1;
/// Version of this header.
pub const BRANT_VERSION_PATCH: u32 = 0;

/// The version of the library that is linked, as "0.1.0". Static; any thread.
#[no_mangle]
pub extern "C" fn brant_version() -> *const c_char {
    boundary!(or c"".as_ptr(), {
        const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
        TEXT.as_ptr().cast()
    })
}

/// The features of every build.
const ALWAYS: &[&str] = &[
    "bitmap",
    "tracker",
    "migration",
    "kvm-log",
    "kvm-ring",
    "reported",
    "vhost",
    "vfio",
    "iommufd",
    "userfault",
    "balloon",
    "hints",
    "image",
    "tcp",
    "unix",
    "fd",
    "channels",
    "delta",
    "zero-copy",
    "checksums",
    "prefault",
    "verify",
    "policies",
    "forecasts",
    "vcpu-limits",
    "devices",
    "postcopy",
    "hand-over",
    "lazy-restore",
    "instant-save",
    "image-chain",
    "kvm-state",
];

/// The features that a build may lack, and whether this one has them.
const CHOSEN: &[(&str, bool)] = &[
    ("compression", cfg!(feature = "compression")),
    ("probes", cfg!(feature = "probes")),
];

/// Whether the linked library has a feature: 1 if it does, 0 if not or if it does not know the
/// name. Any thread. NULL gives 0.
///
/// Every library has every function, whatever it was built with. When a feature is missing, a call
/// that asks for it is BRANT_E_UNSUPPORTED, and the message names the feature. A build may lack
/// "compression" (contents of pages compressed by zstd) and "probes" (static probes for tracers, which
/// no call asks for: docs/tracing.md). All other features are in every build of
/// this version; programs ask for them because an older library does not know their names.
///
/// The answer is about the library, and not about the machine: a kernel or a processor may lack what
/// a feature needs. The call that needs it then says so, by BRANT_E_UNSUPPORTED or as its comment
/// says.
///
/// - The three levels: "bitmap", "tracker", "migration".
/// - Logs: "kvm-log" (KVM's dirty bitmaps), "kvm-ring" (its dirty rings), "reported" (the VMM's own
///   marks), "userfault" (userfaultfd's write protection), "vhost", "vfio", "iommufd" (logs of
///   devices).
/// - Transports: "tcp", "unix", "fd".
/// - Fields of `brant_params`: "channels" (several connections), "delta" (deltas of pages that are
///   sent again), "zero-copy", "checksums", "compression", "prefault", "verify".
/// - "balloon" (ballooned pages are not sent), "hints" (free-page hints), "image" (a guest in a
///   file), "policies" (a guest is slowed, a limit rises, a deadline counts), "forecasts",
///   "vcpu-limits" (dirty limits of single vCPUs, in rings), "devices" (device state that is sent
///   while the guest runs), "postcopy" (a guest that runs at the destination before all of its
///   memory is there), "hand-over" (memory that changes hands by descriptor on one host),
///   "lazy-restore" (a restored guest that runs before all of its memory is there), "instant-save"
///   (an image of a running guest as it was at the start of the save), "image-chain" (images of what
///   changed since the image before), "kvm-state" (the state of KVM's vCPUs and VMs).
#[no_mangle]
pub unsafe extern "C" fn brant_has_feature(name: *const c_char) -> i32 {
    boundary!(or 0, {
        if name.is_null() {
            return 0;
        }
        // SAFETY: not null, and a NUL-terminated string by contract.
        let name = unsafe { CStr::from_ptr(name) };
        let name = name.to_bytes();
        let always = ALWAYS.iter().any(|f| f.as_bytes() == name);
        let chosen = CHOSEN.iter().any(|(f, has)| *has && f.as_bytes() == name);
        (always || chosen) as i32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_migration_may_be_told_to_do_is_a_feature_with_a_name() {
        let names = [
            c"channels",
            c"delta",
            c"zero-copy",
            c"checksums",
            c"compression",
            c"prefault",
            c"verify",
            c"policies",
            c"forecasts",
            c"vcpu-limits",
            c"devices",
            c"postcopy",
            c"hand-over",
            c"lazy-restore",
            c"instant-save",
            c"image-chain",
            c"kvm-state",
        ];
        let chosen = |name: &CStr| CHOSEN.iter().any(|(f, _)| f.as_bytes() == name.to_bytes());
        for name in names.into_iter().filter(|name| !chosen(name)) {
            // SAFETY: a string.
            assert_eq!(unsafe { brant_has_feature(name.as_ptr()) }, 1, "{name:?}");
        }
    }

    #[test]
    fn the_header_s_version_is_the_crate_s() {
        let header = format!("{BRANT_VERSION_MAJOR}.{BRANT_VERSION_MINOR}.{BRANT_VERSION_PATCH}");
        assert_eq!(header, env!("CARGO_PKG_VERSION"));
    }
}
