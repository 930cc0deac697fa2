//! Fixed bytes that every version has to understand; and the specification lists every record.

use super::*;

#[test]
fn every_fixture_means_what_it_always_meant() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wire");
    let examples = examples();
    let regenerate = std::env::var_os("BRANT_REGEN_FIXTURES").is_some();
    for (name, value) in &examples {
        let path = folder.join(format!("{name}.bin"));
        if regenerate {
            std::fs::write(&path, encode(value)).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(decode(&bytes).unwrap().as_ref(), Some(value), "{name}");
        assert_eq!(encode(value), bytes, "{name}");
    }
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(
        files,
        examples.len(),
        "a fixture without a test, or the other way round"
    );
}

#[test]
fn there_is_an_example_of_every_type() {
    let mut numbers: Vec<u16> = examples()
        .iter()
        .map(|(_, value)| u16::from_le_bytes(encode(value)[4..6].try_into().unwrap()))
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let all: Vec<u16> = RecordType::ALL.iter().map(|kind| kind.number()).collect();
    assert_eq!(numbers, all);
    for kind in RecordType::ALL {
        assert_eq!(RecordType::from_number(kind.number()), Some(*kind));
    }
}

#[test]
fn the_specification_lists_the_types_as_they_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/wire.md");
    let text = std::fs::read_to_string(path).unwrap();
    for kind in RecordType::ALL {
        let way = match kind.direction() {
            Direction::ToDestination => "→",
            Direction::ToSource => "←",
            Direction::Either => "either",
        };
        let payload = match (*kind, kind.payload_limits()) {
            (RecordType::Pages, _) => "count × 4096".to_string(),
            (RecordType::Compressed, _) => "4 + frame".to_string(),
            (RecordType::PagesList, _) => "count × 8 + 4 + pages × 4096".to_string(),
            (RecordType::CompressedList, _) => "count × 8 + 8 + frame".to_string(),
            (RecordType::ZerosList, _) => "count × 8 + 4".to_string(),
            (RecordType::Delta, _) => "count × 10 + 4 + encodings".to_string(),
            (_, (least, PAYLOAD_MAX)) => format!("{least} to 2^30"),
            (_, (least, most)) if least == most => format!("{most}"),
            (_, (least, most)) => format!("{least} to {most}"),
        };
        let row = format!(
            "| {} | {} | {way} | {payload} |",
            kind.number(),
            kind.name()
        );
        assert!(text.contains(&row), "docs/wire.md has no row {row}");
    }
    for feature in FEATURES {
        let row = format!("| {} | {} |", feature.bit, feature.name);
        assert!(text.contains(&row), "docs/wire.md has no row {row}");
    }
}

#[test]
fn a_marker_is_these_bytes() {
    // Made by hand from docs/wire.md (the checksum by zlib), so that a mistake that encoder and
    // decoder share shows.
    #[rustfmt::skip]
    let bytes: &[u8] = &[
        b'B', b'R', b'N', b'T',  8, 0,  0, 0,  0, 0, 0, 0,  0xf1, 0x2f, 0xfd, 0xe3,
        0, 0, 0, 0, 0, 0, 0, 0,  40, 0, 0, 0,  0x78, 0xab, 0x81, 0xf2,
        7, 0, 0, 0, 0, 0, 0, 0,  3, 0, 0, 0,  1, 0, 0, 0,
        8, 7, 6, 5, 4, 3, 2, 1,
        0x40, 0x42, 0x0f, 0, 0, 0, 0, 0,  0x80, 0x84, 0x1e, 0, 0, 0, 0, 0,
    ];
    let (_, marker) = &examples()[7];
    assert_eq!(encode(marker), bytes);
}
