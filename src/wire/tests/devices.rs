//! Pieces of devices' state, and what names devices.

use super::*;

fn piece(flags: u32, offset: u64, length: u32) -> Piece {
    Piece {
        number: 3,
        flags,
        offset,
        length,
    }
}

/// The record of a piece that `encode` would refuse.
fn forged(number: u32, flags: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend_from_slice(&number.to_le_bytes());
    payload.extend_from_slice(&flags.to_le_bytes());
    payload.extend_from_slice(&offset.to_le_bytes());
    payload.extend_from_slice(data);
    let header = Header {
        count: crc32fast::hash(&payload),
        ..Header::control(RecordType::Device, 0, payload.len() as u32)
    };
    [&header.encode()[..], &payload].concat()
}

#[test]
fn a_piece_of_the_largest_size_goes_through_and_a_larger_one_does_not() {
    let most = vec![5; PIECE_BYTES_MAX];
    let any = Any::Piece(piece(0, 7, PIECE_BYTES_MAX as u32), most);
    assert_eq!(decode(&encode(&any)).unwrap(), Some(any));
    let more = vec![5; PIECE_BYTES_MAX + 1];
    let error = piece(0, 7, more.len() as u32).encode(&more).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    refused(decode(&forged(3, 0, 7, &more)), &["DEVICE", "payload"]);
}

#[test]
fn pieces_that_break_a_rule_are_refused() {
    refused(
        decode(&forged(256, 0, 0, b"x")),
        &["DEVICE", "number", "256"],
    );
    refused(decode(&forged(3, 8, 0, b"x")), &["DEVICE", "flags", "0x8"]);
    // A stopped part is not loaded before the pause.
    let both = PIECE_STOPPED | PIECE_INITIAL;
    refused(decode(&forged(3, both, 0, b"x")), &["flags", "0x5"]);
    refused(decode(&forged(3, 0, 0, b"")), &["DEVICE", "some state"]);
    refused(decode(&forged(3, 0, u64::MAX, b"x")), &["DEVICE", "offset"]);
}

/// Also the end of a device that has no running part, which is an empty piece at byte 0.
#[test]
fn either_part_has_an_end_which_may_hold_no_bytes() {
    for flags in [PIECE_LAST, PIECE_STOPPED | PIECE_LAST] {
        for (offset, data) in [(0, &b""[..]), (7, b"state")] {
            let any = Any::Piece(piece(flags, offset, data.len() as u32), data.to_vec());
            assert_eq!(decode(&encode(&any)).unwrap(), Some(any));
        }
    }
}

#[test]
fn a_piece_with_a_flipped_bit_is_refused() {
    let any = Any::Piece(piece(PIECE_STOPPED, 7, 5), b"state".to_vec());
    let good = encode(&any);
    for at in HEADER_LEN..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refused(decode(&bad), &["DEVICE", "damaged"]);
    }
}

#[test]
fn a_devices_name_and_number_have_limits() {
    let named = |number, name: &str| {
        let name = name.into();
        Record::DeviceNamed(NamedDevice {
            number,
            instance: 0,
            version: 1,
            name,
        })
        .encode(&mut Vec::new())
    };
    named(255, &"n".repeat(128)).unwrap();
    for (number, name) in [(256, "gpu"), (0, ""), (0, "a\tb"), (0, &"n".repeat(129))] {
        assert_eq!(named(number, name).unwrap_err().kind(), Kind::Invalid);
    }
}
