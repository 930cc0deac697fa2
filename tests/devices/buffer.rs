//! Pieces from a source that the test plays: in any order between channels, more than the buffer
//! takes, and hostile ones.

use super::model::{Log, Model, Size};
use crate::channels::scripted::{bytes, hello, Session, BLOCK, PAGES};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer;
use crate::support::sides::quick;
use crate::support::time::LONG;
use brant::error::{Error, Kind};
use brant::migrate::Params;
use brant::units::PAGE_SIZE;
use brant::wire::{
    self, Hello, NamedDevice, Piece, Record, FEATURE_DEVICE_STREAMS, MARKER_FLAG_PAGES_END,
    PIECE_INITIAL, PIECE_LAST, PIECE_STOPPED,
};
use std::sync::Arc;
use std::time::Duration;

/// A destination with the devices `gpu` and `nic`, and a source up to the first page.
struct Played {
    session: Session,
    log: Arc<Log>,
    models: Vec<Arc<Model>>,
}

impl Played {
    fn new(channels: usize, params: &Params) -> Played {
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        let log = Arc::new(Log::default());
        let models: Vec<_> = ["gpu", "nic"]
            .into_iter()
            .map(|name| {
                let model = Model::new(name, Size::default(), &log, false);
                let memory = &pair.destination.memory;
                memory.add_device(name, 0, 1, model.clone()).unwrap();
                model
            })
            .collect();
        let mut session = Session::over(pair, channels, params, 1);
        for (channel, lane) in session.lanes.iter_mut().enumerate().rev() {
            lane.say(&Record::Hello(Hello {
                features_offered: 1 | FEATURE_DEVICE_STREAMS,
                features_required: 1 | FEATURE_DEVICE_STREAMS,
                ..hello(channel, channels)
            }));
        }
        for lane in &mut session.lanes {
            let reply = lane.hear_record();
            assert!(matches!(reply, Some(Record::HelloReply(_))), "{reply:?}");
        }
        Played {
            session,
            log,
            models,
        }
    }

    /// Names both devices.
    fn agreed(channels: usize, params: &Params) -> Played {
        let mut played = Played::new(channels, params);
        played.layout(&[(0, "gpu"), (1, "nic")]);
        let answer = played.session.lanes[0].hear_record();
        assert_eq!(answer, Some(Record::LayoutOk));
        played
    }

    fn layout(&mut self, names: &[(u32, &str)]) {
        let first = &mut self.session.lanes[0];
        let blobs = wire::BlobEnd { count: 0, bytes: 0 };
        first.say(&Record::EarlyEnd(blobs));
        assert_eq!(first.hear_record(), Some(Record::EarlyOk));
        first.say(&Record::Block(peer::block(BLOCK, "ram", PAGES)));
        for (number, name) in names {
            first.say(&Record::DeviceNamed(NamedDevice {
                number: *number,
                instance: 0,
                version: 1,
                name: (*name).into(),
            }));
        }
        let (blocks, bytes) = (1, PAGES * PAGE_SIZE);
        first.say(&Record::LayoutEnd(wire::LayoutEnd { blocks, bytes }));
    }

    fn piece(&mut self, channel: usize, number: u32, flags: u32, offset: u64, length: usize) {
        // The stopped part of a device without a running one begins with byte 0 too.
        let data = super::model::bytes(offset, length);
        let length = length as u32;
        let piece = Piece {
            number,
            flags,
            offset,
            length,
        };
        let head = piece.encode(&data).unwrap();
        self.session.lanes[channel].say_bytes(&head);
        self.session.lanes[channel].say_bytes(&data);
    }

    /// Says where the running parts of both devices end.
    fn end_running(&mut self, channel: usize, ends: [u64; 2]) {
        for (number, end) in (0..).zip(ends) {
            self.piece(channel, number, PIECE_LAST, end, 0);
        }
    }

    /// Ends the pages of a channel.
    fn end_pages(&mut self, channel: usize) {
        let mut marker = self.session.counts[channel].marker(false);
        let header = wire::HEADER_LEN;
        let Record::Marker(said) = decoded(&marker) else {
            unreachable!()
        };
        let flags = MARKER_FLAG_PAGES_END;
        marker = bytes(&Record::Marker(wire::Marker { flags, ..said }));
        assert!(marker.len() > header);
        self.session.lanes[channel].say_bytes(&marker);
    }

    fn finish(&mut self) {
        for channel in 0..self.session.channels() {
            let marker = self.session.counts[channel].marker(true);
            self.session.lanes[channel].say_bytes(&marker);
        }
        for channel in 0..self.session.channels() {
            self.session.await_ack(channel);
        }
        self.session.hand_over();
    }

    /// The error of the destination, which has told the source, and reset its devices.
    fn refused(&mut self) -> Error {
        let error = self.session.inc.wait(Some(LONG)).unwrap_err();
        assert_eq!(self.session.pair.to.calls("run"), 0);
        for model in &self.models {
            assert!(self.log.count(&format!("{} reset", model.name)) <= 1);
            assert!(!model.runs());
        }
        error
    }
}

fn decoded(bytes: &[u8]) -> Record {
    let (head, payload) = bytes.split_first_chunk().unwrap();
    let header = wire::Header::decode(head).unwrap();
    Record::decode(&header, payload).unwrap()
}

const MIB: usize = 1 << 20;
const STOPPED: u32 = PIECE_STOPPED;
const END: u32 = PIECE_STOPPED | PIECE_LAST;

#[test]
fn pieces_that_overtake_one_another_are_loaded_in_order() {
    let mut played = Played::agreed(2, &quick());
    // The running part of the gpu, its second half first.
    played.piece(1, 0, PIECE_INITIAL, 1000, 500);
    played.piece(0, 0, 0, 0, 1000);
    let loaded = played.session.lanes[1].hear_record();
    let expected = wire::DeviceLoaded {
        number: 0,
        bytes: 1500,
    };
    assert_eq!(loaded, Some(Record::DeviceLoaded(expected)));
    assert_eq!(played.models[0].loaded(), (1500, 1500));
    // The stopped part of the nic comes before the pages of channel 0 have ended.
    played.end_running(1, [1500, 0]);
    played.end_pages(1);
    played.piece(1, 1, END, 700, 300);
    played.end_pages(0);
    played.piece(0, 0, END, 0, 0);
    played.piece(0, 1, STOPPED, 0, 700);
    played.finish();
    assert_eq!(played.models[1].loaded(), (1000, 0));
    played.log.assert_sound();
    let log = &played.log;
    assert!(log.last("nic load_stopped") < log.first("gpu loaded"));
    assert!(log.last("nic wake") < log.first("gpu run"));
}

#[test]
fn more_than_the_buffer_takes_waits_on_its_channel_and_is_loaded_in_the_end() {
    let params = Params {
        max_device_buffer: 1 << 20,
        ..quick()
    };
    let mut played = Played::agreed(2, &params);
    played.end_running(1, [0, 0]);
    played.end_pages(1);
    played.end_pages(0);
    // 8 MiB that cannot be loaded before the first byte comes on channel 0.
    let writer = std::thread::spawn({
        let stream = played.session.lanes[1].0.try_clone().unwrap();
        move || {
            let mut lane = peer::Raw(stream);
            for at in 1..=8u64 {
                let offset = at * MIB as u64;
                let data = super::model::bytes(offset, MIB);
                let flags = if at == 8 { END } else { STOPPED };
                let piece = Piece {
                    number: 0,
                    flags,
                    offset,
                    length: MIB as u32,
                };
                lane.say_bytes(&piece.encode(&data).unwrap());
                lane.say_bytes(&data);
            }
        }
    });
    // The connection takes nothing more, and nothing is loaded.
    std::thread::sleep(Duration::from_millis(200));
    assert!(!writer.is_finished(), "8 MiB went into a buffer of one");
    assert_eq!(played.models[0].loaded(), (0, 0));
    played.piece(0, 0, STOPPED, 0, MIB);
    writer.join().unwrap();
    played.piece(0, 1, END, 0, 5);
    played.finish();
    assert_eq!(played.models[0].loaded(), (9 * MIB as u64, 0));
    assert_eq!(played.models[1].loaded(), (5, 0));
    played.log.assert_sound();
}

#[test]
fn a_piece_that_never_comes_ends_the_wait_with_the_devices_name() {
    let params = Params {
        max_device_buffer: 1 << 20,
        io_timeout: Duration::from_millis(300),
        switchover_timeout: Duration::from_millis(300),
        ..quick()
    };
    let mut played = Played::agreed(2, &params);
    played.end_running(0, [0, 0]);
    played.end_pages(0);
    played.end_pages(1);
    for at in 1..=3 {
        played.piece(1, 0, STOPPED, at * MIB as u64, MIB);
    }
    let error = played.refused();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
}

#[test]
fn the_end_of_all_pages_and_every_piece_are_demanded_by_name() {
    type Script = fn(&mut Played);
    let scripts: &[(&str, &str, Script)] = &[
        (
            "a device that nobody named",
            "expected one of 2 devices, found number 2",
            |p| {
                p.piece(0, 2, 0, 0, 5);
            },
        ),
        (
            "a stopped part before the end of the pages",
            "device `gpu`: DEVICE: a piece of its stopped",
            |p| {
                p.piece(0, 0, STOPPED, 0, 5);
            },
        ),
        (
            "a running part after the end of the pages",
            "device `nic`: DEVICE: a piece of its running",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.piece(0, 1, 0, 0, 5);
            },
        ),
        (
            "stopped parts in another order than the devices' numbers",
            "device `gpu`: DEVICE: a piece of its stopped part came after one of device `nic`",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.piece(0, 1, STOPPED, 0, 5);
                p.piece(0, 0, STOPPED, 0, 5);
            },
        ),
        (
            "twice",
            "device `gpu`: DEVICE: byte 0 came after byte 5",
            |p| {
                p.piece(0, 0, 0, 0, 5);
                p.piece(0, 0, 0, 0, 5);
            },
        ),
        (
            "overlapping",
            "device `gpu`: DEVICE: byte 4 came after byte 5",
            |p| {
                p.piece(0, 0, 0, 0, 5);
                p.piece(0, 0, 0, 4, 5);
            },
        ),
        (
            "a gap in a running part",
            "device `gpu`: bytes 0 to 7 of its running part are missing",
            |p| {
                p.piece(0, 0, 0, 7, 5);
                p.end_pages(0);
            },
        ),
        (
            "the tail of a running part",
            "device `gpu`: bytes 5 to 9 of its running part are missing",
            |p| {
                p.piece(0, 0, 0, 0, 5);
                p.end_running(0, [9, 0]);
                p.end_pages(0);
            },
        ),
        (
            "no end of a running part",
            "device `nic`: the end of its running part is missing",
            |p| {
                p.piece(0, 0, PIECE_LAST, 0, 5);
                p.piece(0, 1, 0, 0, 5);
                p.end_pages(0);
            },
        ),
        (
            "no end of a running part without bytes",
            "device `gpu`: the end of its running part is missing",
            |p| {
                p.piece(0, 1, PIECE_LAST, 0, 0);
                p.end_pages(0);
            },
        ),
        (
            "two ends of a running part",
            "device `gpu`: DEVICE: its end was said twice",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_running(0, [0, 0]);
            },
        ),
        (
            "a running part behind its end",
            "device `nic`: DEVICE: byte 4 is behind its end at 0",
            |p| {
                p.end_running(0, [0, 0]);
                p.piece(0, 1, 0, 0, 4);
            },
        ),
        (
            "a gap in a stopped part",
            "device `gpu`: bytes 0 to 7 of its stopped part are missing",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.piece(0, 0, END, 7, 5);
                p.piece(0, 1, END, 0, 0);
                let marker = p.session.counts[0].marker(true);
                p.session.lanes[0].say_bytes(&marker);
            },
        ),
        (
            "no end",
            "device `nic`: the end of its stopped part is missing",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.piece(0, 0, END, 0, 0);
                p.piece(0, 1, STOPPED, 0, 5);
                let marker = p.session.counts[0].marker(true);
                p.session.lanes[0].say_bytes(&marker);
            },
        ),
        (
            "two ends",
            "device `gpu`: DEVICE: its end was said twice",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.piece(0, 0, END, 0, 5);
                p.piece(0, 0, END, 5, 0);
            },
        ),
        (
            "behind its end",
            "device `gpu`: DEVICE: byte 7 is behind its end at 5",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.piece(0, 0, END, 0, 5);
                p.piece(0, 0, STOPPED, 5, 2);
            },
        ),
        (
            "no end of the pages",
            "a MARKER that ends the pages before the final one",
            |p| {
                let marker = p.session.counts[0].marker(true);
                p.session.lanes[0].say_bytes(&marker);
            },
        ),
        (
            "two ends of the pages",
            "one MARKER that ends the pages",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.end_pages(0);
            },
        ),
        (
            "a page after the end of the pages",
            "after the end of the pages",
            |p| {
                p.end_running(0, [0, 0]);
                p.end_pages(0);
                p.session.data(0, 0, 1, 9);
            },
        ),
        ("a piece after the final marker", "expected STATE", |p| {
            p.end_running(0, [0, 0]);
            p.end_pages(0);
            p.piece(0, 0, END, 0, 0);
            p.piece(0, 1, END, 0, 0);
            let marker = p.session.counts[0].marker(true);
            p.session.lanes[0].say_bytes(&marker);
            p.piece(0, 1, STOPPED, 0, 5);
        }),
    ];
    for (what, expected, script) in scripts {
        let mut played = Played::agreed(1, &quick());
        script(&mut played);
        let error = played.refused();
        assert_eq!(error.kind(), Kind::Protocol, "{what}: {error}");
        assert!(error.message().contains(expected), "{what}: {error}");
        let abort = played.session.lanes[0].hear_abort();
        assert!(abort.is_some(), "{what}");
    }
}

#[test]
fn each_end_of_initial_state_is_answered_once_it_is_loaded() {
    let mut played = Played::agreed(1, &quick());
    for (offset, length) in [(0, 5), (5, 3), (8, 0)] {
        played.piece(0, 0, PIECE_INITIAL, offset, length);
        let loaded = wire::DeviceLoaded {
            number: 0,
            bytes: offset + length as u64,
        };
        let heard = played.session.lanes[0].hear_record();
        assert_eq!(heard, Some(Record::DeviceLoaded(loaded)));
        assert_eq!(played.models[0].loaded().1, loaded.bytes);
    }
}

#[test]
fn an_end_of_initial_state_before_the_last_one_is_loaded_is_refused() {
    let mut played = Played::agreed(2, &quick());
    // Both wait for the first bytes.
    played.piece(0, 0, PIECE_INITIAL, 5, 5);
    played.piece(1, 0, PIECE_INITIAL, 10, 5);
    let error = played.refused();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    let expected = "device `gpu`: DEVICE: the end of an initial part came before";
    assert!(error.message().contains(expected), "{error}");
}

#[test]
fn pieces_that_overlap_on_two_channels_are_refused() {
    for (first, second) in [((5, 5), (3, 4)), ((3, 4), (5, 5)), ((4, 4), (4, 2))] {
        let mut played = Played::agreed(2, &quick());
        played.piece(0, 0, 0, first.0, first.1);
        // The pieces are in order once the marker behind the first is acknowledged.
        played.session.mark(0, false);
        played.piece(1, 0, 0, second.0, second.1);
        let error = played.refused();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        let message = error.message();
        assert!(
            message.contains("overlap") || message.contains("two pieces"),
            "{message}"
        );
        assert!(message.contains("device `gpu`"), "{message}");
    }
}

#[test]
fn names_of_devices_that_are_wrong_are_refused_before_the_first_page() {
    for (names, kind, expected) in [
        (
            &[(0, "gpu"), (0, "nic")][..],
            Kind::Protocol,
            "device `nic`: expected number 1, found 0",
        ),
        (
            &[(0, "gpu"), (1, "gpu")][..],
            Kind::Protocol,
            "device `gpu` is named twice",
        ),
        (
            &[(0, "gpu")][..],
            Kind::Layout,
            "the destination has device `nic`",
        ),
        (
            &[(0, "gpu"), (1, "nic"), (2, "x")][..],
            Kind::Layout,
            "the source has device `x`",
        ),
    ] {
        let mut played = Played::new(1, &quick());
        played.layout(names);
        let error = played.refused();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
}

#[test]
fn a_source_without_the_feature_names_no_devices_and_is_refused_by_the_devices_name() {
    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
    let log = Arc::new(Log::default());
    let model = Model::new("gpu", Size::default(), &log, false);
    pair.destination
        .memory
        .add_device("gpu", 0, 1, model)
        .unwrap();
    let mut session = Session::over(pair, 1, &quick(), 1);
    session.greet();
    let first = &mut session.lanes[0];
    let blobs = wire::BlobEnd { count: 0, bytes: 0 };
    first.say(&Record::EarlyEnd(blobs));
    assert_eq!(first.hear_record(), Some(Record::EarlyOk));
    first.say(&Record::Block(peer::block(BLOCK, "ram", PAGES)));
    let (blocks, bytes) = (1, PAGES * PAGE_SIZE);
    first.say(&Record::LayoutEnd(wire::LayoutEnd { blocks, bytes }));
    let reason = first.hear_abort().unwrap();
    assert!(
        reason.contains("the destination has device `gpu`"),
        "{reason}"
    );
    assert_eq!(
        session.inc.wait(Some(LONG)).unwrap_err().kind(),
        Kind::Layout
    );
}
