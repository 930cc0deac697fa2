//! The stream of a VFIO device as brant sends it: the kernel's bytes, with a head of 8 bytes before
//! each piece. The heads are needed because a stream can begin anew.
//!
//! Example: a device has sent its state while it ran, was stopped, and the pause was aborted. The
//! kernel lets no transfer live on from there (`STOP_COPY` to `PRE_COPY` is forbidden), and the bytes
//! of two transfers do not make one state. So the source opens a second transfer and says so in the
//! stream. The destination then resets its device and loads from there on.
//!
//! This file only divides and joins bytes; [`super`] calls it on both sides.

use crate::error::{Error, Kind, Result};

/// Bytes of a head: kind, three zeros, and the length of the piece (little endian).
pub const HEAD: usize = 8;
/// The longest piece.
pub const PIECE_MAX: usize = u32::MAX as usize;

const BEGINS: u8 = 1;
const DATA: u8 = 2;
const ENDS: u8 = 3;

fn head(kind: u8, length: u32) -> [u8; HEAD] {
    let [a, b, c, d] = length.to_le_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// The head of a transfer's beginning.
pub fn begins() -> [u8; HEAD] {
    head(BEGINS, 0)
}

/// The head of a transfer's end.
pub fn ends() -> [u8; HEAD] {
    head(ENDS, 0)
}

/// The head of a piece of `length` bytes.
pub fn data(length: usize) -> [u8; HEAD] {
    head(DATA, length.min(PIECE_MAX) as u32)
}

/// A part of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A transfer begins; what came before it counts no more.
    Begins,
    /// Bytes of the transfer.
    Data(&'a [u8]),
    /// The transfer is complete.
    Ends,
}

/// Takes a stream apart that arrives in pieces of any size.
#[derive(Debug, Default)]
pub struct Parts {
    head: [u8; HEAD],
    /// How much of the head has arrived.
    have: usize,
    /// How many bytes of a piece are still to come.
    left: u32,
    /// A transfer has begun and not ended.
    open: bool,
    /// The last transfer has ended.
    ended: bool,
}

impl Parts {
    /// Whether the stream ends here with a whole transfer.
    pub fn complete(&self) -> bool {
        self.ended && self.have == 0
    }

    /// Gives the next parts in `bytes` to `each`.
    ///
    /// # Errors
    /// `Protocol` for bytes that no source sends, and the errors of `each`.
    pub fn take(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = bytes.len().min(self.left as usize);
                let (now, later) = bytes.split_at(n);
                // At most `left`, which is a u32.
                self.left -= n as u32;
                bytes = later;
                each(Part::Data(now))?;
                continue;
            }
            let n = bytes.len().min(HEAD - self.have);
            let (now, later) = bytes.split_at(n);
            self.head[self.have..self.have + n].copy_from_slice(now);
            self.have += n;
            bytes = later;
            if self.have == HEAD {
                self.have = 0;
                self.headed(&mut each)?;
            }
        }
        Ok(())
    }

    fn headed(&mut self, each: &mut impl FnMut(Part<'_>) -> Result<()>) -> Result<()> {
        let [kind, x, y, z, a, b, c, d] = self.head;
        let length = u32::from_le_bytes([a, b, c, d]);
        match (kind, [x, y, z], length) {
            (BEGINS, [0, 0, 0], 0) => {
                (self.open, self.ended) = (true, false);
                each(Part::Begins)
            }
            (DATA, [0, 0, 0], 1..) if self.open => {
                self.left = length;
                Ok(())
            }
            (ENDS, [0, 0, 0], 0) if self.open => {
                (self.open, self.ended) = (false, true);
                each(Part::Ends)
            }
            _ => Err(Error::new(
                Kind::Protocol,
                format!(
                    "the state of a VFIO device has the head {:02x?} {}; expected a beginning, \
                     and after it data or an end",
                    self.head,
                    if self.open {
                        "in a transfer"
                    } else {
                        "outside of a transfer"
                    }
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the parts of a stream amount to: the bytes of the last transfer.
    fn joined(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool)> {
        let (mut parts, mut transfer) = (Parts::default(), Vec::new());
        for piece in pieces {
            parts.take(piece, |part| {
                match part {
                    Part::Begins => transfer.clear(),
                    Part::Data(bytes) => transfer.extend_from_slice(bytes),
                    Part::Ends => {}
                }
                Ok(())
            })?;
        }
        Ok((transfer, parts.complete()))
    }

    fn stream(transfers: &[(&[&[u8]], bool)]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (pieces, whole) in transfers {
            stream.extend(begins());
            for piece in *pieces {
                stream.extend(data(piece.len()));
                stream.extend(*piece);
            }
            if *whole {
                stream.extend(ends());
            }
        }
        stream
    }

    #[test]
    fn a_transfer_that_begins_anew_replaces_what_came_before() {
        let bytes = stream(&[(&[b"old", b"er"], false), (&[b"new"], true)]);
        assert_eq!(joined(&[&bytes]).unwrap(), (b"new".to_vec(), true));
        // Cut in the second transfer, it is not complete.
        let cut = &bytes[..bytes.len() - 1];
        assert_eq!(joined(&[cut]).unwrap(), (b"new".to_vec(), false));
    }

    #[test]
    fn bytes_that_no_source_sends_are_refused_by_name() {
        let open = begins();
        let bad: [&[u8]; 7] = [
            &data(4),
            &ends(),
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 1, 0, 0, 0],
            &[1, 1, 0, 0, 0, 0, 0, 0],
            &[&open[..], &data(0)].concat(),
            &[&open[..], &ends(), &data(1)].concat(),
        ];
        for bytes in bad {
            let error = joined(&[bytes]).unwrap_err();
            assert_eq!(error.kind(), Kind::Protocol, "{bytes:?}");
            assert!(error.message().contains("VFIO device"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_stream_divided_anywhere_is_the_same_stream(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let bytes = stream(&[(&slices, true)]);
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len())).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let divided: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(joined(&divided).unwrap(), (pieces.concat(), true));
        }

        #[test]
        fn any_bytes_are_parts_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut total = 0;
            let _ = Parts::default().take(&bytes, |part| {
                if let Part::Data(data) = part {
                    total += data.len();
                }
                Ok(())
            });
            prop_assert!(total <= bytes.len());
        }
    }
}
