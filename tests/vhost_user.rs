//! A vhost-user back end's state, with a back end of ours: a thread that speaks the protocol over a
//! socketpair, gives its state through the pipe that it was given (or through one of its own), takes
//! one, and says whether it was whole.

use brant::device::vhost_user::{messages, Direction, Front, VhostUserDevice, SILENCE_MAX};
use brant::error::Kind;
use brant::vmm::device::Device;
use brant::Result;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// How a back end behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Proper,
    /// It gives an end of a pipe of its own.
    OwnPipe,
    /// It refuses SET_DEVICE_STATE_FD.
    Refuses,
    /// It says at the end that the transfer failed.
    Fails,
    /// It says that a descriptor comes with the reply, and sends none.
    Lies,
    /// It answers another request.
    Strange,
    /// It closes the connection instead of answering.
    Hangs,
    /// It never gives a byte, nor takes one.
    Silent,
    /// It closes its end of the pipe after a few bytes.
    Closes,
}

/// A back end with a state, and its requests so far.
struct BackEnd {
    state: Vec<u8>,
    manner: Manner,
    requests: Vec<String>,
    transfer: Option<JoinHandle<Option<Vec<u8>>>>,
    kept: Vec<OwnedFd>,
}

/// Receives a message: request, payload, and a descriptor.
fn receive(socket: &UnixStream) -> Option<(u32, Vec<u32>, Option<OwnedFd>)> {
    let mut head = [0; 12];
    let mut fds = Vec::new();
    receive_bytes(socket, &mut head, &mut fds)?;
    let word = |i: usize| u32::from_ne_bytes(head[i * 4..][..4].try_into().unwrap());
    assert_eq!(word(1) & 3, 1, "the version");
    assert_eq!(word(1) & 4, 0, "no reply");
    let mut payload = vec![0; word(2) as usize];
    if !payload.is_empty() {
        receive_bytes(socket, &mut payload, &mut fds)?;
    }
    assert!(fds.len() <= 1);
    let words = payload
        .chunks(4)
        .map(|w| u32::from_ne_bytes(w.try_into().unwrap()));
    Some((word(0), words.collect(), fds.pop()))
}

fn receive_bytes(socket: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Option<()> {
    let mut have = 0;
    while have < bytes.len() {
        let mut part = [IoSliceMut::new(&mut bytes[have..])];
        let mut control = [0u64; 8];
        // SAFETY: a plain structure; the parts and the control data outlive the call.
        let n = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = part.as_mut_ptr().cast();
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = 64;
            let n = libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
            let header = libc::CMSG_FIRSTHDR(&message);
            if n > 0 && !header.is_null() {
                let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
                fds.push(OwnedFd::from_raw_fd(fd));
            }
            n
        };
        if n <= 0 {
            return None;
        }
        have += n as usize;
    }
    Some(())
}

fn reply(socket: &UnixStream, request: u32, value: u64, fd: Option<&OwnedFd>) {
    let mut bytes = Vec::new();
    for word in [request, 1 | 4, 8] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(value.to_ne_bytes());
    let part = [IoSlice::new(&bytes)];
    let mut control = [0u64; 8];
    // SAFETY: a plain structure; the parts and the control data outlive the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = part.as_ptr().cast_mut().cast();
        message.msg_iovlen = 1;
        if let Some(fd) = fd {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header)
                .cast::<RawFd>()
                .write_unaligned(fd.as_raw_fd());
        }
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL);
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are ours then.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// Gives the state (`None` is returned), or takes one.
fn transfer(fd: OwnedFd, save: Option<Vec<u8>>, manner: Manner) -> Option<Vec<u8>> {
    let mut file = std::fs::File::from(fd);
    let Some(state) = save else {
        let mut state = Vec::new();
        if manner == Manner::Closes {
            let mut few = [0; 10];
            let _ = file.read(&mut few);
            return Some(few.to_vec());
        }
        file.read_to_end(&mut state).unwrap();
        return Some(state);
    };
    // In pieces, so that reads are short.
    for piece in state.chunks(777) {
        if file.write_all(piece).is_err() {
            break;
        }
    }
    None
}

impl BackEnd {
    fn serve(mut self, socket: UnixStream) -> BackEnd {
        while let Some((request, payload, fd)) = receive(&socket) {
            match request {
                42 => {
                    let save = payload[0] == 0;
                    assert_eq!(payload[1], 0, "the phase: stopped");
                    let way = if save { "save" } else { "load" };
                    self.requests.push(way.to_owned());
                    let mut end = fd.expect("a descriptor");
                    let mut given = None;
                    match self.manner {
                        Manner::Hangs => return self,
                        Manner::Refuses => {
                            reply(&socket, request, 0x100 | 5, None);
                            continue;
                        }
                        Manner::Lies => {
                            reply(&socket, request, 0, None);
                            continue;
                        }
                        Manner::Strange => {
                            reply(&socket, 41, 0x100, None);
                            continue;
                        }
                        Manner::Silent => {
                            self.kept.push(end);
                            reply(&socket, request, 0x100, None);
                            continue;
                        }
                        Manner::OwnPipe => {
                            let (out, into) = pipe();
                            let (mine, theirs) = if save { (into, out) } else { (out, into) };
                            end = mine;
                            given = Some(theirs);
                        }
                        _ => {}
                    }
                    let flag = if given.is_some() { 0 } else { 0x100 };
                    reply(&socket, request, flag, given.as_ref());
                    let state = save.then(|| self.state.clone());
                    let manner = self.manner;
                    self.transfer = Some(std::thread::spawn(move || transfer(end, state, manner)));
                }
                43 => {
                    self.requests.push("check".to_owned());
                    assert!(fd.is_none() && payload.is_empty());
                    let taken = self.transfer.take().and_then(|t| t.join().unwrap());
                    let failed = [Manner::Fails, Manner::Closes].contains(&self.manner);
                    if let (Some(state), false) = (taken, failed) {
                        self.state = state;
                    }
                    reply(&socket, request, u64::from(failed), None);
                }
                other => panic!("request {other}"),
            }
        }
        self
    }
}

/// The front end of a VMM.
struct Connection(Mutex<UnixStream>);

impl Front for Connection {
    fn set_device_state_fd(&self, way: Direction, fd: OwnedFd) -> Result<Option<OwnedFd>> {
        let socket = self.0.lock().unwrap();
        messages::set_device_state_fd(socket.as_fd(), way, fd.as_fd(), PATIENCE)
    }
    fn check_device_state(&self) -> Result<()> {
        messages::check_device_state(self.0.lock().unwrap().as_fd(), PATIENCE)
    }
}

struct Side {
    device: VhostUserDevice,
    serving: JoinHandle<BackEnd>,
}

fn side(state: Vec<u8>, manner: Manner) -> Side {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let back_end = BackEnd {
        state,
        manner,
        requests: Vec::new(),
        transfer: None,
        kept: Vec::new(),
    };
    Side {
        device: VhostUserDevice::new(Arc::new(Connection(Mutex::new(ours)))),
        serving: std::thread::spawn(move || back_end.serve(theirs)),
    }
}

impl Side {
    /// The back end, after the connection was closed.
    fn back_end(self) -> BackEnd {
        drop(self.device);
        self.serving.join().unwrap()
    }
}

fn state(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn save(device: &VhostUserDevice) -> Result<Vec<u8>> {
    device.begin()?;
    assert_eq!(device.left()?.stopped, None);
    device.quiesce()?;
    device.stop()?;
    let (mut saved, mut buffer) = (Vec::new(), vec![0; 5000]);
    loop {
        match device.read_stopped(&mut buffer)? {
            0 => return Ok(saved),
            n => saved.extend(&buffer[..n]),
        }
    }
}

fn load(device: &VhostUserDevice, state: &[u8]) -> Result<()> {
    for piece in state.chunks(3333) {
        device.load_stopped(piece)?;
    }
    device.loaded()?;
    device.wake()?;
    device.run()
}

#[test]
fn a_state_of_any_length_is_read_to_its_end_and_arrives_checked_on_both_sides() {
    for manner in [Manner::Proper, Manner::OwnPipe] {
        // Nothing; less than a buffer; more than a pipe holds.
        for bytes in [0, 1, 5000, 300_000] {
            let from = side(state(bytes), manner);
            let to = side(vec![9; 50], manner);
            let saved = save(&from.device).unwrap();
            assert_eq!(saved.len(), bytes);
            assert_eq!(from.device.left().unwrap().stopped, Some(bytes as u64));
            // The end stays the end.
            assert_eq!(from.device.read_stopped(&mut [0; 8]).unwrap(), 0);
            load(&to.device, &saved).unwrap();
            from.device.end();
            let (from, to) = (from.back_end(), to.back_end());
            assert!(to.state == from.state, "{manner:?} {bytes}");
            assert_eq!(from.requests, ["save", "check"]);
            assert_eq!(to.requests, ["load", "check"]);
        }
    }
}

#[test]
fn an_aborted_pause_leaves_the_back_end_able_to_give_its_state_again() {
    let from = side(state(200_000), Manner::Proper);
    from.device.begin().unwrap();
    from.device.stop().unwrap();
    let mut few = [0; 100];
    from.device.read_stopped(&mut few).unwrap();
    // The migration fails here: the pipe is closed, and the back end's write ends.
    from.device.resume().unwrap();
    from.device.end();
    assert!(save(&from.device).unwrap() == state(200_000));
    assert_eq!(from.back_end().requests, ["save", "save", "check"]);
}

#[test]
fn what_a_back_end_refuses_or_says_wrongly_is_an_error_by_name() {
    for (manner, kind, word) in [
        (
            Manner::Refuses,
            Kind::Refused,
            "SET_DEVICE_STATE_FD (save): the vhost-user back end refuses",
        ),
        (
            Manner::Fails,
            Kind::Refused,
            "CHECK_DEVICE_STATE: the vhost-user back end says",
        ),
        (Manner::Lies, Kind::Protocol, "sent 0 descriptors"),
        (Manner::Strange, Kind::Protocol, "answered request 41"),
        (Manner::Hangs, Kind::Protocol, "closed the connection"),
    ] {
        let from = side(state(1000), manner);
        let error = save(&from.device).unwrap_err();
        assert_eq!(error.kind(), kind, "{manner:?}: {error}");
        assert!(error.message().contains(word), "{manner:?}: {error}");
        from.device.resume().unwrap();
        from.back_end();

        let to = side(state(1000), manner);
        let error = load(&to.device, &state(70_000)).unwrap_err();
        assert_eq!(error.kind(), kind, "{manner:?}: {error}");
        let word = word.replace("(save)", "(load)");
        assert!(error.message().contains(&word), "{manner:?}: {error}");
        to.device.reset();
        to.back_end();
    }
}

#[test]
fn a_back_end_that_closes_its_end_early_is_asked_why_and_raises_no_signal() {
    let to = side(state(10), Manner::Closes);
    let error = load(&to.device, &state(500_000)).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.message().contains("CHECK_DEVICE_STATE"), "{error}");
    to.device.reset();
    assert_eq!(to.back_end().requests, ["load", "check"]);
}

#[test]
fn a_silent_back_end_fails_after_the_limit_and_at_a_cancel() {
    let from = side(state(10), Manner::Silent);
    from.device.set_silence(Duration::from_millis(50)).unwrap();
    let error = save(&from.device).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.message().contains("gave no byte"), "{error}");
    let to = side(state(10), Manner::Silent);
    to.device.set_silence(Duration::from_millis(50)).unwrap();
    let error = load(&to.device, &state(500_000)).unwrap_err();
    assert!(error.message().contains("took no byte"), "{error}");

    // Cancelled from another thread, while the limit is far away.
    from.device.set_silence(Duration::from_secs(600)).unwrap();
    from.device.begin().unwrap();
    let device = Arc::new(from.device);
    let reading = {
        let device = Arc::clone(&device);
        std::thread::spawn(move || device.read_stopped(&mut [0; 64]).unwrap_err())
    };
    device.cancel();
    assert_eq!(reading.join().unwrap().kind(), Kind::Cancelled);
}

#[test]
fn a_back_end_that_does_not_answer_fails_after_the_patience() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = messages::check_device_state(ours.as_fd(), Duration::from_millis(20));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(
        error.message().contains("CHECK_DEVICE_STATE: no answer"),
        "{error}"
    );
}

/// SET_DEVICE_STATE_FD has no answer, and the front end would wait for an hour.
#[test]
fn a_cancel_ends_a_message_that_waits_for_its_reply() {
    struct Patient(UnixStream, Sender<()>);
    impl Front for Patient {
        fn set_device_state_fd(&self, way: Direction, fd: OwnedFd) -> Result<Option<OwnedFd>> {
            self.1.send(()).unwrap();
            let hour = Duration::from_secs(3600);
            messages::set_device_state_fd(self.0.as_fd(), way, fd.as_fd(), hour)
        }
        fn check_device_state(&self) -> Result<()> {
            panic!("nothing was transferred")
        }
    }
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (tell, hear) = channel();
    let device = Arc::new(VhostUserDevice::new(Arc::new(Patient(ours, tell))));
    device.begin().unwrap();
    device.stop().unwrap();
    let reading = {
        let device = Arc::clone(&device);
        std::thread::spawn(move || device.read_stopped(&mut [0; 64]).unwrap_err())
    };
    hear.recv().unwrap();
    device.cancel();
    let error = reading.join().unwrap();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert!(
        error.message().contains("SET_DEVICE_STATE_FD (save)"),
        "{error}"
    );
    // Outside of the device's calls its cancel means nothing.
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = messages::check_device_state(ours.as_fd(), Duration::from_millis(20));
    assert_eq!(error.unwrap_err().kind(), Kind::Timeout);
}

#[test]
fn the_silence_of_a_back_end_has_a_ceiling() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let device = VhostUserDevice::new(Arc::new(Connection(Mutex::new(ours))));
    device.set_silence(SILENCE_MAX).unwrap();
    for wrong in [Duration::ZERO, SILENCE_MAX + Duration::from_millis(1)] {
        let error = device.set_silence(wrong).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains("1 to 3600000 ms"), "{error}");
    }
}
