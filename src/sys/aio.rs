//! Reads of a file for which nobody waits: io_submit(2) starts one, and a descriptor is readable when
//! one has ended.
//!
//! Only reads past the page cache (`O_DIRECT`) return at once. One through the page cache is done
//! within [`Reads::start`], which then takes as long as the disk.

use super::{event, kernel, own::OwnMemory};
use crate::error::{Error, Result};
use crate::fallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

const PREAD: u16 = 0;
/// Of `Control::flags`: `ended` is raised at the end.
const TELL: u32 = 1;
/// Ends that one call takes.
const AT_ONCE: usize = 16;

/// `struct iocb` of a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Control {
    tag: u64,
    key: u32,
    rw_flags: u32,
    operation: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    ended: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct End {
    tag: u64,
    control: u64,
    result: i64,
    result2: i64,
}

/// Up to a number of reads of equal length at one time, each into room of its own.
#[derive(Debug)]
pub struct Reads {
    context: libc::c_ulong,
    ended: Arc<OwnedFd>,
    /// The kernel writes to the parts that are not in `free`.
    room: Option<OwnMemory>,
    length: usize,
    free: Vec<usize>,
}

impl Reads {
    /// Up to `most` reads of `length` bytes, a multiple of the page size.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no memory.
    pub fn new(most: usize, length: usize) -> Result<Reads> {
        let failed = |e| Error::os("asynchronous reads", e);
        let room = Some(OwnMemory::new(most * length, "pages that are read")?);
        let mut free = fallible::collect(0..most, "pages that are read")?;
        free.reverse();
        let ended = Arc::new(event::eventfd().map_err(failed)?);
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context, which outlives the call.
        if unsafe { kernel::io_setup(most as libc::c_uint, &raw mut context) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(Reads {
            context,
            ended,
            room,
            length,
            free,
        })
    }

    /// Readable when a read has ended.
    pub fn ended(&self) -> &Arc<OwnedFd> {
        &self.ended
    }

    /// Starts a read at `offset`. Returns its number, which no other read under way has. `None`: as
    /// many as possible are under way, or the kernel takes none now.
    ///
    /// # Errors
    /// The kernel's, when it will never take this read.
    pub fn start(&mut self, file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<usize>> {
        let (Some(number), Some(room)) = (self.free.pop(), &self.room) else {
            return Ok(None);
        };
        let buffer = room.first().as_ptr().wrapping_add(number * self.length);
        let mut control = Control {
            tag: number as u64,
            operation: PREAD,
            file: file.as_raw_fd() as u32,
            buffer: buffer as u64,
            bytes: self.length as u64,
            offset: offset as i64,
            flags: TELL,
            ended: self.ended.as_raw_fd() as u32,
            ..Control::default()
        };
        let mut list = [&raw mut control];
        // SAFETY: a list of one control block, which the kernel copies. The room belongs to this read
        // until its end is taken, and outlives it: see `drop`.
        let taken = unsafe { kernel::io_submit(self.context, 1, list.as_mut_ptr().cast()) };
        if taken == 1 {
            return Ok(Some(number));
        }
        let error = io::Error::last_os_error();
        self.free.push(number);
        match taken {
            0 => Ok(None),
            _ if error.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            _ => Err(error),
        }
    }

    /// Calls `each` with the number of each read that has ended since, and what it has read: the
    /// bytes, which may be fewer than were asked for.
    ///
    /// # Errors
    /// The kernel's. Which reads have ended is unknown from then on.
    pub fn take(&mut self, mut each: impl FnMut(usize, io::Result<&[u8]>)) -> io::Result<()> {
        let _ = event::eventfd_take(self.ended.as_fd());
        let Some(room) = &self.room else {
            return Ok(());
        };
        loop {
            let mut ends = [End::default(); AT_ONCE];
            let mut now: libc::timespec = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // SAFETY: room for so many ends, and the time, outlive the call.
            let got = unsafe {
                kernel::io_getevents(
                    self.context,
                    0,
                    AT_ONCE as libc::c_long,
                    ends.as_mut_ptr().cast(),
                    &raw mut now,
                )
            };
            if got < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            for end in &ends[..got as usize] {
                let number = end.tag as usize;
                let read = match usize::try_from(end.result) {
                    Ok(bytes) => Ok(&room[number * self.length..][..bytes.min(self.length)]),
                    Err(_) => Err(io::Error::from_raw_os_error(-end.result as i32)),
                };
                each(number, read);
                // There is room for as many as there are.
                self.free.push(number);
            }
            if (got as usize) < AT_ONCE {
                return Ok(());
            }
        }
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        // SAFETY: the context is this object's. The call waits for the reads that are under way.
        if unsafe { kernel::io_destroy(self.context) } < 0 {
            // The kernel may still write there.
            std::mem::forget(self.room.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::disk::{self, Caching};
    use crate::sys::event::{poll, Poll, READABLE};

    const PAGE: usize = 4096;

    fn file(caching: Caching) -> (tempfile::TempDir, std::fs::File) {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..8 * PAGE + 100)
            .map(|at| (at / PAGE) as u8 + 1)
            .collect();
        std::fs::write(&path, bytes).unwrap();
        let file = disk::open_for_reading(&path, caching)
            .or_else(|_| disk::open_for_reading(&path, Caching::Cached));
        (directory, file.unwrap())
    }

    /// Waits for so many ends: number, first byte and length of each.
    fn ends(reads: &mut Reads, count: usize) -> Vec<(usize, u8, usize)> {
        let mut all = Vec::new();
        while all.len() < count {
            let mut polls = [Poll::new(reads.ended().as_fd(), READABLE)];
            let some = poll(&mut polls, Some(std::time::Duration::from_secs(20)));
            assert_eq!(some.unwrap(), 1);
            let take = |number, read: io::Result<&[u8]>| {
                let bytes = read.unwrap();
                all.push((number, bytes.first().copied().unwrap_or(0), bytes.len()));
            };
            reads.take(take).unwrap();
        }
        all
    }

    #[test]
    fn each_read_that_was_started_ends_with_its_own_bytes() {
        for caching in [Caching::Direct, Caching::Cached] {
            let (_directory, file) = file(caching);
            let mut reads = Reads::new(4, PAGE).unwrap();
            for round in 0..50usize {
                let mut started = Vec::new();
                for at in 0..4 {
                    let page = (round + at * 3) % 8;
                    let number = reads.start(file.as_fd(), (page * PAGE) as u64);
                    started.push((number.unwrap().unwrap(), page as u8 + 1, PAGE));
                }
                assert_eq!(reads.start(file.as_fd(), 0).unwrap(), None);
                let mut found = ends(&mut reads, 4);
                found.sort_unstable();
                started.sort_unstable();
                assert_eq!(found, started, "{caching:?}, round {round}");
            }
        }
    }

    #[test]
    fn a_read_at_the_end_of_a_file_is_short_and_one_behind_it_has_nothing() {
        let (_directory, file) = file(Caching::Direct);
        let mut reads = Reads::new(2, PAGE).unwrap();
        for (page, length) in [(8, 100), (9, 0)] {
            reads
                .start(file.as_fd(), page * PAGE as u64)
                .unwrap()
                .unwrap();
            assert_eq!(ends(&mut reads, 1)[0].2, length);
        }
    }

    #[test]
    fn reads_that_are_under_way_are_awaited_when_the_object_goes() {
        let (_directory, file) = file(Caching::Direct);
        for _ in 0..200 {
            let mut reads = Reads::new(8, PAGE).unwrap();
            for page in 0..8 {
                reads.start(file.as_fd(), page * PAGE as u64).unwrap();
            }
        }
    }
}
