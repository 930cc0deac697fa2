//! Images of a chain without a guest: merges as jobs, and what is in a file.

use super::chain_damage::{example, SMALL};
use super::instant::holds;
use crate::error::Kind;
use crate::image::format::ALIGN;
use crate::runtime::Cancel;
use crate::snapshot::testing::*;
use crate::snapshot::{describe, Merge, MergeParams, State};
use crate::sys::disk::Caching;
use crate::units::PAGE_SIZE;
use std::os::unix::fs::MetadataExt;

#[test]
fn a_merge_job_makes_the_image_and_has_its_figures() {
    let (directory, paths, contents, _here) = example();
    let whole = directory.path().join("whole");
    let merge = Merge::new(MergeParams { direct: false }).unwrap();
    assert_eq!(merge.wait(None).unwrap_err().kind(), Kind::State);
    assert_eq!(merge.start("", &whole).unwrap_err().kind(), Kind::Invalid);
    merge.start(&paths[3], &whole).unwrap();
    assert_eq!(
        merge.start(&paths[3], &whole).unwrap_err().kind(),
        Kind::State
    );
    merge.wait(Some(LONG)).unwrap();
    let stats = merge.stats();
    assert_eq!((stats.state, stats.progress), (State::Completed, 10_000));
    assert_eq!(
        (stats.total_bytes, stats.remaining_bytes),
        (SMALL * PAGE_SIZE, 0)
    );
    assert_eq!(stats.data_pages + stats.zero_pages, SMALL);
    assert_eq!(stats.file_bytes, whole.metadata().unwrap().len());
    assert_eq!((stats.downtime, stats.pass), (None, 0));
    holds(&whole, SMALL, &contents);
}

#[test]
fn a_merge_that_is_cancelled_at_any_run_of_pages_leaves_no_file_and_the_images() {
    let (directory, paths, contents, _here) = example();
    let before = names(directory.path());
    let mut runs = 0;
    loop {
        runs += 1;
        let cancel = Cancel::new().unwrap();
        let mut left = runs;
        let mut tell = |_: &crate::image::Merged| {
            left -= 1;
            if left == 0 {
                cancel.cancel();
            }
        };
        let to = directory.path().join("whole");
        let merged = crate::image::merge(&paths[3], &to, Caching::Cached, &cancel, &mut tell);
        match merged {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), Kind::Cancelled, "{error}"),
        }
        assert_eq!(names(directory.path()), before, "run {runs}");
    }
    assert!(runs > 3, "{runs}");
    holds(&directory.path().join("whole"), SMALL, &contents);
}

#[test]
fn a_job_fails_as_the_call_does_and_a_cancelled_one_is_cancelled() {
    let (directory, paths, ..) = example();
    let to = directory.path().join("whole");
    std::fs::remove_file(&paths[1]).unwrap();
    let merge = Merge::new(MergeParams::default()).unwrap();
    merge.start(&paths[3], &to).unwrap();
    let error = merge.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert_eq!(merge.stats().state, State::Failed);
    assert_eq!(merge.stats().error, Some(Kind::NotFound));
    let merge = Merge::new(MergeParams::default()).unwrap();
    merge.cancel();
    assert!(merge.is_cancelled());
    assert_eq!(
        merge.start(&paths[0], &to).unwrap_err().kind(),
        Kind::Cancelled
    );
    assert!(!to.exists());
}

#[test]
fn an_image_is_described_with_its_blocks_state_and_the_images_before_it() {
    let (_directory, paths, ..) = example();
    let full = describe(&paths[0]).unwrap();
    assert_eq!((full.kind, full.format, full.complete), ("full", 1, true));
    assert_eq!((full.problem.as_ref(), full.mappable), (None, true));
    assert_eq!(full.memory_bytes, SMALL * PAGE_SIZE);
    let metadata = paths[0].metadata().unwrap();
    assert_eq!(
        (full.file_bytes, full.disk_bytes),
        (metadata.len(), metadata.blocks() * 512)
    );
    let block = &full.blocks[0];
    assert_eq!(
        (block.bytes, block.page_size, block.offset),
        (SMALL * PAGE_SIZE, PAGE_SIZE, ALIGN)
    );
    let data = (0..SMALL)
        .filter(|page| page % 7 < 4 && *page as u8 ^ 1 != 0)
        .count() as u64;
    assert_eq!(block.data_pages, Some(data));
    assert_eq!(
        (block.zero_pages, block.unchanged_pages),
        (Some(SMALL - data), Some(0))
    );
    assert!(full.parents.is_empty());

    let last = describe(&paths[3]).unwrap();
    assert_eq!(
        (last.kind, last.format, last.complete, last.mappable),
        ("changes", 2, true, false)
    );
    let block = &last.blocks[0];
    assert!(block.unchanged_pages > Some(0));
    let counts = [block.data_pages, block.zero_pages, block.unchanged_pages];
    assert_eq!(counts.map(Option::unwrap).iter().sum::<u64>(), SMALL);
    for (parent, path) in last.parents.iter().zip(paths[..3].iter().rev()) {
        let of_itself = describe(path).unwrap();
        assert!(parent.found);
        assert_eq!(Some(parent.file.as_ref()), path.file_name());
        assert_eq!(
            (&parent.id, &parent.checksum),
            (&of_itself.id, &of_itself.checksum)
        );
        assert_eq!(parent.file_bytes, of_itself.file_bytes);
    }
    assert_eq!(last.parents.len(), 3);
    let json: serde_json::Value = serde_json::from_str(&last.to_json().unwrap()).unwrap();
    assert_eq!(json["parents"][2]["file"], "image.0");
    assert_eq!(json["blocks"][0]["data_pages"], block.data_pages.unwrap());
    assert!(json["problem"].is_null());
}

#[test]
fn an_image_that_is_not_whole_is_an_error_or_says_what_is_wrong() {
    let (directory, paths, ..) = example();
    let error = describe(directory.path().join("none")).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(describe("/dev/null").unwrap_err().kind(), Kind::Image);
    assert_eq!(describe("").unwrap_err().kind(), Kind::Invalid);
    let cut = directory.path().join("cut");
    let bytes = std::fs::read(&paths[0]).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let error = describe(&cut).unwrap_err();
    assert_eq!(error.kind(), Kind::Image);
    assert!(error.message().contains("has been cut"), "{error}");
    // A table of checksums is damaged.
    let mut damaged = bytes.clone();
    damaged[(ALIGN + SMALL * PAGE_SIZE) as usize] ^= 1;
    std::fs::write(&cut, &damaged).unwrap();
    let found = describe(&cut).unwrap();
    assert!(!found.complete);
    assert!(found.problem.unwrap().contains("checksums"));
    assert_eq!(found.blocks[0].data_pages, None);
    // An image before it is another one, and then none.
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    for _ in 0..2 {
        let found = describe(&paths[3]).unwrap();
        assert!(!found.complete);
        let problem = found.problem.unwrap();
        assert!(problem.contains("image.1"), "{problem}");
        let there: Vec<_> = found.parents.iter().map(|parent| parent.found).collect();
        assert_eq!(there, [true, false]);
        assert!(found.blocks[0].data_pages.is_some());
        let _ = std::fs::remove_file(&paths[1]);
    }
}
