//! Pages that are sent without a copy, over real connections: loopback, where the kernel copies
//! each time, and a veth pair, where it does not.
//!
//! A veth pair delivers its packets to this host, and the delivery copies too. A packet filter
//! (XDP) on the receiving device changes that: each packet is first moved into the filter's own
//! memory. So the sender's pages are sent as over a real device. This takes root and `ip`. Without
//! them, the test says that it was not run.

use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::LONG;
use brant::migrate::{
    AcceptFrom, Compression, ConnectTo, PageChecksums, Params, Stats, ZeroCopyState,
};
use brant::vmm::EventKind;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The parameters of a migration that sends in place over `channels` channels.
fn in_place(channels: u32) -> Params {
    Params {
        zero_copy: true,
        channels,
        downtime_slack: LONG,
        ..Params::default()
    }
}

/// As many connections to `listener` as there are channels: both ends of each.
fn connections(listener: &TcpListener, params: &Params) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
    let at = listener.local_addr().unwrap();
    let connect = |_| {
        let near: OwnedFd = TcpStream::connect(at).unwrap().into();
        (near, OwnedFd::from(listener.accept().unwrap().0))
    };
    (0..params.channels).map(connect).unzip()
}

/// Makes a whole migration of a busy guest over connections to `listener`.
fn migrate(pair: &Pair, listener: &TcpListener, params: &Params) -> Stats {
    pair.source.fill(1);
    pair.source.writers(1, Duration::from_micros(50));
    migrate_as_it_is(pair, listener, params)
}

/// The same for a guest as the test has filled it.
fn migrate_as_it_is(pair: &Pair, listener: &TcpListener, params: &Params) -> Stats {
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    let (near, far) = connections(listener, params);
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start(ConnectTo::ConnectedAll(near)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    // The destination's VMM compared the memory of both sides before the guest ran there.
    pair.assert_sound("without a copy");
    let stats = out.stats();
    println!("{stats:?}");
    stats
}

/// How often the VMM was told that pages are copied, for a reason that contains `why`.
fn told(pair: &Pair, why: &str) -> usize {
    let warnings = pair.from.events(EventKind::Warning);
    println!("{warnings:?}");
    warnings.iter().filter(|w| w.contains(why)).count()
}

#[test]
fn on_loopback_the_kernel_copies_which_is_counted_told_and_ended() {
    let pair = Pair::new(&[ram("ram", 16 << 10)]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stats = migrate(&pair, &listener, &in_place(1));
    assert_eq!(stats.zero_copy, ZeroCopyState::Copied);
    assert_eq!(stats.zero_copied_bytes, 0);
    let anyway = stats.copied_anyway_bytes;
    assert!(anyway > 0 && anyway < stats.data_pages * 4096, "{stats:?}");
    assert_eq!(told(&pair, "as it does on loopback"), 1);
}

/// Each of the channels makes fewer sends than the 32 that one channel takes to find out.
#[test]
fn several_channels_find_out_together_that_the_kernel_copies() {
    let pair = Pair::new(&[ram("ram", 24 << 10)]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stats = migrate(&pair, &listener, &in_place(8));
    assert_eq!(stats.zero_copy, ZeroCopyState::Copied);
    assert_eq!(stats.zero_copied_bytes, 0);
    assert_eq!(told(&pair, "as it does on loopback"), 1);
}

#[test]
fn pages_with_a_checksum_or_compressed_are_said_to_be_copies() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let checksums = Params {
        page_checksums: PageChecksums::On,
        ..in_place(2)
    };
    let pair = Pair::new(&[ram("ram", 4 << 10)]);
    let stats = migrate(&pair, &listener, &checksums);
    assert_eq!(stats.zero_copy, ZeroCopyState::Encoded);
    assert_eq!(stats.encoded_pages, stats.data_pages);
    assert_eq!((stats.zero_copied_bytes, stats.copied_anyway_bytes), (0, 0));
    assert_eq!(told(&pair, "checksum"), 1);

    // Pages that compress are copies. As long as there are no others, nothing goes without a copy.
    let compressed = Params {
        compression: Compression::Always,
        ..in_place(2)
    };
    let pair = Pair::new(&[ram("ram", 4 << 10)]);
    let memory = pair.source.ram("ram");
    for page in 0..4 << 10 {
        let word = memory.word(page * 4096);
        word.store(page as u64 + 1, Ordering::Relaxed);
    }
    let stats = migrate_as_it_is(&pair, &listener, &compressed);
    assert!(stats.compressed_pages >= 4 << 10, "{stats:?}");
    assert_eq!(stats.encoded_pages, stats.data_pages, "{stats:?}");
    assert_eq!(stats.zero_copy, ZeroCopyState::Encoded);

    // Without any of these, no page is a copy of brant's own.
    let pair = Pair::new(&[ram("ram", 4 << 10)]);
    let stats = migrate(&pair, &listener, &in_place(2));
    assert_eq!(stats.encoded_pages, 0);
    assert_ne!(stats.zero_copy, ZeroCopyState::Encoded);
}

/// A veth pair, whose far end is in a network namespace of its own.
struct Veth {
    space: String,
    near: String,
}

fn ip(arguments: &str) -> bool {
    let run = Command::new("ip").args(arguments.split(' ')).output();
    run.is_ok_and(|run| run.status.success())
}

impl Veth {
    fn new() -> Option<Veth> {
        let id = std::process::id();
        let (space, near, far) = (format!("brant{id}"), format!("bz{id}"), format!("bf{id}"));
        if !ip(&format!("netns add {space}")) {
            return None;
        }
        let veth = Veth { space, near };
        let (space, near) = (&veth.space, &veth.near);
        // A filter sees only packets that fit into a page together with their headers. So the MTU
        // is smaller than a page.
        let all = [
            format!("link add {near} type veth peer name {far} netns {space}"),
            format!("link set {near} mtu 3000 up"),
            format!("addr add 10.213.77.1/24 dev {near}"),
            format!("-n {space} link set {far} mtu 3000 up"),
            format!("-n {space} addr add 10.213.77.2/24 dev {far}"),
        ];
        let made = all.iter().all(|arguments| ip(arguments)) && veth.filter(&far);
        made.then_some(veth)
    }

    /// Runs `body` on a thread inside the far end's namespace.
    fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let space = std::fs::File::open(format!("/run/netns/{}", self.space)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                use std::os::fd::AsRawFd;
                // SAFETY: a descriptor of a namespace; the thread ends after `body`.
                let entered = unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
                body()
            });
            thread.join().unwrap()
        })
    }

    /// Attaches a filter that lets every packet pass to device `far`, in the driver.
    fn filter(&self, far: &str) -> bool {
        self.inside(|| filter::attach(far))
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.near));
        ip(&format!("netns del {}", self.space));
    }
}

/// A packet filter of two instructions, loaded through the kernel's own interfaces (bpf(2),
/// rtnetlink(7)).
mod filter {
    use std::ffi::CString;

    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    /// `r0 = XDP_PASS; exit`.
    const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    const IFLA_XDP: u16 = 43 | 1 << 15;
    const IFLA_XDP_FD: u16 = 1;
    const IFLA_XDP_FLAGS: u16 = 3;

    fn load() -> i32 {
        let license = c"GPL";
        // The first fields of `union bpf_attr` for BPF_PROG_LOAD. All other fields are 0.
        let mut attributes = [0u64; 16];
        attributes[0] = u64::from(BPF_PROG_TYPE_XDP) | (PASS.len() as u64) << 32;
        attributes[1] = PASS.as_ptr() as u64;
        attributes[2] = license.as_ptr() as u64;
        // SAFETY: the attributes name instructions and a text that live until the call returns.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_LOAD,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        fd as i32
    }

    fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
        to.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        to.extend_from_slice(&kind.to_ne_bytes());
        to.extend_from_slice(value);
    }

    /// Attaches the filter to `device`, in the calling thread's network namespace. Returns whether
    /// the kernel accepted it.
    pub fn attach(device: &str) -> bool {
        let program = load();
        if program < 0 {
            return false;
        }
        let name = CString::new(device).unwrap();
        // SAFETY: a text that ends with a NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let mut inner = Vec::new();
        attribute(&mut inner, IFLA_XDP_FD, &program.to_ne_bytes());
        attribute(
            &mut inner,
            IFLA_XDP_FLAGS,
            &XDP_FLAGS_DRV_MODE.to_ne_bytes(),
        );
        // struct nlmsghdr, then struct ifinfomsg, then the attribute.
        let mut message = vec![0u8; 32];
        attribute(&mut message, IFLA_XDP, &inner);
        let length = message.len() as u32;
        message[0..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&libc::RTM_SETLINK.to_ne_bytes());
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        message[6..8].copy_from_slice(&flags.to_ne_bytes());
        message[20..24].copy_from_slice(&index.to_ne_bytes());
        let mut answer = [0u8; 256];
        // SAFETY: a socket of this function's own, and buffers with their lengths.
        unsafe {
            let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
            let sent = libc::send(socket, message.as_ptr().cast(), message.len(), 0);
            let got = libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0);
            libc::close(socket);
            // The device keeps the program loaded.
            libc::close(program);
            // struct nlmsgerr follows the header. Its error 0 is an acknowledgement.
            sent > 0 && got >= 20 && answer[16..20] == [0; 4]
        }
    }
}

#[test]
fn over_a_device_that_does_not_copy_pages_go_without_a_copy() {
    let Some(veth) = Veth::new() else {
        println!("skipped: no root, no `ip`, or no packet filters here");
        return;
    };
    let listener = veth.inside(|| TcpListener::bind("10.213.77.2:0").unwrap());
    for channels in [1, 4] {
        let pair = Pair::new(&[ram("ram", 16 << 10)]);
        let stats = migrate(&pair, &listener, &in_place(channels));
        assert_eq!(stats.zero_copy, ZeroCopyState::On);
        // Most bytes went without a copy: all but those of small records.
        assert!(
            stats.zero_copied_bytes > stats.data_pages * 4096 / 2,
            "{channels} channels: {stats:?}"
        );
        assert_eq!(stats.copied_anyway_bytes, 0);
        assert!(pair.from.events(EventKind::Warning).is_empty());
    }
}
