//! Memory of each kind, and the defects that a page of it can get.

use crate::support::kinds::{poison, Key};
use brant::memory::{BackingFile, BlockDescription, BlockFlags, Memory};
use brant::units::Bytes;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

pub const PAGE: usize = 4096;
pub const PAGES: usize = 256;

/// The kinds of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Made {
    Private,
    Memfd,
    /// Shared memory whose file brant does not know.
    Unknown,
    MemfdPrivate,
    /// A file on a tmpfs.
    Tmpfs,
}

pub const ALL: [Made; 5] = [
    Made::Private,
    Made::Memfd,
    Made::Unknown,
    Made::MemfdPrivate,
    Made::Tmpfs,
];

/// The defects of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Broken {
    Poisoned,
    Forbidden,
    /// Forbidden by a protection key.
    ByKey,
    ReadOnly,
    CutOff,
}

/// One side's memory: a block `ram`.
pub struct Side {
    pub host: *mut u8,
    file: Option<File>,
    pub memory: Arc<Memory>,
    /// Descriptors that keep poisoned pages poisoned.
    poison: Mutex<Vec<OwnedFd>>,
    /// The key that forbids access.
    key: Mutex<Option<Key>>,
}

// SAFETY: a mapping of the test's own, which no other code writes at the same time.
unsafe impl Send for Side {}
// SAFETY: as above.
unsafe impl Sync for Side {}

impl Side {
    pub fn new(made: Made) -> Arc<Side> {
        Side::with(made, false, None)
    }

    /// Makes a side. `tmpfs` is where one is mounted, for [`Made::Tmpfs`]; without it /dev/shm is
    /// used.
    pub fn with(made: Made, rom: bool, tmpfs: Option<&str>) -> Arc<Side> {
        let file = match made {
            Made::Private => None,
            Made::Tmpfs => {
                let dir = tmpfs.unwrap_or("/dev/shm");
                Some(tempfile::tempfile_in(dir).unwrap())
            }
            // SAFETY: makes a descriptor, which is ours.
            _ => Some(unsafe {
                File::from_raw_fd(libc::memfd_create(
                    c"unreadable".as_ptr(),
                    libc::MFD_CLOEXEC,
                ))
            }),
        };
        if let Some(file) = &file {
            file.set_len((PAGES * PAGE) as u64).unwrap();
        }
        let flags = match (made, &file) {
            (_, None) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            (Made::MemfdPrivate, _) => libc::MAP_PRIVATE,
            _ => libc::MAP_SHARED,
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let host = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let fd = file.as_ref().map_or(-1, |file| file.as_raw_fd());
            let host = libc::mmap(std::ptr::null_mut(), PAGES * PAGE, access, flags, fd, 0);
            assert_ne!(host, libc::MAP_FAILED);
            libc::madvise(host, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
            host.cast::<u8>()
        };
        let memory = Memory::new().unwrap();
        let told = file.as_ref().filter(|_| made != Made::Unknown);
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { brant::memory::HostMemory::new(host) },
                length: Bytes((PAGES * PAGE) as u64),
                page_size: Bytes(PAGE as u64),
                file: told.map(|file| BackingFile {
                    fd: file.try_clone().unwrap().into(),
                    offset: 0,
                }),
                flags: BlockFlags { rom, zeroed: false },
            })
            .unwrap();
        Arc::new(Side {
            host,
            file,
            memory: Arc::new(memory),
            poison: Mutex::default(),
            key: Mutex::default(),
        })
    }

    /// Writes the same number into the first byte of every page.
    pub fn fill(&self, value: u8) {
        for page in 0..PAGES {
            self.set(page, value);
        }
    }

    pub fn at(&self, page: usize) -> *mut u8 {
        assert!(page < PAGES);
        self.host.wrapping_add(page * PAGE)
    }

    pub fn set(&self, page: usize, value: u8) {
        // SAFETY: inside this test's own mapping.
        unsafe { self.at(page).write_volatile(value) };
    }

    pub fn get(&self, page: usize) -> u8 {
        // SAFETY: inside this test's own mapping.
        unsafe { self.at(page).read_volatile() }
    }

    pub fn protect(&self, page: usize, protection: libc::c_int) {
        // SAFETY: a page of this test's own mapping.
        let done = unsafe { libc::mprotect(self.at(page).cast(), PAGE, protection) };
        assert_eq!(done, 0);
    }

    /// Gives a page a defect. `false` if this machine or this memory cannot have it. A file is cut
    /// from that page on.
    pub fn make(&self, broken: Broken, page: usize) -> bool {
        match broken {
            Broken::Poisoned => return self.poison(page),
            Broken::Forbidden => self.protect(page, libc::PROT_NONE),
            Broken::ByKey => return self.forbid_by_key(page),
            Broken::ReadOnly => self.protect(page, libc::PROT_READ),
            Broken::CutOff => match &self.file {
                Some(file) => file.set_len((page * PAGE) as u64).unwrap(),
                None => return false,
            },
        }
        true
    }

    fn poison(&self, page: usize) -> bool {
        let poison = poison(self.at(page), PAGE);
        let made = poison.is_some();
        self.poison.lock().unwrap().extend(poison);
        made
    }

    fn forbid_by_key(&self, page: usize) -> bool {
        let mut key = self.key.lock().unwrap();
        if key.is_none() {
            *key = Key::new();
        }
        let key = key
            .as_ref()
            .inspect(|key| key.put(self.at(page), PAGE, true));
        key.is_some()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // SAFETY: this test's own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.host.cast(), PAGES * PAGE) };
    }
}

/// The words of an error about a broken page.
pub fn words(broken: Broken, made: Made, access: &str) -> String {
    match broken {
        Broken::Poisoned => format!("cannot be {access}: it is poisoned"),
        Broken::Forbidden | Broken::ByKey | Broken::ReadOnly => {
            format!("does not let it be {access}")
        }
        Broken::CutOff if made == Made::Unknown => "was it cut".into(),
        Broken::CutOff => format!("cannot be {access}: it is byte"),
    }
}

/// Calls `f` with each kind of memory and each of `breakages` that it can have.
pub fn each(breakages: &[Broken], mut f: impl FnMut(Made, Broken)) {
    for made in ALL {
        for &broken in breakages {
            if broken != Broken::CutOff || made != Made::Private {
                eprintln!("{made:?}, {broken:?}");
                f(made, broken);
            }
        }
    }
}

/// A tmpfs of `pages` that only this process sees, and that ends with it. `None` without the right
/// to mount.
pub fn small_tmpfs(pages: usize) -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let target = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    let options = std::ffi::CString::new(format!("size={}", pages * PAGE)).unwrap();
    // SAFETY: strings that end with NUL. Only this process gets the mount, which ends with it.
    let mounted = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(
                c"tmpfs".as_ptr(),
                target.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                options.as_ptr().cast(),
            ) == 0
    };
    if !mounted {
        eprintln!("skipped: no right to mount a tmpfs");
    }
    mounted.then_some(dir)
}

pub fn unmount(dir: &tempfile::TempDir) {
    let target = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    // SAFETY: the mount of `small_tmpfs`.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
}
