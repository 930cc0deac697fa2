//! Device state that needs no callback: memory of the VMM's that is saved, checked and loaded as it is.
//!
//! The list is the VMM's, or the C interface's for it; nothing here is called by a migration. A
//! [`Vmm`](super::Vmm) calls [`States::save`] at the end of its `save`, [`States::load`] first in its
//! `load`, and [`States::loaded`] first in its `loaded`.

use super::{StateBlob, StateSink};
use crate::error::{Error, Kind, Result};
use crate::sys::plain::{self, Bad};
use std::fmt;
use std::sync::{Mutex, MutexGuard};

/// The most states of one guest.
pub const STATES_MAX: usize = 4096;
/// The longest name of a state, in bytes.
pub const STATE_NAME_MAX: usize = 128;
/// The most bytes of one state.
pub const STATE_BYTES_MAX: usize = 1 << 30;

struct State {
    name: String,
    instance: u32,
    version: u32,
    at: *mut u8,
    length: usize,
    /// It has come with the guest that arrives.
    has_come: bool,
}

// SAFETY: the address is used under the lock of its list alone, as the caller of `add` promised.
unsafe impl Send for State {}

impl State {
    fn is(&self, name: &str, instance: u32) -> bool {
        self.name == name && self.instance == instance
    }

    /// The error for a byte that cannot be accessed.
    fn broken(&self, kind: Kind, expected: &str, bad: &Bad) -> Error {
        let length = self.length;
        Error::new(
            kind,
            format!("{self}: expected {length} bytes {expected}; found at {bad}"),
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.instance {
            0 => write!(f, "state `{}`", self.name),
            n => write!(f, "state `{}` {n}", self.name),
        }
    }
}

/// The states of one guest, in the order in which they were added.
///
/// ```
/// use brant::vmm::{StateBlob, StateSink, States};
///
/// struct There(States);
/// impl StateSink for There {
///     fn put(&mut self, blob: &StateBlob<'_>) -> brant::Result<()> {
///         assert!(self.0.load(blob)?, "it is one of these states");
///         Ok(())
///     }
/// }
///
/// # fn main() -> brant::Result<()> {
/// let (mut timer, mut arrived) = ([1u8, 2, 3], [0u8; 3]);
/// let here = States::default();
/// let mut there = There(States::default());
/// // SAFETY: both arrays outlive the lists, and nothing else uses them meanwhile.
/// unsafe {
///     here.add("timer", 0, 1, timer.as_mut_ptr(), 3)?;
///     there.0.add("timer", 0, 1, arrived.as_mut_ptr(), 3)?;
/// }
/// here.save(&mut there)?;
/// there.0.loaded()?;
/// assert_eq!(arrived, [1, 2, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct States(Mutex<Vec<State>>);

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.list();
        f.debug_list()
            .entries(list.iter().map(|state| state.to_string()))
            .finish()
    }
}

impl States {
    fn list(&self) -> MutexGuard<'_, Vec<State>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds `length` bytes at `at`, which both sides know by `name` and `instance`. `version` is the
    /// VMM's own number of their layout.
    ///
    /// # Errors
    /// `Invalid` for a name or a length that cannot be and for bytes that cannot be read, `Exists` for a
    /// name and instance that is there.
    ///
    /// # Safety
    /// Until the state is removed, or this list is dropped, the bytes may be read by [`States::save`] and
    /// written by [`States::load`], and nobody else writes them, or accesses them, meanwhile.
    pub unsafe fn add(
        &self,
        name: &str,
        instance: u32,
        version: u32,
        at: *mut u8,
        length: usize,
    ) -> Result<()> {
        let refused = |kind, why: String| Err(Error::new(kind, why));
        if !(1..=STATE_NAME_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
            return refused(
                Kind::Invalid,
                format!(
                    "a state's name has 1 to {STATE_NAME_MAX} bytes and no control characters; found \
                     `{}`",
                    name.escape_debug()
                ),
            );
        }
        let state = State {
            name: name.to_owned(),
            instance,
            version,
            at,
            length,
            has_come: false,
        };
        if !(1..=STATE_BYTES_MAX).contains(&length) || at.addr().checked_add(length).is_none() {
            return refused(
                Kind::Invalid,
                format!(
                    "{state}: expected 1 to {STATE_BYTES_MAX} bytes that end before the end of the \
                     address space; found {length} at {at:p}"
                ),
            );
        }
        plain::check_readable(at, length)
            .map_err(|bad| state.broken(Kind::Invalid, "of memory that can be read", &bad))?;
        let mut list = self.list();
        if list.iter().any(|other| other.is(name, instance)) {
            return refused(Kind::Exists, format!("{state} is there already"));
        }
        if list.len() >= STATES_MAX {
            return refused(
                Kind::Invalid,
                format!("{state}: a guest has at most {STATES_MAX}"),
            );
        }
        list.push(state);
        Ok(())
    }

    /// Removes a state. Its bytes are not accessed any more when this returns.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, name: &str, instance: u32) -> Result<()> {
        let mut list = self.list();
        let Some(at) = list.iter().position(|state| state.is(name, instance)) else {
            let what = format!("there is no state `{name}` {instance}");
            return Err(Error::new(Kind::NotFound, what));
        };
        list.remove(at);
        Ok(())
    }

    /// Puts every state into `sink`, in order.
    ///
    /// # Errors
    /// Those of the sink, and `Memory` for bytes that cannot be read any more.
    pub fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        for state in self.list().iter() {
            plain::check_readable(state.at, state.length)
                .map_err(|bad| state.broken(Kind::Memory, "that can still be read", &bad))?;
            // SAFETY: the promise of `add`; the state cannot be removed meanwhile, and was readable a
            // moment ago.
            let data = unsafe { std::slice::from_raw_parts(state.at, state.length) };
            sink.put(&StateBlob {
                name: &state.name,
                instance: state.instance,
                version: state.version,
                data,
            })?;
        }
        Ok(())
    }

    /// Takes a blob into its state. `false` when it is of none of these.
    ///
    /// # Errors
    /// `Unsupported` when version or length differ, with both. `Memory` for bytes that cannot be written,
    /// of which some may be the blob's then.
    pub fn load(&self, blob: &StateBlob<'_>) -> Result<bool> {
        let mut list = self.list();
        let Some(at) = list
            .iter()
            .position(|state| state.is(blob.name, blob.instance))
        else {
            return Ok(false);
        };
        let state = &list[at];
        let differs = |what, sent: u64, here: u64| {
            Err(Error::new(
                Kind::Unsupported,
                format!("{state}: the source sent {what} {sent}, and here it is {here}"),
            ))
        };
        if blob.version != state.version {
            return differs("version", blob.version.into(), state.version.into());
        }
        if blob.data.len() != state.length {
            return differs("a length of", blob.data.len() as u64, state.length as u64);
        }
        // The first state, and one that came before, begin another guest's arrival.
        if at == 0 || state.has_come {
            list.iter_mut().for_each(|state| state.has_come = false);
        }
        let state = &mut list[at];
        // SAFETY: the promise of `add`; as many bytes as just compared.
        unsafe { plain::write(state.at, blob.data) }
            .map_err(|bad| state.broken(Kind::Memory, "that can be written", &bad))?;
        state.has_come = true;
        Ok(true)
    }

    /// Checks that every state has come.
    ///
    /// # Errors
    /// `Unsupported` with the name of the first that has not.
    pub fn loaded(&self) -> Result<()> {
        let mut list = self.list();
        let missing = list
            .iter()
            .find(|state| !state.has_come)
            .map(State::to_string);
        list.iter_mut().for_each(|state| state.has_come = false);
        match missing {
            None => Ok(()),
            Some(state) => Err(Error::new(
                Kind::Unsupported,
                format!("{state}: the source sent none"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::own::OwnMemory;

    fn blob<'a>(name: &'a str, version: u32, data: &'a [u8]) -> StateBlob<'a> {
        StateBlob {
            name,
            instance: 0,
            version,
            data,
        }
    }

    fn added(list: &States, name: &str, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: each test keeps its bytes until the end.
        unsafe { list.add(name, 0, 7, bytes.as_mut_ptr(), bytes.len()) }
    }

    #[test]
    fn a_state_of_another_version_or_length_is_named_and_changes_nothing() {
        let (list, mut bytes) = (States::default(), [1, 2, 3]);
        added(&list, "rtc", &mut bytes).unwrap();
        let wrong = list.load(&blob("rtc", 8, &[9, 9, 9])).unwrap_err();
        assert_eq!(
            wrong.message(),
            "state `rtc`: the source sent version 8, and here it is 7"
        );
        let wrong = list.load(&blob("rtc", 7, &[9, 9])).unwrap_err();
        assert_eq!(
            wrong.message(),
            "state `rtc`: the source sent a length of 2, and here it is 3"
        );
        assert!(!list.load(&blob("pit", 7, &[9])).unwrap());
        assert!(list.loaded().unwrap_err().message().contains("`rtc`"));
        assert_eq!(bytes, [1, 2, 3]);
    }

    #[test]
    fn every_state_has_to_come_with_each_guest() {
        let (list, mut a, mut b) = (States::default(), [0], [0]);
        added(&list, "a", &mut a).unwrap();
        added(&list, "b", &mut b).unwrap();
        assert!(list.load(&blob("a", 7, &[1])).unwrap());
        assert!(list.load(&blob("b", 7, &[2])).unwrap());
        list.loaded().unwrap();
        // The next guest brings one of them.
        assert!(list.load(&blob("a", 7, &[3])).unwrap());
        assert!(list.loaded().unwrap_err().message().contains("`b`"));
        assert_eq!((a, b), ([3], [2]));
    }

    #[test]
    fn memory_that_cannot_be_accessed_any_more_is_an_error_and_no_signal() {
        struct Nowhere;
        impl StateSink for Nowhere {
            fn put(&mut self, _: &StateBlob<'_>) -> Result<()> {
                Ok(())
            }
        }
        let memory = OwnMemory::new(2 * 4096, "a test").unwrap();
        let at = memory.as_ptr().cast_mut();
        let change = |protection| {
            // SAFETY: this test's own memory, to which it has no reference.
            let changed = unsafe { libc::mprotect(at.cast(), 2 * 4096, protection) };
            assert_eq!(changed, 0);
        };
        let list = States::default();
        // SAFETY: the memory outlives the list.
        let add = |name| unsafe { list.add(name, 0, 7, at.add(4000), 200) };
        add("rtc").unwrap();
        list.save(&mut Nowhere).unwrap();

        change(libc::PROT_READ);
        list.save(&mut Nowhere).unwrap();
        let wrong = list.load(&blob("rtc", 7, &[1; 200])).unwrap_err();
        assert_eq!(wrong.kind(), Kind::Memory);
        assert_eq!(
            wrong.message(),
            "state `rtc`: expected 200 bytes that can be written; found at byte 0: its mapping does not \
             let it be written"
        );
        assert!(list.loaded().is_err(), "it has not come");

        change(libc::PROT_NONE);
        let wrong = list.save(&mut Nowhere).unwrap_err();
        assert_eq!(wrong.kind(), Kind::Memory);
        assert!(
            wrong.message().contains("that can still be read"),
            "{wrong}"
        );
        let wrong = add("pit").unwrap_err();
        assert_eq!(wrong.kind(), Kind::Invalid);
        assert!(
            wrong.message().contains("of memory that can be read"),
            "{wrong}"
        );
        change(libc::PROT_READ | libc::PROT_WRITE);
        assert!(list.load(&blob("rtc", 7, &[1; 200])).unwrap());
        list.loaded().unwrap();
    }

    #[test]
    fn what_cannot_be_a_state_is_refused() {
        let (list, mut bytes) = (States::default(), [0u8]);
        for name in ["", "a\tb", &"n".repeat(STATE_NAME_MAX + 1)] {
            assert_eq!(
                added(&list, name, &mut bytes).unwrap_err().kind(),
                Kind::Invalid
            );
        }
        // SAFETY: refused before anything is accessed.
        unsafe {
            for (at, length) in [
                (std::ptr::null_mut(), 1),
                (bytes.as_mut_ptr(), 0),
                (bytes.as_mut_ptr(), STATE_BYTES_MAX + 1),
                (bytes.as_mut_ptr(), usize::MAX),
                (std::ptr::without_provenance_mut(usize::MAX - 9), 20),
                (std::ptr::without_provenance_mut(usize::MAX - 9), 5),
            ] {
                let wrong = list.add("x", 0, 1, at, length).unwrap_err();
                assert_eq!(wrong.kind(), Kind::Invalid);
                let words = wrong.message();
                assert!(
                    words.contains("expected") && words.contains("found"),
                    "{words}"
                );
            }
        }
        added(&list, "x", &mut bytes).unwrap();
        assert_eq!(
            added(&list, "x", &mut bytes).unwrap_err().kind(),
            Kind::Exists
        );
        list.remove("x", 0).unwrap();
        assert_eq!(list.remove("x", 0).unwrap_err().kind(), Kind::NotFound);
        for n in 0..STATES_MAX {
            added(&list, &format!("s{n}"), &mut bytes).unwrap();
        }
        assert!(added(&list, "more", &mut bytes)
            .unwrap_err()
            .message()
            .contains("at most 4096"));
    }
}
