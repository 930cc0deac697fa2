//! Threads that stand for vCPUs at the destination of a postcopy, and an account of all that they write.
//!
//! Each of them owns a word in every page. It goes from page to page, and adds one to its word. The
//! source's memory stands still since the switch, so a thread knows what it must find: the source's word,
//! and as much more as it has added itself. An old page, a page of zeros and a lost write differ at once.

use crate::support::guest::Guest;
use crate::support::memory::{Ram, PAGE};
use crate::support::random::Random;
use crate::support::time::LONG;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// In which order a thread touches the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Random,
    Upwards,
    Downwards,
    /// One page again and again, and now and then another one.
    Hot,
}

pub const ORDERS: [Order; 4] = [Order::Random, Order::Upwards, Order::Downwards, Order::Hot];

/// The first of the words that the threads own.
const OWN: usize = 8;

/// What one thread has added, by block and page.
type Added = Vec<Vec<u64>>;

/// A block here, and its original.
type Twin = (Arc<Ram>, Arc<Ram>);

/// See the file's description.
pub struct Vcpus {
    twins: Vec<Twin>,
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Result<Added, String>>>,
}

fn twins(source: &Guest, destination: &Guest) -> Vec<Twin> {
    let of = |ram: Arc<Ram>| (Arc::clone(&ram), source.ram(ram.spec.name));
    destination
        .rams()
        .into_iter()
        .map(|(_, ram)| of(ram))
        .collect()
}

impl Vcpus {
    /// One thread for each of `orders`. `pause`: from one page to the next.
    pub fn start(
        source: &Guest,
        destination: &Guest,
        orders: &[Order],
        seed: u64,
        pause: Duration,
    ) -> Vcpus {
        let twins = twins(source, destination);
        let (stop, steps) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let threads = orders.iter().enumerate().map(|(own, order)| {
            let vcpu = Vcpu {
                own,
                twins: twins.clone(),
                order: *order,
                random: Random(seed ^ (own as u64) << 40),
                stop: Arc::clone(&stop),
                steps: Arc::clone(&steps),
                pause,
            };
            std::thread::spawn(move || vcpu.run())
        });
        let threads = threads.collect();
        Vcpus {
            twins,
            stop,
            steps,
            threads,
        }
    }

    /// How many pages were touched so far, by all threads together.
    pub fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }

    /// Stops the threads. All memory must be here, so that none of them waits. Compares every byte.
    pub fn assert_exact(self, what: &str) {
        self.stop.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        while !self.threads.iter().all(JoinHandle::is_finished) {
            assert!(
                begun.elapsed() < LONG,
                "{what}: a thread waits for a page for ever"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let added: Vec<Added> = self
            .threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap()
                    .unwrap_or_else(|wrong| panic!("{what}: {wrong}"))
            })
            .collect();
        for (block, (here, there)) in self.twins.iter().enumerate() {
            for page in 0..here.spec.pages {
                let mut expected = there.page(page).to_vec();
                for (own, added) in added.iter().enumerate() {
                    let at = (OWN + own) * 8;
                    let word = u64::from_le_bytes(expected[at..at + 8].try_into().unwrap());
                    let word = word.wrapping_add(added[block][page]);
                    expected[at..at + 8].copy_from_slice(&word.to_le_bytes());
                }
                assert!(
                    here.page(page) == expected,
                    "{what}: {} page {page}",
                    here.spec.name
                );
            }
        }
    }
}

struct Vcpu {
    own: usize,
    twins: Vec<Twin>,
    order: Order,
    random: Random,
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicUsize>,
    pause: Duration,
}

impl Vcpu {
    fn run(mut self) -> Result<Added, String> {
        let pages: Vec<usize> = self.twins.iter().map(|(here, _)| here.spec.pages).collect();
        let all: usize = pages.iter().sum();
        let mut added: Added = pages.iter().map(|pages| vec![0; *pages]).collect();
        let mut at = self.random.below(all);
        while !self.stop.load(Ordering::SeqCst) {
            at = match self.order {
                Order::Random => self.random.below(all),
                Order::Upwards => (at + 1) % all,
                Order::Downwards => (at + all - 1) % all,
                Order::Hot if self.random.below(32) == 0 => self.random.below(all),
                Order::Hot => at,
            };
            let (mut block, mut page) = (0, at);
            while page >= pages[block] {
                page -= pages[block];
                block += 1;
            }
            let (here, there) = &self.twins[block];
            let offset = page * PAGE + (OWN + self.own) * 8;
            let expected = there.word(offset).load(Ordering::SeqCst);
            let expected = expected.wrapping_add(added[block][page]);
            let word = here.word(offset);
            let found = word.load(Ordering::SeqCst);
            if found != expected {
                let name = here.spec.name;
                return Err(format!(
                    "{name} page {page}: thread {} expected {expected:#x}, found {found:#x}",
                    self.own
                ));
            }
            word.store(found.wrapping_add(1), Ordering::SeqCst);
            added[block][page] += 1;
            self.steps.fetch_add(1, Ordering::SeqCst);
            if !self.pause.is_zero() {
                std::thread::sleep(self.pause);
            }
        }
        Ok(added)
    }
}
