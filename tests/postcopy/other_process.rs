//! Another process shares the guest's memory, as a vhost-user back end does, and touches pages that
//! have not arrived. Its userfaultfd is served like brant's own.

use super::scripted::{word, Scripted};
use crate::support::memory::{ram, shared, Ram, PAGE};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{Params, Theirs};
use brant::units::Pages;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const PAGES: u64 = 1100;

/// The child process: it reads the first words of pages, one after another.
struct Child {
    pid: libc::pid_t,
    ask: OwnedFd,
    answer: OwnedFd,
    /// Its userfaultfd.
    uffd: OwnedFd,
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (out, into) = io::pipe().unwrap();
    (out.into(), into.into())
}

/// The work of the child, which calls nothing but the kernel: other threads of this process may have
/// held any lock when it was made.
unsafe fn child(host: *mut u8, bytes: usize, ask: i32, answer: i32) -> ! {
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    // SAFETY: system calls with values of this function's own.
    unsafe {
        let uffd = libc::syscall(libc::SYS_userfaultfd, libc::O_NONBLOCK) as i32;
        // Missing pages of shared memory.
        let mut api = [0xaau64, 1 << 5, 0];
        let mut register = [host as u64, bytes as u64, 1, 0];
        if libc::ioctl(uffd, UFFDIO_API as _, &mut api) != 0
            || libc::ioctl(uffd, UFFDIO_REGISTER as _, &mut register) != 0
        {
            libc::_exit(1);
        }
        let number = uffd as u64;
        libc::write(answer, std::ptr::from_ref(&number).cast(), 8);
        let mut page = 0u64;
        while libc::read(ask, std::ptr::from_mut(&mut page).cast(), 8) == 8 {
            let value = host.add(page as usize * PAGE).cast::<u64>().read_volatile();
            libc::write(answer, std::ptr::from_ref(&value).cast(), 8);
        }
        libc::_exit(0)
    }
}

impl Child {
    fn new(ram: &Ram) -> Child {
        let (ask_out, ask) = pipe();
        let (answer, answer_into) = pipe();
        let host = ram.word(0).as_ptr().cast::<u8>();
        // SAFETY: the child only calls the kernel.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // So that the end of the parent's pipe is the end of the child.
            // SAFETY: the child's own copy of a descriptor.
            unsafe { libc::close(ask.as_raw_fd()) };
            let bytes = ram.spec.pages * PAGE;
            // SAFETY: the memory is mapped in the child too.
            unsafe { child(host, bytes, ask_out.as_raw_fd(), answer_into.as_raw_fd()) }
        }
        assert!(pid > 0);
        let mut child = Child {
            pid,
            ask,
            answer,
            // Replaced below.
            uffd: std::fs::File::open("/dev/null").unwrap().into(),
        };
        let number = child.heard() as i32;
        // SAFETY: plain system calls.
        let fd = unsafe {
            let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
            let pidfd = OwnedFd::from_raw_fd(pidfd);
            libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) as i32
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: just made, and nobody else's.
        child.uffd = unsafe { OwnedFd::from_raw_fd(fd) };
        child
    }

    fn ask(&self, page: u64) {
        // SAFETY: eight bytes of this function's own.
        let wrote = unsafe {
            let page = std::ptr::from_ref(&page).cast();
            libc::write(self.ask.as_raw_fd(), page, 8)
        };
        assert_eq!(wrote, 8);
    }

    /// What the child says next.
    fn heard(&self) -> u64 {
        let mut poll = libc::pollfd {
            fd: self.answer.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor.
        let ready = unsafe { libc::poll(&mut poll, 1, LONG.as_millis() as i32) };
        assert_eq!(ready, 1, "the child says nothing");
        let mut value = 0u64;
        // SAFETY: eight bytes of this function's own.
        let got = unsafe {
            let value = std::ptr::from_mut(&mut value).cast();
            libc::read(self.answer.as_raw_fd(), value, 8)
        };
        assert_eq!(got, 8, "the child has ended");
        value
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that nobody has waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn whole(source: &Scripted) -> Vec<Theirs> {
    let host = source.ram.word(0).as_ptr() as u64;
    vec![Theirs {
        addresses: host..host + PAGES * PAGE as u64,
        block: source.guest.rams()[0].0,
        first: Pages(0),
    }]
}

#[test]
fn its_faults_are_served_as_the_guest_s_own() {
    let missing = [10..20, 600..700];
    let spec = shared("ram", PAGES as usize);
    let mut source = Scripted::begin(&spec, 1, &Params::default());
    let child = Child::new(&source.ram);
    let uffd = child.uffd.try_clone().unwrap();
    source.incoming.add_uffd(uffd, whole(&source)).unwrap();
    source.precopy(&missing);
    source.switch(&missing);
    source.hand_over();
    // What is here is found without a request, and old contents of missing pages are not.
    child.ask(3);
    assert_eq!(child.heard(), word(3));
    child.ask(12);
    assert_eq!(source.urgent.asked(), [12..13]);
    source.urgent.pages(12..13);
    assert_eq!(child.heard(), word(12));
    // Both processes wait for one page, and are woken by one arrival.
    child.ask(650);
    assert_eq!(source.urgent.asked(), [650..651]);
    let reader = source.reader([650]);
    while source.incoming.stats().fault_waiting < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    source.urgent.pages(650..651);
    assert_eq!(child.heard(), word(650));
    assert_eq!(reader.join().unwrap(), [word(650)]);
    source.bulk[0].pages(10..20);
    source.bulk[0].pages(600..690);
    source.bulk[0].zeros(690..700);
    source.finish();
    source.assert_whole(&[690..700]);
    // The service goes on: nobody has touched a page that arrived as zeros.
    child.ask(695);
    assert_eq!(child.heard(), 0);
    child.ask(11);
    assert_eq!(child.heard(), word(11));
}

#[test]
fn regions_that_are_no_part_of_a_shared_block_are_refused() {
    let mut source = Scripted::begin(&ram("ram", PAGES as usize), 1, &Params::default());
    let uffd = || {
        let fd = std::fs::File::open("/dev/null").unwrap();
        OwnedFd::from(fd)
    };
    for change in [
        |theirs: &mut Theirs| theirs.first = Pages(1),
        |theirs: &mut Theirs| theirs.block = brant::memory::BlockId(99),
        |theirs: &mut Theirs| theirs.addresses.end = theirs.addresses.start,
    ] {
        let mut map = whole(&source);
        change(&mut map[0]);
        let error = source.incoming.add_uffd(uffd(), map).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
    // Without such a descriptor, old contents of missing pages stay in files.
    source.precopy(&[5..6]);
    source.switch(&[5..6]);
    source.hand_over();
    let error = source
        .incoming
        .add_uffd(uffd(), whole(&source))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    source.bulk[0].pages(5..6);
    source.finish();
    source.assert_whole(&[]);
}
