//! The format of a blob of KVM state: a header, and sections of 64-bit words. Knows no kernel.
//!
//! ```text
//! header   magic (8 bytes) | architecture u32, number of sections u32 | CPU vendor (12 bytes)
//!          | checksum u32 | instance u32, KVM's number of the vCPU u32
//! section  identifier u32, length in words u32 | words
//! ```
//!
//! All of it is little-endian. The checksum is the CRC-32 (of gzip and PNG) of the whole blob, with 0 in its own
//! place: it finds each blob in which up to 32 bits in a row are others than they were. The blob's name and version
//! travel beside it ([`StateBlob`]); so does its instance, which has to be that of the header. A reader
//! knows every section of its version, so an unknown one is an error: state that is left out would be lost.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::vmm::StateBlob;
use std::fmt;

const MAGIC: u64 = u64::from_le_bytes(*b"brantKVM");
const X86_64: u32 = 1;
const HEADER_WORDS: usize = 5;
/// The word whose upper half is the checksum.
const SUM_AT: usize = 3;
const OWNER_AT: usize = 4;
/// KVM's number of a vCPU when there is none, or when the kernel did not tell it.
const NO_NUMBER: u32 = u32::MAX;
/// A blob has at most so many bytes; the largest extended state of a processor has 11 KiB.
const BYTES_MAX: usize = 1 << 20;

/// The twelve letters of CPUID's leaf 0; zeros for a vCPU without CPUID.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vendor(pub [u32; 3]);

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = self.0.iter().flat_map(|word| word.to_le_bytes());
        let text: Vec<u8> = letters.filter(|letter| *letter != 0).collect();
        match text.is_empty() {
            true => write!(f, "no CPUID"),
            false => write!(f, "`{}`", String::from_utf8_lossy(&text).escape_debug()),
        }
    }
}

/// Whose state is in a blob.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// As in [`StateBlob::instance`].
    pub instance: u32,
    /// What `KVM_CREATE_VCPU` was given; `None` for a VM, or when the kernel does not tell.
    pub number: Option<u32>,
}

/// A section's identifier and its name in messages.
pub(super) type Known = (u32, &'static str);

/// Builds a blob.
pub(super) struct Writer {
    words: Vec<u64>,
    sections: u32,
    vendor: Vendor,
    owner: Owner,
}

/// The checksum of a blob: of its bytes, with 0 where the checksum stands.
fn checksum(bytes: &[u8]) -> u32 {
    let at = 8 * SUM_AT + 4;
    let (before, rest) = bytes.split_at(at.min(bytes.len()));
    let mut sum = crc32fast::Hasher::new();
    sum.update(before);
    sum.update(&[0; 4]);
    sum.update(rest.get(4..).unwrap_or_default());
    sum.finalize()
}

impl Writer {
    pub(super) fn new(vendor: Vendor, owner: Owner) -> Result<Writer> {
        let mut words = Vec::new();
        fallible::reserve(&mut words, 1024, "KVM state")?;
        words.resize(HEADER_WORDS, 0);
        Ok(Writer {
            words,
            sections: 0,
            vendor,
            owner,
        })
    }

    pub(super) fn put(&mut self, section: Known, words: &[u64]) -> Result<()> {
        fallible::reserve(&mut self.words, 1 + words.len(), "KVM state")?;
        self.words
            .push(u64::from(section.0) | (words.len() as u64) << 32);
        self.words.extend_from_slice(words);
        self.sections += 1;
        Ok(())
    }

    /// The blob's bytes.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        let [a, b, c] = self.vendor.0.map(u64::from);
        self.words[0] = MAGIC;
        self.words[1] = u64::from(X86_64) | u64::from(self.sections) << 32;
        self.words[2] = a | b << 32;
        self.words[SUM_AT] = c;
        let number = self.owner.number.unwrap_or(NO_NUMBER);
        self.words[OWNER_AT] = u64::from(self.owner.instance) | u64::from(number) << 32;
        let mut bytes = Vec::new();
        fallible::reserve(&mut bytes, 8 * self.words.len(), "KVM state")?;
        for word in self.words {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes[8 * SUM_AT + 4..8 * SUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }
}

/// A blob that has been read: every section is one that this version knows, and whole.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) vendor: Vendor,
    /// KVM's number of the vCPU whose state this is.
    pub(super) number: Option<u32>,
    /// For messages.
    name: String,
    sections: Vec<(Known, Vec<u64>)>,
}

impl Blob {
    /// Reads a blob that is called `name` here, in a format of which `version` is the newest that is
    /// known.
    pub(super) fn read(
        blob: &StateBlob<'_>,
        name: &str,
        version: u32,
        known: &[Known],
    ) -> Result<Blob> {
        let what = match blob.instance {
            0 => format!("`{name}`"),
            instance => format!("`{name}` {instance}"),
        };
        let bad = |why: String| Error::new(Kind::Invalid, format!("state {what}: {why}"));
        if blob.name != name {
            let found = blob.name.escape_debug();
            return Err(bad(format!(
                "expected a blob of that name, found `{found}`"
            )));
        }
        if blob.version != version {
            let found = blob.version;
            let why = format!("state {what}: expected version {version}, found {found}");
            return Err(Error::new(Kind::Version, why));
        }
        let bytes = blob.data;
        if bytes.len() > BYTES_MAX || !bytes.len().is_multiple_of(8) {
            return Err(bad(format!(
                "expected a multiple of 8 bytes, at most {BYTES_MAX}; found {}",
                bytes.len()
            )));
        }
        let words = bytes.chunks_exact(8).map(|word| {
            let mut eight = [0; 8];
            eight.copy_from_slice(word);
            u64::from_le_bytes(eight)
        });
        let words: Vec<u64> = fallible::collect(words, "KVM state")?;
        let Some((header, mut rest)) = words.split_at_checked(HEADER_WORDS) else {
            let found = bytes.len();
            return Err(bad(format!(
                "it is cut short: expected a header of {} bytes, found {found}",
                8 * HEADER_WORDS
            )));
        };
        if header[0] != MAGIC {
            return Err(bad(format!(
                "this is no KVM state of brant's: expected {MAGIC:#x} at its beginning, found {:#x}",
                header[0]
            )));
        }
        let (vendor, expected) = halves(header[SUM_AT]);
        let found = checksum(bytes);
        if found != expected {
            return Err(bad(format!(
                "it was changed after it was saved: expected the checksum {expected:#010x}, which it \
                 has itself, found {found:#010x}"
            )));
        }
        let (architecture, count) = halves(header[1]);
        if architecture != X86_64 {
            return Err(bad(format!(
                "expected the state of architecture {X86_64} (x86-64), found {architecture}"
            )));
        }
        let (instance, number) = halves(header[OWNER_AT]);
        if instance != blob.instance {
            return Err(bad(format!(
                "expected the state that was saved as instance {}, found that of instance {instance}",
                blob.instance
            )));
        }
        let mut sections: Vec<(Known, Vec<u64>)> = Vec::new();
        for at in 0..count {
            let Some((head, after)) = rest.split_first() else {
                return Err(bad(format!(
                    "it is cut short: expected {count} sections, found {at}"
                )));
            };
            let (id, length) = halves(*head);
            let Some(section) = known.iter().find(|(known, _)| *known == id) else {
                return Err(bad(format!("section {id} is not known to this version")));
            };
            if sections.iter().any(|(there, _)| there.0 == id) {
                return Err(bad(format!("section {} is there twice", section.1)));
            }
            let Some((data, after)) = after.split_at_checked(length as usize) else {
                return Err(bad(format!(
                    "it is cut short: expected {length} words of {}, found {}",
                    section.1,
                    after.len()
                )));
            };
            let data = fallible::collect(data.iter().copied(), "KVM state")?;
            fallible::push(&mut sections, (*section, data), "KVM state")?;
            rest = after;
        }
        if !rest.is_empty() {
            return Err(bad(format!(
                "{} bytes follow its last section",
                8 * rest.len()
            )));
        }
        let (a, b) = halves(header[2]);
        Ok(Blob {
            vendor: Vendor([a, b, vendor]),
            number: (number != NO_NUMBER).then_some(number),
            name: what,
            sections,
        })
    }

    /// An error about this blob.
    pub(super) fn refuse(&self, kind: Kind, why: impl fmt::Display) -> Error {
        Error::new(kind, format!("state {}: {why}", self.name))
    }

    /// `error`, as one about this blob.
    pub(super) fn about(&self, error: Error) -> Error {
        error.context(format_args!("state {}", self.name))
    }

    /// The words of a section that may not be there.
    pub(super) fn find(&self, section: Known) -> Option<&[u64]> {
        let found = self.sections.iter().find(|(there, _)| there.0 == section.0);
        found.map(|(_, words)| words.as_slice())
    }

    /// A section that may not be there; if it is, it has exactly `words` words.
    pub(super) fn find_sized(&self, section: Known, words: usize) -> Result<Option<&[u64]>> {
        match self.find(section) {
            Some(found) if found.len() != words => Err(self.refuse(
                Kind::Invalid,
                format_args!(
                    "section {}: expected {} bytes, found {}",
                    section.1,
                    8 * words,
                    8 * found.len()
                ),
            )),
            found => Ok(found),
        }
    }

    /// A section that every blob has, of exactly `words` words.
    pub(super) fn sized(&self, section: Known, words: usize) -> Result<&[u64]> {
        self.find_sized(section, words)?
            .ok_or_else(|| self.lacks(section))
    }

    /// A section that every blob has.
    pub(super) fn any(&self, section: Known) -> Result<&[u64]> {
        self.find(section).ok_or_else(|| self.lacks(section))
    }

    fn lacks(&self, section: Known) -> Error {
        self.refuse(
            Kind::Invalid,
            format_args!("it has no section {}", section.1),
        )
    }
}

/// The lower and the upper half of a word.
pub(super) fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Known = (1, "one");
    const TWO: Known = (2, "two");
    const OWNER: Owner = Owner {
        instance: 3,
        number: Some(5),
    };

    fn read(data: &[u8], version: u32, known: &[Known]) -> Result<Blob> {
        let blob = StateBlob {
            name: "kvm-x",
            instance: 3,
            version: 1,
            data,
        };
        Blob::read(&blob, "kvm-x", version, known)
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vendor([1, 2, 3]), OWNER).unwrap();
        writer.put(ONE, &[7, 8]).unwrap();
        writer.put(TWO, &[]).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let blob = read(&sample(), 1, &[ONE, TWO]).unwrap();
        assert_eq!(blob.vendor, Vendor([1, 2, 3]));
        assert_eq!(blob.number, Some(5));
        assert_eq!(blob.sized(ONE, 2).unwrap(), [7, 8]);
        assert_eq!(blob.find(TWO), Some(&[][..]));
        let wrong = blob.sized(ONE, 3).unwrap_err();
        assert_eq!(
            wrong.message(),
            "state `kvm-x` 3: section one: expected 24 bytes, found 16"
        );
    }

    #[test]
    fn every_cut_and_every_unknown_part_is_an_error() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(read(&whole[..length], 1, &[ONE, TWO]).is_err(), "{length}");
        }
        let longer = [&whole[..], &[0; 8]].concat();
        assert!(read(&longer, 1, &[ONE, TWO]).is_err());
        let unknown = read(&whole, 1, &[ONE]).unwrap_err();
        assert!(
            unknown.message().contains("section 2 is not known"),
            "{unknown}"
        );
        let newer = read(&whole, 2, &[ONE, TWO]).unwrap_err();
        assert_eq!(newer.kind(), Kind::Version);
        let mut twice = Writer::new(Vendor::default(), OWNER).unwrap();
        twice.put(ONE, &[1]).unwrap();
        twice.put(ONE, &[1]).unwrap();
        assert!(read(&twice.finish().unwrap(), 1, &[ONE]).is_err());
    }

    #[test]
    fn every_flipped_bit_is_refused_with_what_was_expected_and_found() {
        let whole = sample();
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = read(&flipped, 1, &[ONE, TWO]).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "bit {bit}");
            let text = error.message();
            assert!(
                text.contains("expected") && text.contains("found"),
                "bit {bit}: {text}"
            );
        }
    }

    #[test]
    fn a_blob_under_another_instance_is_refused() {
        let blob = StateBlob {
            name: "kvm-x",
            instance: 2,
            version: 1,
            data: &sample(),
        };
        let error = Blob::read(&blob, "kvm-x", 1, &[ONE, TWO]).unwrap_err();
        let expected = "state `kvm-x` 2: expected the state that was saved as instance 2, found that of instance 3";
        assert_eq!(error.message(), expected);
    }

    /// The checksum of what a test has changed.
    fn seal(bytes: &mut [u8]) {
        let sum = checksum(bytes);
        if let Some(place) = bytes.get_mut(8 * SUM_AT + 4..8 * SUM_AT + 8) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(at in 0..72usize, value: u8, length in 0..128usize, sealed: bool) {
            let mut bytes = sample();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(length);
            if sealed {
                seal(&mut bytes);
            }
            let _ = read(&bytes, 1, &[ONE, TWO]);
        }
    }
}
