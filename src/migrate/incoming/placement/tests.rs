//! Both ways of placing a run, fed through a real socket: what comes plain, and what has to be
//! decoded first.

use super::*;
use crate::channel::Channel;
use crate::error::Kind;
use crate::memory::{Block, BlockDescription, BlockFlags, HostMemory, Memory, PinRecall};
use crate::migrate::incoming::account::Account;
use crate::migrate::incoming::lane::Waits;
use crate::migrate::Params;
use crate::runtime::{Cancel, Limit, Timeout};
use crate::units::{Bytes, PAGE_SIZE};
use crate::wire::RecordType;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const PAGES: u64 = 16;
/// Another number than the destination's block has.
const THEIRS: u32 = 77;

/// An encoding that any mistake in offset or length shows through.
struct Inverted;

impl Decode for Inverted {
    fn decode(&mut self, _: &Header, payload: &[u8], contents: &mut [u8]) -> Result<()> {
        assert_eq!(payload.len(), contents.len());
        for (to, from) in contents.iter_mut().zip(payload) {
            *to = !from;
        }
        Ok(())
    }
}

/// Writes half and then finds that it is nonsense.
struct Broken;

impl Decode for Broken {
    fn decode(&mut self, _: &Header, _: &[u8], contents: &mut [u8]) -> Result<()> {
        let half = contents.len() / 2;
        contents[..half].fill(0xee);
        Err(Error::new(Kind::Protocol, "the encoding ends too early"))
    }
}

struct World {
    memory: Arc<Memory>,
    block: Arc<Block>,
    /// Behind the block; reached through it alone.
    _host: Box<[Page]>,
    sink: Sink,
    lane: Lane,
    source: UnixStream,
    recall: Arc<PinRecall>,
    io: Io<'static>,
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
                // SAFETY: `host` stays as long as the memory does.
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
        let sink = account.sink();
        let (source, ours) = UnixStream::pair().unwrap();
        World {
            recall: PinRecall::of(&memory).unwrap(),
            memory,
            block,
            _host: host,
            sink,
            lane: Lane::new(Channel::from_fd(ours.into()).unwrap()),
            source,
            io: Io::patient(Duration::from_secs(10)),
        }
    }

    /// Sends a run whose payload is `byte`, and another header behind it, in one write: the
    /// beginning of the next record is not part of this one.
    fn place(&mut self, how: &mut Placement, first: u64, count: u32, byte: u8) -> Result<()> {
        let header = Header::pages(THEIRS, Pages(first), count);
        let mut bytes = vec![byte; header.payload as usize];
        bytes.extend(Header::zeros(THEIRS, Pages(0), 1).encode());
        self.source.write_all(&bytes).unwrap();
        let World {
            sink,
            lane,
            recall,
            io,
            ..
        } = self;
        how.place(lane, sink, &header, recall, io)
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

    /// What a page is filled with.
    fn page(&self, page: u64) -> u8 {
        let at = self.block.page_address(Pages(page));
        // SAFETY: inside the block, which `host` is.
        let bytes = (0..PAGE_SIZE as usize).map(|i| unsafe { at.add(i).read_volatile() });
        let bytes: Vec<u8> = bytes.collect();
        assert!(bytes.iter().all(|b| *b == bytes[0]), "page {page} is torn");
        bytes[0]
    }
}

#[test]
fn what_comes_plain_is_read_into_guest_memory_and_nothing_beside_it_is_written() {
    let mut world = World::new();
    world
        .place(&mut Placement::Direct(None), 3, 2, 0x44)
        .unwrap();
    let pages: Vec<u8> = (2..6).map(|page| world.page(page)).collect();
    assert_eq!(pages, [0x11, 0x44, 0x44, 0x11]);
    world.next_is_zeros();
}

#[test]
fn what_comes_encoded_is_decoded_before_guest_memory_is_written() {
    let mut world = World::new();
    let mut staged = Placement::Staged(Staged::new(Box::new(Inverted)));
    // The second run is shorter than the buffer that the first one left.
    for (first, count, byte) in [(3, 4, 0x0f), (8, 1, 0xf0)] {
        world.place(&mut staged, first, count, byte).unwrap();
        world.next_is_zeros();
    }
    let pages: Vec<u8> = (2..10).map(|page| world.page(page)).collect();
    assert_eq!(pages, [0x11, 0xf0, 0xf0, 0xf0, 0xf0, 0x11, 0x0f, 0x11]);
}

#[test]
fn what_cannot_be_decoded_leaves_guest_memory_as_it_was() {
    let mut world = World::new();
    let mut staged = Placement::Staged(Staged::new(Box::new(Broken)));
    let error = world.place(&mut staged, 0, 4, 0x0f).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
    assert!((0..PAGES).all(|page| world.page(page) == 0x11));
}

#[test]
fn contents_for_a_block_that_is_gone_are_read_and_go_nowhere() {
    for mut how in [
        Placement::Direct(None),
        Placement::Staged(Staged::new(Box::new(Inverted))),
    ] {
        let mut world = World::new();
        world
            .memory
            .remove_block(world.memory.find_block("ram").unwrap())
            .unwrap();
        world.place(&mut how, 0, 4, 0x0f).unwrap();
        assert!((0..PAGES).all(|page| world.page(page) == 0x11));
        world.next_is_zeros();
    }
}

#[test]
fn a_run_outside_its_block_is_refused_before_its_payload_is_read() {
    for mut how in [
        Placement::Direct(None),
        Placement::Staged(Staged::new(Box::new(Inverted))),
    ] {
        let mut world = World::new();
        let error = world.place(&mut how, PAGES - 1, 2, 0x0f).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert_eq!(world.lane.received(), 0);
    }
}

/// A list of runs as it travels, and contents for it: page `n` of them is filled with `n` + 1.
fn list(runs: &[(u64, u32)]) -> (Header, Vec<u8>) {
    let mut bytes = Vec::new();
    let each = runs.iter().map(|(first, count)| (Pages(*first), *count));
    crate::wire::encode_list(THEIRS, each, &mut bytes).unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let mut payload = bytes.split_off(crate::wire::HEADER_LEN);
    for page in 0..header.data_pages() {
        payload.extend([page as u8 + 1; PAGE_SIZE as usize]);
    }
    (header, payload)
}

impl World {
    fn place_list(&mut self, how: &mut Placement, header: &Header) -> Result<()> {
        let World {
            sink,
            lane,
            recall,
            io,
            ..
        } = self;
        how.place_list(lane, sink, header, &mut Vec::new(), recall, io)
    }
}

#[test]
fn the_contents_of_a_list_go_to_its_pages_and_nothing_between_them_is_written() {
    let mut world = World::new();
    let (header, mut payload) = list(&[(2, 1), (5, 2), (9, 1)]);
    payload.extend(Header::zeros(THEIRS, Pages(0), 1).encode());
    let mut source = world.source.try_clone().unwrap();
    std::thread::scope(|scope| {
        // In pieces that end anywhere.
        scope.spawn(move || {
            for piece in payload.chunks(1111) {
                source.write_all(piece).unwrap();
                std::thread::yield_now();
            }
        });
        world
            .place_list(&mut Placement::Direct(None), &header)
            .unwrap();
    });
    let pages: Vec<u8> = (1..11).map(|page| world.page(page)).collect();
    assert_eq!(pages, [0x11, 1, 0x11, 0x11, 2, 3, 0x11, 0x11, 4, 0x11]);
    world.next_is_zeros();
}

#[test]
fn a_block_is_removed_while_the_contents_of_a_list_are_waited_for() {
    let mut world = World::new();
    let (header, payload) = list(&[(2, 1), (5, 2), (9, 1)]);
    let (first, rest) = payload.split_at(payload.len() - 5000);
    world.source.write_all(first).unwrap();
    let (memory, mut source) = (Arc::clone(&world.memory), world.source.try_clone().unwrap());
    std::thread::scope(|scope| {
        // Returns when nothing of ours can touch it: the source is silent until then.
        scope.spawn(move || {
            memory
                .remove_block(memory.find_block("ram").unwrap())
                .unwrap();
            source.write_all(rest).unwrap();
            let next = Header::zeros(THEIRS, Pages(0), 1).encode();
            source.write_all(&next).unwrap();
        });
        world
            .place_list(&mut Placement::Direct(None), &header)
            .unwrap();
    });
    assert_eq!(world.page(9), 0x11, "written after the removal");
    world.next_is_zeros();
}

#[test]
fn a_list_that_names_a_page_outside_its_block_writes_nothing_at_all() {
    let mut world = World::new();
    let (header, payload) = list(&[(2, 1), (PAGES, 1)]);
    world.source.write_all(&payload).unwrap();
    let error = world
        .place_list(&mut Placement::Direct(None), &header)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!((0..PAGES).all(|page| world.page(page) == 0x11));
}
