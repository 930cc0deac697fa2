//! Records of a source with a false field are refused by the destination, with the expected value
//! in the message.

use super::as_source::{sent_to_destination, Step};
use super::bounds::bounded;
use super::params::quick;
use super::records::{
    block, end, flipped, hello, list_bytes, marker, patched, sample, state_end, with, PAGES,
};
use crate::support::fuzz::{blob_bytes, bytes, mend_all, page_bytes};
use brant::error::Kind;
use brant::units::PAGE_SIZE;
use brant::wire;
use brant::wire::{Header, Record, RecordType, HEADER_LEN};

#[test]
fn fields_that_lie_are_refused_with_what_was_expected_at_the_destination() {
    use RecordType as R;
    bounded();
    let layout = |records: &[Record]| records.iter().flat_map(bytes).collect::<Vec<u8>>();
    let layout_end = |blocks, bytes| Record::LayoutEnd(wire::LayoutEnd { blocks, bytes });
    let size = PAGES * PAGE_SIZE;
    let unknown = |flags, payload: u32| {
        let mut header = Header::control(R::Keepalive, 0, payload);
        (header.kind, header.flags) = (999, flags);
        header.encode().to_vec()
    };
    let (s, p) = (Step::State, Step::Passes);
    let cases: Vec<(&str, Step, Vec<u8>, Kind, &str)> = vec![
        // The header.
        ("magic", p, vec![0; 64], Kind::Protocol, "magic"),
        (
            "a flag",
            p,
            with(R::Zeros, |h| h.flags = 1),
            Kind::Protocol,
            "ZEROS",
        ),
        (
            "another flag",
            p,
            {
                let mut x = sample(R::Zeros);
                x[6] = 2;
                mend_all(&mut x);
                x
            },
            Kind::Protocol,
            "flags",
        ),
        (
            "a type that nobody knows",
            p,
            unknown(0, 0),
            Kind::Protocol,
            "999",
        ),
        (
            "one to skip, too long",
            p,
            unknown(1, 65_537),
            Kind::Protocol,
            "65536",
        ),
        (
            "a field that is not used",
            p,
            with(R::Marker, |h| h.first_page = 1),
            Kind::Protocol,
            "MARKER",
        ),
        (
            "a block where none is",
            p,
            with(R::Marker, |h| h.block = 4),
            Kind::Protocol,
            "MARKER",
        ),
        // Runs of pages.
        (
            "no pages",
            p,
            with(R::Pages, |h| h.count = 0),
            Kind::Protocol,
            "512",
        ),
        (
            "no zeros",
            p,
            with(R::Zeros, |h| h.count = 0),
            Kind::Protocol,
            "ZEROS",
        ),
        (
            "513 pages",
            p,
            with(R::Pages, |h| (h.count, h.payload) = (513, 513 * 4096)),
            Kind::Protocol,
            "512",
        ),
        (
            "2^32 - 1 zeros",
            p,
            with(R::Zeros, |h| h.count = u32::MAX),
            Kind::Protocol,
            "ZEROS",
        ),
        // Lists of runs.
        (
            "a list of no runs",
            p,
            with(R::PagesList, |h| h.count = 0),
            Kind::Protocol,
            "1 to 256",
        ),
        (
            "257 runs",
            p,
            with(R::PagesList, |h| h.count = 257),
            Kind::Protocol,
            "1 to 256",
        ),
        (
            "a list without contents",
            p,
            with(R::PagesList, |h| h.payload = 20),
            Kind::Protocol,
            "payload",
        ),
        (
            "a list of 1 GiB",
            p,
            with(R::PagesList, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "payload",
        ),
        (
            "fewer pages than the list has",
            p,
            with(R::PagesList, |h| h.payload -= 4096),
            Kind::Protocol,
            "runs of 2 pages",
        ),
        (
            "a list of a block that was never announced",
            p,
            with(R::PagesList, |h| h.block = 5),
            Kind::Protocol,
            "block 5",
        ),
        (
            "a list beyond the block",
            p,
            list_bytes(R::PagesList, &[(1, 1), (PAGES - 1, 2)]),
            Kind::Protocol,
            "inside the block",
        ),
        (
            "a list that begins beyond the block",
            p,
            with(R::PagesList, |h| h.first_page = u64::MAX),
            Kind::Protocol,
            "below 2^64",
        ),
        (
            "a run over two stretches in a list",
            p,
            list_bytes(R::PagesList, &[(1, 1), (511, 2)]),
            Kind::Protocol,
            "stretch",
        ),
        (
            "a list that goes back",
            p,
            list_bytes(R::PagesList, &[(9, 2), (10, 1)]),
            Kind::Protocol,
            "ascend",
        ),
        (
            "a list with a bit flipped",
            p,
            flipped(R::PagesList, 4),
            Kind::Protocol,
            "checksum",
        ),
        (
            "a list cut short",
            p,
            sample(R::PagesList)[..HEADER_LEN + 11].to_vec(),
            Kind::PeerGone,
            "",
        ),
        (
            "a list of no runs of zeros",
            p,
            with(R::ZerosList, |h| h.count = 0),
            Kind::Protocol,
            "1 to 256",
        ),
        (
            "257 runs of zeros",
            p,
            with(R::ZerosList, |h| (h.count, h.payload) = (257, 257 * 8 + 4)),
            Kind::Protocol,
            "1 to 256",
        ),
        (
            "a list of zeros with contents",
            p,
            with(R::ZerosList, |h| h.payload += 3 * 4096),
            Kind::Protocol,
            "ZEROS_LIST: expected a payload of 20 bytes",
        ),
        (
            "a list of zeros of a block that was never announced",
            p,
            with(R::ZerosList, |h| h.block = 5),
            Kind::Protocol,
            "block 5",
        ),
        (
            "a list of zeros beyond the block",
            p,
            list_bytes(R::ZerosList, &[(1, 1), (PAGES - 1, 2)]),
            Kind::Protocol,
            "inside the block",
        ),
        (
            "a list of zeros that goes back",
            p,
            list_bytes(R::ZerosList, &[(9, 2), (10, 1)]),
            Kind::Protocol,
            "ascend",
        ),
        (
            "a run of zeros over two stretches in a list",
            p,
            list_bytes(R::ZerosList, &[(1, 1), (511, 2)]),
            Kind::Protocol,
            "stretch",
        ),
        (
            "a list of zeros with a bit flipped",
            p,
            flipped(R::ZerosList, 4),
            Kind::Protocol,
            "checksum",
        ),
        (
            "a list of zeros cut short",
            p,
            sample(R::ZerosList)[..HEADER_LEN + 11].to_vec(),
            Kind::PeerGone,
            "",
        ),
        (
            "fewer bytes than pages",
            p,
            with(R::Pages, |h| h.count = 2),
            Kind::Protocol,
            "8192",
        ),
        (
            "more bytes than pages",
            p,
            with(R::Pages, |h| h.payload = 8192),
            Kind::Protocol,
            "4096",
        ),
        (
            "a huge payload",
            p,
            with(R::Pages, |h| h.payload = u32::MAX),
            Kind::Protocol,
            "PAGES",
        ),
        (
            "zeros with contents",
            p,
            with(R::Zeros, |h| h.payload = 4096),
            Kind::Protocol,
            "ZEROS",
        ),
        (
            "across a stretch",
            p,
            with(R::Zeros, |h| (h.first_page, h.count) = (510, 3)),
            Kind::Protocol,
            "512",
        ),
        (
            "contents across a stretch",
            p,
            page_bytes(4, 511, 2),
            Kind::Protocol,
            "one aligned stretch of 512",
        ),
        (
            "contents over the end",
            p,
            page_bytes(4, 599, 2),
            Kind::Protocol,
            "600",
        ),
        (
            "over the end",
            p,
            with(R::Zeros, |h| (h.first_page, h.count) = (599, 2)),
            Kind::Protocol,
            "600",
        ),
        (
            "past the end",
            p,
            with(R::Pages, |h| h.first_page = 600),
            Kind::Protocol,
            "600",
        ),
        (
            "around the end of numbers",
            p,
            with(R::Zeros, |h| (h.first_page, h.count) = (u64::MAX, 2)),
            Kind::Protocol,
            "600",
        ),
        (
            "a block that nobody knows",
            p,
            with(R::Pages, |h| h.block = 5),
            Kind::Protocol,
            "block 5",
        ),
        (
            "zeros of such a block",
            p,
            with(R::Zeros, |h| h.block = 0),
            Kind::Protocol,
            "block 0",
        ),
        (
            "a block that is gone",
            p,
            [sample(R::BlockRemoved), sample(R::Zeros)].concat(),
            Kind::Protocol,
            "block 4",
        ),
        (
            "removed twice",
            p,
            sample(R::BlockRemoved).repeat(2),
            Kind::Protocol,
            "block 4",
        ),
        (
            "added under a number that is taken",
            p,
            bytes(&Record::BlockAdded(block(4, "ram", PAGES))),
            Kind::Protocol,
            "block 4",
        ),
        (
            "added, and not here",
            p,
            bytes(&Record::BlockAdded(block(9, "gpu", PAGES))),
            Kind::Layout,
            "`gpu`",
        ),
        (
            "added with another length",
            p,
            bytes(&Record::BlockAdded(block(9, "ram", 7))),
            Kind::Layout,
            "28672",
        ),
        // Markers with false figures.
        (
            "a marker: number",
            p,
            bytes(&Record::Marker(marker(2, 0, 0, 0, 0))),
            Kind::Protocol,
            "marker 2",
        ),
        (
            "a marker: number 0",
            p,
            patched(R::Marker, 0, &[0; 8]),
            Kind::Protocol,
            "MARKER",
        ),
        (
            "a marker: records",
            p,
            bytes(&Record::Marker(marker(1, 0, 1, 0, 0))),
            Kind::Protocol,
            "1 records",
        ),
        (
            "a marker: data pages",
            p,
            bytes(&Record::Marker(marker(1, 0, 0, u64::MAX, 0))),
            Kind::Protocol,
            "data pages",
        ),
        (
            "a marker: zero pages",
            p,
            bytes(&Record::Marker(marker(1, 1, 0, 0, 1))),
            Kind::Protocol,
            "1 zero pages",
        ),
        (
            "a marker: flags",
            p,
            patched(R::Marker, 12, &[2]),
            Kind::Protocol,
            "flags",
        ),
        (
            "a marker twice",
            p,
            sample(R::Marker).repeat(2),
            Kind::Protocol,
            "marker 1",
        ),
        // HELLO.
        (
            "no version in common",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                version_min: 7,
                version_max: 9,
                ..hello()
            })),
            Kind::Version,
            "7",
        ),
        (
            "versions upside down",
            Step::Hello,
            patched(R::Hello, 0, &[9, 0, 1, 0]),
            Kind::Protocol,
            "version",
        ),
        (
            "a feature that nobody knows",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                features_offered: 1 | 1 << 60,
                features_required: 1 | 1 << 60,
                ..hello()
            })),
            Kind::Version,
            "60",
        ),
        (
            "required, not offered",
            Step::Hello,
            patched(R::Hello, 12, &[3]),
            Kind::Protocol,
            "feature",
        ),
        (
            "no channels",
            Step::Hello,
            patched(R::Hello, 38, &[0, 0]),
            Kind::Protocol,
            "channel",
        ),
        (
            "two channels",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                channels: 2,
                ..hello()
            })),
            Kind::Unsupported,
            "found one of 2",
        ),
        (
            "the second channel",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                channel: 1,
                channels: 2,
                ..hello()
            })),
            Kind::Unsupported,
            "channels",
        ),
        (
            "an urgent connection",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                channel: 1,
                channels: 2,
                role: wire::ROLE_URGENT,
                ..hello()
            })),
            Kind::Unsupported,
            "role 1",
        ),
        (
            "an urgent connection as the first",
            Step::Hello,
            patched(R::Hello, 41, &[1]),
            Kind::Protocol,
            "role",
        ),
        (
            "other pages",
            Step::Hello,
            patched(R::Hello, 40, &[16]),
            Kind::Unsupported,
            "page",
        ),
        (
            "a long name",
            Step::Hello,
            patched(R::Hello, 41, &[65]),
            Kind::Protocol,
            "HELLO",
        ),
        (
            "a name of bytes",
            Step::Hello,
            patched(R::Hello, 42, &[0xff]),
            Kind::Protocol,
            "HELLO",
        ),
        (
            "HELLO of 2^30",
            Step::Hello,
            with(R::Hello, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "HELLO",
        ),
        // Blobs.
        (
            "more early blobs than said",
            Step::Early,
            [sample(R::Early), bytes(&Record::EarlyEnd(end(0, 0)))].concat(),
            Kind::Protocol,
            "0 blobs",
        ),
        (
            "fewer bytes than said",
            Step::Early,
            [sample(R::Early), bytes(&Record::EarlyEnd(end(1, 6)))].concat(),
            Kind::Protocol,
            "6 bytes",
        ),
        // The sum is correct in these; only the count is wrong.
        (
            "more blobs said than came",
            s,
            [sample(R::State), bytes(&Record::StateEnd(state_end(2, 5)))].concat(),
            Kind::Protocol,
            "2 blobs of 5 bytes, and 1 of 5",
        ),
        (
            "an empty blob that nobody counts",
            s,
            [
                blob_bytes(R::State, "x", &[]),
                bytes(&Record::StateEnd(state_end(0, 0))),
            ]
            .concat(),
            Kind::Protocol,
            "0 blobs of 0 bytes, and 1 of 0",
        ),
        (
            "an early blob that never came",
            Step::Early,
            bytes(&Record::EarlyEnd(end(1, 0))),
            Kind::Protocol,
            "1 blobs of 0 bytes, and 0 of 0",
        ),
        (
            "blobs that overflow",
            s,
            bytes(&Record::StateEnd(state_end(3, u64::MAX))),
            Kind::Protocol,
            "3 blobs",
        ),
        (
            "65,537 blobs said",
            s,
            patched(R::StateEnd, 0, &65_537u32.to_le_bytes()),
            Kind::Protocol,
            "65536",
        ),
        (
            "a blob without a name",
            s,
            patched(R::State, 0, &[0]),
            Kind::Protocol,
            "name",
        ),
        (
            "a blob with a long name",
            s,
            patched(R::State, 0, &[129]),
            Kind::Protocol,
            "name",
        ),
        (
            "a blob with a bell",
            s,
            patched(R::State, 1, &[7]),
            Kind::Protocol,
            "name",
        ),
        (
            "a blob longer than its record",
            s,
            patched(R::State, 10, &6u64.to_le_bytes()),
            Kind::Protocol,
            "5 bytes",
        ),
        (
            "a blob of 2^64 - 1",
            s,
            patched(R::State, 10, &u64::MAX.to_le_bytes()),
            Kind::Protocol,
            "5 bytes",
        ),
        (
            "a blob past 2^30",
            s,
            with(R::State, |h| h.payload = (1 << 30) + 1),
            Kind::Protocol,
            "STATE",
        ),
        (
            "a blob past what is allowed",
            s,
            with(R::State, |h| h.payload = (1 << 20) + 1),
            Kind::Protocol,
            "1048576 bytes allowed",
        ),
        (
            "early, past what is allowed",
            Step::Early,
            with(R::Early, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "1048576 bytes allowed",
        ),
        (
            "a little at a time past it",
            s,
            blob_bytes(R::State, "x", &[0; 700_000]).repeat(2),
            Kind::Protocol,
            "1048576 bytes allowed",
        ),
        // Blocks.
        (
            "a block of nothing",
            Step::Layout,
            patched(R::Block, 0, &[0; 8]),
            Kind::Protocol,
            "length",
        ),
        (
            "half a page",
            Step::Layout,
            patched(R::Block, 0, &2048u64.to_le_bytes()),
            Kind::Protocol,
            "length",
        ),
        (
            "a block of 2^64 - 4096",
            Step::Layout,
            patched(R::Block, 0, &(0u64.wrapping_sub(4096)).to_le_bytes()),
            Kind::Protocol,
            "length",
        ),
        (
            "pages of 3",
            Step::Layout,
            patched(R::Block, 8, &3u64.to_le_bytes()),
            Kind::Protocol,
            "page",
        ),
        (
            "a block's flags",
            Step::Layout,
            patched(R::Block, 16, &[2]),
            Kind::Protocol,
            "flags",
        ),
        (
            "a block's long name",
            Step::Layout,
            patched(R::Block, 20, &[0xff, 0xff]),
            Kind::Protocol,
            "BLOCK",
        ),
        (
            "a block of the greatest length",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", (1 << 51) - 1)),
                layout_end(1, ((1 << 51) - 1) * PAGE_SIZE),
            ]),
            Kind::Layout,
            "`ram`",
        ),
        (
            "two such",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                Record::Block(block(5, "x", (1 << 51) - 1)),
                Record::Block(block(6, "y", (1 << 51) - 1)),
                layout_end(3, 5),
            ]),
            Kind::Protocol,
            "3 blocks",
        ),
        (
            "one name twice",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                Record::Block(block(5, "ram", PAGES)),
                layout_end(2, 2 * size),
            ]),
            Kind::Protocol,
            "`ram`",
        ),
        (
            "one number twice",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                Record::Block(block(4, "gpu", PAGES)),
                layout_end(2, 2 * size),
            ]),
            Kind::Layout,
            "`gpu`",
        ),
        (
            "a layout's number of blocks",
            Step::Layout,
            layout(&[Record::Block(block(4, "ram", PAGES)), layout_end(2, size)]),
            Kind::Protocol,
            "2 blocks",
        ),
        (
            "a layout's bytes",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                layout_end(1, size + 1),
            ]),
            Kind::Protocol,
            "1 blocks",
        ),
        (
            "4,097 blocks said",
            Step::Layout,
            patched(R::LayoutEnd, 0, &4097u32.to_le_bytes()),
            Kind::Protocol,
            "4096",
        ),
        // The hand-over.
        (
            "another token",
            Step::Handover,
            bytes(&Record::Handover(wire::Handover { token: [6; 16] })),
            Kind::Protocol,
            "token",
        ),
        (
            "half a token",
            Step::Handover,
            with(R::Handover, |h| h.payload = 8),
            Kind::Protocol,
            "HANDOVER",
        ),
        (
            "a token cut short",
            Step::Handover,
            sample(R::Handover)[..47].to_vec(),
            Kind::PeerGone,
            "",
        ),
    ];
    let count = cases.len();
    let mut wrong = Vec::new();
    for (what, step, bytes, kind, word) in cases {
        let (error, told) = sent_to_destination(step, &bytes, quick());
        if error.kind() != kind || !error.message().contains(word) {
            wrong.push(format!(
                "{what}: {:?} {error}; expected {kind:?}, {word}",
                error.kind()
            ));
        }
        if kind != Kind::PeerGone && told.as_deref() != Some(error.message()) {
            wrong.push(format!("{what}: it was told {told:?}, not: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
    bounded();
}
