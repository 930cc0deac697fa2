//! The records of devices whose state is streamed: DEVICE_NAMED, which says that the source has a
//! device; DEVICE, a piece of its state; DEVICE_LOADED, the destination's word that it has loaded
//! what must be there before the pause.
//!
//! They travel only where the feature "device-streams" was agreed on.

use super::body::{Body, Checked};
use super::cursor::Reader;
use super::header::{Header, HEADER_LEN};
use super::kind::{RecordType, PIECE_MOST};
use crate::error::{Error, Kind, Result};

/// The most devices of one session.
pub const DEVICES_MAX: u32 = 256;
/// The most bytes of state in one DEVICE.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// Bytes before the state in a DEVICE: device, flags, offset.
pub const PIECE_PREFIX: usize = 4 + 4 + 8;
/// Piece flag bit 0: the piece is of the stopped part, which was read after the pause.
pub const PIECE_STOPPED: u32 = 1;
/// Piece flag bit 1: the piece's end is the end of its part.
pub const PIECE_LAST: u32 = 2;
/// Piece flag bit 2: the destination answers DEVICE_LOADED once it has loaded the running part up to
/// the end of this piece.
pub const PIECE_INITIAL: u32 = 4;

const NAME_MAX: usize = 128;

/// DEVICE_NAMED: a device of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedDevice {
    /// The number of the device in later records: 0, 1, 2 and so on.
    pub number: u32,
    /// Tells devices of one name apart.
    pub instance: u32,
    /// The version of the format of its state.
    pub version: u32,
    /// Its name, 1 to 128 bytes.
    pub name: String,
}

impl Body for NamedDevice {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.instance.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        super::text::write_u8_text(&self.name, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(NamedDevice {
            number: reader.u32("number")?,
            instance: reader.u32("instance")?,
            version: reader.u32("version")?,
            name: super::text::read_u8_text(reader, "name", NAME_MAX)?,
        })
    }

    fn problem(&self) -> Checked {
        check_number(self.number)?;
        super::text::check_name("name", &self.name, 1, NAME_MAX)
    }
}

/// DEVICE_LOADED: the running part of a device is loaded up to a piece with [`PIECE_INITIAL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLoaded {
    /// The device.
    pub number: u32,
    /// How many bytes of its running part are loaded.
    pub bytes: u64,
}

impl Body for DeviceLoaded {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(DeviceLoaded {
            number: reader.u32("number")?,
            bytes: reader.u64("bytes")?,
        })
    }

    fn problem(&self) -> Checked {
        check_number(self.number)
    }
}

fn check_number(number: u32) -> Checked {
    match number < DEVICES_MAX {
        true => Ok(()),
        false => Err(format!(
            "number: expected one below {DEVICES_MAX}, found {number}"
        )),
    }
}

/// The beginning of a DEVICE. The state follows it in the same payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The device.
    pub number: u32,
    /// `PIECE_*`.
    pub flags: u32,
    /// Where the piece begins in the running part, or in the stopped part.
    pub offset: u64,
    /// How many bytes of state follow; at most [`PIECE_BYTES_MAX`].
    pub length: u32,
}

impl Piece {
    /// Whether the piece is of the stopped part.
    pub fn is_stopped(&self) -> bool {
        self.flags & PIECE_STOPPED != 0
    }

    /// Whether it ends its part.
    pub fn is_last(&self) -> bool {
        self.flags & PIECE_LAST != 0
    }

    /// Whether the destination has to say that it has loaded it.
    pub fn is_initial(&self) -> bool {
        self.flags & PIECE_INITIAL != 0
    }

    /// Where it ends in its part.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }

    fn problem(&self) -> Checked {
        check_number(self.number)?;
        let known = PIECE_STOPPED | PIECE_LAST | PIECE_INITIAL;
        // A stopped part is not loaded before the pause.
        let wrong = match self.is_stopped() {
            true => PIECE_INITIAL,
            false => 0,
        };
        if self.flags & (!known | wrong) != 0 {
            return Err(format!(
                "expected flags of {PIECE_STOPPED:#x} (stopped), {PIECE_LAST:#x} (last) and \
                 {PIECE_INITIAL:#x} (initial, of the running part), found {:#x}",
                self.flags
            ));
        }
        let length = u64::from(self.length);
        if length > PIECE_BYTES_MAX as u64 {
            return Err(format!(
                "expected at most {PIECE_BYTES_MAX} bytes of state, found {length}"
            ));
        }
        if length == 0 && self.flags & (PIECE_LAST | PIECE_INITIAL) == 0 {
            return Err("expected some state, found 0 bytes".into());
        }
        if self.offset.checked_add(length).is_none() {
            return Err(format!(
                "offset: expected one that leaves room for {length} bytes, found {:#x}",
                self.offset
            ));
        }
        Ok(())
    }

    /// Header and prefix of the piece with `data` as its state, which the caller sends behind them.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a field outside its limits, and for `data` of another length.
    pub fn encode(&self, data: &[u8]) -> Result<[u8; HEADER_LEN + PIECE_PREFIX]> {
        let length = self.length as usize == data.len();
        let problem = self.problem();
        if let Err(what) = problem.and(length.then_some(()).ok_or_else(|| "length".to_owned())) {
            return Err(Error::new(Kind::Invalid, format!("DEVICE: {what}")));
        }
        let mut bytes = [0; HEADER_LEN + PIECE_PREFIX];
        let (head, prefix) = bytes.split_at_mut(HEADER_LEN);
        prefix[..4].copy_from_slice(&self.number.to_le_bytes());
        prefix[4..8].copy_from_slice(&self.flags.to_le_bytes());
        prefix[8..].copy_from_slice(&self.offset.to_le_bytes());
        let mut payload = crc32fast::Hasher::new();
        payload.update(prefix);
        payload.update(data);
        let header = Header {
            count: payload.finalize(),
            ..Header::control(RecordType::Device, 0, PIECE_PREFIX as u32 + self.length)
        };
        head.copy_from_slice(&header.encode());
        Ok(bytes)
    }

    /// Reads the prefix at the front of `payload`, which is all of a DEVICE's payload, after a look
    /// at its checksum. The state is `payload[PIECE_PREFIX..]`.
    ///
    /// # Errors
    /// [`Kind::Protocol`].
    pub fn decode(header: &Header, payload: &[u8]) -> Result<Piece> {
        let name = RecordType::Device.name();
        if header.classify()? != Some(RecordType::Device) || payload.len() > PIECE_MOST as usize {
            return Err(Error::new(
                Kind::Protocol,
                format!("expected {name}, found type {}", header.kind),
            ));
        }
        header.check_payload(payload)?;
        let mut reader = Reader::new(name, payload);
        let piece = Piece {
            number: reader.u32("device")?,
            flags: reader.u32("flags")?,
            offset: reader.u64("offset")?,
            // The limits of the type were checked with the header.
            length: (payload.len() - PIECE_PREFIX) as u32,
        };
        piece.problem().map_err(|what| reader.refuse(what))?;
        Ok(piece)
    }
}
