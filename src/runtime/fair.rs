//! [`Fair`]: a lock that goes to the thread that has waited longest.
//!
//! The standard library's mutex goes to the quickest thread. A thread that unlocks it and at once
//! locks it again nearly always wins against a thread that has to wake up first. So a tracker that
//! was synced over and over kept the addition of a block waiting for seconds. With this lock each
//! thread takes a number, and waits for one turn of each thread before it.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard};

/// See the file's description.
#[derive(Debug, Default)]
pub struct Fair<T> {
    queue: Mutex<Queue>,
    turn: Condvar,
    /// Locked only by the thread whose turn it is, so no thread waits for it.
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The number that the next thread takes.
    next: u64,
    /// The number whose turn it is. It equals `next` when no thread holds the lock.
    serving: u64,
}

impl<T> Fair<T> {
    /// A lock around `value`, which no thread holds.
    pub fn new(value: T) -> Self {
        Fair {
            queue: Mutex::default(),
            turn: Condvar::new(),
            value: Mutex::new(value),
        }
    }

    /// Waits for every thread that came before. A panic of an earlier holder is ignored.
    pub fn lock(&self) -> FairGuard<'_, T> {
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        while queue.serving != number {
            queue = self.turn.wait(queue).unwrap_or_else(|e| e.into_inner());
        }
        drop(queue);
        self.guard()
    }

    /// Takes the lock if no thread holds it. Never waits.
    pub fn try_lock(&self) -> Option<FairGuard<'_, T>> {
        let mut queue = self.queue();
        if queue.serving != queue.next {
            return None;
        }
        queue.next += 1;
        drop(queue);
        Some(self.guard())
    }

    /// The value, which no other thread can use now.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut().unwrap_or_else(|e| e.into_inner())
    }

    fn guard(&self) -> FairGuard<'_, T> {
        FairGuard {
            lock: self,
            value: Some(self.value.lock().unwrap_or_else(|e| e.into_inner())),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        let queue = self.queue();
        (queue.next - queue.serving).saturating_sub(1)
    }
}

/// Holds a [`Fair`] until it is dropped.
#[derive(Debug)]
pub struct FairGuard<'a, T> {
    lock: &'a Fair<T>,
    /// `None` only while the guard is dropped.
    value: Option<MutexGuard<'a, T>>,
}

impl<T> Deref for FairGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("used after it was dropped"),
        }
    }
}

impl<T> DerefMut for FairGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.value {
            Some(value) => value,
            None => unreachable!("used after it was dropped"),
        }
    }
}

impl<T> Drop for FairGuard<'_, T> {
    fn drop(&mut self) {
        // The value's own lock goes first, so that the next thread does not wait for it.
        self.value = None;
        let mut queue = self.lock.queue();
        queue.serving += 1;
        if queue.serving != queue.next {
            self.lock.turn.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    /// Returns when `n` threads wait for `lock`.
    fn until_waiting(lock: &Fair<Vec<u32>>, n: u64) {
        while lock.waiting() < n {
            thread::yield_now();
        }
    }

    #[test]
    fn a_lock_goes_to_whoever_came_first() {
        let lock = Arc::new(Fair::new(Vec::new()));
        let held = lock.lock();
        let mut threads = Vec::new();
        for i in 0..8 {
            let theirs = Arc::clone(&lock);
            threads.push(thread::spawn(move || theirs.lock().push(i)));
            until_waiting(&lock, u64::from(i) + 1);
        }
        assert!(lock.try_lock().is_none());
        drop(held);
        // This thread comes after all of them, however quick it is.
        assert_eq!(*lock.lock(), (0..8).collect::<Vec<u32>>());
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn a_holder_that_panics_lets_go() {
        let lock = Arc::new(Fair::new(Vec::<u32>::new()));
        let theirs = Arc::clone(&lock);
        let panicked = thread::spawn(move || {
            let _held = theirs.lock();
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.join().is_err());
        lock.lock().push(1);
        assert_eq!(lock.lock().len(), 1);
    }
}
