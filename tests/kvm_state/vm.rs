//! What belongs to the VM moves: interrupt controllers, PIT and clock, with the vCPU.

use super::machine::{kvm, Chips, Machine, Ram};
use super::programs::Program;
use brant::error::Kind;

fn pair(chips: Chips) -> Option<(Machine, Machine)> {
    let kvm = kvm()?;
    let ram = Ram::new();
    ram.gate(0x30, Program::Handler);
    let of = || Machine::new(&kvm, &ram, chips);
    Some((of(), of()))
}

#[test]
fn the_pits_interrupt_comes_after_the_move_through_the_pic() {
    let Some((mut here, mut there)) = pair(Chips::Kernel) else {
        return;
    };
    here.begin(Program::Pit);
    assert_eq!(here.run(), 1);
    there.load(&here.save()).unwrap();
    drop(here);
    let pit = there.vm.get_pit2().unwrap();
    assert_eq!(pit.channels[0].count, 0x8000);
    assert_eq!(there.run(), 9);
}

#[test]
fn the_clock_goes_on_while_the_guest_stands_still() {
    let Some((here, there)) = pair(Chips::Kernel) else {
        return;
    };
    let began = here.vm.get_clock().unwrap().clock;
    let saved = here.save();
    // As long as the guest stands still, so long its clock goes on.
    let before = std::time::Instant::now();
    while before.elapsed() < std::time::Duration::from_millis(50) {
        std::hint::spin_loop();
    }
    there.load(&saved).unwrap();
    let least = began + before.elapsed().as_nanos() as u64;
    let after = there.vm.get_clock().unwrap().clock;
    let most = here.vm.get_clock().unwrap().clock;
    assert!(after >= least, "{after} < {least}");
    // The older VM's clock has gone on by itself, and is read later.
    assert!(after <= most + 5_000_000, "{after} > {most}");
}

#[test]
fn a_vm_without_the_sources_controllers_refuses_and_says_what_to_call() {
    let Some((here, _)) = pair(Chips::Kernel) else {
        return;
    };
    let Some((bare, _)) = pair(Chips::None) else {
        return;
    };
    let error = bare.load(&here.save()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("KVM_CREATE_IRQCHIP"), "{error}");
    let error = here.load(&bare.save()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(
        error.message().contains("the VMM's own at the source"),
        "{error}"
    );
    let error = bare.load_vm_of(&here).unwrap_err();
    assert!(error.message().contains("KVM_CREATE_IRQCHIP"), "{error}");
}
