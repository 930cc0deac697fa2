//! One vCPU moves to another VM with the same memory; guest code changes each class of registers
//! before, and reads it after.

use super::machine::{kvm, Chips, Machine, Ram};
use super::programs::{Program, DUMP, INPUT};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs `program` to its first signal in one machine, moves the vCPU, and runs on in the other one.
fn moved(chips: Chips, program: Program, input: &[u64]) -> Option<(Arc<Ram>, u8)> {
    let kvm = kvm()?;
    let ram = Ram::new();
    for (at, word) in input.iter().enumerate() {
        ram.put(INPUT + 8 * at as u64, *word);
    }
    for vector in [2, 0x40, 0x41] {
        ram.gate(vector, Program::Handler);
    }
    let mut here = Machine::new(&kvm, &ram, chips);
    let mut there = Machine::new(&kvm, &ram, chips);
    here.begin(program);
    here.run();
    there.load(&here.save()).unwrap();
    drop(here);
    let signal = there.run();
    Some((ram, signal))
}

fn pattern(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[test]
fn registers_that_level_3_changes_are_read_there_after_the_move() {
    let mut input: Vec<u64> = (0..32).map(pattern).collect(); // xmm0 to xmm15
    input.resize(0x200 / 8, 0);
    input.push(0x027f | 0x9fc0 << 32); // control word (53 bits), MXCSR (flush to zero)
    input.resize(0x300 / 8, 0);
    input.extend((32..48).map(pattern)); // the general ones
    let Some((ram, signal)) = moved(Chips::None, Program::Registers, &input) else {
        return;
    };
    assert_eq!(signal, 2);
    for n in 0..16 {
        let (found, expected) = (ram.get(DUMP + 8 * n), pattern(32 + n));
        assert_eq!(found, expected, "general register {n}");
    }
    assert_eq!(ram.get(DUMP + 0x80) & 0x401, 0x401, "carry and direction");
    for n in 0..32 {
        assert_eq!(ram.get(DUMP + 0x100 + 8 * n), pattern(n), "half {n} of xmm");
    }
    assert_eq!(ram.get(DUMP + 0x200) & 0xffff, 0x027f, "the control word");
    assert_eq!(ram.get(DUMP + 0x200) >> 32, 0x9fc0, "MXCSR");
    let x87 = |at| f64::from_bits(ram.get(DUMP + at));
    assert_eq!((x87(0x208), x87(0x210)), (std::f64::consts::PI, 1.0));
    if ram.get(DUMP + 0x228) == 0x1b {
        assert_eq!(ram.get(DUMP + 0x218), 0x23, "ES, and FS with nothing in it");
        assert_eq!(ram.get(DUMP + 0x220), 0x23 | 0x1b << 32, "GS and CS");
    } else {
        println!("selectors: skipped, this KVM runs level 3 with selectors of its own");
    }
}

#[test]
fn registers_that_only_level_0_changes_are_read_there_after_the_move() {
    let input = [
        0x0013_0008_0000_0000, // STAR
        0x0000_7f12_3456_7000, // LSTAR
        0x0004_7700,           // SFMASK
        0x0000_5555_6666_7000, // KERNEL_GS_BASE
        0x0000_1234_5678_9000, // SYSENTER_ESP
        0x0007_0106_0007_0406, // PAT
        0x0000_2222_3333_4000, // FS_BASE
        0x0000_1111_2222_3000, // DR0
        0x0000_1111_2222_4000, // DR3
        0x0000_0600,           // DR7: no breakpoint is on
        0x0000_4444_5555_6000, // CR2
        5,                     // CR8
    ];
    let Some((ram, signal)) = moved(Chips::None, Program::System, &input) else {
        return;
    };
    assert_eq!(signal, 2);
    for (at, value) in input.iter().enumerate() {
        let found = ram.get(DUMP + 8 * at as u64) & if at == 9 { !0x400 } else { !0 };
        let expected = value & if at == 9 { !0x400 } else { !0 };
        assert_eq!(found, expected, "word {at}");
    }
    let (before, after) = (ram.get(DUMP + 0x60), ram.get(DUMP + 0x68));
    assert!(after > before, "the TSC went from {before} to {after}");
}

#[test]
fn the_tsc_at_level_3_does_not_go_back() {
    let Some((ram, signal)) = moved(Chips::None, Program::Tsc, &[]) else {
        return;
    };
    let (before, after) = (ram.get(DUMP + 0x60), ram.get(DUMP + 0x68));
    assert_eq!(signal, 2);
    assert!(after > before, "the TSC went from {before} to {after}");
    println!("TSC: {} cycles", after - before);
}

#[test]
fn kvms_clock_neither_stands_nor_goes_back_nor_jumps_while_the_guest_moves() {
    const STILL: Duration = Duration::from_millis(50);
    /// The clocks of the day and of the machine differ by less.
    const CLOSE: Duration = Duration::from_millis(5);
    let Some(kvm) = kvm() else { return };
    let ram = Ram::new();
    let (mut here, mut there) = (
        Machine::new(&kvm, &ram, Chips::None),
        Machine::new(&kvm, &ram, Chips::None),
    );
    here.begin(Program::Clock);
    let first = Instant::now();
    assert_eq!(here.run(), 1);
    let stood = Instant::now();
    let saved = here.save();
    while stood.elapsed() < STILL {
        std::hint::spin_loop();
    }
    there.load(&saved).unwrap();
    let (least, again) = (stood.elapsed(), Instant::now());
    assert_eq!(there.run(), 2);
    let most = first.elapsed();
    let (before, after) = (ram.get(DUMP + 0x60), ram.get(DUMP + 0x68));
    assert!(after > before, "the clock went from {before} to {after}");
    let went = Duration::from_nanos(after - before);
    println!(
        "the clock went on by {went:?}; {least:?} to {most:?}, {:?} in the guest",
        again.elapsed()
    );
    assert!(went + CLOSE >= least && went <= most + CLOSE, "{went:?}");
    // PVCLOCK_GUEST_STOPPED.
    assert_eq!(ram.get(DUMP + 0x70) & 2, 2, "the guest hears that it stood");
}

#[test]
fn an_interrupt_that_the_apic_holds_is_taken_after_the_move() {
    let Some((_, signal)) = moved(Chips::Kernel, Program::SelfIpi, &[]) else {
        return;
    };
    assert_eq!(signal, 9);
}

#[test]
fn the_apic_timer_fires_after_the_move() {
    let Some((_, signal)) = moved(Chips::Kernel, Program::Timer, &[100_000_000]) else {
        return;
    };
    assert_eq!(signal, 9);
}

#[test]
fn the_deadline_of_the_tsc_passes_after_the_move_and_not_before_its_time() {
    let Some((ram, signal)) = moved(Chips::Kernel, Program::Deadline, &[200_000_000]) else {
        return;
    };
    assert_eq!(signal, 9);
    let (deadline, taken) = (ram.get(DUMP + 0x60), ram.get(DUMP + 0x68));
    assert!(taken >= deadline, "deadline {deadline}, taken {taken}");
}

#[test]
fn the_upper_halves_of_avx_registers_move() {
    let Some(kvm) = kvm() else { return };
    let ram = Ram::new();
    let (mut here, mut there) = (
        Machine::new(&kvm, &ram, Chips::None),
        Machine::new(&kvm, &ram, Chips::None),
    );
    if !here.has_avx() {
        println!("skipped: this KVM has no AVX for guests");
        return;
    }
    (0..64).for_each(|n| ram.put(INPUT + 8 * n, pattern(n)));
    here.begin(Program::Avx);
    here.run();
    there.load(&here.save()).unwrap();
    assert_eq!(there.run(), 2);
    (0..64).for_each(|n| assert_eq!(ram.get(DUMP + 8 * n), pattern(n), "quarter {n} of ymm"));
}

#[test]
fn a_vcpu_that_has_halted_waits_on_after_the_move() {
    let Some(kvm) = kvm() else { return };
    let ram = Ram::new();
    ram.gate(0x40, Program::Handler);
    let mut here = Machine::new(&kvm, &ram, Chips::Kernel);
    let mut there = Machine::new(&kvm, &ram, Chips::Kernel);
    here.begin(Program::Halt);
    here.run_until_halted();
    there.load(&here.save()).unwrap();
    let state = there.vcpu.get_mp_state().unwrap().mp_state;
    assert_eq!(state, 3, "KVM_MP_STATE_HALTED");
    // And wakes up by an interrupt.
    there.interrupt_by_apic(0x40);
    assert_eq!(there.run(), 9);
}

#[test]
fn events_that_wait_for_the_vcpu_are_taken_after_the_move() {
    let Some(kvm) = kvm() else { return };
    for nmi in [true, false] {
        let ram = Ram::new();
        ram.gate(if nmi { 2 } else { 0x42 }, Program::Handler);
        let mut here = Machine::new(&kvm, &ram, Chips::None);
        let mut there = Machine::new(&kvm, &ram, Chips::None);
        here.begin(Program::Wait);
        assert_eq!(here.run(), 1);
        match nmi {
            true => here.vcpu.nmi().unwrap(),
            false => {
                let mut regs = here.vcpu.get_regs().unwrap();
                regs.rflags |= 1 << 9;
                here.vcpu.set_regs(&regs).unwrap();
                here.interrupt(0x42);
            }
        }
        there.load(&here.save()).unwrap();
        drop(here);
        assert_eq!(there.run(), 9, "NMI: {nmi}");
    }
}

#[test]
fn the_state_that_was_loaded_is_saved_again() {
    let Some(kvm) = kvm() else { return };
    let ram = Ram::new();
    let mut here = Machine::new(&kvm, &ram, Chips::Kernel);
    let there = Machine::new(&kvm, &ram, Chips::Kernel);
    here.begin(Program::Wait);
    here.run();
    there.load(&here.save()).unwrap();
    for get in [
        |m: &Machine| format!("{:?}", m.vcpu.get_regs().unwrap()),
        |m: &Machine| format!("{:?}", m.vcpu.get_sregs().unwrap()),
        |m: &Machine| format!("{:?}", m.vcpu.get_xcrs().unwrap()),
        |m: &Machine| format!("{:?}", m.vcpu.get_debug_regs().unwrap()),
        |m: &Machine| format!("{:?}", m.vcpu.get_vcpu_events().unwrap()),
        |m: &Machine| format!("{:?}", m.vcpu.get_lapic().unwrap().regs),
    ] {
        assert_eq!(get(&here), get(&there));
    }
}
