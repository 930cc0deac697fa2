//! Clocks that the standard library does not have.

use std::time::Duration;

/// Time since the host booted, including the time that it slept (`CLOCK_BOOTTIME`).
pub fn boottime() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the structure, which outlives the call. It cannot fail: the clock
    // is there since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Time since 1970 by the host's clock, which people and NTP may set (`CLOCK_REALTIME`).
pub fn realtime() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the structure, which outlives the call. It cannot fail: every Linux
    // has that clock.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Time for which the calling thread had a processor, including a guest that it ran
/// (`CLOCK_THREAD_CPUTIME_ID`).
pub fn thread_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the structure, which outlives the call. It cannot fail: every
    // thread has that clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_since_boot_goes_on_and_never_back() {
        let first = boottime();
        assert!(!first.is_zero());
        let mut last = first;
        while last == first {
            let now = boottime();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn a_thread_that_waits_has_no_time() {
        let before = thread_time();
        let waited = std::time::Instant::now();
        while waited.elapsed() < Duration::from_millis(200) {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        let slept = thread_time() - before;
        assert!(slept < Duration::from_millis(100), "{slept:?}");
        while thread_time() - before <= slept {
            std::hint::black_box(());
        }
    }
}
