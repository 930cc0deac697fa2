//! What cannot be handed over: named before anything happens, when the VMM wants nothing else. And a
//! guest that was handed over does not come back.

use super::{pair, params};
use crate::support::memory::{ram, shared, Ram, Spec, PAGE};
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, start};
use crate::support::time::LONG;
use brant::error::{Error, Kind};
use brant::migrate::{AcceptFrom, ConnectTo, HandOver, Params, Resolution, SourceState};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn memfd(flags: u32, pages: usize) -> OwnedFd {
    // SAFETY: a new descriptor of this test's.
    unsafe {
        let fd = libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC | flags);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, (pages * PAGE) as i64), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

/// A mapping of `fd` with these flags, described with its descriptor.
fn mapped(spec: &Spec, fd: OwnedFd, flags: i32) -> Ram {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let host = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            spec.pages * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd.as_raw_fd(),
            0,
        )
    };
    assert_ne!(host, libc::MAP_FAILED);
    // It stays mapped until the process ends.
    Ram::over(spec, host.cast(), Some(fd), ())
}

/// A pair whose source has one more block, which the destination has too.
fn with_block(block: Ram) -> Pair {
    let pair = pair(
        &[shared("high", 50)],
        &[ram(block.spec.name, block.spec.pages)],
    );
    pair.source.add(block);
    pair.source.fill(1);
    pair
}

fn refused(pair: &Pair, params: &Params) -> Error {
    let (out, inc) = start(pair, params);
    let error = out.wait(Some(LONG)).unwrap_err();
    inc.wait(Some(LONG)).unwrap_err();
    pair.assert_runs_on("a refused hand-over");
    assert_eq!(pair.from.calls("pause"), 0);
    assert_eq!(pair.to.calls("map_block"), 0);
    error
}

#[test]
fn a_block_that_has_to_be_copied_is_copied_or_named() {
    let anonymous = || Ram::new(&ram("other", 70));
    let private = || {
        mapped(
            &ram("other", 70),
            memfd(libc::MFD_ALLOW_SEALING, 70),
            libc::MAP_PRIVATE,
        )
    };
    let unsealable = || mapped(&ram("other", 70), memfd(0, 70), libc::MAP_SHARED);
    let table: [(&dyn Fn() -> Ram, &str); 3] = [
        (&anonymous, "no descriptor"),
        (&private, "mapped privately (MAP_PRIVATE)"),
        (&unsealable, "MFD_ALLOW_SEALING"),
    ];
    for (block, why) in table {
        let error = refused(&with_block(block()), &params(HandOver::Only));
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        for part in ["block `other` has to be copied", why] {
            assert!(error.message().contains(part), "{part}: {error}");
        }
        let pair = with_block(block());
        let (out, inc) = start(&pair, &params(HandOver::WherePossible));
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        pair.assert_sound(why);
        assert_eq!(out.stats().shared_bytes, (50 * PAGE) as u64, "{why}");
    }
}

#[test]
fn hand_over_only_needs_a_destination_that_maps_blocks() {
    let pair = pair(&[shared("high", 50)], &[shared("high", 50)]);
    pair.to.can_map_blocks.store(false, Ordering::SeqCst);
    let error = refused(&pair, &params(HandOver::Only));
    assert_eq!(error.kind(), Kind::Version, "{error}");
    assert!(error.message().contains("descriptors (bit 8)"), "{error}");
}

#[test]
fn over_tcp_everything_is_copied_or_hand_over_only_is_refused() {
    for hand_over in [HandOver::WherePossible, HandOver::Only] {
        let both = [shared("high", 50)];
        let pair = pair(&both, &both);
        pair.source.fill(2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let params = params(hand_over);
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        inc.start(AcceptFrom::Connected(far.into())).unwrap();
        out.start(ConnectTo::Connected(near.into())).unwrap();
        let ended = out.wait(Some(LONG));
        if hand_over == HandOver::Only {
            let error = ended.unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
            assert!(
                error.message().contains("expected a unix socket"),
                "{error}"
            );
            inc.wait(Some(LONG)).unwrap_err();
            pair.assert_runs_on("tcp");
        } else {
            ended.unwrap();
            inc.wait(Some(LONG)).unwrap();
            assert_eq!(pair.to.calls("map_block"), 0);
        }
        pair.assert_sound("tcp");
    }
}

#[test]
fn a_mapping_that_is_not_shared_or_at_another_place_is_refused() {
    for shared_elsewhere in [false, true] {
        let there = match shared_elsewhere {
            true => vec![ram("high", 60)],
            false => vec![],
        };
        let pair = pair(&[shared("high", 50)], &there);
        pair.source.fill(3);
        if !shared_elsewhere {
            // The VMM maps the file privately over what it was to share.
            pair.to.after_map(|host, file| {
                // SAFETY: over the mapping that was just made.
                let private = unsafe {
                    libc::mmap(
                        host.cast(),
                        50 * PAGE,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE | libc::MAP_FIXED,
                        file.as_raw_fd(),
                        0,
                    )
                };
                assert_ne!(private, libc::MAP_FAILED);
            });
        }
        let (out, inc) = start(&pair, &params(HandOver::Only));
        out.wait(Some(LONG)).unwrap_err();
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm, "{error}");
        let why = match shared_elsewhere {
            true => "where the VMM has a block of this name already",
            false => "mapped privately",
        };
        assert!(error.message().contains(why), "{error}");
        pair.assert_runs_on(why);
    }
}

/// A hand-over that is not answered with RUNNING, because of what the destination does at `place`.
fn unanswered(
    place: &str,
    how: impl Fn() -> brant::Result<()> + Send + Sync + 'static,
) -> (Pair, std::sync::Arc<brant::migrate::Outgoing>) {
    let pair = pair(&[shared("high", 50), ram("low", 20)], &[ram("low", 20)]);
    pair.source.fill(4);
    pair.to.at(place, how);
    let params = Params {
        handover_timeout: Duration::from_millis(300),
        ..params(HandOver::WherePossible)
    };
    let (out, inc) = start(&pair, &params);
    let error = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unanswered, "{error}");
    inc.wait(Some(LONG)).unwrap_err();
    (pair, out)
}

#[test]
fn a_guest_that_may_have_run_in_shared_memory_is_not_taken_back() {
    let (pair, out) = unanswered("run", || Err(Error::new(Kind::Vmm, "told to fail")));
    let error = out.resolve(Resolution::Resume).unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    assert!(
        error.message().contains("handed over by descriptor"),
        "{error}"
    );
    assert_eq!(out.state(), SourceState::Unanswered);
    assert_eq!(pair.from.calls("resume"), 0);
    out.resolve(Resolution::Destroy).unwrap();
    assert_eq!(out.state(), SourceState::GivenUp);
    pair.assert_sound("destroyed");
    // The word that no other copy runs does not bring the memory back.
    let error = pair.source.memory.reclaim().unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    assert!(
        error.message().contains("handed over by descriptor"),
        "{error}"
    );
    let whose = pair.source.memory.ownership().whose();
    assert_eq!(whose, brant::memory::Whose::GivenUp);
}

#[test]
fn a_guest_of_which_the_destination_said_that_it_never_ran_is_taken_back() {
    // A hand-over that is looked at too late runs nothing, and the destination says so.
    let (pair, out) = unanswered("committing", || {
        std::thread::sleep(Duration::from_millis(600));
        Ok(())
    });
    assert_eq!(pair.to.calls("run"), 0);
    out.resolve(Resolution::Resume).unwrap();
    assert_eq!(out.state(), SourceState::TakenBack);
    assert_eq!(pair.world.who(), (true, false));
    pair.assert_sound("taken back");
}

#[test]
fn a_guest_of_which_the_destination_said_that_it_never_ran_may_be_reclaimed_too() {
    let (pair, out) = unanswered("committing", || {
        std::thread::sleep(Duration::from_millis(600));
        Ok(())
    });
    out.resolve(Resolution::Destroy).unwrap();
    pair.source.memory.reclaim().unwrap();
    let whose = pair.source.memory.ownership().whose();
    assert_eq!(whose, brant::memory::Whose::Here);
}

#[test]
fn a_block_that_is_added_later_is_copied_or_named() {
    for hand_over in [HandOver::WherePossible, HandOver::Only] {
        let pair = pair(&[shared("high", 50)], &[]);
        pair.source.fill(5);
        let hold = pair.from.hold_at("copying");
        let (out, inc) = start(&pair, &params(hand_over));
        hold.reached();
        for guest in [&pair.destination, &pair.source] {
            guest.add(Ram::new(&shared("added", 30)));
        }
        hold.go();
        let ended = out.wait(Some(LONG));
        if hand_over == HandOver::Only {
            let error = ended.unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
            assert!(
                error.message().contains("block `added` has to be copied"),
                "{error}"
            );
            inc.wait(Some(LONG)).unwrap_err();
            pair.assert_runs_on("a block was added");
        } else {
            ended.unwrap();
            inc.wait(Some(LONG)).unwrap();
            assert_eq!(out.stats().shared_bytes, (50 * PAGE) as u64);
        }
        pair.assert_sound("a block was added");
    }
}
