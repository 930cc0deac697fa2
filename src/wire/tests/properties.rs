//! Everything that can be encoded is decoded to the same value; no bytes that arrive cause a panic.

use super::*;

fn any_block() -> impl Strategy<Value = Block> {
    (
        any::<u32>(),
        1..1u64 << 40,
        12..40u32,
        0..2u32,
        "[^\\p{Cc}]{0,60}",
    )
        .prop_map(|(id, pages, shift, flags, name)| Block {
            id,
            length: pages * PAGE_SIZE,
            page_size: 1 << shift,
            flags,
            name,
        })
}

fn any_control() -> impl Strategy<Value = Record> {
    let end = || (0..=BLOBS_MAX, any::<u64>()).prop_map(|(count, bytes)| BlobEnd { count, bytes });
    prop_oneof![
        (
            (1..=u16::MAX, 1..=u16::MAX, any::<u64>(), any::<u64>()),
            (any::<Token>(), 1..=CHANNELS_MAX, any::<u16>(), any::<u8>()),
            "[^\\p{Cc}]{0,16}"
        )
            .prop_map(
                |((a, b, offered, required), (token, channels, channel, shift), software)| {
                    Record::Hello(Hello {
                        version_min: a.min(b),
                        version_max: a.max(b),
                        features_offered: offered,
                        features_required: offered & required,
                        token,
                        channel: channel % channels,
                        channels,
                        page_shift: shift,
                        role: if channel % channels == 0 {
                            ROLE_BULK
                        } else {
                            shift
                        },
                        software,
                    })
                }
            ),
        (1..=u16::MAX, any::<u64>(), "[^\\p{Cc}]{0,16}").prop_map(
            |(version, features, software)| Record::HelloReply(HelloReply {
                version,
                features,
                software
            })
        ),
        any_block().prop_map(Record::Block),
        any_block().prop_map(Record::BlockAdded),
        (0..=BLOCKS_MAX, any::<u64>())
            .prop_map(|(blocks, bytes)| Record::LayoutEnd(LayoutEnd { blocks, bytes })),
        Just(Record::LayoutOk),
        (1u64.., any::<u32>(), 0..2u32, any::<[u64; 3]>()).prop_map(
            |(number, pass, flags, [records, data_pages, zero_pages])| Record::Marker(Marker {
                number,
                pass,
                flags,
                records,
                data_pages,
                zero_pages
            })
        ),
        (1u64..).prop_map(|number| Record::Ack(Ack { number })),
        (end(), 1..=HANDOVER_MILLIS_MAX).prop_map(|(blobs, handover_millis)| {
            Record::StateEnd(StateEnd {
                blobs,
                handover_millis,
            })
        }),
        end().prop_map(Record::EarlyEnd),
        Just(Record::EarlyOk),
        any::<(u64, u64)>().prop_map(|(load_micros, digest_micros)| Record::Ready(Ready {
            load_micros,
            digest_micros
        })),
        any::<Token>().prop_map(|token| Record::Handover(Handover { token })),
        any::<u64>().prop_map(|run_micros| Record::Running(Running { run_micros })),
        (any::<i32>(), ".{0,250}").prop_map(|(code, reason)| Record::Abort(Abort { code, reason })),
        Just(Record::Keepalive),
        any::<u32>().prop_map(|id| Record::BlockRemoved { id }),
        (any::<u32>(), 0..1u64 << 40, 1..1u64 << 40).prop_map(|(id, offset, length)| {
            Record::BlockFd(BlockFd {
                id,
                offset: offset << 12,
                length: length << 12,
            })
        }),
        any_digest().prop_map(Record::Digest),
        (0..DEVICES_MAX, any::<u64>())
            .prop_map(|(number, bytes)| Record::DeviceLoaded(DeviceLoaded { number, bytes })),
        (0..DEVICES_MAX, any::<(u32, u32)>(), "[^\\p{C}]{1,32}").prop_map(
            |(number, (instance, version), name)| Record::DeviceNamed(NamedDevice {
                number,
                instance,
                version,
                name,
            })
        ),
        any::<(u64, u32)>().prop_map(|(pages, epoch)| Record::MissingEnd(MissingEnd {
            pages: Pages(pages),
            epoch
        })),
        any::<(u64, u32)>().prop_map(|(pages, epoch)| Record::Complete(Complete {
            pages: Pages(pages),
            epoch
        })),
        (1u32..).prop_map(|epoch| Record::Recover(Recover { epoch })),
        (1u32.., any::<u64>()).prop_map(|(epoch, pages)| Record::RecoverReply(RecoverReply {
            epoch,
            pages: Pages(pages)
        })),
        (
            any::<u32>(),
            prop::collection::vec((0..1u64 << 40, 1..=MISSING_PAGES_MAX), 1..40)
        )
            .prop_map(|(block, runs)| Record::Request(Request {
                block,
                runs: runs
                    .into_iter()
                    .map(|(first, n)| (Pages(first), n))
                    .collect(),
            })),
    ]
}

fn any_digest() -> impl Strategy<Value = Digest> {
    let sums = prop::collection::vec(any::<u32>(), 0..=DIGEST_SUMS_MAX);
    (any::<u32>(), 0..1u64 << 63, 1..=DIGEST_PAGES_MAX, sums).prop_map(
        |(block, first, pages, sums)| Digest {
            block,
            first_page: Pages(first),
            pages: match sums.len() {
                0 => pages,
                sums => sums as u32,
            },
            sums,
        },
    )
}

fn any_record() -> impl Strategy<Value = Any> {
    let run = (any::<u32>(), any::<u64>(), 0..512u32, any::<bool>()).prop_map(
        |(block, first, count, zero)| {
            let first = first >> 1;
            let room = 512 - (first % 512) as u32;
            let count = 1 + count % room;
            if zero && count.is_multiple_of(2) {
                Any::Run(Header::ballooned(block, Pages(first), count), vec![])
            } else if zero {
                Any::Run(Header::zeros(block, Pages(first), count), vec![])
            } else {
                let count = count.min(3);
                let data = vec![first as u8; count as usize * 4096];
                Any::Run(Header::pages(block, Pages(first), count), data)
            }
        },
    );
    let blob = (
        prop::bool::ANY,
        "[^\\p{Cc}]{1,30}",
        any::<(u32, u32)>(),
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(early, name, (instance, version), data)| {
            let kind = if early {
                RecordType::Early
            } else {
                RecordType::State
            };
            let length = data.len() as u64;
            Any::Blob(
                kind,
                Blob {
                    name,
                    instance,
                    version,
                    length,
                },
                data,
            )
        });
    prop_oneof![5 => any_control().prop_map(Any::Control), 1 => run, 1 => blob]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_encoded_is_decoded(value in any_record()) {
        let bytes = encode(&value);
        prop_assert_eq!(decode(&bytes).unwrap(), Some(value));
    }

    #[test]
    fn a_payload_that_is_decoded_is_the_only_form_of_it(
        value in any_record(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        // Whatever a decoder accepts encodes to the same bytes. The reason of an ABORT may be
        // invalid UTF-8, and is shown all the same.
        let mut bytes = encode(&value);
        if bytes.len() > HEADER_LEN {
            let at = HEADER_LEN + at.index(bytes.len() - HEADER_LEN);
            bytes[at] = byte;
        }
        let mended = |value: &Any| match value {
            Any::Control(Record::Abort(abort)) => abort.reason.contains(char::REPLACEMENT_CHARACTER),
            _ => false,
        };
        if let Some(other) = decode(&bytes).ok().flatten().filter(|v| !mended(v)) {
            prop_assert_eq!(encode(&other), bytes);
        }
    }

    #[test]
    fn records_are_appended_and_follow_one_another(a in any_control(), b in any_control()) {
        let mut out = Vec::new();
        a.encode(&mut out).unwrap();
        let first = out.len();
        b.encode(&mut out).unwrap();
        prop_assert_eq!(decode(&out[..first]).unwrap(), Some(Any::Control(a)));
        prop_assert_eq!(decode(&out[first..]).unwrap(), Some(Any::Control(b)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = decode(&bytes);
    }

    #[test]
    fn arbitrary_payloads_under_a_valid_header_never_panic(
        kind in 0u16..25,
        flags in 0u16..2,
        fields in any::<(u32, u32, u64)>(),
        zeroed in any::<bool>(),
        announced in prop::option::of(any::<u32>()),
        payload in prop::collection::vec(prop_oneof![any::<u8>(), Just(0)], 0..120),
    ) {
        let (block, count, first_page) = if zeroed { (0, 0, 0) } else { fields };
        let header = Header {
            kind,
            flags,
            block,
            count,
            first_page,
            payload: announced.unwrap_or(payload.len() as u32),
        };
        let _ = header.check_run(Pages(fields.2));
        let _ = Record::decode(&header, &payload);
        let _ = Blob::decode(&header, &payload);
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&payload);
        let _ = decode(&bytes);
    }
}

#[test]
fn huge_lengths_are_refused_before_anything_is_allocated_for_them() {
    // Lengths inside the payload that are far beyond its end.
    for (name, at, patch) in [
        ("hello", 42, &[64][..]),
        ("block", 20, &[0xff, 0]),
        ("abort", 4, &[0, 4]),
        ("state", 0, &[128]),
        ("state", 13, &[0xff; 8]),
    ] {
        let (_, value) = examples().into_iter().find(|(n, _)| *n == name).unwrap();
        let mut bytes = encode(&value);
        bytes[HEADER_LEN + at..][..patch.len()].copy_from_slice(patch);
        refused(decode(&bytes), &["expected"]);
    }
    // A header that announces more bytes than follow.
    for &kind in RecordType::ALL {
        let header = Header::control(kind, 0, kind.payload_limits().1);
        assert!(Blob::decode(&header, &[]).is_err());
        if header.payload > 0 {
            assert!(Record::decode(&header, &[]).is_err());
        }
    }
    // Text takes as much memory as it is long.
    for (_, value) in examples() {
        let bytes = encode(&value);
        let text = match decode(&bytes).unwrap().unwrap() {
            Any::Control(Record::Hello(hello)) => hello.software,
            Any::Control(Record::Block(block)) => block.name,
            Any::Control(Record::Abort(abort)) => abort.reason,
            Any::Blob(_, blob, _) => blob.name,
            _ => continue,
        };
        assert!(text.capacity() <= bytes.len() - HEADER_LEN);
    }
}
