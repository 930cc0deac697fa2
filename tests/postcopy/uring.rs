//! One request at a time to an io_uring that a thread of the kernel's polls. The thread, and not the
//! caller, reads and writes memory.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

const SQPOLL: u32 = 1 << 1;
const SINGLE_MMAP: u32 = 1;
const OFF_RINGS: i64 = 0;
const OFF_ENTRIES: i64 = 0x1000_0000;
const GETEVENTS: libc::c_uint = 1;
const SQ_WAKEUP: libc::c_uint = 1 << 1;
const READ: u8 = 22;
const WRITE: u8 = 23;

/// `struct io_uring_params`: offsets within the rings are at words 10 to 19 and 20 to 29.
type Setup = [u32; 30];

/// Where the kernel's words of a ring are.
struct Ring {
    at: *mut u8,
    length: usize,
}

impl Ring {
    fn map(fd: &OwnedFd, length: usize, offset: i64) -> io::Result<Ring> {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let shared = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                rw,
                shared,
                fd.as_raw_fd(),
                offset,
            )
        };
        match at == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(Ring {
                at: at.cast(),
                length,
            }),
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        assert!(offset as usize + 4 <= self.length);
        // SAFETY: inside of the mapping, which lives as long as `self`.
        unsafe { &*self.at.add(offset as usize).cast::<AtomicU32>() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this object's own mapping.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}

/// See the file's description.
pub struct Uring {
    fd: OwnedFd,
    rings: Ring,
    entries: Ring,
    setup: Setup,
}

// SAFETY: addresses of mappings that this object owns; one thread uses it at a time.
unsafe impl Send for Uring {}

impl Uring {
    pub fn new() -> io::Result<Uring> {
        let mut setup: Setup = [0; 30];
        // Flags, and how many milliseconds the thread polls before it sleeps.
        (setup[2], setup[4]) = (SQPOLL, 100);
        // SAFETY: the structure has the size that the kernel expects.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, &mut setup) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        if setup[5] & SINGLE_MMAP == 0 {
            return Err(io::Error::other("a kernel before 5.4"));
        }
        // The array of the one ring, and the events of the other, end last.
        let submitted = setup[16] + setup[0] * 4;
        let completed = setup[25] + setup[1] * 16;
        let rings = Ring::map(&fd, submitted.max(completed) as usize, OFF_RINGS)?;
        let entries = Ring::map(&fd, setup[0] as usize * 64, OFF_ENTRIES)?;
        Ok(Uring {
            fd,
            rings,
            entries,
            setup,
        })
    }

    /// Writes `length` bytes of memory to `fd`. Returns what the system call would, or the negated error.
    pub fn write(&mut self, fd: i32, from: *mut u8, length: usize) -> isize {
        self.ask(WRITE, fd, from, length)
    }

    /// Reads into memory, as [`Uring::write`].
    pub fn read(&mut self, fd: i32, into: *mut u8, length: usize) -> isize {
        self.ask(READ, fd, into, length)
    }

    fn ask(&mut self, code: u8, fd: i32, at: *mut u8, length: usize) -> isize {
        let (tail, mask) = (
            self.rings.word(self.setup[11]),
            self.rings.word(self.setup[12]),
        );
        let next = tail.load(Ordering::Acquire);
        let slot = next & mask.load(Ordering::Relaxed);
        let mut entry = [0u8; 64];
        entry[0] = code;
        entry[4..8].copy_from_slice(&fd.to_le_bytes());
        // No position: a pipe has none.
        entry[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        entry[16..24].copy_from_slice(&(at as u64).to_le_bytes());
        entry[24..28].copy_from_slice(&(length as u32).to_le_bytes());
        // SAFETY: `slot` is below the number of entries, which are mapped.
        unsafe {
            self.entries
                .at
                .cast::<[u8; 64]>()
                .add(slot as usize)
                .write_volatile(entry)
        };
        self.rings
            .word(self.setup[16] + 4 * slot)
            .store(slot, Ordering::Relaxed);
        tail.store(next.wrapping_add(1), Ordering::Release);
        let (head, end) = (
            self.rings.word(self.setup[20]),
            self.rings.word(self.setup[21]),
        );
        let mask = self.rings.word(self.setup[22]).load(Ordering::Relaxed);
        let first = head.load(Ordering::Relaxed);
        while end.load(Ordering::Acquire) == first {
            let flags = GETEVENTS | SQ_WAKEUP;
            let none = std::ptr::null::<libc::sigset_t>();
            // SAFETY: waits for one event of this ring.
            unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    self.fd.as_raw_fd(),
                    1,
                    1,
                    flags,
                    none,
                    0,
                )
            };
        }
        let event = self.setup[25] + 16 * (first & mask);
        let result = self.rings.word(event + 8).load(Ordering::Relaxed) as i32;
        head.store(first.wrapping_add(1), Ordering::Release);
        result as isize
    }
}
