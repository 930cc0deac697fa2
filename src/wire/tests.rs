//! Tests of the wire's promises: fixtures, round trips, refusals.
//!
//! The fixtures in `tests/fixtures/wire` are bytes that every version has to understand. They are
//! written anew only with `BRANT_REGEN_FIXTURES=1`.

mod blobs;
mod deltas;
mod devices;
mod digests;
mod fields;
mod fixtures;
mod headers;
mod lists;
mod missing;
mod negotiation;
mod properties;

use super::*;
use crate::error::{Kind, Result};
use crate::page::compress::Decompressor;
use crate::units::{Pages, PAGE_SIZE};
use proptest::prelude::*;
use std::path::Path;

const TOKEN: Token = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

/// Any record that can be in a stream.
#[derive(Debug, Clone, PartialEq)]
enum Any {
    Control(Record),
    Blob(RecordType, Blob, Vec<u8>),
    Piece(Piece, Vec<u8>),
    Run(Header, Vec<u8>),
}

fn encode(any: &Any) -> Vec<u8> {
    let mut out = Vec::new();
    match any {
        Any::Control(record) => record.encode(&mut out).unwrap(),
        Any::Blob(kind, blob, data) => {
            blob.encode(*kind, crc32fast::hash(data), &mut out).unwrap();
            out.extend_from_slice(data);
        }
        Any::Piece(piece, data) => {
            out.extend_from_slice(&piece.encode(data).unwrap());
            out.extend_from_slice(data);
        }
        Any::Run(header, data) => {
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(data);
        }
    }
    out
}

/// Corrects the header of a record that is no page run, to agree with its payload.
fn reseal(bytes: &mut [u8]) {
    let (head, payload) = bytes.split_first_chunk_mut::<HEADER_LEN>().unwrap();
    let header = Header::decode(head).unwrap();
    if RecordType::from_number(header.kind).is_some_and(|kind| !kind.is_page_run()) {
        let sealed = Header {
            count: crc32fast::hash(payload),
            ..header
        };
        *head = sealed.encode();
    }
}

/// Decodes a whole record in memory, as a receiver does. `None`: skipped.
fn decode(bytes: &[u8]) -> Result<Option<Any>> {
    let short = || crate::error::Error::new(Kind::Protocol, "cut short");
    let (head, payload) = bytes.split_first_chunk::<HEADER_LEN>().ok_or_else(short)?;
    let header = Header::decode(head)?;
    let Some(kind) = header.classify()? else {
        return Ok(None);
    };
    if payload.len() != header.payload as usize {
        return Err(short());
    }
    if kind.is_page_run() {
        if kind.is_list() {
            let list = &payload[..list_len(header.count)];
            decode_list(&header, list, Pages(u64::MAX), |_, _| Ok(()))?;
        } else if kind == RecordType::Delta {
            drop(decode_delta(&header, payload, Pages(u64::MAX))?);
        } else {
            header.check_run(Pages(u64::MAX))?;
        }
        let packed = match kind {
            RecordType::Compressed => Some((u64::from(header.count), payload)),
            RecordType::CompressedList => {
                let (list, packed) = payload.split_at(list_len(header.count));
                Some((listed_pages(list), packed))
            }
            _ => None,
        };
        if let Some((pages, packed)) = packed {
            let (sum, frame) = packed.split_first_chunk::<CHECKSUM_LEN>().unwrap();
            let mut contents = vec![0; pages as usize * 4096];
            Decompressor::new()?.decompress(frame, &mut contents)?;
            let (expected, found) = (u32::from_le_bytes(*sum), crc32fast::hash(&contents));
            if expected != found {
                return Err(header.damaged(expected, found));
            }
        }
        if header.is_checked() {
            let list = match kind {
                RecordType::PagesList => list_len(header.count),
                _ => 0,
            };
            header.check_contents(&payload[list..])?;
        }
        return Ok(Some(Any::Run(header, payload.to_vec())));
    }
    if kind.is_blob() {
        let (blob, at) = Blob::decode(&header, payload)?;
        blob.check(&header, payload)?;
        return Ok(Some(Any::Blob(kind, blob, payload[at..].to_vec())));
    }
    if kind.is_piece() {
        let piece = Piece::decode(&header, payload)?;
        return Ok(Some(Any::Piece(piece, payload[PIECE_PREFIX..].to_vec())));
    }
    Record::decode(&header, payload).map(|record| Some(Any::Control(record)))
}

/// A list of these runs, and contents for them if its type has contents: those of a COMPRESSED_LIST are
/// no frame.
fn list(kind: RecordType, block: u32, runs: &[(u64, u32)]) -> Any {
    let mut bytes = Vec::new();
    let each = runs.iter().map(|(first, count)| (Pages(*first), *count));
    match kind {
        RecordType::ZerosList => encode_zeros_list(block, each, &mut bytes),
        RecordType::CompressedList => encode_compressed_list(block, each, 1, &mut bytes),
        _ => encode_list(block, each, &mut bytes),
    }
    .unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let mut payload = bytes[HEADER_LEN..].to_vec();
    payload.resize(header.payload as usize, 0x5a);
    Any::Run(header, payload)
}

/// Changed pages: number, checksum of the base, encoding.
fn delta(block: u32, pages: &[(u64, u32, &[u8])]) -> Any {
    let mut bytes = Vec::new();
    let each = pages.iter().map(|(page, base, encoding)| Delta {
        page: Pages(*page),
        base: *base,
        encoding,
    });
    encode_delta(block, each, &mut bytes).unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    Any::Run(header, bytes.split_off(HEADER_LEN))
}

/// The same list with a checksum behind the contents.
fn checked_list(block: u32, runs: &[(u64, u32)]) -> Any {
    let mut bytes = Vec::new();
    let each = runs.iter().map(|(first, count)| (Pages(*first), *count));
    encode_checked_list(block, each, &mut bytes).unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let Any::Run(_, mut payload) = list(RecordType::PagesList, block, runs) else {
        unreachable!()
    };
    let contents = crc32fast::hash(&payload[list_len(header.count)..]);
    payload.extend(contents.to_le_bytes());
    Any::Run(header, payload)
}

/// A list of runs of zero pages, 64 pages in all, and their frame.
fn packed_list(block: u32, runs: &[(u64, u32)]) -> Any {
    let mut bytes = Vec::new();
    let each = runs.iter().map(|(first, count)| (Pages(*first), *count));
    let frame = ZEROS_PACKED.len() - CHECKSUM_LEN;
    encode_compressed_list(block, each, frame as u32, &mut bytes).unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let list = &bytes[HEADER_LEN..];
    assert_eq!(listed_pages(list), 64);
    Any::Run(header, [list, &ZEROS_PACKED].concat())
}

/// Contents with a checksum behind them.
fn sealed(mut contents: Vec<u8>) -> Vec<u8> {
    contents.extend(crc32fast::hash(&contents).to_le_bytes());
    contents
}

/// 64 pages of zeros: their checksum, and a zstd frame.
const ZEROS_PACKED: [u8; 30] = [
    0x22, 0xea, 0x0e, 0xe2, 40, 181, 47, 253, 160, 0, 0, 4, 0, 84, 0, 0, 16, 0, 0, 1, 0, 251, 255,
    57, 192, 2, 3, 0, 16, 0,
];

/// One record of every type, with the name of its fixture.
fn examples() -> Vec<(&'static str, Any)> {
    let block = |id, name: &str, flags| Block {
        id,
        length: 0x1_4000_0000,
        page_size: 0x20_0000,
        flags,
        name: name.into(),
    };
    let blob = |name: &str, length| Blob {
        name: name.into(),
        instance: 3,
        version: 0x0102_0304,
        length,
    };
    let page = |n: usize| {
        (0..n)
            .map(|i| (i * 7 + i / 4096) as u8)
            .collect::<Vec<u8>>()
    };
    vec![
        (
            "hello",
            Any::Control(Record::Hello(Hello {
                version_min: 1,
                version_max: 2,
                features_offered: 0x8000_0000_0000_0003,
                features_required: 1,
                token: TOKEN,
                channel: 2,
                channels: 4,
                page_shift: 12,
                role: ROLE_URGENT,
                software: "brant 0.1".into(),
            })),
        ),
        (
            "hello_reply",
            Any::Control(Record::HelloReply(HelloReply {
                version: 1,
                features: 1,
                software: "grüße".into(),
            })),
        ),
        ("block", Any::Control(Record::Block(block(1, "pc.ram", 0)))),
        (
            "layout_end",
            Any::Control(Record::LayoutEnd(LayoutEnd {
                blocks: 2,
                bytes: 0x1_4002_0000,
            })),
        ),
        ("layout_ok", Any::Control(Record::LayoutOk)),
        (
            "pages",
            Any::Run(Header::pages(1, Pages(0x1_0000_01fe), 2), page(8192)),
        ),
        ("zeros", Any::Run(Header::zeros(1, Pages(512), 512), vec![])),
        (
            "marker",
            Any::Control(Record::Marker(Marker {
                number: 7,
                pass: 3,
                flags: MARKER_FLAG_FINAL,
                records: 0x0102_0304_0506_0708,
                data_pages: 1_000_000,
                zero_pages: 2_000_000,
            })),
        ),
        ("ack", Any::Control(Record::Ack(Ack { number: 7 }))),
        (
            "state",
            Any::Blob(RecordType::State, blob("vcpu", 5), b"regs!".to_vec()),
        ),
        (
            "state_end",
            Any::Control(Record::StateEnd(StateEnd {
                blobs: BlobEnd { count: 1, bytes: 5 },
                handover_millis: 30_000,
            })),
        ),
        (
            "early",
            Any::Blob(RecordType::Early, blob("machine", 0), vec![]),
        ),
        (
            "early_end",
            Any::Control(Record::EarlyEnd(BlobEnd { count: 1, bytes: 0 })),
        ),
        ("early_ok", Any::Control(Record::EarlyOk)),
        (
            "ready",
            Any::Control(Record::Ready(Ready {
                load_micros: 1500,
                digest_micros: 15000,
            })),
        ),
        (
            "handover",
            Any::Control(Record::Handover(Handover { token: TOKEN })),
        ),
        (
            "running",
            Any::Control(Record::Running(Running { run_micros: 250 })),
        ),
        (
            "abort",
            Any::Control(Record::Abort(Abort {
                code: Kind::Layout as i32,
                reason: "block \"pc.ram\" is missing".into(),
            })),
        ),
        ("keepalive", Any::Control(Record::Keepalive)),
        (
            "block_added",
            Any::Control(Record::BlockAdded(block(9, "dimm1", BLOCK_FLAG_ROM))),
        ),
        (
            "block_removed",
            Any::Control(Record::BlockRemoved { id: 9 }),
        ),
        (
            "ballooned",
            Any::Run(Header::ballooned(1, Pages(1536), 511), vec![]),
        ),
        (
            "pages_list",
            list(RecordType::PagesList, 5, &[(510, 2), (513, 1), (9000, 1)]),
        ),
        (
            "zeros_list",
            list(RecordType::ZerosList, 5, &[(510, 2), (513, 1), (9216, 500)]),
        ),
        (
            "delta",
            delta(
                5,
                &[(510, 0x1234_5678, &[5, 1, 9]), (9000, 0xffff_ffff, &[])],
            ),
        ),
        (
            "pages_checked",
            Any::Run(
                Header::checked_pages(1, Pages(0x1_0000_01fe), 2),
                sealed(page(8192)),
            ),
        ),
        (
            "pages_list_checked",
            checked_list(5, &[(510, 2), (513, 1), (9000, 1)]),
        ),
        (
            "digest",
            Any::Control(Record::Digest(Digest {
                block: 5,
                first_page: Pages(0x1_0000_0200),
                pages: 3,
                sums: vec![0x0102_0304, 0, 0xffff_ffff],
            })),
        ),
        (
            "compressed",
            Any::Run(
                Header::compressed(1, Pages(0x1_0000_0100), 64, 26),
                ZEROS_PACKED.to_vec(),
            ),
        ),
        (
            "compressed_list",
            packed_list(5, &[(510, 2), (513, 1), (9000, 61)]),
        ),
        (
            "device",
            Any::Piece(
                Piece {
                    number: 2,
                    flags: PIECE_STOPPED | PIECE_LAST,
                    offset: 0x1_0000_0005,
                    length: 7,
                },
                b"\x00state\xff".to_vec(),
            ),
        ),
        (
            "device_running_end",
            Any::Piece(
                Piece {
                    number: 2,
                    flags: PIECE_LAST,
                    offset: 0x0102_0304_0506,
                    length: 0,
                },
                Vec::new(),
            ),
        ),
        (
            "device_loaded",
            Any::Control(Record::DeviceLoaded(DeviceLoaded {
                number: 2,
                bytes: 0x0102_0304_0506,
            })),
        ),
        (
            "device_named",
            Any::Control(Record::DeviceNamed(NamedDevice {
                number: 1,
                instance: 3,
                version: 0x0102_0304,
                name: "gpu".into(),
            })),
        ),
        ("missing", missing(5, &[(3, 2), (900, 1)])),
        (
            "missing_bits",
            missing(5, &[(1, 1), (3, 1), (5, 1), (7, 1), (9, 1)]),
        ),
        (
            "missing_end",
            Any::Control(Record::MissingEnd(MissingEnd {
                pages: Pages(0x0102_0304_0506),
                epoch: 2,
            })),
        ),
        (
            "request",
            Any::Control(Record::Request(Request {
                block: 5,
                runs: vec![(Pages(0x1_0000_0200), 1), (Pages(9), 512)],
            })),
        ),
        (
            "complete",
            Any::Control(Record::Complete(Complete {
                pages: Pages(0x0102_0304_0506),
                epoch: 2,
            })),
        ),
        (
            "recover",
            Any::Control(Record::Recover(Recover { epoch: 2 })),
        ),
        (
            "recover_reply",
            Any::Control(Record::RecoverReply(RecoverReply {
                epoch: 2,
                pages: Pages(0x0102_0304_0506),
            })),
        ),
        (
            "block_fd",
            Any::Control(Record::BlockFd(BlockFd {
                id: 5,
                offset: 0x1_0000_2000,
                length: 0x8000_3000,
            })),
        ),
    ]
}

/// The description of these missing pages of a block of 1000 pages: bits, if those are shorter than
/// runs.
fn missing(block: u32, runs: &[(usize, usize)]) -> Any {
    let last = runs.last().map_or(0, |(first, count)| first + count);
    let pages = if runs.len() > 2 { last } else { 1000 };
    let mut bits = crate::bits::Bitmap::new(pages).unwrap();
    for (first, count) in runs {
        bits.set_range(*first, *count);
    }
    let mut made = None;
    describe(block, bits.words(), Pages(pages as u64), |missing| {
        made = Some(missing.clone());
        Ok(())
    })
    .unwrap();
    Any::Control(Record::Missing(made.unwrap()))
}

fn refused(result: Result<impl std::fmt::Debug>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "no {part:?} in: {error}");
    }
}
