//! Records of a hostile peer: a well-formed one of each type, and changes of their fields.

use crate::support::fuzz::{self, blob_bytes, bytes, mend, page_bytes, ZEROS_PACKED};
use crate::support::peer;
pub use crate::support::peer::block;
use brant::units::{Pages, PAGE_SIZE};
use brant::wire;
use brant::wire::{Header, Record, RecordType, HEADER_LEN};

pub const TOKEN: [u8; 16] = [5; 16];

/// The destination's one block, which the source here calls 4.
pub const PAGES: u64 = 600;

pub fn hello() -> wire::Hello {
    wire::Hello {
        token: TOKEN,
        software: "hostile".into(),
        ..peer::hello()
    }
}

pub fn end(count: u32, bytes: u64) -> wire::BlobEnd {
    wire::BlobEnd { count, bytes }
}

pub fn state_end(count: u32, bytes: u64) -> wire::StateEnd {
    wire::StateEnd {
        blobs: end(count, bytes),
        handover_millis: 30_000,
    }
}

pub fn marker(
    number: u64,
    flags: u32,
    records: u64,
    data_pages: u64,
    zero_pages: u64,
) -> wire::Marker {
    wire::Marker {
        number,
        pass: 1,
        flags,
        records,
        data_pages,
        zero_pages,
    }
}

/// A well-formed record of each type.
pub fn sample(kind: RecordType) -> Vec<u8> {
    use RecordType as R;
    bytes(&match kind {
        R::Hello => Record::Hello(hello()),
        R::HelloReply => Record::HelloReply(wire::HelloReply {
            version: 1,
            features: 1,
            software: "hostile".into(),
        }),
        R::Block => Record::Block(block(4, "ram", PAGES)),
        R::LayoutEnd => Record::LayoutEnd(wire::LayoutEnd {
            blocks: 1,
            bytes: PAGES * PAGE_SIZE,
        }),
        R::LayoutOk => Record::LayoutOk,
        R::Pages => return page_bytes(4, 1, 1),
        R::Zeros => return Header::zeros(4, Pages(1), 1).encode().to_vec(),
        R::Ballooned => return Header::ballooned(4, Pages(1), 1).encode().to_vec(),
        R::PagesList => return list_bytes(kind, &[(1, 2), (4, 1)]),
        R::ZerosList => return list_bytes(kind, &[(1, 2), (4, 1)]),
        R::Delta => return delta_bytes(&[(1, 0, &[0, 1, 7]), (4, 0, &[])]),
        R::Compressed => return compressed_bytes(),
        R::CompressedList => return fuzz::packed_list_bytes(4, &[(1, 60), (70, 4)]),
        R::Marker => Record::Marker(marker(1, 0, 0, 0, 0)),
        R::Ack => Record::Ack(wire::Ack { number: 1 }),
        R::State | R::Early => return blob_bytes(kind, "x", &[1; 5]),
        R::StateEnd => Record::StateEnd(state_end(0, 0)),
        R::EarlyEnd => Record::EarlyEnd(end(0, 0)),
        R::EarlyOk => Record::EarlyOk,
        R::Ready => Record::Ready(wire::Ready {
            load_micros: 1,
            digest_micros: 0,
        }),
        R::Handover => Record::Handover(wire::Handover { token: TOKEN }),
        R::Running => Record::Running(wire::Running { run_micros: 1 }),
        R::Abort => Record::Abort(wire::Abort {
            code: -1,
            reason: "no\u{1b}[2J\nmore".into(),
        }),
        R::Keepalive => Record::Keepalive,
        R::BlockAdded => Record::BlockAdded(block(9, "ram", PAGES)),
        R::BlockRemoved => Record::BlockRemoved { id: 4 },
        R::Digest => Record::Digest(wire::Digest {
            block: 4,
            first_page: Pages(0),
            pages: 2,
            sums: vec![1, 2],
        }),
        R::Device => return piece_bytes(0, 0, 0, &[7; 9]),
        R::DeviceLoaded => Record::DeviceLoaded(wire::DeviceLoaded {
            number: 0,
            bytes: 9,
        }),
        R::DeviceNamed => Record::DeviceNamed(wire::NamedDevice {
            number: 0,
            instance: 0,
            version: 1,
            name: "gpu".into(),
        }),
        R::Missing => return missing_bytes(4, 600, &[(1, 2), (9, 1)]),
        R::MissingEnd => Record::MissingEnd(wire::MissingEnd {
            pages: Pages(3),
            epoch: 0,
        }),
        R::Request => Record::Request(wire::Request {
            block: 4,
            runs: vec![(Pages(1), 2)],
        }),
        R::Complete => Record::Complete(wire::Complete {
            pages: Pages(3),
            epoch: 0,
        }),
        R::Recover => Record::Recover(wire::Recover { epoch: 1 }),
        R::RecoverReply => Record::RecoverReply(wire::RecoverReply {
            epoch: 1,
            pages: Pages(3),
        }),
        R::BlockFd => Record::BlockFd(wire::BlockFd {
            id: 4,
            offset: 0,
            length: PAGES * PAGE_SIZE,
        }),
    })
}

/// The description of these missing pages of a block of at most 2^18 pages.
pub fn missing_bytes(block: u32, pages: u64, runs: &[(u64, u64)]) -> Vec<u8> {
    let mut words = vec![0u64; pages.div_ceil(64) as usize];
    for page in runs.iter().flat_map(|(first, count)| *first..first + count) {
        words[page as usize / 64] |= 1 << (page % 64);
    }
    let mut record = Vec::new();
    wire::describe(block, &words, Pages(pages), |missing| {
        record = bytes(&Record::Missing(missing.clone()));
        Ok(())
    })
    .unwrap();
    record
}

/// A piece of a device's state.
pub fn piece_bytes(number: u32, flags: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let piece = wire::Piece {
        number,
        flags,
        offset,
        length: data.len() as u32,
    };
    [&piece.encode(data).unwrap()[..], data].concat()
}

/// A list of these runs of block 4, and contents for them if its type has contents.
pub fn list_bytes(kind: RecordType, runs: &[(u64, u32)]) -> Vec<u8> {
    fuzz::list_bytes(kind, 4, runs)
}

/// Changed pages of block 4: number, checksum of the base, encoding.
pub fn delta_bytes(pages: &[(u64, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let each = pages.iter().map(|(page, base, encoding)| wire::Delta {
        page: Pages(*page),
        base: *base,
        encoding,
    });
    wire::encode_delta(4, each, &mut bytes).unwrap();
    bytes
}

/// 64 pages of zeros from page 1 on, compressed.
pub fn compressed_bytes() -> Vec<u8> {
    let frame = ZEROS_PACKED.len() as u32 - wire::CHECKSUM_LEN as u32;
    let header = Header::compressed(4, Pages(1), 64, frame).encode();
    [&header[..], &ZEROS_PACKED].concat()
}

/// A record with a changed field in its header, and a correct checksum.
pub fn with(kind: RecordType, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut record = sample(kind);
    let mut header = Header::decode(record[..HEADER_LEN].try_into().unwrap()).unwrap();
    change(&mut header);
    record[..HEADER_LEN].copy_from_slice(&header.encode());
    record
}

/// A record with a flipped bit in its payload, whose checksum is left as it was.
pub fn flipped(kind: RecordType, at: usize) -> Vec<u8> {
    let mut record = sample(kind);
    record[HEADER_LEN + at] ^= 1;
    record
}

/// A record with changed bytes in its payload, of the same length.
pub fn patched(kind: RecordType, at: usize, with: &[u8]) -> Vec<u8> {
    let mut record = sample(kind);
    record[HEADER_LEN + at..HEADER_LEN + at + with.len()].copy_from_slice(with);
    mend(&mut record);
    record
}
