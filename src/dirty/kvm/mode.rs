//! The kinds of KVM's logs, and their names.

use crate::sys::kvm::{MANUAL_INITIALLY_SET, MANUAL_PROTECT_ENABLE};

/// The kind of KVM's log: where its bits are, and how they are read and cleared. The numbers are
/// part of the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum KvmMode {
    /// The best mode available: [`choose()`](super::choose()) decides.
    #[default]
    Auto = 0,
    /// A bitmap that `KVM_GET_DIRTY_LOG` reads and clears.
    GetAndClear = 1,
    /// A bitmap that `KVM_CLEAR_DIRTY_LOG` clears. A start protects every page.
    ManualProtect = 2,
    /// A bitmap that `KVM_CLEAR_DIRTY_LOG` clears. A start protects no page and sets every bit.
    InitiallySet = 3,
    /// Entries in each vCPU's ring instead of a bitmap. See [`super::ring`].
    Ring = 4,
}

impl KvmMode {
    /// The name as it stands in a sentence: "initially-set bitmaps".
    pub fn name(self) -> &'static str {
        match self {
            KvmMode::Auto => "KVM's best log",
            KvmMode::GetAndClear => "get-and-clear bitmaps",
            KvmMode::ManualProtect => "manual-protect bitmaps",
            KvmMode::InitiallySet => "initially-set bitmaps",
            KvmMode::Ring => "dirty rings",
        }
    }

    /// The argument of `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` that sets this mode.
    pub(super) fn manual(self) -> u64 {
        match self {
            KvmMode::Auto | KvmMode::GetAndClear | KvmMode::Ring => 0,
            KvmMode::ManualProtect => MANUAL_PROTECT_ENABLE,
            KvmMode::InitiallySet => MANUAL_PROTECT_ENABLE | MANUAL_INITIALLY_SET,
        }
    }
}

/// The chosen mode, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Never [`KvmMode::Auto`].
    pub mode: KvmMode,
    /// The reason, in one sentence.
    pub reason: String,
}
