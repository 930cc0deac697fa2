//! The fuzz targets work on their seeds and on mutations of these, and the seeds have today's wire
//! format.

use super::bounds::bounded;
use super::params::seed;
use super::records::sample;
use crate::support::fuzz;
use crate::support::random::Random;
use brant::wire::{RecordType, HEADER_LEN};

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(root.join("fuzz/seeds").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    if target == "decoder" {
        let fixtures = std::fs::read_dir(root.join("tests/fixtures/wire")).unwrap();
        files.extend(fixtures.map(|entry| entry.unwrap().path()));
    }
    files.sort();
    assert!(files.len() >= 3);
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// Some bytes changed, as by a fuzzer that knows nothing of records.
fn changed(data: &[u8], random: &mut Random) -> Vec<u8> {
    let mut changed = data.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(changed.len());
        match random.below(4) {
            0 => changed.truncate(at.max(1)),
            1 => changed[at] = random.next() as u8,
            2 => changed[at] ^= 1 << random.below(8),
            _ => drop(changed.splice(at..at, vec![random.next() as u8; random.below(9)])),
        }
    }
    changed
}

#[test]
fn the_fuzz_targets_hold_on_their_seeds_and_some_thousand_mutations() {
    bounded();
    let mut random = Random(seed());
    let decoder = seeds("decoder");
    for data in &decoder {
        fuzz::decoder(data);
    }
    for _ in 0..20_000 {
        let data = &decoder[random.below(decoder.len())];
        fuzz::decoder(&fuzz::mutate(std::slice::from_ref(data), || random.next()));
    }
    let delta = seeds("delta");
    for data in &delta {
        fuzz::delta(data);
    }
    for _ in 0..5_000 {
        let data = &delta[random.below(delta.len())];
        fuzz::delta(&changed(data, &mut random));
    }
    let incoming = seeds("incoming");
    let mut ran = 0;
    for data in &incoming {
        ran += usize::from(fuzz::incoming(data).is_some_and(|o| o.result.is_ok()));
    }
    assert!(ran > 0, "no seed gets to the end");
    for _ in 0..1500 {
        let data = &incoming[random.below(incoming.len())];
        let mut changed = changed(data, &mut random);
        changed[0] |= u8::from(random.below(4) > 0);
        fuzz::incoming(&changed);
    }
    bounded();
}

#[test]
fn the_seeds_of_the_fuzz_targets_are_of_this_wire() {
    // BRANT_WRITE_SEEDS writes the seeds anew.
    let anew = std::env::var_os("BRANT_WRITE_SEEDS").is_some();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let write = |target: &str, name: &str, data: &[u8]| {
        let path = root.join(target).join(name);
        if anew {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, data).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(there == data, "{} is another", path.display());
    };
    for kind in RecordType::ALL {
        if !kind.is_page_run() {
            write("decoder", &kind.name().to_lowercase(), &sample(*kind));
        }
    }
    write("delta", "sparse", &[5, 1, 9, 0xc2, 1, 3, 9, 9, 9]);
    write(
        "delta",
        "dense",
        &[&[0, 0x80, 0x20][..], &[7; 4096]].concat(),
    );
    write("delta", "last", &[0xff, 0x1f, 1, 7]);
    let session = fuzz::session();
    let whole = |records: &[Vec<u8>]| [&[1][..], &records.concat()].concat();
    write("incoming", "session", &whole(&session));
    write("incoming", "handshake", &whole(&session[..5]));
    write("incoming", "copying", &whole(&session[..14]));
    let packed = fuzz::packed_session();
    write("incoming", "packed", &whole(&packed));
    assert_eq!(fuzz::destination(&packed.concat()).result, Ok(()));
    write("decoder", "compressed", &sample(RecordType::Compressed));
    let list = sample(RecordType::CompressedList);
    write("decoder", "compressed_list", &list);
    // Without the pages, which take most of the bytes and teach a fuzzer nothing.
    let mut small = session.clone();
    small.retain(|r| !r.starts_with(b"BRNT\x06\x00") && !r.starts_with(b"BRNT\x17\x00"));
    for record in &mut small {
        if record.starts_with(b"BRNT\x08\x00") && record[HEADER_LEN] == 2 {
            record[HEADER_LEN + 16] = 4;
            record[HEADER_LEN + 24] = 0;
            fuzz::mend(record);
        }
    }
    write("incoming", "small", &whole(&small));
}
