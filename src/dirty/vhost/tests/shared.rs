//! One log for many back ends: each of them sets bits in it, and one of them goes away while the
//! others go on.

use super::*;

const BACK_ENDS: u64 = 24;

/// Back ends that share a log, as a VMM keeps them. One that was removed has no place here any
/// more.
#[derive(Default)]
struct Shared {
    /// Each with its number. The lock is held around every mark of that back end, so whoever has
    /// it knows that no mark is in progress.
    back_ends: Mutex<Vec<(u64, Arc<BackEnd>)>>,
    /// The log in use, for a back end that is added while it is on.
    current: Mutex<Option<Arc<Mapped>>>,
    said: Mutex<Vec<String>>,
}

#[derive(Default)]
struct BackEnd {
    log: RwLock<Option<Arc<Mapped>>>,
    marks: AtomicU64,
}

impl BackEnd {
    /// Marks a page; returns whether its bit was clear, `None` when the back end does not log.
    fn mark(&self, page: u64) -> Option<bool> {
        let log = self.log.read().unwrap();
        let new = log.as_ref()?.set(page);
        self.marks.fetch_add(1, Ordering::Relaxed);
        Some(new)
    }
}

impl Shared {
    fn new() -> Arc<Shared> {
        let shared = Arc::new(Shared::default());
        for number in 0..BACK_ENDS {
            shared.add(number);
        }
        shared
    }

    /// A new back end logs where the others do.
    fn add(&self, number: u64) -> Arc<BackEnd> {
        let mut back_ends = self.back_ends.lock().unwrap();
        let back_end = Arc::new(BackEnd::default());
        *back_end.log.write().unwrap() = self.current.lock().unwrap().clone();
        back_ends.push((number, Arc::clone(&back_end)));
        back_end
    }

    /// Stops a back end and forgets it. Its last mark is in the log when this returns.
    fn remove(&self, number: u64) {
        let mut back_ends = self.back_ends.lock().unwrap();
        let at = back_ends.iter().position(|(n, _)| *n == number).unwrap();
        *back_ends.swap_remove(at).1.log.write().unwrap() = None;
    }

    fn back_end(&self, number: u64) -> Arc<BackEnd> {
        let back_ends = self.back_ends.lock().unwrap();
        let found = back_ends.iter().find(|(n, _)| *n == number);
        Arc::clone(&found.unwrap().1)
    }

    fn move_all(&self, log: Option<Arc<Mapped>>) {
        let back_ends = self.back_ends.lock().unwrap();
        for (_, back_end) in back_ends.iter() {
            *back_end.log.write().unwrap() = log.clone();
        }
        let what = if log.is_some() { "on" } else { "off" };
        let said = format!("{what} for {}", back_ends.len());
        self.said.lock().unwrap().push(said);
        *self.current.lock().unwrap() = log;
    }
}

impl VhostBackEnds for Shared {
    fn log_on(&self, memory: &LogMemory) -> Result<()> {
        self.move_all(Some(Arc::new(Mapped::of(memory))));
        Ok(())
    }
    fn log_off(&self) -> Result<()> {
        self.move_all(None);
        Ok(())
    }
}

fn followed(guest: &Guest, shared: &Arc<Shared>) -> Consumer {
    let back_ends = Arc::clone(shared) as Arc<dyn VhostBackEnds>;
    let consumer = guest.tracker(Box::new(VhostLog::new(back_ends, 0).unwrap()));
    consumer.start(StartWith::Nothing).unwrap();
    consumer
}

#[test]
fn one_log_finds_what_each_of_many_back_ends_marked() {
    let guest = Guest::new(10_000);
    guest.block("ram", 10_000);
    guest.slot("ram", 0, 10_000, 0).unwrap();
    let shared = Shared::new();
    let consumer = followed(&guest, &shared);
    for round in 0..3 {
        let mut expected = BTreeSet::new();
        for number in 0..BACK_ENDS {
            // A page of its own, in a word with pages of the others, and one that all mark.
            for page in [round * 1000 + number, 9000 + round] {
                shared.back_end(number).mark(page).unwrap();
                expected.insert((0, page));
            }
        }
        assert_eq!(sync_all(&consumer), expected);
    }
    let report = consumer.sync(When::Running).unwrap();
    let logs = report.logs.iter().filter(|log| log.kind == LogKind::Vhost);
    assert_eq!((logs.count(), report.found.0), (1, 0));
    consumer.stop().unwrap();
    assert_eq!(*shared.said.lock().unwrap(), ["on for 24", "off for 24"]);
}

#[test]
fn what_a_back_end_marked_before_it_was_removed_is_found() {
    let guest = Guest::new(2000);
    guest.block("ram", 1000);
    guest.slot("ram", 0, 1000, 0).unwrap();
    let shared = Shared::new();
    let consumer = followed(&guest, &shared);
    let (third, fourth) = (shared.back_end(3), shared.back_end(4));
    third.mark(70).unwrap();
    shared.remove(3);
    assert_eq!(third.mark(71), None);
    // The others go on, in the same word.
    fourth.mark(72).unwrap();
    assert_eq!(sync_all(&consumer), [(0, 70), (0, 72)].into());
    // Only those that are left move to a longer log, and a new one logs there at once.
    guest.block("more", 1);
    guest.slot("more", 0, 1, 1 << 20).unwrap();
    sync_all(&consumer);
    let added = shared.add(30);
    added.mark(73).unwrap();
    fourth.mark(1 << 20).unwrap();
    assert_eq!(sync_all(&consumer), [(0, 73), (1, 0)].into());
    consumer.stop().unwrap();
    let said = shared.said.lock().unwrap();
    assert_eq!(*said, ["on for 24", "on for 23", "off for 24"]);
}

/// Back ends write and mark all the time, one after the other is removed, and a copy follows.
#[test]
fn back_ends_are_removed_while_the_others_write_and_no_write_is_missed() {
    let guest = Guest::new(HAMMERED as usize);
    guest.block("ram", HAMMERED);
    guest.slot("ram", 0, HAMMERED, 0).unwrap();
    let shared = Shared::new();
    let consumer = followed(&guest, &shared);
    let versions = Versions(Shm::new(c"versions", HAMMERED.next_multiple_of(512) * 8).unwrap());
    let mut follower = Follower {
        versions: &versions,
        copy: vec![0; HAMMERED as usize],
    };
    const REMOVED: u64 = 4;
    let stop: Vec<AtomicBool> = (0..REMOVED + THREADS)
        .map(|_| AtomicBool::new(false))
        .collect();
    let (set, found) = std::thread::scope(|scope| {
        let mut writers: Vec<_> = (0..REMOVED + THREADS)
            .map(|i| {
                let (back_end, versions, stop) = (shared.back_end(i), &versions, &stop[i as usize]);
                // It stops between a mark and the next write, as rings do.
                let mark = move |page| back_end.mark(page).unwrap();
                let stopped = move |_| stop.load(Ordering::Acquire);
                Some(scope.spawn(move || hammer(versions, mark, i + 1, stopped)))
            })
            .collect();
        let (mut set, mut found) = (0, 0);
        for i in 0..REMOVED + THREADS {
            let others = shared.back_end(REMOVED + THREADS - 1);
            let before = others.marks.load(Ordering::Relaxed);
            while others.marks.load(Ordering::Relaxed) < before + 500 {
                found += follower.follow(&consumer);
            }
            stop[i as usize].store(true, Ordering::Release);
            set += writers[i as usize].take().unwrap().join().unwrap();
            shared.remove(i);
        }
        (set, found + follower.follow(&consumer))
    });
    assert_eq!(found, set);
    assert_eq!(follower.missed(), Vec::<u64>::new());
    consumer.stop().unwrap();
    let left = format!("off for {}", BACK_ENDS - REMOVED - THREADS);
    assert_eq!(shared.said.lock().unwrap().last(), Some(&left));
}
