//! [`Fair`]: a lock that goes to whoever has waited longest.
//!
//! The standard library's mutex goes to whoever is quickest. A thread that unlocks it and locks
//! it again at once nearly always wins against a thread that has to be woken first: a tracker
//! that was synced over and over kept the addition of a block waiting for seconds. Here
//! everybody takes a number, so a wait is as long as what those in front do, once each.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard};

/// See the file's description.
#[derive(Debug, Default)]
pub struct Fair<T> {
    queue: Mutex<Queue>,
    turn: Condvar,
    /// Locked only by whose turn it is, so never waited for.
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The number that the next to come takes.
    next: u64,
    /// The number whose turn it is; equal to `next` when nobody holds the lock.
    serving: u64,
}

impl<T> Fair<T> {
    /// A lock around `value`, which nobody holds.
    pub fn new(value: T) -> Self {
        Fair {
            queue: Mutex::default(),
            turn: Condvar::new(),
            value: Mutex::new(value),
        }
    }

    /// Waits for everybody who came before. A panic of an earlier holder is passed over.
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

    /// The lock if nobody holds it; never waits.
    pub fn try_lock(&self) -> Option<FairGuard<'_, T>> {
        let mut queue = self.queue();
        if queue.serving != queue.next {
            return None;
        }
        queue.next += 1;
        drop(queue);
        Some(self.guard())
    }

    /// The value, of which the caller is the only user.
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
    /// `None` only while it is being dropped.
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
        // First the value: the next in the queue does not wait for it.
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

    /// Until `n` threads wait for `lock`.
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
        // Comes after all of them, however quick it is.
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
