//! What two sides agree on, and what each refuses.

use super::*;

fn hello(min: u16, max: u16, offered: u64, required: u64) -> Hello {
    Hello {
        version_min: min,
        version_max: max,
        features_offered: offered,
        features_required: required,
        token: TOKEN,
        channel: 0,
        channels: 1,
        page_shift: 12,
        role: ROLE_BULK,
        software: String::new(),
    }
}

fn ours(min: u16, max: u16, offered: u64, required: u64) -> Ours {
    Ours {
        version_min: min,
        version_max: max,
        offered,
        required,
    }
}

#[test]
fn the_newest_common_version_and_the_common_features_are_used() {
    for (theirs, here, chosen) in [
        (hello(1, 1, 1, 1), Ours::default(), (1, 1)),
        (
            hello(1, 9, 0x1ff, 1),
            Ours::default(),
            (1, Ours::default().offered),
        ),
        (
            hello(1, 1, 3, 1),
            Ours::default().without(FEATURE_BALLOONED),
            (1, 1),
        ),
        (hello(2, 5, 0b1101, 0), ours(3, 9, 0b0111, 1), (5, 0b0101)),
        (
            hello(3, 9, 0b0111, 0b100),
            ours(2, 5, 0b1101, 1),
            (5, 0b0101),
        ),
        (hello(4, 4, 1, 0), ours(1, 4, 1, 0), (4, 1)),
    ] {
        assert_eq!(negotiate(&theirs, &here).unwrap(), chosen);
        let reply = HelloReply {
            version: chosen.0,
            features: chosen.1,
            software: String::new(),
        };
        let source = ours(
            theirs.version_min,
            theirs.version_max,
            theirs.features_offered,
            theirs.features_required,
        );
        check_reply(&reply, &source).unwrap();
    }
}

fn version_error<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Version, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn version_ranges_apart_are_refused_and_both_named() {
    version_error(
        negotiate(&hello(2, 3, 1, 1), &Ours::default()),
        &["2 to 3", "1 to 1"],
    );
    version_error(
        negotiate(&hello(1, 3, 1, 1), &ours(4, 6, 1, 1)),
        &["1 to 3", "4 to 6"],
    );
}

#[test]
fn requirements_that_cannot_be_met_are_refused_by_name() {
    version_error(
        negotiate(&hello(1, 1, 1 | 1 << 40, 1 | 1 << 40), &Ours::default()),
        &["unknown feature bit 40"],
    );
    version_error(
        negotiate(&hello(1, 1, 1, 1), &ours(1, 1, 2, 0)),
        &["source requires", "zero-runs (bit 0)"],
    );
    version_error(
        negotiate(&hello(1, 1, 2, 0), &Ours::default()),
        &["this side requires", "zero-runs"],
    );
}

#[test]
fn other_page_sizes_are_refused() {
    let theirs = Hello {
        page_shift: 16,
        ..hello(1, 1, 1, 1)
    };
    let error = negotiate(&theirs, &Ours::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("2^12") && error.message().contains("2^16"));
}

#[test]
fn a_reply_that_was_not_offered_is_refused() {
    let reply = |version, features| HelloReply {
        version,
        features,
        software: String::new(),
    };
    version_error(
        check_reply(&reply(2, 1), &Ours::default()),
        &["1 to 1", "found 2"],
    );
    version_error(
        check_reply(&reply(1, 1 | 1 << 40), &Ours::default()),
        &["bit 40"],
    );
    version_error(check_reply(&reply(1, 0), &Ours::default()), &["zero-runs"]);
}

#[test]
fn features_have_one_name_and_one_bit_each() {
    for (i, feature) in FEATURES.iter().enumerate() {
        assert!(feature.bit < 64);
        assert!(FEATURES[..i]
            .iter()
            .all(|f| f.bit != feature.bit && f.name != feature.name));
    }
    assert_eq!(feature_names(0), "none");
    assert_eq!(
        feature_names(1 | 1 << 40),
        "zero-runs (bit 0), unknown feature bit 40"
    );
}
