//! The codec of zstd.
//!
//! A frame that comes from a peer is decoded into a buffer of the length that it must have, and
//! nowhere else. No window is allocated for it, and no length in it is believed.

use crate::error::{Error, Kind, Result};
use std::fmt;
use zstd_safe::{CCtx, CParameter, DCtx};

/// The compressor's state, kept from frame to frame: for contents of 256 KiB, 0.6 MiB at the lowest
/// level and 5.5 MiB at the highest.
pub struct Compressor(CCtx<'static>);

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    /// Makes a compressor for frames of `level`, from [`LEVEL_MIN`](super::LEVEL_MIN) to [`LEVEL_MAX`](super::LEVEL_MAX).
    ///
    /// # Errors
    /// [`Kind::NoMemory`]; [`Kind::Invalid`] for a level that the codec does not have.
    pub fn new(level: i32) -> Result<Self> {
        let mut context = CCtx::try_create().ok_or_else(no_memory)?;
        context
            .set_parameter(CParameter::CompressionLevel(level))
            .map_err(|code| {
                let why = zstd_safe::get_error_name(code);
                Error::new(Kind::Invalid, format!("compression level {level}: {why}"))
            })?;
        Ok(Compressor(context))
    }

    /// Writes a frame of `contents` to the beginning of `room` and returns its length. `None` when
    /// the frame does not fit: contents that compress so little had better stay as they are.
    pub fn compress(&mut self, contents: &[u8], room: &mut [u8]) -> Option<usize> {
        self.0.compress2(room, contents).ok()
    }
}

/// The decompressor's state, kept from frame to frame: some 100 KiB.
pub struct Decompressor(DCtx<'static>);

impl Decompressor {
    /// # Errors
    /// [`Kind::NoMemory`].
    pub fn new() -> Result<Self> {
        DCtx::try_create().map(Decompressor).ok_or_else(no_memory)
    }

    /// Fills all of `contents` from `frame`, which has to be one frame and nothing else.
    ///
    /// # Errors
    /// [`Kind::Protocol`] when `frame` is no frame or several, or when its contents have another
    /// length than `contents`. The bytes in `contents` are undefined then.
    pub fn decompress(&mut self, frame: &[u8], contents: &mut [u8]) -> Result<()> {
        let expected = contents.len();
        let refuse = |what: &str| {
            let message = format!("expected a zstd frame of {expected} bytes: {what}");
            Error::new(Kind::Protocol, message)
        };
        let length = zstd_safe::find_frame_compressed_size(frame)
            .map_err(|code| refuse(zstd_safe::get_error_name(code)))?;
        if length != frame.len() {
            let more = frame.len().saturating_sub(length);
            return Err(refuse(&format!("found {more} bytes behind one")));
        }
        let found = self.0.decompress(contents, frame);
        match found {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => Err(refuse(&format!("found one of {found}"))),
            Err(code) => Err(refuse(zstd_safe::get_error_name(code))),
        }
    }
}

fn no_memory() -> Error {
    Error::new(Kind::NoMemory, "no memory for zstd")
}

#[cfg(test)]
mod tests {
    use super::super::{LEVEL_MAX, LEVEL_MIN};
    use super::*;
    use proptest::prelude::*;

    const LONG: usize = 64 * 4096;

    fn packed(contents: &[u8], level: i32) -> Vec<u8> {
        let mut room = vec![0; contents.len() + 1024];
        let length = Compressor::new(level)
            .unwrap()
            .compress(contents, &mut room);
        room.truncate(length.unwrap());
        room
    }

    fn unpacked(frame: &[u8], length: usize) -> Result<Vec<u8>> {
        let mut contents = vec![0; length];
        Decompressor::new()?.decompress(frame, &mut contents)?;
        Ok(contents)
    }

    fn text(length: usize) -> Vec<u8> {
        let words = ["page ", "guest ", "zero ", "memory ", "of "];
        let mut text = Vec::new();
        let mut next = 1usize;
        while text.len() < length {
            next = next.wrapping_mul(75) % 65537;
            text.extend(words[next % words.len()].as_bytes());
        }
        text.truncate(length);
        text
    }

    fn refused(frame: &[u8], length: usize) {
        let error = unpacked(frame, length).unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
    }

    #[test]
    fn every_level_gives_back_what_it_was_given() {
        let contents = text(LONG);
        for level in LEVEL_MIN..=LEVEL_MAX {
            let frame = packed(&contents, level);
            assert!(frame.len() < LONG / 2);
            assert!(unpacked(&frame, LONG).unwrap() == contents, "level {level}");
        }
    }

    #[test]
    fn what_does_not_fit_is_left_as_it_is() {
        let mut seed = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            (seed >> 33) as u8
        })
        .take(LONG)
        .collect();
        let mut compressor = Compressor::new(1).unwrap();
        assert_eq!(
            compressor.compress(&noise, &mut vec![0; LONG * 7 / 8]),
            None
        );
        // The next frame is decoded as if nothing had happened.
        let mut room = vec![0; LONG];
        let length = compressor.compress(&text(LONG), &mut room).unwrap();
        assert!(unpacked(&room[..length], LONG).unwrap() == text(LONG));
    }

    #[test]
    fn a_frame_that_becomes_longer_or_shorter_than_its_pages_is_refused() {
        let frame = packed(&text(LONG), 1);
        for length in [0, 1, 4096, LONG - 1, LONG + 1, 2 * LONG] {
            refused(&frame, length);
        }
        // A bomb for one page: 64 MiB of zeros in a few KiB.
        let bomb = packed(&vec![0; 1 << 26], 1);
        assert!(bomb.len() < 16 << 10);
        refused(&bomb, 4096);
    }

    /// The codec could want the window's memory before it reads a byte of the contents.
    #[test]
    fn a_frame_that_wants_a_giant_window_gets_no_memory_for_it() {
        // A page of one repeated byte. The window is 1 KiB, doubled as often as the descriptor's upper
        // five bits say.
        let frame = |window: u8| {
            let block = (4096u32 << 3 | 1 << 1 | 1).to_le_bytes();
            [&[0x28, 0xb5, 0x2f, 0xfd, 0, window], &block[..3], &[7]].concat()
        };
        let mut decompressor = Decompressor::new().unwrap();
        for exponent in 0..=21 {
            let mut contents = [0; 4096];
            let frame = frame(exponent << 3);
            decompressor.decompress(&frame, &mut contents).unwrap();
            assert_eq!(contents, [7; 4096]);
        }
        let bytes = decompressor.0.sizeof();
        assert!(bytes < 256 << 10, "{bytes} bytes for 2 GiB of window");
        refused(&frame(0xff), 4096);
    }

    #[test]
    fn a_compressor_takes_as_much_memory_as_its_documentation_says() {
        let contents = text(64 * 4096);
        for (level, most) in [(1, 600 << 10), (19, 5700 << 10)] {
            let mut compressor = Compressor::new(level).unwrap();
            compressor
                .compress(&contents, &mut vec![0; contents.len()])
                .unwrap();
            let bytes = compressor.0.sizeof();
            println!("level {level}: {bytes} bytes");
            assert!(bytes < most, "level {level}: {bytes}");
        }
    }

    #[test]
    fn two_frames_an_empty_one_and_what_is_none_are_refused() {
        let frame = packed(&text(4096), 1);
        let half = packed(&text(2048), 1);
        refused(&[&half[..], &half[..]].concat(), 4096);
        refused(&[&frame[..], &[0]].concat(), 4096);
        refused(&[], 4096);
        refused(&[0; 40], 4096);
        // A skippable frame, alone and before another frame.
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
        refused(&skipped, 4096);
        refused(&[&skipped[..], &frame[..]].concat(), 4096);
    }

    #[test]
    fn a_frame_cut_short_at_any_byte_is_refused() {
        let frame = packed(&text(3 * 4096), 1);
        for length in 0..frame.len() {
            refused(&frame[..length], 3 * 4096);
        }
    }

    proptest! {
        #[test]
        fn pages_come_back_as_they_were(
            pages in prop::collection::vec((any::<u8>(), 0usize..4096, any::<u8>()), 1..20),
            level in LEVEL_MIN..6,
        ) {
            let mut contents = Vec::new();
            for (fill, at, other) in pages {
                let from = contents.len();
                contents.resize(from + 4096, fill);
                contents[from + at] = other;
            }
            let frame = packed(&contents, level);
            prop_assert_eq!(unpacked(&frame, contents.len()).unwrap(), contents);
        }

        /// A damaged frame may decode to wrong contents, which their checksum finds elsewhere. This
        /// test finds panics, and writes outside of the buffer.
        #[test]
        fn a_damaged_frame_is_refused_or_becomes_as_long_as_it_should(
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut frame = packed(&text(LONG), 1);
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            if let Ok(contents) = unpacked(&frame, LONG) {
                prop_assert_eq!(contents.len(), LONG);
            }
        }
    }
}
