//! What the guests run: position-independent 64-bit code, each program at a label (`c-tests/kvm_state.inc`,
//! which the C program of the same name has too).
//!
//! A program tells where it is by a store to `SIGNAL`, where no memory is: KVM comes out with
//! KVM_EXIT_MMIO at every privilege level. Before the first signal it gives each register a value,
//! after it the registers are written to `DUMP`. So what was moved in between is read by the guest itself.

use std::arch::global_asm;

/// A store here is a signal.
pub const SIGNAL: u64 = 0x3fe0_0000;
/// What programs read.
pub const INPUT: u64 = 0x2_0000;
/// What programs write.
pub const DUMP: u64 = 0x2_2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Level 3: general, segment, x87 and SSE registers, flags.
    Registers,
    /// Level 3: the upper halves of the AVX registers.
    Avx,
    /// Level 0: MSRs, debug registers, CR2, CR8, TSC.
    System,
    /// Level 3: the TSC.
    Tsc,
    /// Level 0: KVM's clock.
    Clock,
    /// Level 0: sends itself interrupt 0x40 and takes it after the signal.
    SelfIpi,
    /// Level 0: the local APIC's timer fires interrupt 0x41, once.
    Timer,
    /// Level 0: the same by the TSC's deadline.
    Deadline,
    /// Level 0: the PIT fires interrupt 0x30, again and again.
    Pit,
    /// Level 0: stands in `hlt`, interrupts on.
    Halt,
    /// Level 0: signals, then allows interrupts and waits.
    Wait,
    /// A handler: signals 9.
    Handler,
}

macro_rules! labels {
    ($($program:ident $label:ident $level:literal;)*) => {
        extern "C" {
            static kvm_state_image: u8;
            static kvm_state_image_end: u8;
            $(static $label: u8;)*
        }
        impl Program {
            /// Where in the image it begins.
            pub fn offset(self) -> u64 {
                let label = match self { $(Program::$program => &raw const $label,)* };
                label as u64 - &raw const kvm_state_image as u64
            }
            /// The privilege level at which it runs.
            pub fn level(self) -> u8 {
                match self { $(Program::$program => $level,)* }
            }
        }
    };
}

labels! {
    Registers kvm_state_registers 3;
    Avx kvm_state_avx 3;
    System kvm_state_system 0;
    Tsc kvm_state_tsc 3;
    Clock kvm_state_clock 0;
    SelfIpi kvm_state_self_ipi 0;
    Timer kvm_state_timer 0;
    Deadline kvm_state_deadline 0;
    Pit kvm_state_pit 0;
    Halt kvm_state_halt 0;
    Wait kvm_state_wait 0;
    Handler kvm_state_handler 0;
}

/// The code of all programs.
#[allow(non_snake_case)]
pub fn IMAGE() -> &'static [u8] {
    let (begin, end) = (&raw const kvm_state_image, &raw const kvm_state_image_end);
    // SAFETY: both are labels around the code below.
    unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) }
}

global_asm!(include_str!("../../c-tests/kvm_state.inc"));
