//! A peer that sends descriptors which are no memory, too many or too few of them, or sends them where
//! nobody asked for any: it is refused, and no descriptor is left behind.

use super::{pair, params};
use crate::support::alone::alone;
use crate::support::memory::shared;
use crate::support::pair::Pair;
use crate::support::peer::{self, Raw};
use crate::support::sides::incoming;
use crate::support::time::LONG;
use brant::error::{Error, Kind};
use brant::migrate::{AcceptFrom, HandOver, Incoming};
use brant::sys::passing;
use brant::units::PAGE_SIZE;
use brant::wire::{self, Record, FEATURE_DESCRIPTORS};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

const PAGES: u64 = 64;
const LENGTH: u64 = PAGES * PAGE_SIZE;

fn memfd(flags: u32, length: u64) -> OwnedFd {
    // SAFETY: a new descriptor of this test's.
    unsafe {
        let fd = libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC | flags);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, length as i64), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn good() -> OwnedFd {
    memfd(libc::MFD_ALLOW_SEALING, LENGTH)
}

/// A destination and the source that a test plays to it, up to the layout.
struct Played {
    pair: Pair,
    inc: Arc<Incoming>,
    raw: Raw,
}

impl Played {
    fn new(features: u64) -> Played {
        let pair = pair(&[shared("ram", PAGES as usize)], &[]);
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, &params(HandOver::Off));
        inc.start(AcceptFrom::Connected(fd)).unwrap();
        raw.say(&Record::Hello(wire::Hello {
            features_offered: 1 | features,
            ..peer::hello()
        }));
        let Some(Record::HelloReply(reply)) = raw.hear_record() else {
            panic!("no answer");
        };
        assert_eq!(reply.features, 1 | features);
        raw.say(&Record::EarlyEnd(wire::BlobEnd { count: 0, bytes: 0 }));
        assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
        Played { pair, inc, raw }
    }

    fn say_with(&mut self, record: &Record, descriptor: BorrowedFd<'_>) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        let sent = passing::send(self.raw.0.as_fd(), &bytes, Some(descriptor));
        // A destination that has given up takes nothing.
        if let Ok(sent) = sent {
            assert_eq!(sent, bytes.len());
        }
    }

    fn block(&mut self) {
        self.raw.say(&Record::Block(peer::block(4, "ram", PAGES)));
    }

    fn end(&mut self) {
        self.raw.say(&Record::LayoutEnd(wire::LayoutEnd {
            blocks: 1,
            bytes: LENGTH,
        }));
    }

    /// The destination's error, which it has also told its peer.
    fn refused(mut self) -> Error {
        let told = self.raw.hear_abort();
        drop(self.raw);
        let error = self.inc.wait(Some(LONG)).unwrap_err();
        assert_eq!(told.as_deref(), Some(error.message()));
        assert_eq!(self.pair.to.calls("run"), 0);
        error
    }
}

fn file(id: u32, length: u64) -> Record {
    Record::BlockFd(wire::BlockFd {
        id,
        offset: 0,
        length,
    })
}

#[test]
fn a_descriptor_that_is_not_the_blocks_memory_is_refused_with_what_was_found() {
    let sealed = good();
    // SAFETY: takes an integer.
    let done = unsafe { libc::fcntl(sealed.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    assert_eq!(done, 0);
    let table: [(OwnedFd, &str); 5] = [
        (std::io::pipe().unwrap().1.into(), "found a pipe"),
        (
            std::fs::File::open("/dev/null").unwrap().into(),
            "found a character device",
        ),
        (
            memfd(libc::MFD_ALLOW_SEALING, LENGTH - 4096),
            "found one of 258048 bytes",
        ),
        (memfd(0, LENGTH), "found one with the seals F_SEAL_SEAL"),
        (sealed, "sealed against that (F_SEAL_WRITE)"),
    ];
    for (descriptor, found) in table {
        let mut played = Played::new(FEATURE_DESCRIPTORS);
        played.block();
        played.say_with(&file(4, LENGTH), descriptor.as_fd());
        played.end();
        let error = played.refused();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        for part in ["block `ram`", "expected", found] {
            assert!(error.message().contains(part), "{part:?} in: {error}");
        }
    }
}

/// What a source plays.
type Play<'a> = &'a dyn Fn(&mut Played);

#[test]
fn a_block_fd_in_the_wrong_place_is_refused() {
    let table: [(Play, &str); 6] = [
        (
            &|p| p.say_with(&file(4, LENGTH), good().as_fd()),
            "there was none",
        ),
        (
            &|p| {
                p.block();
                p.say_with(&file(5, LENGTH), good().as_fd());
            },
            "found block 5",
        ),
        (
            &|p| {
                p.block();
                p.say_with(&file(4, LENGTH - 4096), good().as_fd());
            },
            "of 258048 bytes",
        ),
        (
            &|p| {
                p.block();
                for _ in 0..2 {
                    p.say_with(&file(4, LENGTH), good().as_fd());
                }
            },
            "a second BLOCK_FD of block 4",
        ),
        // Fewer descriptors than records.
        (
            &|p| {
                p.block();
                p.raw.say(&file(4, LENGTH));
            },
            "found none",
        ),
        // More of them.
        (
            &|p| {
                p.say_with(&Record::Block(peer::block(4, "ram", PAGES)), good().as_fd());
                p.say_with(&file(4, LENGTH), good().as_fd());
                p.end();
            },
            "found more",
        ),
    ];
    for (say, found) in table {
        let mut played = Played::new(FEATURE_DESCRIPTORS);
        say(&mut played);
        let error = played.refused();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!(error.message().contains(found), "{found:?} in: {error}");
    }
}

#[test]
fn pages_of_a_block_that_came_by_descriptor_are_refused() {
    let mut played = Played::new(FEATURE_DESCRIPTORS);
    let memory = good();
    played.block();
    played.say_with(&file(4, LENGTH), memory.as_fd());
    played.end();
    assert_eq!(played.raw.hear_record(), Some(Record::LayoutOk));
    assert_eq!(played.pair.to.calls("map_block"), 1);
    let run = wire::Header::zeros(4, brant::units::Pages(3), 5);
    played.raw.say_bytes(&run.encode());
    let error = played.refused();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!(
        error
            .message()
            .contains("`ram`, whose memory came by descriptor"),
        "{error}"
    );
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn no_descriptor_is_left_behind_whoever_sends_how_many() {
    alone(LONG, || {
        let memory = good();
        // Once, so that everything that stays open is open.
        let mut before = None;
        for round in 0..3 {
            for features in [0, FEATURE_DESCRIPTORS] {
                let mut played = Played::new(features);
                for _ in 0..20 {
                    let keepalive = Record::Keepalive;
                    played.say_with(&keepalive, memory.as_fd());
                }
                played.block();
                played.say_with(&file(4, LENGTH), memory.as_fd());
                played.end();
                let error = played.refused();
                let found = match features {
                    0 => "found BLOCK_FD",
                    _ => "found more",
                };
                assert!(error.message().contains(found), "{error}");
            }
            let now = open_descriptors();
            let before = *before.get_or_insert(now);
            assert_eq!(now, before, "round {round}");
        }
    });
}
