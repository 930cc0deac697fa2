//! Both ways of placing a run, fed through a real socket: what comes plain, and what has to be
//! decoded first.

use super::*;
use crate::channel::Channel;
use crate::error::Kind;
use crate::memory::{Block, BlockDescription, BlockFlags, HostMemory, Memory, PinRecall};
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
    sink: PageSink,
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
        let mut sink = PageSink::new(Arc::clone(&memory));
        sink.add(THEIRS, &block).unwrap();
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
