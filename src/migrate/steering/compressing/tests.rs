//! The decider against links, codecs and contents of every kind. A lane that adapts is nearly as
//! fast as the better of the two ways, and does not change the way without a reason.

use super::*;

const MIB: u64 = 1 << 20;
/// A batch's contents.
const CONTENTS: u64 = 2 * MIB;
/// The speed at which bytes are copied into a socket, in bytes a second.
const COPY: f64 = 4e9;

/// The link, the codec and the pages of a simulation.
#[derive(Debug, Clone, Copy)]
struct World {
    /// Bytes a second that the link carries.
    link: f64,
    /// Bytes of pages a second that the source compresses, and that the destination decompresses.
    codec: f64,
    decodes: f64,
    /// The compression ratio: how many bytes become one.
    ratio: f64,
}

const WORLD: World = World {
    link: 1e8,
    codec: 5e8,
    decodes: 1e9,
    ratio: 3.0,
};

/// A lane on a simulated clock: a link that empties a socket's buffer while the sender works.
struct Lane {
    clock: f64,
    /// Batches in the buffer: bytes, and the rate at which they leave.
    buffer: Vec<(f64, f64)>,
    room: f64,
    switches: u32,
    packed: u64,
    last: bool,
    random: u64,
}

impl Lane {
    fn new() -> Lane {
        Lane {
            clock: 0.0,
            buffer: Vec::new(),
            room: 4.0 * MIB as f64,
            switches: 0,
            packed: 0,
            last: false,
            random: 1,
        }
    }

    fn held(&self) -> f64 {
        self.buffer.iter().map(|(bytes, _)| bytes).sum()
    }

    fn pass(&mut self, mut seconds: f64) {
        self.clock += seconds;
        while let Some((bytes, rate)) = self.buffer.first_mut() {
            let leave = (*rate * seconds).min(*bytes);
            *bytes -= leave;
            seconds -= leave / *rate;
            if *bytes > 0.5 {
                return;
            }
            self.buffer.remove(0);
        }
    }

    /// Sends a batch. Returns its measurements.
    fn send(&mut self, world: World, packed: bool, noise: f64) -> Batch {
        // A cheap generator is enough: only the time of a batch is random.
        self.random = self
            .random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1);
        let unit = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        let factor = 1.0 + noise * (unit - 0.5);
        let begun = self.clock;
        let contents = CONTENTS as f64;
        let (codec, bytes, rate) = if packed {
            let bytes = contents / world.ratio;
            let decoded = world.decodes / world.ratio;
            (
                contents / world.codec * factor,
                bytes,
                world.link.min(decoded),
            )
        } else {
            (0.0, contents, world.link)
        };
        self.pass(codec);
        let mut left = bytes;
        while left > 0.5 {
            let fits = (self.room - self.held()).clamp(0.0, left);
            if fits < left.min(1.0) {
                self.pass(0.001);
                continue;
            }
            match self.buffer.last_mut() {
                Some((bytes, same)) if *same == rate * factor => *bytes += fits,
                _ => self.buffer.push((fits, rate * factor)),
            }
            left -= fits;
            self.pass(fits / COPY);
        }
        self.switches += u32::from(packed != self.last);
        self.packed += u64::from(packed);
        self.last = packed;
        Batch {
            contents: CONTENTS,
            before: if packed { CONTENTS } else { 0 },
            after: if packed { bytes as u64 } else { 0 },
            sent: bytes as u64,
            held: self.held() as u64,
            codec: Duration::from_secs_f64(codec),
            time: Duration::from_secs_f64(self.clock - begun),
        }
    }

    /// Waits until the buffer is empty.
    fn drain(&mut self) {
        while !self.buffer.is_empty() {
            self.pass(0.0005);
        }
    }
}

/// The time that it takes to send `batches`, compressed when `choose` says so.
fn run(
    batches: u64,
    noise: f64,
    world: impl Fn(f64) -> World,
    mut choose: impl FnMut(Duration, Option<&Batch>) -> bool,
) -> Lane {
    let mut lane = Lane::new();
    let mut last = None;
    for _ in 0..batches {
        let packed = choose(Duration::from_secs_f64(lane.clock), last.as_ref());
        last = Some(lane.send(world(lane.clock), packed, noise));
    }
    lane.drain();
    lane
}

fn adaptive(batches: u64, noise: f64, cap: Option<f64>, world: impl Fn(f64) -> World) -> Lane {
    let mut decider = Compressing::new(cap);
    run(batches, noise, world, |now, last| {
        if let Some(batch) = last {
            decider.sent(now, batch);
        }
        decider.next(now)
    })
}

/// The number of batches that take about `seconds` on the better of the two ways.
fn batches(world: World, seconds: f64) -> u64 {
    let packed = world.codec.min(world.decodes).min(world.link * world.ratio);
    let count = world.link.max(packed) * seconds / CONTENTS as f64;
    (count as u64).min(5000)
}

#[test]
fn a_lane_that_adapts_is_nearly_as_fast_as_the_better_way() {
    for link in [1e7, 1.2e8, 4e8, 3e9] {
        for codec in [1e8, 5e8, 1.5e9] {
            for decodes in [4e8, 2e9] {
                for ratio in [1.0, 1.3, 3.0, 20.0] {
                    let world = World {
                        link,
                        codec,
                        decodes,
                        ratio,
                    };
                    let batches = batches(world, 20.0);
                    let time = |packed| run(batches, 0.0, |_| world, |_, _| packed).clock;
                    let (plain, packed) = (time(false), time(true));
                    let found = adaptive(batches, 0.0, None, |_| world);
                    let best = plain.min(packed);
                    assert!(
                        found.clock < best * 1.15 + 1.5,
                        "{world:?}: {:.2} s; plain {plain:.2} s, compressed {packed:.2} s",
                        found.clock
                    );
                    // When the ways differ, the lane is clearly faster than the worse one.
                    let worst = plain.max(packed);
                    if worst > best * 1.5 + 2.0 {
                        assert!(
                            found.clock < worst * 0.85,
                            "{world:?}: {:.2} s",
                            found.clock
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_compress_is_hardly_ever_tried() {
    let world = World {
        ratio: 1.0,
        ..WORLD
    };
    let batches = batches(world, 60.0);
    let lane = adaptive(batches, 0.2, None, |_| world);
    assert!(lane.packed <= 12, "{} of {batches} batches", lane.packed);
}

#[test]
fn a_steady_lane_does_not_change_its_mind() {
    for link in [2e7, 1e8, 4e8, 1e9] {
        let world = World { link, ..WORLD };
        let lane = adaptive(batches(world, 60.0), 0.3, None, |_| world);
        // Once the better way is known, a trial comes every 30 s, and each trial switches twice.
        assert!(lane.switches <= 40, "{link}: {} switches", lane.switches);
    }
}

#[test]
fn a_link_that_becomes_slow_or_fast_is_noticed() {
    for (before, after) in [(2e9, 5e7), (5e7, 2e9)] {
        let world = |now: f64| World {
            link: if now < 5.0 { before } else { after },
            ..WORLD
        };
        let mut decider = Compressing::new(None);
        let mut decided = false;
        let mut lane = Lane::new();
        let mut last_of = [false; 2];
        while lane.clock < 30.0 {
            let now = Duration::from_secs_f64(lane.clock);
            decided = decider.next(now);
            let batch = lane.send(world(lane.clock), decided, 0.1);
            decider.sent(Duration::from_secs_f64(lane.clock), &batch);
            if !decider.trial {
                last_of[usize::from(lane.clock >= 5.0)] = decider.on;
            }
        }
        assert_eq!(
            last_of,
            [before < 1e9, after < 1e9],
            "{before} {after} {decided}"
        );
    }
}

#[test]
fn a_cap_counts_as_the_links_speed() {
    let world = World { link: 5e9, ..WORLD };
    for (cap, on) in [(None, false), (Some(5e7), true)] {
        let mut decider = Compressing::new(cap);
        let mut lane = Lane::new();
        for _ in 0..3000 {
            let packed = decider.next(Duration::from_secs_f64(lane.clock));
            let batch = lane.send(world, packed, 0.0);
            decider.sent(Duration::from_secs_f64(lane.clock), &batch);
            if let Some(cap) = cap {
                // The wait for the pacer is not a part of the batch's time.
                lane.pass(batch.sent as f64 / cap);
            }
        }
        assert_eq!(decider.on, on, "{cap:?}");
    }
}

#[test]
fn batches_without_contents_say_nothing() {
    let mut decider = Compressing::new(None);
    for n in 0..1000u64 {
        let now = Duration::from_millis(n * 10);
        assert!(!decider.next(now));
        let zeros = Batch {
            sent: 3200,
            time: Duration::from_millis(10),
            ..Batch::default()
        };
        decider.sent(now, &zeros);
    }
}
