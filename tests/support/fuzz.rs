//! The inputs of a fuzzer: the decoder of records, the codec of changed pages and a whole incoming
//! migration, each with arbitrary bytes; and a mutator that knows records. The targets in `fuzz/`
//! only call these functions. `tests/hostile` runs them for a moment on the seeds, so that they keep
//! working between two rounds of fuzzing. Every defect shows as a panic.
#![allow(dead_code)]

use brant::error::{Kind, Result};
use brant::memory::block::{BlockDescription, BlockFlags};
use brant::memory::Memory;
use brant::migrate::{AcceptFrom, Incoming, Params};
use brant::page::delta;
use brant::units::{Bytes, Pages, PAGE_SIZE};
use brant::vmm::{Event, EventKind, StateBlob, Vmm};
use brant::wire::{self, Blob, Header, Ours, Record, RecordType, HEADER_LEN};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE: usize = PAGE_SIZE as usize;
/// Pages of the block that exists from the beginning, and of the one that is added.
pub const RAM_PAGES: usize = 64;
const LATE_PAGES: usize = 8;
/// The bytes before and behind each block, which must never change.
const CANARY: u8 = 0xc5;
/// How long a destination may be silent before it counts as waiting.
const PATIENCE: Duration = Duration::from_millis(250);
/// The most state that this destination accepts.
pub const MAX_STATE: u64 = 64 << 10;

// --- the decoder ------------------------------------------------------------------------------

/// Decodes one record, as it is and with a corrected checksum. Nothing panics, and every accepted
/// record encodes to the same bytes.
pub fn decoder(data: &[u8]) {
    one_record(data);
    if data.len() >= HEADER_LEN {
        let mut mended = data.to_vec();
        mend(&mut mended);
        one_record(&mended);
    }
}

fn one_record(data: &[u8]) {
    if let Some(first) = data.first() {
        let _ = Blob::prefix_len_from(*first);
    }
    let Some(head) = data.first_chunk::<HEADER_LEN>() else {
        return;
    };
    let Ok(header) = Header::decode(head) else {
        return;
    };
    assert_eq!(&header.encode(), head);
    let class = header.classify();
    let limit = header.check_payload_limit();
    assert!(class.is_err() || limit.is_ok(), "{header:?}");
    let payload = &data[HEADER_LEN..];
    let payload = &payload[..payload.len().min(header.payload as usize)];
    if let Ok(pages) = wire::decode_delta(&header, payload, Pages(RAM_PAGES as u64)) {
        let mut after = header.first_page;
        for page in pages {
            assert!(
                (after..RAM_PAGES as u64).contains(&page.page.0),
                "{header:?}"
            );
            assert!(page.encoding.len() <= PAGE, "{header:?}");
            after = page.page.0 + 1;
        }
    }
    for pages in [1, RAM_PAGES as u64, 1 << 40, u64::MAX] {
        if header.check_run(Pages(pages)).is_ok() {
            let end = header.first_page.checked_add(u64::from(header.count));
            assert!(end.is_some_and(|end| end <= pages), "{header:?}");
            assert!((1..=512).contains(&header.count), "{header:?}");
            let last = header.first_page + u64::from(header.count) - 1;
            assert_eq!(header.first_page / 512, last / 512, "{header:?}");
        }
    }
    one_list(&header, payload);
    if let Ok((blob, prefix)) = Blob::decode(&header, payload) {
        assert!(prefix <= payload.len());
        assert_eq!(prefix as u64 + blob.length, u64::from(header.payload));
        let mut again = Vec::new();
        let sum = crc32(&payload[prefix..]);
        blob.encode(class.clone().unwrap().unwrap(), sum, &mut again)
            .unwrap();
        if blob.check(&header, payload).is_ok() && payload.len() == header.payload as usize {
            assert_eq!(again, data[..HEADER_LEN + prefix]);
        }
    }
    if let Ok(piece) = wire::Piece::decode(&header, payload) {
        let state = &payload[wire::PIECE_PREFIX..];
        assert_eq!(piece.length as usize, state.len());
        if payload.len() == header.payload as usize {
            let again = piece.encode(state).unwrap();
            assert_eq!(again, data[..HEADER_LEN + wire::PIECE_PREFIX]);
        }
    }
    if let Ok(record) = Record::decode(&header, payload) {
        assert_eq!(class, Ok(Some(record.record_type())));
        let mut again = Vec::new();
        record.encode(&mut again).unwrap();
        let mended = match &record {
            Record::Abort(abort) => abort.reason.contains(char::REPLACEMENT_CHARACTER),
            _ => false,
        };
        if !mended {
            assert_eq!(again, data[..HEADER_LEN + payload.len()], "{record:?}");
        }
        match record {
            Record::Hello(hello) => drop(wire::negotiate(&hello, &Ours::default())),
            Record::HelloReply(reply) => drop(wire::check_reply(&reply, &Ours::default())),
            _ => {}
        }
    }
}

/// A list of runs, if this is one: what is taken from it lies in the block, ascends, is no more than a
/// list may have, and would be written like this.
fn one_list(header: &Header, payload: &[u8]) {
    let length = wire::list_len(header.count.min(wire::LIST_RUNS_MAX));
    let list = &payload[..payload.len().min(length)];
    for pages in [1, RAM_PAGES as u64, 1 << 40, u64::MAX] {
        let mut runs = Vec::new();
        let all = wire::decode_list(header, list, Pages(pages), |first, count| {
            runs.push((first, count));
            Ok(())
        });
        let mut at = 0;
        for (first, count) in &runs {
            let last = first.0 + u64::from(*count) - 1;
            assert!(*count > 0 && first.0 >= at && last < pages, "{header:?}");
            assert_eq!(first.0 / 512, last / 512, "{header:?}");
            at = last + 1;
        }
        if all.is_err() {
            continue;
        }
        let sum: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
        assert!(runs.len() <= 256 && sum <= 512, "{header:?}");
        let (mut again, runs) = (Vec::new(), runs.into_iter());
        let whole = match header.record_type().unwrap().unwrap() {
            RecordType::ZerosList => wire::encode_zeros_list(header.block, runs, &mut again),
            RecordType::CompressedList => {
                let frame = header.payload as usize - list.len() - wire::CHECKSUM_LEN;
                assert!(frame < sum as usize * PAGE, "{header:?}");
                wire::encode_compressed_list(header.block, runs, frame as u32, &mut again)
            }
            _ if header.is_checked() => wire::encode_checked_list(header.block, runs, &mut again),
            _ => wire::encode_list(header.block, runs, &mut again),
        };
        whole.unwrap();
        assert_eq!(again, [&header.encode()[..], list].concat());
    }
}

/// Gives the record at the front its magic and the checksums that belong to it.
pub fn mend(bytes: &mut [u8]) {
    bytes[..4].copy_from_slice(b"BRNT");
    let kind = RecordType::from_number(u16::from_le_bytes([bytes[4], bytes[5]]));
    if kind.is_some_and(RecordType::is_list) {
        let runs = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        let end = HEADER_LEN + runs.min(wire::LIST_RUNS_MAX) as usize * 8;
        if let Some(sum) = bytes.get(HEADER_LEN..end).map(crc32) {
            if let Some(place) = bytes.get_mut(end..end + 4) {
                place.copy_from_slice(&sum.to_le_bytes());
            }
        }
    }
    if kind.is_some_and(|kind| !kind.is_page_run()) {
        let payload = u32::from_le_bytes(bytes[24..28].try_into().unwrap());
        let end = HEADER_LEN.saturating_add(payload as usize);
        // A record that is cut short is refused for that.
        let sum = bytes.get(HEADER_LEN..end).map_or(0, crc32);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    let sum = crc32(&bytes[..HEADER_LEN - 4]);
    bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
}

/// [`mend`] for every header that is found by going from one to the next.
pub fn mend_all(stream: &mut [u8]) {
    let mut at = 0;
    while let Some(rest) = stream.get_mut(at..).filter(|rest| rest.len() >= HEADER_LEN) {
        mend(rest);
        let payload = u32::from_le_bytes(rest[24..28].try_into().unwrap());
        at = at.saturating_add(HEADER_LEN + payload as usize);
    }
}

/// Written for this test from `docs/wire.md`, and not brant's own.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

// --- changed pages ----------------------------------------------------------------------------

/// Arbitrary bytes as the encoding of a changed page, and as the changes themselves: nothing panics, and
/// what is encoded is decoded to the same.
pub fn delta(data: &[u8]) {
    let base: [u8; PAGE] = std::array::from_fn(|i| (i * 7 + i / 256) as u8);
    let mut page = base;
    if delta::decode(data, &mut page).is_ok() {
        comes_back(&base, &page);
    }
    // Each four bytes: where, how many, and what is written there.
    let mut page = base;
    for change in data.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % PAGE;
        let end = (at + usize::from(change[2] % 40)).min(PAGE);
        page[at..end].fill(change[3]);
    }
    comes_back(&base, &page);
}

fn comes_back(base: &[u8; PAGE], page: &[u8; PAGE]) {
    let mut out = [0; 2 * PAGE];
    let length = delta::encode(base, page, &mut out).unwrap();
    let mut decoded = *base;
    delta::decode(&out[..length], &mut decoded).unwrap();
    assert!(decoded == *page);
    // Room for one byte less is not enough.
    if let Some(less) = length.checked_sub(1) {
        assert_eq!(delta::encode(base, page, &mut out[..less]), None);
    }
}

// --- a whole incoming migration ---------------------------------------------------------------

/// Pages between two canaries.
struct Fenced {
    base: *mut u8,
    pages: usize,
}

// SAFETY: a mapping of its own, which only brant writes, by the address.
unsafe impl Send for Fenced {}
// SAFETY: as above.
unsafe impl Sync for Fenced {}

impl Fenced {
    fn new(pages: usize) -> Fenced {
        let length = (pages + 2) * PAGE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let fenced = Fenced {
            base: base.cast(),
            pages,
        };
        for canary in fenced.canaries() {
            // SAFETY: one page inside the mapping, which no other code knows yet.
            unsafe { std::ptr::write_bytes(canary, CANARY, PAGE) };
        }
        fenced
    }

    fn canaries(&self) -> [*mut u8; 2] {
        [self.base, self.base.wrapping_add((self.pages + 1) * PAGE)]
    }

    fn describe(&self, name: &str) -> BlockDescription {
        BlockDescription {
            name: name.to_owned(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { brant::memory::HostMemory::new(self.base.wrapping_add(PAGE)) },
            length: Bytes((self.pages * PAGE) as u64),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        }
    }

    fn check(&self) {
        for canary in self.canaries() {
            // SAFETY: one page inside the mapping, which no thread writes any more.
            let page = unsafe { std::slice::from_raw_parts(canary, PAGE) };
            assert!(
                page.iter().all(|b| *b == CANARY),
                "written outside the block"
            );
        }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and brant does not use it any more.
        unsafe { libc::munmap(self.base.cast(), (self.pages + 2) * PAGE) };
    }
}

/// A VMM that loads any state, adds a block at the right time, and notes whether it is told to run.
struct Taker {
    memory: Arc<Memory>,
    late: Fenced,
    ran: AtomicUsize,
    loaded: AtomicBool,
}

impl Vmm for Taker {
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        assert!(blob.data.len() as u64 <= MAX_STATE);
        Ok(())
    }
    fn loaded(&self) -> Result<()> {
        self.loaded.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn early_load(&self, blob: &StateBlob<'_>) -> Result<()> {
        assert!(blob.data.len() as u64 <= MAX_STATE);
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.ran.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn event(&self, event: &Event) {
        if event.kind == EventKind::State && event.message == "receiving" {
            self.memory.add_block(self.late.describe("late")).unwrap();
        }
    }
}

/// The result of a stream.
#[derive(Debug)]
pub struct Outcome {
    /// The migration's result.
    pub result: Result<()>,
    /// How many bytes the destination answered.
    pub answered: usize,
    /// How long it took.
    pub took: Duration,
}

/// Takes a fuzzer's bytes. If the first one is odd, the headers in the others are corrected, so
/// that the fuzzer gets past the checksum.
pub fn incoming(data: &[u8]) -> Option<Outcome> {
    let (first, stream) = data.split_first()?;
    let mut stream = stream.to_vec();
    if first & 1 == 1 {
        mend_all(&mut stream);
    }
    Some(destination(&stream))
}

/// The offset of the last record that begins as a HANDOVER; the end if there is none.
fn handover_at(stream: &[u8]) -> usize {
    let begins = [&b"BRNT"[..], &(RecordType::Handover as u16).to_le_bytes()].concat();
    let at = stream.windows(begins.len()).rposition(|w| w == begins);
    at.unwrap_or(stream.len())
}

/// Reads a destination's records until it is ready, ends, or is silent for a while. It is silent
/// when it waits for the rest of a record whose length has changed.
fn hear_ready(socket: &UnixStream, answer: &mut Vec<u8>) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut at = 0;
    loop {
        while let Some(head) = answer.get(at..at + HEADER_LEN) {
            let header = Header::decode(head.try_into().unwrap()).unwrap();
            // After an ABORT it waits for this side to close.
            if let Ok(Some(RecordType::Ready | RecordType::Abort)) = header.record_type() {
                return;
            }
            at += HEADER_LEN + header.payload as usize;
        }
        let mut bytes = [0; 4096];
        let mut socket = socket;
        match socket.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(n) => answer.extend_from_slice(&bytes[..n]),
        }
    }
}

/// Sends these bytes, and then the end, to a destination of 64 pages. It has to end soon, write
/// only its memory, say why, and run only after a hand-over.
pub fn destination(stream: &[u8]) -> Outcome {
    let memory = Arc::new(Memory::new().unwrap());
    let ram = Fenced::new(RAM_PAGES);
    memory.add_block(ram.describe("ram")).unwrap();
    let taker = Arc::new(Taker {
        memory: Arc::clone(&memory),
        late: Fenced::new(LATE_PAGES),
        ran: AtomicUsize::new(0),
        loaded: AtomicBool::new(false),
    });
    let limit = Duration::from_millis(500);
    let params = Params {
        connect_timeout: limit,
        io_timeout: limit,
        switchover_timeout: limit,
        handover_timeout: limit,
        max_state_bytes: MAX_STATE,
        ..Params::default()
    };
    let begun = Instant::now();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let migration = Incoming::new(Arc::clone(&memory), Arc::clone(&taker) as _, params).unwrap();
    migration
        .start(AcceptFrom::Connected(theirs.into()))
        .unwrap();
    let mut to = &ours;
    let mut answer = Vec::new();
    // A source hands over after READY.
    let (before, handover) = stream.split_at(handover_at(stream));
    // It may have ended before.
    let _ = to.write_all(before);
    if !handover.is_empty() {
        hear_ready(&ours, &mut answer);
        let _ = to.write_all(handover);
    }
    let _ = ours.shutdown(Shutdown::Write);
    ours.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let _ = to.read_to_end(&mut answer);
    let result = migration.wait(Some(Duration::from_secs(10)));
    let took = begun.elapsed();
    drop(migration);
    // This side's end comes without a pause, so no time limit should run out.
    assert!(took < Duration::from_secs(8), "{took:?}: {result:?}");
    let ran = taker.ran.load(Ordering::SeqCst);
    match &result {
        Ok(()) => {
            assert_eq!(ran, 1);
            assert!(taker.loaded.load(Ordering::SeqCst));
            // The token must be that of HELLO.
            let token = &stream[HEADER_LEN + 20..HEADER_LEN + 36];
            let times = stream.windows(16).filter(|w| *w == token).count();
            assert!(times >= 2, "ran without a hand-over");
        }
        Err(e) => {
            assert_eq!(ran, 0, "failed, and runs: {e:?}");
            let expected = [
                Kind::Protocol,
                Kind::PeerGone,
                Kind::Io,
                Kind::Refused,
                Kind::Layout,
                Kind::Version,
                Kind::Unsupported,
                Kind::Timeout,
            ];
            assert!(expected.contains(&e.kind()), "{:?}: {e}", e.kind());
            assert!(!e.message().is_empty());
            assert!(!e.message().contains(char::is_control), "{e:?}");
        }
    }
    let answered = answer.len();
    // It sends only records; the connection's end may cut the last one.
    let mut at = 0;
    while let Some(head) = answer.get(at..at + HEADER_LEN) {
        let header = Header::decode(head.try_into().unwrap()).unwrap();
        header.classify().unwrap().unwrap();
        at += HEADER_LEN + header.payload as usize;
    }
    let Some(taker) = Arc::into_inner(taker) else {
        panic!("the VMM is still held");
    };
    drop((taker.memory, memory));
    ram.check();
    taker.late.check();
    Outcome {
        result,
        answered,
        took,
    }
}

// --- seeds and mutations ----------------------------------------------------------------------

/// A control record's bytes.
pub fn bytes(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).unwrap();
    bytes
}

/// A blob's bytes.
pub fn blob_bytes(kind: RecordType, name: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let blob = Blob {
        name: name.into(),
        instance: 1,
        version: 2,
        length: data.len() as u64,
    };
    blob.encode(kind, crc32(data), &mut bytes).unwrap();
    bytes.extend_from_slice(data);
    bytes
}

/// A run of pages with contents.
pub fn page_bytes(block: u32, first: u64, count: u32) -> Vec<u8> {
    let mut bytes = Header::pages(block, Pages(first), count).encode().to_vec();
    bytes.resize(HEADER_LEN + count as usize * PAGE, 0x5a);
    bytes
}

/// A list of these runs of a block, and contents for them if its type has contents.
pub fn list_bytes(kind: RecordType, block: u32, runs: &[(u64, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let each = runs.iter().map(|(first, count)| (Pages(*first), *count));
    match kind {
        RecordType::ZerosList => wire::encode_zeros_list(block, each, &mut bytes),
        _ => wire::encode_list(block, each, &mut bytes),
    }
    .unwrap();
    let header = Header::decode(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
    bytes.resize(HEADER_LEN + header.payload as usize, 0x5a);
    bytes
}

/// 64 pages of zeros in these runs of a block, compressed together.
pub fn packed_list_bytes(block: u32, runs: &[(u64, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let each = runs.iter().map(|(first, count)| (Pages(*first), *count));
    let frame = (ZEROS_PACKED.len() - wire::CHECKSUM_LEN) as u32;
    wire::encode_compressed_list(block, each, frame, &mut bytes).unwrap();
    bytes.extend(ZEROS_PACKED);
    bytes
}

/// A whole session as a source sends it, with a record of each type that it has.
pub fn session() -> Vec<Vec<u8>> {
    let token = *b"the sessions own";
    let hello = wire::Hello {
        version_min: 1,
        version_max: 1,
        features_offered: 3,
        features_required: 1,
        token,
        channel: 0,
        channels: 1,
        page_shift: 12,
        role: brant::wire::ROLE_BULK,
        software: "seed".into(),
    };
    let marker = |number, flags, records, data_pages, zero_pages| {
        bytes(&Record::Marker(wire::Marker {
            number,
            pass: number as u32,
            flags,
            records,
            data_pages,
            zero_pages,
        }))
    };
    let block = |id, name: &str, pages: usize| wire::Block {
        id,
        length: (pages * PAGE) as u64,
        page_size: PAGE_SIZE,
        flags: 0,
        name: name.into(),
    };
    let end = |count, bytes| wire::BlobEnd { count, bytes };
    let state_end = |count, bytes| wire::StateEnd {
        blobs: end(count, bytes),
        handover_millis: 30_000,
    };
    let layout = wire::LayoutEnd {
        blocks: 1,
        bytes: (RAM_PAGES * PAGE) as u64,
    };
    vec![
        bytes(&Record::Hello(hello)),
        blob_bytes(RecordType::Early, "cfg", &[3; 20]),
        bytes(&Record::EarlyEnd(end(1, 20))),
        bytes(&Record::Block(block(1, "ram", RAM_PAGES))),
        bytes(&Record::LayoutEnd(layout)),
        bytes(&Record::Keepalive),
        marker(1, 0, 0, 0, 0),
        bytes(&Record::BlockAdded(block(2, "late", LATE_PAGES))),
        page_bytes(1, 7, 1),
        page_bytes(2, 6, 2),
        Header::zeros(1, Pages(0), 64).encode().to_vec(),
        Header::zeros(2, Pages(1), 3).encode().to_vec(),
        Header::ballooned(1, Pages(5), 9).encode().to_vec(),
        list_bytes(RecordType::PagesList, 1, &[(3, 1), (9, 2)]),
        list_bytes(RecordType::ZerosList, 1, &[(20, 1), (22, 4)]),
        bytes(&Record::BlockRemoved { id: 2 }),
        marker(2, wire::MARKER_FLAG_FINAL, 7, 6, 81),
        blob_bytes(RecordType::State, "cpu", &[4; 40]),
        blob_bytes(RecordType::State, "net", &[]),
        bytes(&Record::StateEnd(state_end(2, 40))),
        bytes(&Record::Handover(wire::Handover { token })),
    ]
}

/// 64 pages of zeros as the payload of a COMPRESSED record: a checksum and a zstd frame.
pub const ZEROS_PACKED: [u8; 30] = [
    0x22, 0xea, 0x0e, 0xe2, 40, 181, 47, 253, 160, 0, 0, 4, 0, 84, 0, 0, 16, 0, 0, 1, 0, 251, 255,
    57, 192, 2, 3, 0, 16, 0,
];

/// The same session with a checksum behind all contents, a run of pages that comes compressed, and
/// two runs that come compressed together.
pub fn packed_session() -> Vec<Vec<u8>> {
    let mut session = session();
    let mut frame = Header::compressed(1, Pages(0), 64, ZEROS_PACKED.len() as u32 - 4)
        .encode()
        .to_vec();
    frame.extend(ZEROS_PACKED);
    session.insert(8, frame);
    session.insert(9, packed_list_bytes(1, &[(0, 30), (30, 34)]));
    for record in &mut session {
        let header = Header::decode(record.first_chunk().unwrap()).unwrap();
        let list = match header.record_type() {
            Ok(Some(RecordType::Pages)) => 0,
            Ok(Some(RecordType::PagesList)) => wire::list_len(header.count),
            // Features: ballooned, zstd, page-checksums.
            Ok(Some(RecordType::Hello)) => {
                record[HEADER_LEN + 4] |= 1 << 2 | 1 << 5;
                mend(record);
                continue;
            }
            // Two records more, and their pages.
            Ok(Some(RecordType::Marker)) if record[HEADER_LEN] == 2 => {
                record[HEADER_LEN + 16] += 2;
                record[HEADER_LEN + 24] += 128;
                mend(record);
                continue;
            }
            _ => continue,
        };
        let sum = crc32(&record[HEADER_LEN + list..]);
        record.extend(sum.to_le_bytes());
        let longer = Header {
            payload: header.payload + wire::CHECKSUM_LEN as u32,
            ..header
        };
        record[..HEADER_LEN].copy_from_slice(&longer.encode());
    }
    session
}

/// Numbers at the edges of ranges.
const EDGES: [u64; 24] = [
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    65,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    65_535,
    65_536,
    65_537,
    (1 << 30) + 1,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    1 << 63,
    u64::MAX,
];

/// Changes a session, given as its records, in a few ways at once.
pub fn mutate(session: &[Vec<u8>], mut next: impl FnMut() -> u64) -> Vec<u8> {
    let mut below = move |n: usize| (next() % n.max(1) as u64) as usize;
    let mut records: Vec<Vec<u8>> = session.to_vec();
    for _ in 0..1 + below(3) {
        if records.is_empty() {
            break;
        }
        let at = below(records.len());
        let other = below(records.len());
        match below(12) {
            0 => drop(records.remove(at)),
            1 => records.insert(other, records[at].clone()),
            2 => records.swap(at, other),
            3 => records.truncate(at + 1),
            // A field of the header, with a correct checksum.
            4..=6 if records[at].len() >= HEADER_LEN => {
                let (from, length) = [(4, 2), (6, 2), (8, 4), (12, 4), (16, 8), (24, 4)][below(6)];
                let edge = EDGES[below(EDGES.len())].to_le_bytes();
                records[at][from..from + length].copy_from_slice(&edge[..length]);
                mend(&mut records[at]);
            }
            // A number somewhere in the payload, with correct checksums.
            7 | 8 if records[at].len() > HEADER_LEN => {
                let length = [1, 2, 4, 8][below(4)];
                let edge = EDGES[below(EDGES.len())].to_le_bytes();
                let from = HEADER_LEN + below(records[at].len() - HEADER_LEN);
                let to = (from + length).min(records[at].len());
                records[at][from..to].copy_from_slice(&edge[..to - from]);
                mend(&mut records[at]);
            }
            9 if !records[at].is_empty() => {
                let bit = below(records[at].len() * 8);
                records[at][bit / 8] ^= 1 << (bit % 8);
            }
            10 => {
                let from = below(records[at].len());
                records[at].truncate(from);
            }
            _ => {
                let from = below(records[at].len());
                let more: Vec<u8> = (0..below(40)).map(|_| below(256) as u8).collect();
                records[at].splice(from..from, more);
            }
        }
    }
    // With correct checksums a change gets further.
    if below(2) == 0 {
        let whole = records.iter_mut().filter(|r| r.len() >= HEADER_LEN);
        whole.for_each(|record| mend(record));
    }
    let mut stream = records.concat();
    // Now and then the stream ends in the middle of a record.
    if below(8) == 0 {
        let length = below(stream.len());
        stream.truncate(length);
    }
    stream
}
