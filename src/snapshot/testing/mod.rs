//! A guest of a few MiB of memory and a VMM of a few atomics, for tests of saves and restores.

use super::{Restore, RestoreParams, Save, SaveParams};
use crate::dirty::tracker::{Clearing, Tracker};
use crate::dirty::WriteMarks;
use crate::error::{Error, Kind, Result};
use crate::memory::blockers::Blockers;
use crate::memory::{BlockDescription, BlockFlags, HostMemory, Memory, NO_SLOT};
use crate::units::{Bytes, PAGE_SIZE};
use crate::vmm::{Event, Role, StateBlob, StateSink, Vmm};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};

/// Pages of a guest: an odd number, and more than one piece of a table.
pub(super) const PAGES: u64 = 16 * 1024 + 77;
/// Pages of a guest whose size does not matter.
pub(super) const FEW: u64 = 3000;
/// The longest wait of a test. A sync of a busy disk takes its time.
pub(super) const LONG: Duration = Duration::from_secs(300);

/// A blob: name, instance, version and data.
type Loaded = (String, u32, u32, Vec<u8>);

type Hook = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// A VMM that notes which operations are called.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) calls: Mutex<Vec<String>>,
    pub(super) events: Mutex<Vec<Event>>,
    pub(super) roles: Mutex<Vec<Role>>,
    pub(super) paused: AtomicBool,
    /// Actions inside of an operation, by its name.
    pub(super) hooks: Mutex<Vec<(&'static str, Arc<Hook>)>>,
    /// Blobs that it saves, early ones and state.
    pub(super) blobs: [Vec<(&'static str, Vec<u8>)>; 2],
    /// The blobs that were loaded.
    pub(super) loaded: Mutex<Vec<Loaded>>,
}

impl Notes {
    pub(super) fn hook(
        &self,
        operation: &'static str,
        hook: impl Fn() -> Result<()> + Send + Sync + 'static,
    ) {
        let hook: Hook = Box::new(hook);
        self.hooks.lock().unwrap().push((operation, Arc::new(hook)));
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn called(&self, operation: &str) -> Result<()> {
        self.calls.lock().unwrap().push(operation.to_owned());
        let hooks = self.hooks.lock().unwrap();
        let hook = hooks.iter().find(|(name, _)| *name == operation);
        let hook = hook.map(|(_, hook)| Arc::clone(hook));
        drop(hooks);
        hook.map_or(Ok(()), |hook| hook())
    }

    fn put(&self, which: usize, sink: &mut dyn StateSink) -> Result<()> {
        (0..)
            .zip(&self.blobs[which])
            .try_for_each(|(i, (name, data))| {
                sink.put(&StateBlob {
                    name,
                    instance: i,
                    version: i + 10,
                    data,
                })
            })
    }

    fn take(&self, blob: &StateBlob<'_>) {
        let (name, data) = (blob.name.to_owned(), blob.data.to_vec());
        let mut loaded = self.loaded.lock().unwrap();
        loaded.push((name, blob.instance, blob.version, data));
    }
}

impl Vmm for Notes {
    fn pause(&self) -> Result<()> {
        self.paused.store(true, SeqCst);
        self.called("pause")
    }
    fn resume(&self) -> Result<()> {
        self.called("resume")?;
        self.paused.store(false, SeqCst);
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.called("run")
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        self.called("save")?;
        self.put(1, sink)
    }
    fn early_save(&self, sink: &mut dyn StateSink) -> Result<()> {
        self.called("early_save")?;
        self.put(0, sink)
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        self.take(blob);
        self.called("load")
    }
    fn early_load(&self, blob: &StateBlob<'_>) -> Result<()> {
        self.take(blob);
        self.called("early_load")
    }
    fn loaded(&self) -> Result<()> {
        self.called("loaded")
    }
    fn event(&self, event: &Event) {
        self.events.lock().unwrap().push(event.clone());
    }
    fn thread_start(&self, role: Role) {
        self.roles.lock().unwrap().push(role);
        self.called("thread_start").unwrap();
    }
}

/// One guest.
pub(super) struct World {
    pub(super) ram: GuestMemoryMmap<WriteMarks>,
    pub(super) memory: Arc<Memory>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) notes: Arc<Notes>,
}

pub(super) fn world() -> World {
    world_of(PAGES, Notes::default())
}

pub(super) fn world_of(pages: u64, notes: Notes) -> World {
    let ranges = [(GuestAddress(0), (pages * PAGE_SIZE) as usize)];
    let ram = GuestMemoryMmap::<WriteMarks>::from_ranges(&ranges).unwrap();
    world_with(ram, notes)
}

/// A guest in a memfd, and the file.
pub(super) fn shared_world_of(pages: u64, notes: Notes) -> (World, std::fs::File) {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel returns a new descriptor.
    let fd = unsafe { libc::memfd_create(c"brant-test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made, and nobody else owns it.
    let file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.set_len(pages * PAGE_SIZE).unwrap();
    let at = FileOffset::new(file.try_clone().unwrap(), 0);
    let ranges = [(GuestAddress(0), (pages * PAGE_SIZE) as usize, Some(at))];
    let ram = GuestMemoryMmap::<WriteMarks>::from_ranges_with_files(ranges).unwrap();
    (world_with(ram, notes), file)
}

fn world_with(ram: GuestMemoryMmap<WriteMarks>, notes: Notes) -> World {
    let memory = Arc::new(Memory::new().unwrap());
    memory.add_guest_memory(&ram, NO_SLOT).unwrap();
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    WriteMarks::connect(&ram, &tracker);
    World {
        ram,
        memory,
        tracker,
        notes: Arc::new(notes),
    }
}

impl World {
    /// Writes a value to a page.
    pub(super) fn write(&self, page: u64, value: u64) {
        write(&self.ram, page, value);
    }

    /// Fills a page.
    pub(super) fn fill(&self, page: u64, value: u8) {
        let bytes = [value; PAGE_SIZE as usize];
        let at = GuestAddress(page * PAGE_SIZE);
        self.ram.write_slice(&bytes, at).unwrap();
    }

    /// The contents of the first block.
    pub(super) fn contents(&self) -> Vec<u8> {
        let length = self.memory.map().blocks()[0].length().0 as usize;
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    pub(super) fn save(&self, params: SaveParams) -> Save {
        let (tracker, vmm) = (Arc::clone(&self.tracker), Arc::clone(&self.notes));
        Save::new(tracker, Blockers::new(), vmm, params).unwrap()
    }

    pub(super) fn restore(&self, params: RestoreParams) -> Restore {
        let vmm: Arc<Notes> = Arc::clone(&self.notes);
        Restore::new(Arc::clone(&self.memory), vmm, params).unwrap()
    }

    /// Saves with default parameters.
    pub(super) fn save_to(&self, path: &Path) -> Result<()> {
        let (tracker, vmm) = (Arc::clone(&self.tracker), Arc::clone(&self.notes));
        let save = Save::new(tracker, Blockers::new(), vmm, SaveParams::default())?;
        save.start(path)?;
        save.wait(Some(LONG))
    }

    /// Restores with default parameters.
    pub(super) fn restore_from(&self, path: &Path) -> Result<()> {
        let vmm: Arc<Notes> = Arc::clone(&self.notes);
        let params = RestoreParams::default();
        let restore = Restore::new(Arc::clone(&self.memory), vmm, params)?;
        restore.start(path)?;
        restore.wait(Some(LONG))
    }
}

/// Writes a value to a page of a guest, as its VMM does.
pub(super) fn write(ram: &GuestMemoryMmap<WriteMarks>, page: u64, value: u64) {
    let at = GuestAddress(page * PAGE_SIZE + value % 500 * 8);
    ram.write_obj(value, at).unwrap();
}

/// An error of the VMM's.
pub(super) fn no(what: &str) -> Result<()> {
    Err(Error::new(Kind::Busy, what))
}

/// Pseudo-random numbers, the same for the same seed.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    /// A new seed, which is printed, or that of BRANT_SEED.
    pub(super) fn seeded() -> Numbers {
        let given = std::env::var("BRANT_SEED")
            .ok()
            .and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now();
            now.duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_nanos() as u64
        });
        println!("BRANT_SEED={seed}");
        Numbers(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A directory of the test's own, and a path for an image in it.
pub(super) fn place() -> (tempfile::TempDir, PathBuf) {
    // Not on a tmpfs, because O_DIRECT should be used.
    let directory =
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
    let path = directory.path().join("guest.image");
    (directory, path)
}

/// The names in a directory.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

type Once = Box<dyn FnOnce()>;

thread_local! {
    static LOOKED: std::cell::Cell<Option<Once>> = const { std::cell::Cell::new(None) };
}

/// Runs `what` once on this thread, a save's, after the save's next look at what is pending.
pub(super) fn after_the_look_at_pending(what: impl FnOnce() + 'static) {
    LOOKED.set(Some(Box::new(what)));
}

/// The place in a save's pass where [`after_the_look_at_pending`] takes effect.
pub(super) fn looked_at_pending() {
    if let Some(what) = LOOKED.take() {
        what();
    }
}

/// Memory for one more block.
pub(super) struct Plugged {
    host: *mut libc::c_void,
    length: usize,
}

// SAFETY: an address range of its own.
unsafe impl Send for Plugged {}
// SAFETY: as above.
unsafe impl Sync for Plugged {}

impl Plugged {
    pub(super) fn new(pages: u64) -> Plugged {
        let length = (pages * PAGE_SIZE) as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let host = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(host, libc::MAP_FAILED);
        Plugged { host, length }
    }

    pub(super) fn add_to(&self, memory: &Memory, name: &str, flags: BlockFlags) {
        memory
            .add_block(BlockDescription {
                flags,
                // SAFETY: mapped until the test's end, when nobody uses it any more.
                host: unsafe { HostMemory::new(self.host.cast()) },
                ..BlockDescription::new(name, self.as_host(), Bytes(self.length as u64))
            })
            .unwrap();
    }

    fn as_host(&self) -> HostMemory {
        // SAFETY: as above.
        unsafe { HostMemory::new(self.host.cast()) }
    }

    pub(super) fn fill(&self, value: u8) {
        // SAFETY: the mapping of `new`, which only the test uses.
        unsafe { std::ptr::write_bytes(self.host.cast::<u8>(), value, self.length) };
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping of `new`, which no thread writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.host.cast(), self.length) }
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`.
        unsafe { libc::munmap(self.host, self.length) };
    }
}
