//! Memory that arrives over several connections, in any order between them.

use super::scripted::*;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{LaneState, LaneStats};
use brant::wire::Record;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn seed() -> u64 {
    let seed = std::env::var("BRANT_SEED").ok();
    let seed = seed.map_or(0xa117e, |s| s.parse().unwrap());
    println!("seed {seed} (BRANT_SEED)");
    seed
}

/// The channel on which a page's stretch is sent. Any fixed rule will do.
fn channel_of(page: u64, channels: usize) -> usize {
    let stretch = page / STRETCH;
    (stretch.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % channels
}

#[test]
fn the_newest_version_of_a_page_stays_however_the_channels_interleave() {
    let seed = seed();
    for (round, channels) in [1, 2, 3, 4, 7, 64].into_iter().enumerate() {
        let mut random = Random(seed.wrapping_add(round as u64));
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        // The destination's memory has old contents, which zero pages have to change.
        let there = pair.destination.ram("ram");
        for page in (0..PAGES as usize).step_by(3) {
            there.word(page * 4096 + 8).store(7, Ordering::Relaxed);
        }
        drop(there);
        let mut session = Session::over(pair, channels, &quick(), random.next());
        session.agree();
        let mut model: Vec<Option<u8>> = vec![None; PAGES as usize];
        let mut streams = vec![Vec::new(); channels];
        for _ in 0..600 {
            let first = random.next() % PAGES;
            let end = ((first / STRETCH + 1) * STRETCH).min(PAGES);
            let count = 1 + random.below(((end - first) as usize).min(24)) as u32;
            let byte = 1 + random.below(255) as u8;
            let channel = channel_of(first, channels);
            let counts = &mut session.counts[channel];
            let (record, byte) = match random.below(5) {
                0 => (zeros(BLOCK, first, count), 0),
                1 => (list(BLOCK, first, count, byte), byte),
                _ => (pages(BLOCK, first, count, byte), byte),
            };
            match byte {
                0 => counts.zero(count),
                _ => counts.data(count),
            }
            streams[channel].extend(record);
            if random.below(20) == 0 {
                streams[channel].extend(counts.marker(false));
            }
            model[first as usize..first as usize + count as usize].fill(Some(byte));
        }
        for (stream, counts) in streams.iter_mut().zip(&mut session.counts) {
            stream.extend(counts.marker(true));
        }
        interleaved(&mut session.lanes, streams, &mut random);
        (0..channels).for_each(|channel| session.await_ack(channel));
        session.hand_over();
        for (page, byte) in model.iter().enumerate() {
            if let Some(byte) = byte {
                let found = session.page(page as u64);
                assert_eq!(found, *byte, "{channels} channels, page {page}");
            }
        }
    }
}

#[test]
fn figures_of_the_channels_sum_up_to_those_of_the_migration() {
    let mut session = Session::of(4, &quick(), 1);
    let wrong = session.inc.lane_stats(64).unwrap_err();
    assert_eq!(wrong.kind(), Kind::Invalid, "{wrong}");
    assert_eq!(wrong.message(), "expected a channel from 0 to 63, found 64");
    // Before the source has come, all figures are zero.
    let unstarted = crate::support::sides::incoming(&session.pair, &quick());
    assert_eq!(unstarted.lane_stats(3).unwrap(), LaneStats::default());
    session.agree();
    for channel in 0..4 {
        session.data(channel, channel as u64 * STRETCH, 1 + channel as u32, 9);
        session.say(channel, &zeros(BLOCK, channel as u64 * STRETCH + 100, 7));
        session.counts[channel].zero(7);
        let busy = session.inc.lane_stats(channel as u32).unwrap().state;
        assert_eq!(busy, LaneState::Busy);
        session.mark(channel, true);
    }
    session.hand_over();
    let stats = session.inc.stats();
    let lanes: Vec<_> = (0..4).map(|c| session.inc.lane_stats(c).unwrap()).collect();
    let data: Vec<u64> = lanes.iter().map(|lane| lane.data_pages).collect();
    assert_eq!(data, [1, 2, 3, 4]);
    assert!(lanes.iter().all(|lane| lane.zero_pages == 7));
    assert_eq!((stats.data_pages, stats.zero_pages), (10, 28));
    let wire: u64 = lanes.iter().map(|lane| lane.wire_bytes).sum();
    assert_eq!(stats.wire_bytes, wire);
    assert_eq!(stats.pass, 1);
}

/// The type of the next record on channel 0, if one comes within a moment.
fn soon(session: &mut Session) -> Option<u8> {
    let stream = &mut session.lanes[0].0;
    let moment = Duration::from_millis(300);
    stream.set_read_timeout(Some(moment)).unwrap();
    let mut byte = [0];
    let came = stream.read(&mut byte).is_ok();
    stream.set_read_timeout(Some(LONG)).unwrap();
    came.then_some(byte[0])
}

#[test]
fn the_state_is_loaded_once_the_end_marker_of_every_channel_has_come() {
    for missing in [0, 1, 3] {
        let mut session = Session::of(4, &quick(), missing as u64);
        session.agree();
        for channel in (0..4).filter(|channel| *channel != missing) {
            session.mark(channel, true);
        }
        if missing != 0 {
            session.state_end();
        }
        assert_eq!(soon(&mut session), None, "{missing}: READY too early");
        assert_eq!(session.pair.to.calls("loaded"), 0, "{missing}");
        // Devices read memory while they load, so this page must have arrived by then.
        session.data(missing, 5 * STRETCH, 3, 0x77);
        let seen = {
            let ram = session.pair.destination.ram("ram");
            let seen = std::sync::Arc::<std::sync::atomic::AtomicU8>::default();
            let there = std::sync::Arc::clone(&seen);
            session.pair.to.at("loaded", move || {
                let byte = ram.page(5 * STRETCH as usize + 2)[4095];
                there.store(byte, Ordering::SeqCst);
                Ok(())
            });
            seen
        };
        session.mark(missing, true);
        if missing == 0 {
            session.state_end();
        }
        let ready = session.lanes[0].hear_record();
        assert!(matches!(ready, Some(Record::Ready(_))), "{ready:?}");
        assert_eq!(seen.load(Ordering::SeqCst), 0x77);
        session.inc.cancel().unwrap();
    }
}

#[test]
fn a_block_that_is_added_at_the_barrier_takes_pages_of_every_channel() {
    let mut session = Session::of(3, &quick(), 5);
    session.agree();
    for channel in 0..3 {
        session.data(channel, channel as u64 * STRETCH, 2, 1);
        session.mark(channel, false);
    }
    let added = crate::support::memory::Ram::new(&crate::support::memory::ram("added", 1536));
    session.pair.destination.add(added);
    session.lanes[0].say(&Record::BlockAdded(block(9, "added", 1536)));
    session.mark(0, false);
    for channel in 0..3 {
        session.say(
            channel,
            &pages(9, channel as u64 * STRETCH, 2, 0x30 + channel as u8),
        );
        session.counts[channel].data(2);
        session.mark(channel, false);
    }
    for channel in 0..3 {
        let ram = session.pair.destination.ram("added");
        let page = ram.page(channel * STRETCH as usize + 1);
        assert_eq!(page, [0x30 + channel as u8; 4096]);
    }
    // The block is gone on both sides, so no channel may name it any more.
    session.pair.destination.remove("added");
    session.lanes[0].say(&Record::BlockRemoved { id: 9 });
    session.mark(0, false);
    session.say(2, &zeros(9, 1024, 1));
    let error = session.inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    let message = error.message();
    assert!(message.starts_with("channel 2 (descriptor "), "{message}");
    let wanted = "block 9 was never announced, or is gone";
    assert!(message.ends_with(wanted), "{message}");
}

#[test]
fn a_block_is_removed_while_every_channel_is_in_the_middle_of_its_pages() {
    let mut session = Session::of(8, &quick(), 6);
    session.agree();
    let halves: Vec<Vec<u8>> = (0..8)
        .map(|channel| {
            let run = pages(BLOCK, channel * STRETCH, 64, 0x21);
            session.say(channel as usize, &run[..100_000]);
            session.counts[channel as usize].data(64);
            run[100_000..].to_vec()
        })
        .collect();
    // Every channel's record has begun to arrive.
    let begun = std::time::Instant::now();
    let ram = session.pair.destination.ram("ram");
    while (0..8).any(|channel| ram.page(channel * STRETCH as usize)[0] != 0x21) {
        assert!(begun.elapsed() < LONG, "nothing arrives");
        std::thread::yield_now();
    }
    let begun = std::time::Instant::now();
    let memory = &session.pair.destination.memory;
    memory
        .remove_block(memory.find_block("ram").unwrap())
        .unwrap();
    // The promise is milliseconds, and the limit allows for a busy machine.
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    for (channel, half) in halves.iter().enumerate() {
        session.say(channel, half);
        session.mark(channel, true);
    }
    // The rest of each record was dropped.
    assert_ne!(ram.page(63)[0], 0x21);
    session.state_end();
    session.lanes[0].say(&Record::BlockRemoved { id: BLOCK });
    let ready = session.lanes[0].hear_record();
    assert!(matches!(ready, Some(Record::Ready(_))), "{ready:?}");
    session.inc.cancel().unwrap();
}
