//! A child process that inherits log and memory changes nothing for its parent.

use super::watched::{in_a_child, tracked, Ram, PAGE};
use brant::dirty::When;
use brant::units::Pages;
use std::collections::BTreeSet;

#[test]
fn a_child_that_uses_or_drops_what_it_inherited_takes_nothing_from_the_parent() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(64)]) else {
        return;
    };
    t.start();
    t.blocks[0].write(3, 2);
    t.blocks[1].write(4, 2);
    in_a_child(|| {
        let known = t.consumer.sync(When::Running).unwrap();
        // Nothing is known of this process' copy.
        known.warnings.len() == 1 && known.pending == Pages(128)
    });
    assert_eq!(t.found(), BTreeSet::from([(0, 3), (1, 4)]));
    t.blocks[0].write(5, 2);
    in_a_child(|| t.consumer.sync(When::Stopped).is_err() && t.consumer.stop().is_ok());
    t.blocks[1].write(6, 2);
    assert_eq!(t.found(), BTreeSet::from([(0, 5), (1, 6)]));
}

#[test]
fn a_child_s_copy_of_the_memory_changes_nothing_for_the_parent() {
    let Some(t) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    for page in 0..32 {
        t.blocks[0].write(page, 1);
    }
    t.start();
    t.blocks[0].write(3, 2);
    // Both processes write the same pages, protected and unprotected, while they share them.
    in_a_child(|| {
        for page in [3, 4, 40] {
            // SAFETY: the child's copy.
            unsafe { t.blocks[0].at.add(page * PAGE).write_volatile(9) };
        }
        true
    });
    assert_eq!(t.found(), BTreeSet::from([(0, 3)]));
    t.blocks[0].write(4, 2);
    t.blocks[0].write(40, 2);
    assert_eq!(t.found(), BTreeSet::from([(0, 4), (0, 40)]));
}
