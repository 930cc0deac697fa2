//! The errors with which each system call can plausibly fail: the table for a sweep.
//!
//! They come from the calls' manual pages and the kernel's sources, for correct descriptors and
//! addresses. So there is no `EBADF` for brant's own descriptors, and no `EINVAL` for flags that
//! never change. A system call filter may refuse any call that a kernel can lack, with `ENOSYS` or
//! `EPERM`.

use super::plan::Fault::{self, Done, End, Error, Short};
use libc as c;

/// The name of an ioctl.
pub(in crate::sys) fn request(request: libc::c_ulong) -> &'static str {
    let known = REQUESTS.iter().find(|(number, _)| *number == request);
    known.map_or("ioctl", |(_, name)| name)
}

const REQUESTS: &[(libc::c_ulong, &str)] = &[
    (c::TIOCOUTQ, "SIOCOUTQ"),
    (0xae00, "KVM_GET_API_VERSION"),
    (0xae01, "KVM_CREATE_VM"),
    (0xae03, "KVM_CHECK_EXTENSION"),
    (0xae04, "KVM_GET_VCPU_MMAP_SIZE"),
    (0xc008_ae05, "KVM_GET_SUPPORTED_CPUID"),
    (0xae41, "KVM_CREATE_VCPU"),
    (0xae80, "KVM_RUN"),
    (0x8090_ae81, "KVM_GET_REGS"),
    (0x4090_ae82, "KVM_SET_REGS"),
    (0x8138_ae83, "KVM_GET_SREGS"),
    (0x4138_ae84, "KVM_SET_SREGS"),
    (0x4008_ae90, "KVM_SET_CPUID2"),
    (0x4020_ae46, "KVM_SET_USER_MEMORY_REGION"),
    (0x4010_ae42, "KVM_GET_DIRTY_LOG"),
    (0xc018_aec0, "KVM_CLEAR_DIRTY_LOG"),
    (0x4068_aea3, "KVM_ENABLE_CAP"),
    (0xaec7, "KVM_RESET_DIRTY_RINGS"),
    (0xc018_aa3f, "UFFDIO_API"),
    (0xc020_aa00, "UFFDIO_REGISTER"),
    (0x8010_aa01, "UFFDIO_UNREGISTER"),
    (0x8010_aa02, "UFFDIO_WAKE"),
    (0xc028_aa03, "UFFDIO_COPY"),
    (0xc020_aa04, "UFFDIO_ZEROPAGE"),
    (0xc018_aa06, "UFFDIO_WRITEPROTECT"),
    (0xc020_aa07, "UFFDIO_CONTINUE"),
    (0xc020_aa08, "UFFDIO_POISON"),
    (0xaa00, "USERFAULTFD_IOC_NEW"),
    (0xc060_6610, "PAGEMAP_SCAN"),
    (0xc068_6611, "PROCMAP_QUERY"),
];

/// The possible faults of a call. Empty if it cannot fail.
pub(crate) fn faults(name: &str) -> &'static [Fault] {
    TABLE
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(&[], |(_, faults)| faults)
}

/// Every call that a sweep knows.
#[rustfmt::skip]
pub(in crate::sys) const TABLE: &[(&str, &[Fault])] = &[
    // Sockets.
    ("socket", &[Error(c::EMFILE), Error(c::ENFILE), Error(c::ENOBUFS), Error(c::EACCES), Error(c::EAFNOSUPPORT)]),
    ("bind", &[Error(c::EADDRINUSE), Error(c::EADDRNOTAVAIL), Error(c::EACCES), Error(c::ENOMEM)]),
    ("listen", &[Error(c::EADDRINUSE)]),
    ("connect", &[
        Done(c::EINTR), Error(c::ECONNREFUSED), Error(c::ETIMEDOUT), Error(c::ENETUNREACH), Error(c::EADDRNOTAVAIL), Error(c::EPERM),
    ]),
    ("accept4", &[
        Error(c::EINTR), Error(c::EAGAIN), Error(c::ECONNABORTED), Error(c::EMFILE), Error(c::ENFILE), Error(c::ENOMEM), Error(c::EPERM),
    ]),
    ("getsockname", &[Error(c::ENOBUFS)]),
    ("getpeername", &[Error(c::ENOBUFS), Error(c::ENOTCONN)]),
    ("getsockopt", &[Error(c::ENOBUFS)]),
    ("setsockopt", &[Error(c::ENOBUFS), Error(c::EINVAL)]),
    ("sendmsg", &[
        Error(c::EINTR), Error(c::EAGAIN), Short(1), Short(4097), Error(c::ENOBUFS), Error(c::ENOMEM),
        Error(c::ECONNRESET), Error(c::EPIPE), Error(c::ETIMEDOUT), Error(c::EFAULT),
    ]),
    ("recvmsg", &[
        Error(c::EINTR), Error(c::EAGAIN), Short(1), Short(4097), Error(c::ENOMEM), Error(c::ECONNRESET),
        Error(c::ETIMEDOUT), Error(c::EFAULT), End,
    ]),
    ("shutdown", &[Error(c::ENOTCONN)]),
    ("SIOCOUTQ", &[Error(c::EINVAL)]),
    // Waiting.
    ("ppoll", &[Error(c::EINTR), Error(c::ENOMEM), Error(c::EINVAL)]),
    ("eventfd", &[Error(c::EMFILE), Error(c::ENFILE), Error(c::ENOMEM)]),
    ("signalfd", &[Error(c::EMFILE), Error(c::ENFILE), Error(c::ENOMEM)]),
    ("sigaction", &[]),
    ("tgkill", &[Error(c::EAGAIN)]),
    ("read", &[Error(c::EINTR)]),
    ("write", &[Error(c::EINTR)]),
    ("clone", &[Error(c::EAGAIN), Error(c::ENOMEM)]),
    // Memory.
    ("mmap", &[Error(c::ENOMEM), Error(c::EAGAIN)]),
    ("munmap", &[]),
    ("mprotect", &[Error(c::ENOMEM)]),
    ("madvise", &[Error(c::EAGAIN), Error(c::ENOMEM), Error(c::EFAULT), Error(c::EINVAL), Error(c::EHWPOISON)]),
    ("mincore", &[Error(c::EAGAIN), Error(c::ENOMEM)]),
    ("memfd_create", &[Error(c::EMFILE), Error(c::ENFILE), Error(c::ENOMEM), Error(c::ENOSYS)]),
    ("pipe2", &[Error(c::EMFILE), Error(c::ENFILE)]),
    ("writev", &[Error(c::EAGAIN), Error(c::EFAULT)]),
    ("userfaultfd", &[Error(c::ENOSYS), Error(c::EPERM), Error(c::EMFILE), Error(c::ENOMEM)]),
    ("UFFDIO_API", &[Error(c::EINVAL)]),
    ("UFFDIO_REGISTER", &[Error(c::EBUSY), Error(c::ENOMEM), Error(c::EINVAL), Error(c::EPERM)]),
    ("UFFDIO_UNREGISTER", &[Error(c::ENOMEM), Error(c::EINVAL)]),
    ("UFFDIO_WAKE", &[Error(c::EINVAL)]),
    ("UFFDIO_CONTINUE", &[Error(c::EAGAIN), Error(c::ENOMEM)]),
    ("UFFDIO_POISON", &[Error(c::EAGAIN), Error(c::ENOMEM)]),
    ("UFFDIO_COPY", &[Error(c::EAGAIN), Error(c::ENOMEM), Error(c::ESRCH)]),
    ("UFFDIO_ZEROPAGE", &[Error(c::EAGAIN), Error(c::ENOMEM), Error(c::ESRCH)]),
    ("UFFDIO_WRITEPROTECT", &[Error(c::EAGAIN), Error(c::EINTR), Error(c::ENOMEM), Error(c::ENOENT)]),
    ("USERFAULTFD_IOC_NEW", &[Error(c::EMFILE), Error(c::EPERM)]),
    ("PAGEMAP_SCAN", &[Error(c::ENOMEM), Error(c::EFAULT), Error(c::EINTR), Error(c::EPERM)]),
    ("PROCMAP_QUERY", &[Error(c::ENOTTY), Error(c::ENOMEM), Error(c::EINTR), Error(c::ESRCH)]),
    // Files.
    ("open", &[Error(c::EMFILE), Error(c::ENFILE), Error(c::EACCES), Error(c::ENOENT), Error(c::ENOMEM)]),
    ("read_file", &[Error(c::EINTR), Error(c::EIO), Error(c::ENOMEM), Short(1)]),
    ("pread", &[Error(c::EINTR), Error(c::EIO), Short(1)]),
    ("io_setup", &[Error(c::EAGAIN), Error(c::ENOMEM), Error(c::ENOSYS), Error(c::EPERM)]),
    ("io_submit", &[Error(c::EAGAIN), Error(c::EINVAL), Error(c::EPERM)]),
    ("io_getevents", &[Error(c::EINTR), Error(c::EPERM)]),
    ("io_destroy", &[]),
    ("pwrite", &[Error(c::EINTR), Error(c::EIO), Error(c::ENOSPC), Error(c::EFBIG), Error(c::EDQUOT), Short(1), Short(4097)]),
    ("fsync", &[Error(c::EIO), Error(c::ENOSPC), Error(c::EDQUOT)]),
    ("rename", &[Error(c::EACCES), Error(c::ENOSPC), Error(c::EROFS), Error(c::EIO)]),
    ("lseek", &[Error(c::EINVAL), Error(c::EIO)]),
    ("fallocate", &[Error(c::EINTR), Error(c::ENOSPC), Error(c::EOPNOTSUPP), Error(c::EFBIG), Error(c::EPERM)]),
    ("ftruncate", &[Error(c::EINTR), Error(c::EFBIG), Error(c::ENOMEM)]),
    ("fstat", &[Error(c::EIO), Error(c::ENOMEM), Error(c::ESTALE)]),
    ("fstatfs", &[Error(c::EINTR), Error(c::EIO), Error(c::ENOSYS)]),
    ("cachestat", &[Error(c::ENOSYS), Error(c::EOPNOTSUPP), Error(c::EFAULT), Error(c::EPERM)]),
    ("process_madvise", &[Error(c::ENOSYS), Error(c::EPERM), Error(c::EBADF), Error(c::EINVAL), Error(c::EAGAIN)]),
    ("move_pages", &[Error(c::ENOSYS), Error(c::EPERM), Error(c::ENOMEM)]),
    ("fcntl", &[Error(c::EPERM), Error(c::EMFILE)]),
    ("duplicate", &[Error(c::EMFILE)]),
    ("lstat", &[Error(c::EACCES), Error(c::ENOENT), Error(c::ENOMEM)]),
    ("unlink", &[Error(c::EACCES), Error(c::ENOENT), Error(c::EROFS)]),
    ("getrandom", &[Error(c::EINTR), Error(c::EAGAIN), Error(c::ENOSYS), Short(1)]),
    ("sysinfo", &[Error(c::ENOSYS)]),
    ("getrusage", &[Error(c::ENOSYS)]),
    // KVM.
    ("KVM_CHECK_EXTENSION", &[Error(c::EIO)]),
    ("KVM_ENABLE_CAP", &[Error(c::EINVAL), Error(c::ENOMEM), Error(c::EIO)]),
    ("KVM_SET_USER_MEMORY_REGION", &[Error(c::ENOMEM), Error(c::EINVAL), Error(c::EIO)]),
    ("KVM_GET_DIRTY_LOG", &[Error(c::EFAULT), Error(c::EIO), Error(c::ENOMEM), Error(c::ENOENT)]),
    // No EINVAL, because that answers a question truly (`sys::kvm_ring::has_bitmap`).
    ("KVM_CLEAR_DIRTY_LOG", &[Error(c::EFAULT), Error(c::EIO), Error(c::ENOENT)]),
    ("KVM_RESET_DIRTY_RINGS", &[Error(c::EIO), Error(c::EINVAL), Error(c::EFAULT)]),
    // Requests of the measuring guest.
    ("KVM_GET_API_VERSION", &[Error(c::ENOTTY)]),
    ("KVM_CREATE_VM", &[Error(c::EMFILE), Error(c::ENFILE), Error(c::ENOMEM), Error(c::EPERM), Error(c::EBUSY)]),
    ("KVM_GET_VCPU_MMAP_SIZE", &[Error(c::EINVAL)]),
    ("KVM_GET_SUPPORTED_CPUID", &[Error(c::E2BIG), Error(c::ENOMEM)]),
    ("KVM_CREATE_VCPU", &[Error(c::EMFILE), Error(c::ENOMEM), Error(c::EINVAL)]),
    ("KVM_RUN", &[Error(c::EINTR), Error(c::EAGAIN), Error(c::EFAULT), Error(c::ENOMEM), Error(c::EIO), Error(c::ENOEXEC)]),
    ("KVM_GET_REGS", &[Error(c::EIO), Error(c::EINTR)]),
    ("KVM_SET_REGS", &[Error(c::EIO)]),
    ("KVM_GET_SREGS", &[Error(c::ENOMEM)]),
    ("KVM_SET_SREGS", &[Error(c::EINVAL), Error(c::ENOMEM)]),
    ("KVM_SET_CPUID2", &[Error(c::E2BIG), Error(c::EINVAL), Error(c::ENOMEM)]),
    // VFIO and iommufd, whose requests share one name.
    ("ioctl", &[Error(c::EIO), Error(c::ENOMEM), Error(c::EINTR), Error(c::ENOTTY)]),
];
