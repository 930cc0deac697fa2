//! Tests of placing plain contents and contents that have to be checked first, both fed through a
//! real socket.

use super::*;
use crate::channel::Channel;
use crate::error::Kind;
use crate::memory::{Block, BlockDescription, BlockFlags, HostMemory, Memory, PinRecall};
use crate::migrate::incoming::account::Account;
use crate::migrate::incoming::lane::Waits;
use crate::migrate::lane_name::LaneName;
use crate::migrate::Params;
use crate::page::compress::Compressor;
use crate::runtime::{Cancel, Limit, Timeout};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::wire::{self, RecordType};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const PAGES: u64 = 16;
/// The source's number of the block, which differs from the destination's.
const THEIRS: u32 = 77;

struct World {
    memory: Arc<Memory>,
    block: Arc<Block>,
    /// The memory of the block, which the test reaches through the block only.
    _host: Box<[Page]>,
    account: LaneAccount,
    lane: Lane,
    source: UnixStream,
    recall: Arc<PinRecall>,
    io: Io<'static>,
    placement: Placement,
}

/// In what form contents come.
#[derive(Clone, Copy, Debug)]
enum How {
    Plain,
    Checked,
    Packed,
}

/// The checksum of contents, and a frame of them.
fn packed(contents: &[u8]) -> Vec<u8> {
    let mut room = vec![0; contents.len()];
    let mut compressor = Compressor::new(1).unwrap();
    let length = compressor.compress(contents, &mut room).unwrap();
    [
        &crc32fast::hash(contents).to_le_bytes()[..],
        &room[..length],
    ]
    .concat()
}

impl How {
    const ALL: [How; 3] = [How::Plain, How::Checked, How::Packed];

    /// The header of a run whose pages are filled with `byte`, and the bytes that follow the
    /// header.
    fn record(self, first: u64, count: u32, byte: u8) -> (Header, Vec<u8>) {
        let mut contents = vec![byte; (u64::from(count) * PAGE_SIZE) as usize];
        let header = match self {
            How::Plain => Header::pages(THEIRS, Pages(first), count),
            How::Checked => {
                contents.extend(crc32fast::hash(&contents).to_le_bytes());
                Header::checked_pages(THEIRS, Pages(first), count)
            }
            How::Packed => {
                contents = packed(&contents);
                let frame = (contents.len() - CHECKSUM_LEN) as u32;
                Header::compressed(THEIRS, Pages(first), count, frame)
            }
        };
        (header, contents)
    }
}

#[repr(align(4096))]
#[derive(Clone)]
struct Page {
    _bytes: [u8; PAGE_SIZE as usize],
}

impl World {
    fn new() -> World {
        let mut host = vec![
            Page {
                _bytes: [0x11; PAGE_SIZE as usize]
            };
            PAGES as usize
        ]
        .into_boxed_slice();
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: `host` lives as long as the memory does.
                host: unsafe { HostMemory::new(host.as_mut_ptr().cast()) },
                length: Pages(PAGES).bytes(),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        let block = Arc::clone(&memory.map().blocks()[0]);
        let mut account = Account::new(Arc::clone(&memory));
        account.add(THEIRS, &block).unwrap();
        let account = account.of_lane();
        let (source, ours) = UnixStream::pair().unwrap();
        World {
            recall: PinRecall::of(&memory).unwrap(),
            memory,
            block,
            _host: host,
            account,
            lane: Lane::new(Channel::from_fd(ours.into()).unwrap(), LaneName::default()),
            source,
            io: Io::patient(Duration::from_secs(10)),
            placement: Placement::new(None),
        }
    }

    /// Sends a run whose pages are filled with `byte`, and the header of the next record, in one
    /// write. The next record must not be taken for a part of this one.
    fn place(&mut self, how: How, first: u64, count: u32, byte: u8) -> Result<()> {
        let (header, mut bytes) = how.record(first, count, byte);
        bytes.extend(Header::zeros(THEIRS, Pages(0), 1).encode());
        self.source.write_all(&bytes).unwrap();
        self.placed(&header)
    }

    fn placed(&mut self, header: &Header) -> Result<()> {
        let World {
            account,
            lane,
            recall,
            io,
            placement,
            ..
        } = self;
        placement.place(lane, account, header, recall, io)
    }

    fn next_is_zeros(&mut self) {
        let cancel = Cancel::new().unwrap();
        let params = Params::default();
        let waits = Waits {
            cancel: &cancel,
            params: &params,
            overall: Limit::never(),
        };
        let soon = Timeout::from(Duration::from_secs(10)).from_now();
        let next = self.lane.next(&waits, soon, "ZEROS");
        assert_eq!(next.unwrap().kind(), RecordType::Zeros);
    }

    /// The byte that a page is filled with.
    fn page(&self, page: u64) -> u8 {
        let at = self.block.page_address(Pages(page));
        // SAFETY: inside the block, whose memory is `host`.
        let bytes = (0..PAGE_SIZE as usize).map(|i| unsafe { at.add(i).read_volatile() });
        let bytes: Vec<u8> = bytes.collect();
        assert!(bytes.iter().all(|b| *b == bytes[0]), "page {page} is torn");
        bytes[0]
    }
}

#[test]
fn contents_go_to_their_pages_and_nothing_beside_them_is_written() {
    for how in How::ALL {
        let mut world = World::new();
        // The second run is shorter than the buffer that the first one may have left behind.
        for (first, count, byte) in [(3, 4, 0x44), (9, 1, 0x55)] {
            world.place(how, first, count, byte).unwrap();
            world.next_is_zeros();
        }
        let pages: Vec<u8> = (2..11).map(|page| world.page(page)).collect();
        let expected = [0x11, 0x44, 0x44, 0x44, 0x44, 0x11, 0x11, 0x55, 0x11];
        assert_eq!(pages, expected, "{how:?}");
    }
}

#[test]
fn contents_that_are_damaged_leave_guest_memory_as_it_was_and_the_error_names_them() {
    // Damages a bit of the contents, then a bit of the checksum.
    for at in [0, 4096 * 2 + 77, 4096 * 4 + 2] {
        let mut world = World::new();
        let (header, mut payload) = How::Checked.record(5, 4, 0x0f);
        payload[at] ^= 0x40;
        world.source.write_all(&payload).unwrap();
        let error = world.placed(&header).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
        for word in ["block `ram`", "pages 5 to 8", "checksum"] {
            assert!(error.message().contains(word), "no {word} in {error}");
        }
        assert!((0..PAGES).all(|page| world.page(page) == 0x11));
    }
}

#[test]
fn contents_for_a_block_that_is_gone_are_read_and_go_nowhere() {
    for how in How::ALL {
        let mut world = World::new();
        world
            .memory
            .remove_block(world.memory.find_block("ram").unwrap())
            .unwrap();
        world.place(how, 0, 4, 0x0f).unwrap();
        assert!((0..PAGES).all(|page| world.page(page) == 0x11));
        world.next_is_zeros();
    }
}

#[test]
fn a_run_outside_its_block_is_refused_before_its_payload_is_read() {
    for how in How::ALL {
        let mut world = World::new();
        let error = world.place(how, PAGES - 1, 2, 0x0f).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert_eq!(world.lane.counters().received, Bytes(0));
    }
}

/// A list of runs as it travels, and its contents: page `n` of them is filled with `n` + 1.
fn list(how: How, runs: &[(u64, u32)]) -> (Header, Vec<u8>) {
    let mut bytes = Vec::new();
    let each = runs.iter().map(|(first, count)| (Pages(*first), *count));
    let pages: u32 = runs.iter().map(|(_, count)| count).sum();
    let contents = (0..pages).flat_map(|page| [page as u8 + 1; PAGE_SIZE as usize]);
    let mut contents: Vec<u8> = contents.collect();
    match how {
        How::Plain => wire::encode_list(THEIRS, each, &mut bytes).unwrap(),
        How::Checked => {
            contents.extend(crc32fast::hash(&contents).to_le_bytes());
            wire::encode_checked_list(THEIRS, each, &mut bytes).unwrap();
        }
        How::Packed => {
            contents = packed(&contents);
            let frame = (contents.len() - CHECKSUM_LEN) as u32;
            wire::encode_compressed_list(THEIRS, each, frame, &mut bytes).unwrap();
        }
    }
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let mut payload = bytes.split_off(wire::HEADER_LEN);
    payload.extend(contents);
    (header, payload)
}

impl World {
    fn place_list(&mut self, header: &Header) -> Result<u64> {
        let World {
            account,
            lane,
            recall,
            io,
            placement,
            ..
        } = self;
        placement.place_list(lane, account, header, &mut Vec::new(), recall, io)
    }
}

#[test]
fn the_contents_of_a_list_go_to_its_pages_and_nothing_between_them_is_written() {
    for how in How::ALL {
        let mut world = World::new();
        let (header, mut payload) = list(how, &[(2, 1), (5, 2), (9, 1)]);
        payload.extend(Header::zeros(THEIRS, Pages(0), 1).encode());
        let mut source = world.source.try_clone().unwrap();
        std::thread::scope(|scope| {
            // The record is sent in pieces that end anywhere.
            scope.spawn(move || {
                for piece in payload.chunks(1111) {
                    source.write_all(piece).unwrap();
                    std::thread::yield_now();
                }
            });
            assert_eq!(world.place_list(&header).unwrap(), 4, "pages of the list");
        });
        let pages: Vec<u8> = (1..11).map(|page| world.page(page)).collect();
        let expected = [0x11, 1, 0x11, 0x11, 2, 3, 0x11, 0x11, 4, 0x11];
        assert_eq!(pages, expected, "{how:?}");
        world.next_is_zeros();
    }
}

#[test]
fn a_block_is_removed_while_the_contents_of_a_list_are_waited_for() {
    for how in How::ALL {
        let mut world = World::new();
        let (header, payload) = list(how, &[(2, 1), (5, 2), (9, 1)]);
        let (first, rest) = payload.split_at(payload.len() - 5000.min(payload.len() - 40));
        world.source.write_all(first).unwrap();
        let (memory, mut source) = (Arc::clone(&world.memory), world.source.try_clone().unwrap());
        std::thread::scope(|scope| {
            // The removal returns when no thread of brant's can touch the block. The source is
            // silent until then.
            scope.spawn(move || {
                memory
                    .remove_block(memory.find_block("ram").unwrap())
                    .unwrap();
                source.write_all(rest).unwrap();
                let next = Header::zeros(THEIRS, Pages(0), 1).encode();
                source.write_all(&next).unwrap();
            });
            world.place_list(&header).unwrap();
        });
        assert_eq!(world.page(9), 0x11, "written after the removal");
        world.next_is_zeros();
    }
}

#[test]
fn a_list_that_names_a_page_outside_its_block_writes_nothing_at_all() {
    for how in How::ALL {
        let mut world = World::new();
        let (header, payload) = list(how, &[(2, 1), (PAGES, 1)]);
        world.source.write_all(&payload).unwrap();
        let error = world.place_list(&header).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!((0..PAGES).all(|page| world.page(page) == 0x11));
    }
}

#[test]
fn a_list_whose_contents_are_damaged_writes_nothing_at_all() {
    for (how, words) in [
        (How::Checked, "4 pages from page 2"),
        (How::Packed, "3 runs of pages from page 2"),
    ] {
        let mut world = World::new();
        let (header, mut payload) = list(how, &[(2, 1), (5, 2), (9, 1)]);
        let at = payload.len() - 10;
        payload[at] ^= 1;
        world.source.write_all(&payload).unwrap();
        let error = world.place_list(&header).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
        assert!(error.message().contains("block `ram`"), "{error}");
        assert!(error.message().contains(words), "{error}");
        assert!((0..PAGES).all(|page| world.page(page) == 0x11));
    }
}

/// A DELTA record as it travels: page, checksum of the base, encoding.
fn changed(pages: &[(u64, u32, &[u8])]) -> (Header, Vec<u8>) {
    let mut bytes = Vec::new();
    let each = pages.iter().map(|(page, base, encoding)| wire::Delta {
        page: Pages(*page),
        base: *base,
        encoding,
    });
    wire::encode_delta(THEIRS, each, &mut bytes).unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    (header, bytes.split_off(wire::HEADER_LEN))
}

impl World {
    fn place_changed(&mut self, pages: &[(u64, u32, &[u8])]) -> Result<()> {
        let (header, payload) = changed(pages);
        self.source.write_all(&payload).unwrap();
        let World {
            account,
            lane,
            recall,
            io,
            placement,
            ..
        } = self;
        placement.place_changed(lane, account, &header, recall, io)
    }

    fn bytes(&self, page: u64) -> Vec<u8> {
        let at = self.block.page_address(Pages(page));
        // SAFETY: inside the block, whose memory is `host`.
        let bytes = (0..PAGE_SIZE as usize).map(|i| unsafe { at.add(i).read_volatile() });
        bytes.collect()
    }
}

/// The bytes of a page before anything has arrived.
const BEFORE: [u8; PAGE_SIZE as usize] = [0x11; PAGE_SIZE as usize];

#[test]
fn changed_pages_are_changed_and_no_other() {
    let mut world = World::new();
    let base = crc32fast::hash(&BEFORE);
    let changes: &[(u64, u32, &[u8])] =
        &[(3, base, &[5, 1, 9]), (4, base, &[]), (9, base, &[0, 1, 7])];
    world.place_changed(changes).unwrap();
    let mut third = BEFORE;
    third[5] = 9;
    let mut ninth = BEFORE;
    ninth[0] = 7;
    for page in 0..PAGES {
        let expected = match page {
            3 => third,
            9 => ninth,
            _ => BEFORE,
        };
        assert!(world.bytes(page) == expected, "page {page}");
    }
    // The same pages change once more, from what they are now.
    world
        .place_changed(&[(3, crc32fast::hash(&third), &[5, 1, 0x11])])
        .unwrap();
    assert!(world.bytes(3) == BEFORE);
}

#[test]
fn a_changed_page_whose_base_is_not_in_memory_is_an_error_that_names_block_and_page() {
    let base = crc32fast::hash(&BEFORE);
    let mut world = World::new();
    // Either something else writes to the page, or the source takes another version for the last
    // one.
    for (page, base, written) in [(9, base, true), (4, base ^ 1, false)] {
        if written {
            let at = world.block.page_address(Pages(page));
            // SAFETY: inside the block, which `host` is.
            unsafe { at.write_volatile(0x12) };
        }
        let before = world.bytes(page);
        let error = world
            .place_changed(&[(page, base, &[5, 1, 9])])
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
        let words = [
            "block `ram`",
            &format!("page {page}"),
            "something else has written",
        ];
        for word in words {
            assert!(error.message().contains(word), "no {word} in {error}");
        }
        assert!(world.bytes(page) == before);
    }
    // A page whose contents were declared lost here has no version at all.
    let id = world.block.id();
    world
        .memory
        .mark_poisoned(id, Bytes(2 * PAGE_SIZE), Bytes(PAGE_SIZE))
        .unwrap();
    let error = world.place_changed(&[(2, base, &[5, 1, 9])]).unwrap_err();
    assert_eq!(error.kind(), Kind::Memory, "{error}");
    assert!(error.message().contains("page 2: the version"), "{error}");
}

#[test]
fn a_changed_page_whose_encoding_is_none_leaves_the_page_as_it_was() {
    let base = crc32fast::hash(&BEFORE);
    let cut_off = [&[0, 0x81, 0x20][..], &[7; 4094]].concat();
    for encoding in [
        &[5, 2, 9][..],
        &[0, 1, 9, 0, 1, 9],
        &[5, 1, 9, 0xff],
        &cut_off[..4096],
    ] {
        let mut world = World::new();
        let error = world.place_changed(&[(3, base, encoding)]).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
        let what = "block `ram`: page 3: the encoding is none";
        assert!(error.message().contains(what), "{error}");
        assert!(world.bytes(3) == BEFORE);
    }
}

#[test]
fn changed_pages_of_a_block_that_is_gone_go_nowhere() {
    let mut world = World::new();
    let id = world.memory.find_block("ram").unwrap();
    world.memory.remove_block(id).unwrap();
    world.place_changed(&[(3, 5, &[5, 1, 9])]).unwrap();
    assert!(world.bytes(3) == BEFORE);
}
