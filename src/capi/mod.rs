//! The C face: `extern "C"` over the crate, one file a concept. It converts, checks and calls
//! down; there is no logic in it.
//!
//! Every export is written as one `boundary!`, which lets no panic out: a panic in brant comes
//! back as `BRANT_E_INTERNAL`. `include/brant.h` is generated from here; `header/brant.h.in` gives
//! each file its section.
#![allow(non_camel_case_types)]
#![allow(clippy::missing_safety_doc)]

/// The boundary between C and Rust.
///
/// `boundary!(error, { … })` is for functions that return 0 or a code: the block gives a
/// `Result<()>` and an error goes to `error` (a `brant_error **` that may be null).
/// `boundary!(or value, { … })` is for the others: `value` is what they return if brant panics.
macro_rules! boundary {
    (or $default:expr, $body:block) => {
        $crate::runtime::thread::catch(move || {
            #[cfg(test)]
            let _planted = $crate::migrate::planted::point("export");
            $body
        })
        .unwrap_or($default)
    };
    ($error:expr, $body:block) => {
        $crate::capi::error::status($error, move || {
            #[cfg(test)]
            let _planted = $crate::migrate::planted::point("export");
            $body
        })
    };
}

pub mod balloon;
pub mod bitmap;
pub mod blocker;
pub mod chain;
pub mod consumer;
pub mod device;
pub mod error;
pub mod forecast;
pub mod gate;
pub mod guest;
pub mod hints;
pub mod image;
pub mod image_merge;
pub mod image_restore;
pub mod image_save;
pub mod incoming;
pub mod kvm;
#[cfg(target_arch = "x86_64")]
pub mod kvm_state;
pub mod measure;
pub mod missing;
pub mod ops;
pub mod outgoing;
pub mod owner;
pub mod params;
pub mod policy;
mod postcopy;
pub mod rate;
pub mod reader;
pub mod record;
pub mod ring;
pub mod state;
pub mod stats;
pub mod tracker;
pub mod userfault;
pub mod version;
pub mod vfio;
pub mod vfio_device;
pub mod vhost;
pub mod vhost_user;

mod structs;

#[cfg(test)]
mod tests;
