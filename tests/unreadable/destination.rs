//! A page that cannot be written at the destination.

use super::migrate::migrate;
use super::side::{each, small_tmpfs, unmount, words, Broken, Made, Side, ALL, PAGES};
use super::LIMIT;
use crate::support::alone::alone;
use brant::Kind;

/// The ways in which a page cannot be written.
const UNWRITABLE: [Broken; 4] = [
    Broken::Poisoned,
    Broken::Forbidden,
    Broken::ReadOnly,
    Broken::CutOff,
];

#[test]
fn a_page_that_cannot_take_contents_at_the_destination_fails_the_migration() {
    alone(LIMIT, || {
        each(&UNWRITABLE, |made, broken| {
            let (source, destination) = (Side::new(Made::Private), Side::new(made));
            source.fill(7);
            destination.fill(8);
            if !destination.make(broken, 77) {
                return;
            }
            let outcome = migrate(&source, &destination, None);
            outcome.assert_destination_failed(77, &words(broken, made, "written"));
        });
    });
}

#[test]
fn a_page_that_cannot_be_made_zero_at_the_destination_fails_the_migration() {
    alone(LIMIT, || {
        each(&UNWRITABLE, |made, broken| {
            let (source, destination) = (Side::new(Made::Private), Side::new(made));
            destination.fill(8);
            if !destination.make(broken, 200) {
                return;
            }
            let outcome = migrate(&source, &destination, None);
            outcome.assert_destination_failed(200, &words(broken, made, "written"));
        });
    });
}

#[test]
fn a_rom_that_is_mapped_read_only_is_left_alone_where_it_holds_what_is_sent() {
    alone(LIMIT, || {
        for made in ALL {
            let source = Side::with(Made::Private, true, None);
            let destination = Side::with(made, true, None);
            for page in 0..PAGES {
                destination.set(page, 0);
                destination.protect(page, libc::PROT_READ);
            }
            // Zeros over zeros: nothing has to be written.
            let outcome = migrate(&source, &destination, None);
            outcome.source.unwrap();
            outcome.destination.unwrap();
            // Contents have to be written.
            source.set(9, 1);
            let outcome = migrate(&source, &destination, None);
            outcome.assert_destination_failed(9, "does not let it be written");
        }
    });
}

#[test]
fn a_full_tmpfs_at_the_destination_fails_the_migration() {
    alone(LIMIT, || {
        let Some(dir) = small_tmpfs(64) else {
            return;
        };
        let source = Side::new(Made::Private);
        source.fill(7);
        let destination = Side::with(Made::Tmpfs, false, dir.path().to_str());
        let outcome = migrate(&source, &destination, None);
        let error = outcome.destination.as_ref().unwrap_err();
        assert_eq!(error.kind(), Kind::Memory, "{error}");
        assert!(error.message().contains("is full"), "{error}");
        assert!(
            error
                .message()
                .contains("block `ram`: the page at offset 0x"),
            "{error}"
        );
        assert_eq!(outcome.source.unwrap_err().kind(), Kind::Refused);
        drop(destination);
        // Zeros for untouched memory need no room.
        let source = Side::new(Made::Private);
        let destination = Side::with(Made::Tmpfs, false, dir.path().to_str());
        let outcome = migrate(&source, &destination, None);
        outcome.source.unwrap();
        outcome.destination.unwrap();
        unmount(&dir);
    });
}
