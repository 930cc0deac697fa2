//! A model of the kernel's side of VFIO migration, after the text of `linux/vfio.h`: the states and
//! the ways between them, transfers, the log of a device's DMA, and reset. It sees the number and the
//! bytes of each call and refuses what the kernel refuses. There is no hardware behind it.
//!
//! The devices of one machine work while they may: at each call to any of them, each running device
//! changes its registers, writes a page of guest memory and reaches the other devices. So what is
//! asked for too late or in the wrong order is a register or a page that differs at the end, or a
//! fault of the bus ([`Bus::faults`]).

use crate::support::random::Random;
use brant::sys::ioctl::Ioctl;
use brant::sys::vfio_migration::{Device, Flow, Transfer};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const ERROR: u32 = 0;
pub const STOP: u32 = 1;
pub const RUNNING: u32 = 2;
pub const STOP_COPY: u32 = 3;
pub const RESUMING: u32 = 4;
pub const RUNNING_P2P: u32 = 5;
pub const PRE_COPY: u32 = 6;
pub const PRE_COPY_P2P: u32 = 7;

pub const NAMES: [&str; 8] = [
    "ERROR",
    "STOP",
    "RUNNING",
    "STOP_COPY",
    "RESUMING",
    "RUNNING_P2P",
    "PRE_COPY",
    "PRE_COPY_P2P",
];

pub const CAN_STOP_COPY: u64 = 1;
pub const CAN_P2P: u64 = 2;
pub const CAN_PRE_COPY: u64 = 4;

/// Every set of abilities that a driver may have.
pub const ABILITIES: [u64; 4] = [
    CAN_STOP_COPY,
    CAN_STOP_COPY | CAN_P2P,
    CAN_STOP_COPY | CAN_PRE_COPY,
    CAN_STOP_COPY | CAN_P2P | CAN_PRE_COPY,
];

const PAGE: u64 = 4096;
/// Registers of a device.
pub const REGISTERS: usize = 120;
/// Bytes of a record in the device's own stream: which register, and its value.
const RECORD: usize = 3;
/// In a record: the last one, whose value is the sum of all registers.
const LAST: u16 = u16::MAX;

/// What goes wrong at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and changes nothing.
    Errno(i32),
    /// A change of state fails half-way: the device is in the first state of the way.
    HalfWay(i32),
    /// The call fails, and the device is in ERROR.
    Broken(i32),
}

/// One open transfer.
struct Open {
    fd: i32,
    /// Bytes on their way out, or those that came in.
    bytes: VecDeque<u8>,
    /// How many of `bytes` are initial ones.
    initial: usize,
    /// Calls that answer EAGAIN before one moves bytes.
    lazy: u32,
}

/// One device.
pub struct Part {
    pub can: u64,
    pub state: u32,
    pub registers: Vec<u8>,
    /// Registers that changed since they were put into the transfer.
    changed: BTreeSet<u16>,
    transfer: Option<Open>,
    /// Without a state, as after a reset: it does nothing until it gets one.
    fresh: bool,
    /// Resets so far.
    pub resets: u32,
    /// The DMA log: what it covers, and the dirty pages.
    logging: Option<Vec<Range<u64>>>,
    dirty: BTreeSet<u64>,
    /// Never gives a byte once it is stopped.
    pub silent: bool,
    /// Never ends its state.
    pub endless: bool,
    /// Calls at the beginning of a transfer that answer EAGAIN.
    pub lazy: u32,
    /// Initial bytes that are counted and never there.
    pub estimate: u64,
    /// MIG_DATA_SIZE is unknown to this kernel.
    pub old_kernel: bool,
}

/// The guest's memory, as devices write it.
pub struct Memory {
    pub host: *mut u8,
    pub pages: u64,
}

// SAFETY: memory of the test's, which outlives the bus; only the bus writes through it.
unsafe impl Send for Memory {}

pub struct State {
    pub parts: Vec<Part>,
    /// Each call and what came of it.
    pub calls: Vec<String>,
    /// What no guest may see: one device reached another that does not answer, or a device wrote
    /// while it was stopped.
    pub faults: Vec<String>,
    /// The number of the call that fails, counted from 0 over all devices, and how.
    pub fault: Option<(usize, Fault)>,
    pub counted: usize,
    random: Random,
    next_fd: i32,
    pub memory: Option<Memory>,
    /// Whether devices work at all.
    pub busy: bool,
}

/// The devices of one machine.
#[derive(Clone)]
pub struct Bus(Arc<Mutex<State>>);

fn errno<T>(n: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(n))
}

/// Whether a device with these abilities has a state.
fn has(can: u64, state: u32) -> bool {
    let needs = match state {
        ERROR => 0,
        STOP | RUNNING | STOP_COPY | RESUMING => CAN_STOP_COPY,
        RUNNING_P2P => CAN_STOP_COPY | CAN_P2P,
        PRE_COPY => CAN_STOP_COPY | CAN_PRE_COPY,
        PRE_COPY_P2P => CAN_STOP_COPY | CAN_P2P | CAN_PRE_COPY,
        _ => return false,
    };
    can & needs == needs
}

/// The next state on the way of a device that has all of them. ERROR: there is no way.
fn towards(from: u32, to: u32) -> u32 {
    match (from, to) {
        (ERROR, _) | (_, ERROR) => ERROR,
        (STOP_COPY, PRE_COPY | PRE_COPY_P2P) => ERROR,
        (a, b) if a == b => a,
        (STOP, STOP_COPY | RESUMING) => to,
        (STOP, _) => RUNNING_P2P,
        (RUNNING, PRE_COPY) => PRE_COPY,
        (RUNNING, _) => RUNNING_P2P,
        (PRE_COPY, PRE_COPY_P2P | STOP_COPY) => PRE_COPY_P2P,
        (PRE_COPY, _) => RUNNING,
        (PRE_COPY_P2P, PRE_COPY | STOP_COPY) => to,
        (PRE_COPY_P2P, _) => RUNNING_P2P,
        (STOP_COPY | RESUMING, _) => STOP,
        (RUNNING_P2P, RUNNING | PRE_COPY) => RUNNING,
        (RUNNING_P2P, PRE_COPY_P2P) => PRE_COPY_P2P,
        (RUNNING_P2P, _) => STOP,
        _ => ERROR,
    }
}

/// The states that a device passes on its way, without the first. `None`: the kernel refuses.
pub fn way(can: u64, from: u32, to: u32) -> Option<Vec<u32>> {
    if !has(can, from) || !has(can, to) {
        return None;
    }
    let (mut at, mut passed) = (from, Vec::new());
    while at != to {
        let mut next = towards(at, to);
        // States that this device has not are passed over.
        while !has(can, next) {
            next = towards(next, to);
        }
        if next == ERROR {
            return None;
        }
        passed.push(next);
        at = next;
    }
    Some(passed)
}

fn begins_dma(state: u32) -> bool {
    [RUNNING, PRE_COPY, RUNNING_P2P, PRE_COPY_P2P].contains(&state)
}

fn begins_peer_dma(state: u32) -> bool {
    [RUNNING, PRE_COPY].contains(&state)
}

impl Part {
    fn record(&self, register: u16) -> [u8; RECORD] {
        let [a, b] = register.to_le_bytes();
        [a, b, self.registers[usize::from(register)]]
    }

    fn sum(&self) -> u8 {
        self.registers.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    /// What the device says of itself when it is stopped.
    fn finish(&mut self) {
        let changed = self.changed.iter();
        let mut bytes: Vec<u8> = changed.flat_map(|r| self.record(*r)).collect();
        let [a, b] = LAST.to_le_bytes();
        bytes.extend([a, b, self.sum()]);
        self.changed.clear();
        self.transfer.as_mut().unwrap().bytes.extend(bytes);
    }

    /// Takes the state that was written, if it is whole.
    fn incorporate(&mut self, bytes: &[u8]) -> bool {
        let mut registers = self.registers.clone();
        let mut whole = false;
        for record in bytes.chunks(RECORD) {
            let Ok([a, b, value]) = <[u8; RECORD]>::try_from(record) else {
                return false;
            };
            if whole {
                return false;
            }
            match u16::from_le_bytes([a, b]) {
                LAST => {
                    let sum = registers.iter().fold(0u8, |a, b| a.wrapping_add(*b));
                    if sum != value {
                        return false;
                    }
                    whole = true;
                }
                register => match registers.get_mut(usize::from(register)) {
                    Some(place) => *place = value,
                    None => return false,
                },
            }
        }
        if whole {
            self.registers = registers;
            self.fresh = false;
        }
        whole
    }
}

impl Bus {
    /// A machine with one device for each of `abilities`, whose registers are random.
    pub fn new(seed: u64, abilities: &[u64]) -> Bus {
        let mut random = Random(seed);
        let parts = abilities
            .iter()
            .map(|can| Part {
                can: *can,
                state: RUNNING,
                registers: (0..REGISTERS).map(|_| random.next() as u8).collect(),
                changed: BTreeSet::new(),
                transfer: None,
                fresh: false,
                resets: 0,
                logging: None,
                dirty: BTreeSet::new(),
                silent: false,
                endless: false,
                lazy: 1,
                estimate: 0,
                old_kernel: false,
            })
            .collect();
        Bus(Arc::new(Mutex::new(State {
            parts,
            calls: Vec::new(),
            faults: Vec::new(),
            fault: None,
            counted: 0,
            random,
            next_fd: 100,
            memory: None,
            busy: true,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The open transfer of a running device has initial bytes again: all registers.
    pub fn has_initial_again(&self, which: usize) {
        let part = &mut self.lock().parts[which];
        let all: Vec<u8> = (0..REGISTERS as u16).flat_map(|r| part.record(r)).collect();
        let open = part.transfer.as_mut().unwrap();
        open.initial += all.len();
        open.bytes.extend(all);
    }

    /// Bytes that wait in the open transfer of a device.
    pub fn transferred(&self, which: usize) -> usize {
        let state = self.lock();
        let open = state.parts[which].transfer.as_ref();
        open.map_or(0, |open| open.bytes.len())
    }

    /// The descriptor of a device.
    pub fn device(&self, which: usize) -> Box<Fd> {
        Box::new(Fd(self.clone(), which))
    }

    pub fn registers(&self, which: usize) -> Vec<u8> {
        self.lock().parts[which].registers.clone()
    }

    pub fn state(&self, which: usize) -> u32 {
        self.lock().parts[which].state
    }

    /// A destination: its devices have no state yet.
    pub fn waiting(self) -> Bus {
        self.lock().parts.iter_mut().for_each(|p| p.fresh = true);
        self
    }

    /// All devices that may work do, once.
    pub fn work(&self) {
        self.lock().work();
    }

    pub fn has_transfer(&self, which: usize) -> bool {
        self.lock().parts[which].transfer.is_some()
    }
}

impl State {
    /// Whether this call fails, and how.
    fn next_fault(&mut self) -> Option<Fault> {
        let now = self.counted;
        self.counted += 1;
        match self.fault {
            Some((at, fault)) if at == now => Some(fault),
            _ => None,
        }
    }

    /// All devices that may work do.
    fn work(&mut self) {
        if !self.busy {
            return;
        }
        for i in 0..self.parts.len() {
            let state = self.parts[i].state;
            if !begins_dma(state) || self.parts[i].fresh {
                continue;
            }
            let (register, value) = (self.random.below(REGISTERS), self.random.next());
            let part = &mut self.parts[i];
            part.registers[register] = value as u8;
            if part.transfer.is_some() {
                part.changed.insert(register as u16);
            }
            if let Some(memory) = &self.memory {
                let page = self.random.below(memory.pages as usize) as u64;
                // SAFETY: inside the memory, which the test keeps mapped.
                let at = unsafe { memory.host.add((page * PAGE) as usize) };
                // SAFETY: as above; a word at the page's beginning.
                unsafe { at.cast::<u64>().write_volatile(self.random.next()) };
                let iova = page * PAGE;
                let part = &mut self.parts[i];
                if part.logging.iter().flatten().any(|r| r.contains(&iova)) {
                    part.dirty.insert(page);
                }
            }
            let p2p = self.parts[i].can & CAN_P2P != 0;
            if p2p && begins_peer_dma(state) {
                for other in 0..self.parts.len() {
                    let found = self.parts[other].state;
                    if other != i && !begins_dma(found) {
                        self.faults.push(format!(
                            "device {i} in {} reached device {other} in {}",
                            NAMES[state as usize], NAMES[found as usize]
                        ));
                    }
                }
            }
        }
    }

    /// One step of a way, with all that it does. Returns the descriptor of a transfer that it opens.
    fn step(&mut self, which: usize, to: u32) -> io::Result<Option<i32>> {
        let part = &mut self.parts[which];
        let from = part.state;
        let mut opened = None;
        let mut open = |part: &mut Part, fd: &mut i32| {
            *fd += 1;
            part.transfer = Some(Open {
                fd: *fd,
                bytes: VecDeque::new(),
                initial: 0,
                lazy: part.lazy,
            });
            opened = Some(*fd);
        };
        match (from, to) {
            (RUNNING | RUNNING_P2P, PRE_COPY | PRE_COPY_P2P) => {
                open(part, &mut self.next_fd);
                part.changed.clear();
                let all: Vec<u8> = (0..REGISTERS as u16).flat_map(|r| part.record(r)).collect();
                let transfer = part.transfer.as_mut().unwrap();
                transfer.initial = all.len();
                transfer.bytes.extend(all);
            }
            (PRE_COPY | PRE_COPY_P2P, STOP_COPY) => part.finish(),
            (STOP, STOP_COPY) => {
                part.transfer = None;
                part.changed = (0..REGISTERS as u16).collect();
                open(part, &mut self.next_fd);
                part.finish();
            }
            (STOP, RESUMING) => open(part, &mut self.next_fd),
            (RESUMING, STOP) => {
                let bytes = part.transfer.take().map(|s| Vec::from(s.bytes));
                if !part.incorporate(&bytes.unwrap_or_default()) {
                    part.state = ERROR;
                    return errno(libc::EINVAL);
                }
            }
            (STOP_COPY, STOP) | (PRE_COPY, RUNNING) | (PRE_COPY_P2P, RUNNING_P2P) => {
                part.transfer = None;
            }
            _ => {}
        }
        part.state = to;
        Ok(opened)
    }

    fn set(&mut self, which: usize, to: u32, fault: Option<Fault>) -> io::Result<Option<i32>> {
        let (can, from) = (self.parts[which].can, self.parts[which].state);
        match fault {
            Some(Fault::Errno(n)) => return errno(n),
            Some(Fault::Broken(n)) => {
                self.parts[which].state = ERROR;
                self.parts[which].transfer = None;
                return errno(n);
            }
            _ => {}
        }
        let Some(way) = way(can, from, to) else {
            return errno(libc::EINVAL);
        };
        let mut opened = None;
        for (i, next) in way.iter().enumerate() {
            opened = self.step(which, *next)?.or(opened);
            if let (0, Some(Fault::HalfWay(n))) = (i, fault) {
                return errno(n);
            }
            self.work();
        }
        Ok(opened)
    }

    /// The transfer that a descriptor is of, if it lives.
    fn transfer(&mut self, which: usize, fd: i32) -> io::Result<&mut Open> {
        match &mut self.parts[which].transfer {
            Some(open) if open.fd == fd => Ok(open),
            _ => errno(libc::ENODEV),
        }
    }
}

/// A device's descriptor.
pub struct Fd(Bus, usize);

fn words(argument: *mut u8, size: usize) -> Vec<u32> {
    assert!(size.is_multiple_of(4));
    // SAFETY: `size` bytes by the contract of the trait.
    let bytes = unsafe { std::slice::from_raw_parts(argument, size) };
    let words = bytes.chunks(4).map(|w| w.try_into().unwrap());
    words.map(u32::from_ne_bytes).collect()
}

fn long(words: &[u32], at: usize) -> u64 {
    u64::from(words[at]) | u64::from(words[at + 1]) << 32
}

/// Answers with 8 bytes behind the head.
fn answer(argument: *mut u8, value: u64) {
    // SAFETY: behind the head of a structure of 16 bytes or more.
    unsafe { argument.add(8).cast::<u64>().write_unaligned(value) };
}

impl Ioctl for Fd {
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()> {
        let which = self.1;
        let mut state = self.0.lock();
        let fault = state.next_fault();
        let simply = match fault {
            Some(Fault::Errno(n) | Fault::HalfWay(n) | Fault::Broken(n)) => errno(n),
            None => Ok(()),
        };
        if request == 0x3b6f {
            // VFIO_DEVICE_RESET
            assert_eq!(size, 0);
            simply?;
            let part = &mut state.parts[which];
            part.state = RUNNING;
            part.transfer = None;
            part.registers.fill(0);
            part.fresh = true;
            part.resets += 1;
            state.calls.push(format!("{which} reset"));
            return Ok(());
        }
        assert_eq!(request, 0x3b75, "VFIO_DEVICE_FEATURE");
        let w = words(argument, size);
        assert_eq!(w[0] as usize, size, "argsz");
        let part = &mut state.parts[which];
        match (w[1], size) {
            // GET | MIGRATION
            (0x1_0001, 16) => {
                simply?;
                if part.can == 0 {
                    return errno(libc::ENOTTY);
                }
                answer(argument, part.can);
                Ok(())
            }
            // GET | MIG_DEVICE_STATE
            (0x1_0002, 16) => {
                simply?;
                answer(argument, u64::from(part.state) | u64::from(u32::MAX) << 32);
                Ok(())
            }
            // GET | MIG_DATA_SIZE
            (0x1_0009, 16) => {
                simply?;
                if part.old_kernel {
                    return errno(libc::ENOTTY);
                }
                let registers = match part.state {
                    PRE_COPY | PRE_COPY_P2P => part.changed.len(),
                    _ => REGISTERS,
                };
                answer(argument, ((registers + 1) * RECORD) as u64);
                Ok(())
            }
            // SET | MIG_DEVICE_STATE
            (0x2_0002, 16) => {
                let (from, to) = (part.state, w[2]);
                let done = state.set(which, to, fault);
                let now = state.parts[which].state;
                state.calls.push(format!(
                    "{which} {} to {}{}",
                    NAMES[from as usize],
                    NAMES[to as usize],
                    match &done {
                        Ok(_) => String::new(),
                        Err(e) => format!(": {e}, in {}", NAMES[now as usize]),
                    }
                ));
                state.work();
                let fd = match &done {
                    Ok(Some(fd)) => *fd,
                    _ => -1,
                };
                answer(argument, u64::from(to) | u64::from(fd as u32) << 32);
                done.map(|_| ())
            }
            // PROBE | SET | DMA_LOGGING_START
            (0x6_0006, 8) => simply,
            // SET | DMA_LOGGING_START
            (0x2_0006, 32) => {
                simply?;
                if part.logging.is_some() {
                    return errno(libc::EINVAL);
                }
                let at = long(&w, 6) as *const [u64; 2];
                let ranges = (0..w[4] as usize)
                    // SAFETY: the caller promised as many ranges.
                    .map(|i| unsafe { at.wrapping_add(i).read() })
                    .map(|[iova, length]| iova..iova + length);
                part.logging = Some(ranges.collect());
                part.dirty.clear();
                answer(argument, PAGE);
                state.calls.push(format!("{which} logs"));
                state.work();
                Ok(())
            }
            // SET | DMA_LOGGING_STOP
            (0x2_0007, 8) => {
                simply?;
                state.calls.push(format!("{which} logs no more"));
                match state.parts[which].logging.take() {
                    Some(_) => Ok(()),
                    None => errno(libc::EINVAL),
                }
            }
            // GET | DMA_LOGGING_REPORT
            (0x1_0008, 40) => {
                simply?;
                let (iova, length, page) = (long(&w, 2), long(&w, 4), long(&w, 6));
                assert_eq!(page, PAGE);
                if part.logging.is_none() {
                    return errno(libc::EINVAL);
                }
                let bitmap = long(&w, 8) as *mut u64;
                let pages = iova / PAGE..(iova + length) / PAGE;
                let dirty: Vec<u64> = part.dirty.range(pages).copied().collect();
                for n in dirty {
                    part.dirty.remove(&n);
                    let bit = n - iova / PAGE;
                    let at = bitmap.wrapping_add(bit as usize / 64);
                    // SAFETY: the caller promised a bitmap for the range.
                    unsafe { *at |= 1 << (bit % 64) };
                }
                state.calls.push(format!("{which} reports"));
                state.work();
                Ok(())
            }
            other => panic!("flags and size {other:x?}"),
        }
    }
}

impl Device for Fd {
    fn transfer(&mut self, data_fd: i32) -> io::Result<Box<dyn Transfer>> {
        let mut state = self.0.lock();
        let simply = state.next_fault();
        state.transfer(self.1, data_fd)?;
        drop(state);
        match simply {
            Some(Fault::Errno(n) | Fault::HalfWay(n) | Fault::Broken(n)) => errno(n),
            None => Ok(Box::new(DataFd(self.0.clone(), self.1, data_fd))),
        }
    }
}

/// A transfer's descriptor.
struct DataFd(Bus, usize, i32);

impl DataFd {
    /// The state, before a call that may fail.
    fn called(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.0.lock();
        match state.next_fault() {
            None => Ok(state),
            Some(Fault::Broken(n)) => {
                state.parts[self.1].state = ERROR;
                state.parts[self.1].transfer = None;
                errno(n)
            }
            Some(Fault::Errno(n) | Fault::HalfWay(n)) => errno(n),
        }
    }
}

impl Ioctl for DataFd {
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()> {
        assert_eq!((request, size), (0x3b79, 24), "VFIO_MIG_GET_PRECOPY_INFO");
        assert_eq!(words(argument, size)[..2], [24, 0], "argsz, flags");
        let mut state = self.called()?;
        state.transfer(self.1, self.2)?;
        let part = &mut state.parts[self.1];
        if ![PRE_COPY, PRE_COPY_P2P].contains(&part.state) {
            return errno(libc::EINVAL);
        }
        let open = part.transfer.as_ref().unwrap();
        let rest = open.bytes.len() - open.initial + part.changed.len() * RECORD;
        answer(argument, open.initial as u64 + part.estimate);
        // SAFETY: the last 8 of 24 bytes.
        unsafe { argument.add(16).cast::<u64>().write_unaligned(rest as u64) };
        Ok(())
    }
}

impl Transfer for DataFd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.called()?;
        let state = &mut *state;
        state.transfer(self.1, self.2)?;
        let part = &mut state.parts[self.1];
        let stopped = match part.state {
            PRE_COPY | PRE_COPY_P2P => false,
            STOP_COPY => true,
            _ => return errno(libc::EINVAL),
        };
        let records: Vec<u8> = match stopped {
            true => Vec::new(),
            false => part
                .changed
                .iter()
                .take(20)
                .flat_map(|r| part.record(*r))
                .collect(),
        };
        let taken: Vec<u16> = part.changed.iter().take(20).copied().collect();
        let open = part.transfer.as_mut().unwrap();
        if stopped && part.silent {
            return errno(libc::EAGAIN);
        }
        if open.lazy > 0 {
            open.lazy -= 1;
            return errno(libc::EAGAIN);
        }
        if open.bytes.is_empty() && !records.is_empty() {
            open.bytes.extend(records);
            for register in taken {
                part.changed.remove(&register);
            }
        }
        if stopped && part.endless && open.bytes.len() < RECORD + 1 {
            open.bytes.extend([0; 600]);
        }
        if open.bytes.is_empty() {
            return match stopped {
                true => Ok(0),
                false => errno(libc::ENOMSG),
            };
        }
        let most = 1 + state.random.below(200);
        let n = most.min(buffer.len()).min(open.bytes.len());
        for place in &mut buffer[..n] {
            *place = open.bytes.pop_front().unwrap();
        }
        open.initial = open.initial.saturating_sub(n);
        open.lazy = state.random.below(3) as u32 / 2;
        Ok(n)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.called()?;
        let state = &mut *state;
        state.transfer(self.1, self.2)?;
        let part = &mut state.parts[self.1];
        if part.state != RESUMING {
            return errno(libc::EINVAL);
        }
        let silent = part.silent;
        let open = part.transfer.as_mut().unwrap();
        if silent {
            return errno(libc::EAGAIN);
        }
        if open.lazy > 0 {
            open.lazy -= 1;
            return errno(libc::EAGAIN);
        }
        let n = data.len().min(1 + state.random.below(200));
        open.bytes.extend(&data[..n]);
        open.lazy = state.random.below(3) as u32 / 2;
        Ok(n)
    }

    fn wait(&mut self, _: Flow, time: Duration) -> io::Result<()> {
        let silent = {
            let state = self.called()?;
            state.parts[self.1].silent
        };
        if silent {
            std::thread::sleep(time);
        }
        Ok(())
    }
}
