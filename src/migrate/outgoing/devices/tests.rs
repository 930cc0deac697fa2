//! Whose turn it is, and how fast state grows.

use super::*;
use crate::error::Result;
use crate::memory::Memory;
use crate::vmm::device::Device;
use crate::vmm::Vmm;
use std::sync::Mutex;

struct Machine;

impl Vmm for Machine {}

/// Gives what it has left, and says which of its bytes are needed before the pause.
struct Plain {
    initial: u64,
    left: Mutex<u64>,
}

impl Device for Plain {
    fn left(&self) -> Result<Left> {
        let left = *self.left.lock().unwrap();
        Ok(Left {
            initial: left.min(self.initial),
            running: left,
            stopped: Some(3),
        })
    }
    fn read_running(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut left = self.left.lock().unwrap();
        let read = (*left as usize).min(buffer.len());
        *left -= read as u64;
        Ok(read)
    }
    fn stop(&self) -> Result<()> {
        Ok(())
    }
    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize> {
        // More than there is room for.
        Ok(buffer.len() + 1)
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn load_stopped(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
}

fn streams(left: &[u64], initial: u64) -> (Streams, Callbacks) {
    let (streams, vmm, _) = with_devices(left, initial);
    (streams, vmm)
}

fn with_devices(left: &[u64], initial: u64) -> (Streams, Callbacks, Vec<Arc<Plain>>) {
    let memory = Memory::new().unwrap();
    let mut devices = Vec::new();
    for (instance, left) in (0..).zip(left) {
        let left = Mutex::new(*left);
        let device = Arc::new(Plain { initial, left });
        devices.push(Arc::clone(&device));
        memory.add_device("plain", instance, 1, device).unwrap();
    }
    let list = memory.devices().in_use().all().to_vec();
    let vmm = Callbacks::new(Arc::new(Machine), 0);
    let watch = Watch::new(vmm.clone(), || ());
    (Streams::of(list, watch).unwrap(), vmm, devices)
}

/// Device, flags, offset and length of a piece.
fn said(bytes: &PieceBytes) -> (u32, u32, u64, usize) {
    let at = |at: usize, n: usize| &bytes.all()[HEADER_LEN + at..][..n];
    (
        u32::from_le_bytes(at(0, 4).try_into().unwrap()),
        u32::from_le_bytes(at(4, 4).try_into().unwrap()),
        u64::from_le_bytes(at(8, 8).try_into().unwrap()),
        bytes.all().len() - HEADER_LEN - PIECE_PREFIX,
    )
}

#[test]
fn devices_are_read_in_turn_and_one_that_has_nothing_is_passed_over() {
    let (mut streams, vmm) = streams(&[10, 0, 25], 0);
    let mut pieces = Vec::new();
    while let Some(piece) = streams.round(10, &vmm).unwrap() {
        pieces.push(said(&piece));
    }
    let expected = [(0, 0, 0, 10), (2, 0, 0, 10), (2, 0, 10, 10), (2, 0, 20, 5)];
    assert_eq!(pieces, expected);
    assert_eq!((streams.running(), streams.stopped()), (35, 0));
    streams.look(&vmm).unwrap();
    let left = streams.left();
    assert_eq!((left.running, left.stopped), (0, 9));
}

#[test]
fn the_pause_waits_until_initial_bytes_are_loaded_each_time_that_a_device_has_some() {
    let (mut streams, vmm, devices) = with_devices(&[12], 8);
    streams.look(&vmm).unwrap();
    assert!(streams
        .not_ready()
        .unwrap()
        .contains("device `plain` has 8 bytes (`initial`)"));
    let flags: Vec<_> = (0..3)
        .map(|_| said(&streams.round(5, &vmm).unwrap().unwrap()).1)
        .collect();
    assert_eq!(flags, [0, 0, PIECE_INITIAL]);
    assert!(streams.not_ready().unwrap().contains("has not loaded"));
    for (number, bytes) in [(0, 11), (1, 12)] {
        let error = streams.loaded(number, bytes).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
    }
    streams.loaded(0, 12).unwrap();
    assert_eq!(streams.not_ready(), None);
    assert!(streams.loaded(0, 12).is_err());
    // Bytes of the second batch, and of a third one before the second is loaded.
    for (round, left) in [8, 4].into_iter().enumerate() {
        *devices[0].left.lock().unwrap() = left;
        streams.look(&vmm).unwrap();
        assert!(streams.not_read() == (round == 0));
        let piece = said(&streams.round(100, &vmm).unwrap().unwrap());
        let flags = [PIECE_INITIAL, 0][round];
        assert_eq!(piece, (0, flags, [12, 20][round], left as usize));
        assert!(streams.not_ready().is_some());
    }
    streams.loaded(0, 20).unwrap();
    // The end of the third one has no bytes of its own.
    assert!(streams.not_ready().is_some());
    let piece = said(&streams.round(100, &vmm).unwrap().unwrap());
    assert_eq!(piece, (0, PIECE_INITIAL, 24, 0));
    assert!(streams.not_ready().is_some());
    streams.loaded(0, 24).unwrap();
    assert_eq!(streams.not_ready(), None);
    assert!(streams.round(100, &vmm).unwrap().is_none());
}

#[test]
fn pages_have_at_least_as_much_time_as_the_last_round_took() {
    let mut streams = Streams::default();
    assert!(streams.may_read());
    let hour = Duration::from_secs(3600);
    streams.last = Some((Instant::now(), hour));
    assert!(!streams.may_read());
    streams.last = Some((
        Instant::now() - Duration::from_millis(10),
        Duration::from_millis(10),
    ));
    assert!(streams.may_read());
}

#[test]
fn growth_is_what_was_read_and_what_is_left_more() {
    let mut growth = Growth::default();
    let begun = Instant::now();
    growth.seen(begun, 1000, 0);
    assert_eq!(growth.rate, None);
    growth.seen(begun + Duration::from_millis(100), 5000, 0);
    assert_eq!(growth.rate, None, "too short a time");
    growth.seen(begun + Duration::from_secs(2), 500, 2500);
    assert_eq!(growth.rate, Some(1000.0));
    growth.seen(begun + Duration::from_secs(3), 0, 3000);
    assert_eq!(growth.rate, Some(0.0));
}

#[test]
fn a_device_that_says_it_wrote_beyond_its_buffer_is_in_error() {
    let (mut streams, vmm) = streams(&[0], 0);
    streams.stops();
    let error = streams.read_stopped(&vmm).unwrap_err();
    assert_eq!(error.kind(), Kind::Vmm);
    assert!(error.message().contains("1048577 bytes"), "{error}");
}
