//! The parameters of a migration and their limits, which are checked once, before anything starts.

use super::steering::policies::{OnDeadline, Policy};
use super::steering::{FitsDowntime, Operations, Overrun};
use crate::error::{Error, Kind, Result};
use crate::page::compress::{self, LEVEL_MAX, LEVEL_MIN};
use crate::runtime::{Limit, Timeout};
use crate::wire;
use std::fmt;
use std::time::{Duration, Instant};

/// Parameters of a migration. Fields may be added in later versions: name the fields that you set,
/// and take the others from [`Params::default`].
///
/// ```
/// use brant::migrate::Params;
/// use std::time::Duration;
///
/// let params = Params {
///     downtime_limit: Duration::from_millis(50),
///     max_bandwidth: Some(100 << 20),
///     ..Params::default()
/// };
/// assert!(params.check().is_ok());
/// let wrong = Params { channels: 0, ..params };
/// println!("{}", wrong.check().unwrap_err()); // which values are allowed
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// The longest that the guest shall stand still: 1 ms to 1 h; 300 ms. It is a ceiling and not a
    /// target. The guest is paused only when the whole downtime is expected to fit: the rest of the
    /// pages, the device state, the round trips and the VMMs' operations
    /// ([`Parts`](crate::migrate::Parts)). When it fits, passes go on as long as the last pass made
    /// the rest smaller. A limit that the parts without the pages exceed is an error that names the
    /// longest of them.
    pub downtime_limit: Duration,
    /// Bytes a second that sending may use while the guest runs, all connections together: 64 KiB/s
    /// to 1 TiB/s; `None`, no cap. In each second, the bytes that this kernel was given to send
    /// exceed the cap by at most 2 %, headers included. [`Outgoing::set_max_bandwidth`] changes the
    /// cap. The cap does not slow the switchover. It does not hide the link's bandwidth either: now
    /// and then a batch is timed until it has arrived.
    ///
    /// [`Outgoing::set_max_bandwidth`]: crate::migrate::Outgoing::set_max_bandwidth
    pub max_bandwidth: Option<u64>,
    /// Bytes a second that the link will carry at the switchover, when the user knows that better
    /// than a measurement: 64 KiB/s to 1 TiB/s; `None`, as measured.
    pub switchover_bandwidth: Option<u64>,
    /// Source: how long the VMMs' operations will take while the guest stands still, and the size of
    /// the device state, as far as the VMM knows them beforehand; none. They count in the expected
    /// downtime. Times up to 1 h; a size up to 1 TiB.
    pub expected: Operations,
    /// Source: how far the downtime may exceed its limit before a pause is aborted: 0 to 1 h; 0. When
    /// the guest stands still, the decider looks once more: after `pause`, and after `save`. If the
    /// downtime would exceed the limit by more than this, the guest is resumed and passes go on, at
    /// most three times.
    pub downtime_slack: Duration,
    /// Source: what becomes of a migration whose downtime limit cannot be kept: it fails.
    pub overrun: Overrun,
    /// Source: what is done about a migration that does not converge by itself. Nothing, by default.
    /// [`Outgoing::set_policy`] changes the policy. See `docs/steering.md`.
    ///
    /// [`Outgoing::set_policy`]: crate::migrate::Outgoing::set_policy
    pub policy: Policy,
    /// Source: the longest that a migration may take, from its start to the switchover: 1 ms to 30
    /// days; 1 h. `None`, no limit. Every other wait of the migration ends with it too.
    pub total_timeout: Option<Duration>,
    /// Destination: the longest from the source's HELLO to the hand-over: 1 ms to 30 days; 1 day.
    /// `None`, no limit. The wait for a connection does not count. The limit guards against a
    /// source that goes on for ever, and should be longer than the source's own limit.
    pub incoming_timeout: Option<Duration>,
    /// The limit for connecting, and once more for agreeing on versions, configuration and layout:
    /// 1 ms to 1 h; 10 s. At the source, the time for agreeing includes the destination's
    /// `early_load`.
    pub connect_timeout: Duration,
    /// The limit for a peer that moves no byte: 1 ms to 1 h; 30 s. One record has this time and in
    /// addition the time that its bytes take at 64 KiB/s. Between two records a destination waits
    /// for the switchover timeout if that is longer.
    pub io_timeout: Duration,
    /// Source: the longest from the pause to the hand-over; then the source takes the guest back.
    /// Destination: the longest from ready to the hand-over, unless the source's hand-over timeout
    /// is shorter. 1 ms to 1 h; 30 s.
    pub switchover_timeout: Duration,
    /// Source: how long a hand-over counts once the destination is ready: 1 ms to 1 h; 30 s. The
    /// source tells the destination this time. `release` is called within it. When the time has run
    /// out, the source sends no hand-over and keeps the guest. The destination then ignores a
    /// hand-over that is under way. One second later the destination has begun `run` or never will.
    /// Only then does a migration that was handed over become unanswered.
    pub handover_timeout: Duration,
    /// Source: connections to the destination, 1 to 64; 1. With [`Params::postcopy`] there is one more.
    pub channels: u32,
    /// Source: whether the guest may run at the destination before all of its memory is there. Off. The
    /// destination must be able to serve its guest's page faults, which is found out when the two sides
    /// agree on their blocks. [`Outgoing::start_postcopy`] or the policy ([`OnDeadline::Postcopy`]) then
    /// switches. See `docs/postcopy.md`. Not together with [`Params::verify`].
    ///
    /// [`Outgoing::start_postcopy`]: crate::migrate::Outgoing::start_postcopy
    /// [`OnDeadline::Postcopy`]: crate::migrate::OnDeadline::Postcopy
    pub postcopy: bool,
    /// Destination: the most connections that it takes from a source: 1 to 64; 64. A source that
    /// wants more is refused.
    pub incoming_channels: u32,
    /// Destination: the most bytes of early configuration, and the most of device state, that it
    /// accepts: 4 KiB to 1 TiB each; 256 MiB.
    pub max_state_bytes: u64,
    /// Destination: the most bytes of devices' state that wait in memory because something before
    /// them has not come: 1 MiB to 1 TiB; 256 MiB. Beyond it connections wait. Each connection has a
    /// mebibyte more in hand.
    pub max_device_buffer: u64,
    /// Source: the most memory for copies of sent pages, over all connections together: 1 MiB to 1
    /// TiB; `None`, none. With such memory, a page that is sent again goes as a delta, when the
    /// delta is shorter. The destination must support deltas (feature "delta"). The memory is taken
    /// as pages come back, and is freed when the migration ends.
    pub delta_cache_bytes: Option<u64>,
    /// Source: bytes a second that sending may use from the pause on: 64 KiB/s to 1 TiB/s; `None`,
    /// no cap. With a cap the guest stands still for longer, and the expected downtime takes the
    /// cap into account.
    pub switchover_max_bandwidth: Option<u64>,
    /// Source: whether contents of pages are compressed, by zstd. Off. A destination takes
    /// compressed contents whatever its own setting is.
    pub compression: Compression,
    /// Source: the level of zstd: 1 to 19, or 0 for the default, 1. A higher level compresses more
    /// and takes longer.
    pub compression_level: i32,
    /// Whether contents of pages travel with a checksum, which the destination compares before they
    /// reach guest memory. The default at the source is off. The default at the destination is the
    /// source's choice. When one side has checksums on and the other has them off, the migration is
    /// refused.
    pub page_checksums: PageChecksums,
    /// Source: whether the copy at the destination is compared with the guest's memory here. Off.
    /// Before it loads the device state, the destination computes the CRC-32 of every page; the
    /// guest stands still meanwhile. Once the guest runs there, the source compares the checksums
    /// with its own memory, and leaves out pages that it did not send: ballooned, hinted and
    /// poisoned ones. The result is in [`Stats`], and a difference is an event
    /// ([`EventKind::Mismatch`]). The migration has succeeded by then, whatever is found. The
    /// migration is over, and [`Outgoing::wait`] returns, when all is compared. An aid for testing,
    /// see `docs/verify.md`. A destination that cannot do this is refused.
    ///
    /// [`Stats`]: crate::migrate::Stats
    /// [`EventKind::Mismatch`]: crate::vmm::EventKind::Mismatch
    /// [`Outgoing::wait`]: crate::migrate::Outgoing::wait
    pub verify: bool,
    /// Destination: the host backs memory just before contents arrive for it, with the help of a
    /// thread (`Role::Prefault`). On. Memory that is backed already, and memory that a userfaultfd
    /// watches, is left alone either way.
    pub prefault: bool,
    /// Source: whether a destination on the same host gets the guest's memory by the descriptors of
    /// the blocks' files, without a copy. Off. See `docs/hand-over.md`.
    pub hand_over: HandOver,
    /// Source: pages go from guest memory to the network device without a copy (`MSG_ZEROCOPY`),
    /// when the connection is TCP or vsock and the kernel can do that. Off. This pays for links of
    /// 10 Gbit/s and more, with guest memory that may be locked. Pages that travel with a checksum,
    /// compressed or as a delta are copied
    /// ([`Stats::encoded_pages`](crate::migrate::Stats::encoded_pages)). When the kernel copies all the same, as on loopback,
    /// sending without a copy is switched off after a few sends: see
    /// [`Stats::zero_copy`](crate::migrate::Stats::zero_copy).
    pub zero_copy: bool,
    /// Source: ballooned pages are neither read nor sent. Destination: pages that the source names
    /// as ballooned are discarded here too. On. This has no effect unless the VMM has said that the
    /// guest must report a page before it uses the page again.
    pub skip_ballooned: bool,
}

/// Whether a source compresses contents of pages: see [`Params::compression`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Compression {
    /// Contents are not compressed.
    #[default]
    Off = 0,
    /// Contents are compressed when that makes the migration faster: each lane measures its speed
    /// with compression and without. A destination that cannot decompress gets plain contents.
    Adaptive = 1,
    /// Contents are always compressed. A destination that cannot decompress is refused.
    Always = 2,
}

/// Whether a source hands memory over by descriptors: see [`Params::hand_over`].
///
/// A block goes by descriptor when it is a shared mapping of a memfd, or of a file of hugetlbfs, that
/// can be sealed against becoming shorter (`F_SEAL_SHRINK`), and when the connection is a unix socket
/// and the destination's VMM has [`Vmm::map_block`](crate::vmm::Vmm::map_block). From then on both
/// processes map the same pages. No page of such a block is sent and no log watches it, so the guest
/// stands still equally long whatever its size.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HandOver {
    /// All blocks are copied.
    #[default]
    Off = 0,
    /// Blocks go by descriptor where that is possible, and the others are copied.
    WherePossible = 1,
    /// Every block goes by descriptor. When one has to be copied, the migration fails with
    /// [`Kind::Unsupported`], which names the block and the reason. A destination that takes no
    /// descriptors is refused ([`Kind::Version`]).
    Only = 2,
}

/// Whether contents of pages travel with a checksum: see [`Params::page_checksums`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PageChecksums {
    /// Source: off. Destination: as the source wants.
    #[default]
    Default = 0,
    /// Checksums are on. A peer that has them off, or does not know them, is refused.
    On = 1,
    /// Checksums are off.
    Off = 2,
}

/// The side whose offer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            downtime_limit: Duration::from_millis(300),
            max_bandwidth: None,
            switchover_bandwidth: None,
            expected: Operations::default(),
            downtime_slack: Duration::ZERO,
            overrun: Overrun::Fail,
            policy: Policy::default(),
            total_timeout: Some(HOUR),
            incoming_timeout: Some(HOUR * 24),
            connect_timeout: Duration::from_secs(10),
            io_timeout: Duration::from_secs(30),
            switchover_timeout: Duration::from_secs(30),
            handover_timeout: Duration::from_secs(30),
            channels: 1,
            postcopy: false,
            incoming_channels: 64,
            max_state_bytes: 256 << 20,
            max_device_buffer: 256 << 20,
            delta_cache_bytes: None,
            compression: Compression::Off,
            compression_level: 0,
            page_checksums: PageChecksums::Default,
            switchover_max_bandwidth: None,
            verify: false,
            hand_over: HandOver::Off,
            prefault: true,
            zero_copy: false,
            skip_ballooned: true,
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
/// The slowest link that brant serves, in bytes a second. A record's time limit is computed from
/// it.
pub const BANDWIDTH_MIN: u64 = 64 << 10;
const BANDWIDTH_MAX: u64 = 1 << 40;

/// The time limit for `bytes` as one transfer: the time that a peer may be idle, and in addition
/// the time that the bytes take on the slowest link that brant serves.
pub(super) fn transfer(idle: Timeout, bytes: u64) -> Timeout {
    let slowest = Duration::from_secs_f64(bytes as f64 / BANDWIDTH_MIN as f64);
    Timeout::new(
        "the limit on one record (the I/O timeout, and its bytes at 64 KiB/s)",
        idle.length() + slowest,
    )
}

/// The names of the limits of a whole migration, at the source and at the destination. In C both
/// are `total_timeout_ms`.
const TOTAL: &str = "the total timeout";
const INCOMING: &str = "the incoming migration's total timeout";

fn total(name: &'static str, timeout: Option<Duration>, begun: Instant) -> Limit {
    match timeout {
        Some(length) => Timeout::new(name, length).since(begun),
        None => Limit::never(),
    }
}

/// A length of time as the documentation writes it: "300 ms", "1 h", "30 days".
#[derive(PartialEq, PartialOrd)]
struct Words(Duration);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (micros, ms) = (self.0.as_micros(), self.0.as_millis());
        let day = (HOUR * 24).as_millis();
        match ms {
            _ if !self.0.subsec_nanos().is_multiple_of(1000) => {
                write!(f, "{} ns", self.0.as_nanos())
            }
            _ if micros % 1000 > 0 => write!(f, "{micros} µs"),
            0 => f.write_str("0 ms"),
            _ if ms == day => f.write_str("1 day"),
            _ if ms % day == 0 => write!(f, "{} days", ms / day),
            _ if ms % HOUR.as_millis() == 0 => write!(f, "{} h", ms / HOUR.as_millis()),
            _ if ms % 1000 == 0 => write!(f, "{} s", ms / 1000),
            _ => write!(f, "{ms} ms"),
        }
    }
}

fn within<T: PartialOrd + fmt::Display>(name: &str, value: T, least: T, most: T) -> Result<()> {
    if value < least || value > most {
        return Err(Error::new(
            Kind::Invalid,
            format!("{name} is {value}; it can be {least} to {most}"),
        ));
    }
    Ok(())
}

fn time_within(name: &str, value: Duration, most: Duration) -> Result<()> {
    let least = Duration::from_millis(1);
    within(name, Words(value), Words(least), Words(most))
}

fn check_bandwidth(name: &str, bytes_per_second: Option<u64>) -> Result<()> {
    match bytes_per_second {
        Some(rate) => within(
            &format!("{name} (bytes a second)"),
            rate,
            BANDWIDTH_MIN,
            BANDWIDTH_MAX,
        ),
        None => Ok(()),
    }
}

/// Refuses a [`Params::max_bandwidth`] out of its range.
pub(super) fn check_max_bandwidth(bytes_per_second: Option<u64>) -> Result<()> {
    check_bandwidth("max_bandwidth", bytes_per_second)
}

impl Params {
    /// The protocol versions and features of a side.
    /// `devices`: whether the source has devices whose state is streamed. `descriptors`: whether
    /// descriptors can travel over the connection and this side's VMM wants them.
    pub(super) fn ours(&self, side: Side, devices: bool, descriptors: bool) -> wire::Ours {
        let mut ours = wire::Ours::default();
        match (self.postcopy, side) {
            (true, Side::Source) => ours = ours.requiring(wire::FEATURE_POSTCOPY),
            (false, Side::Source) => ours = ours.without(wire::FEATURE_POSTCOPY),
            (_, Side::Destination) => {}
        }
        match (descriptors, side, self.hand_over) {
            (true, Side::Source, HandOver::Only) => {
                ours = ours.requiring(wire::FEATURE_DESCRIPTORS);
            }
            (true, Side::Source, HandOver::WherePossible) | (true, Side::Destination, _) => {}
            (false, ..) | (true, Side::Source, HandOver::Off) => {
                ours = ours.without(wire::FEATURE_DESCRIPTORS);
            }
        }
        match (devices, side) {
            (true, Side::Source) => ours = ours.requiring(wire::FEATURE_DEVICE_STREAMS),
            (false, Side::Source) => ours = ours.without(wire::FEATURE_DEVICE_STREAMS),
            (_, Side::Destination) => {}
        }
        if !self.skip_ballooned {
            ours = ours.without(wire::FEATURE_BALLOONED);
        }
        match (self.delta_cache_bytes, side) {
            (Some(_), Side::Source) => ours = ours.requiring(wire::FEATURE_DELTA),
            (None, Side::Source) => ours = ours.without(wire::FEATURE_DELTA),
            (_, Side::Destination) => {}
        }
        match (self.compression, side) {
            (Compression::Off, Side::Source) => ours = ours.without(wire::FEATURE_ZSTD),
            (Compression::Always, Side::Source) => ours = ours.requiring(wire::FEATURE_ZSTD),
            (Compression::Adaptive, _) | (_, Side::Destination) => {}
        }
        if !compress::AVAILABLE {
            ours = ours.without(wire::FEATURE_ZSTD);
        }
        match (self.verify, side) {
            (true, Side::Source) => ours = ours.requiring(wire::FEATURE_VERIFY),
            (false, Side::Source) => ours = ours.without(wire::FEATURE_VERIFY),
            (_, Side::Destination) => {}
        }
        match (self.page_checksums, side) {
            (PageChecksums::On, _) => ours.requiring(wire::FEATURE_PAGE_CHECKSUMS),
            (PageChecksums::Off, _) | (PageChecksums::Default, Side::Source) => {
                ours.without(wire::FEATURE_PAGE_CHECKSUMS)
            }
            (PageChecksums::Default, Side::Destination) => ours,
        }
    }

    /// The limit for connecting, and for agreeing.
    pub(super) fn connect(&self) -> Timeout {
        Timeout::new("the connect timeout", self.connect_timeout)
    }

    /// The limit for a peer that moves no byte.
    pub(super) fn io(&self) -> Timeout {
        Timeout::new("the I/O timeout", self.io_timeout)
    }

    /// The limit for `bytes` that are sent or received as one transfer. It ends a transfer whose
    /// peer moves a byte now and then, and so is never idle.
    pub(super) fn transfer(&self, bytes: u64) -> Timeout {
        transfer(self.io(), bytes)
    }

    /// The limit for the next acknowledgement, while the connection still holds `held` sent bytes.
    /// A peer behind a slow link is not idle.
    pub(super) fn acknowledgement(&self, held: u64) -> Timeout {
        match held {
            0 => self.io(),
            _ => Timeout::new(
                "the limit on one acknowledgement (the I/O timeout, and what is on its way at 64 KiB/s)",
                self.transfer(held).length(),
            ),
        }
    }

    /// From the pause to the hand-over.
    pub(super) fn switchover(&self) -> Timeout {
        Timeout::new("the switchover timeout", self.switchover_timeout)
    }

    /// Source: the deadline of everything before the switchover.
    pub(super) fn total(&self, begun: Instant) -> Limit {
        total(TOTAL, self.total_timeout, begun)
    }

    /// Destination: the deadline of the hand-over.
    pub(super) fn incoming(&self, accepted: Instant) -> Limit {
        total(INCOMING, self.incoming_timeout, accepted)
    }

    /// The limit for all DIGEST records about a guest of so many pages. The source computes as many
    /// checksums as it is sent. The name says what the length is made of.
    pub(super) fn digests(&self, pages: u64) -> Timeout {
        Timeout::new(
            "the limit on verifying (the I/O timeout, and 4 bytes a page at 64 KiB/s)",
            self.transfer(pages.saturating_mul(4)).length(),
        )
    }

    /// Refuses a parameter out of its range; the error names the range.
    pub fn check(&self) -> Result<()> {
        time_within("the downtime limit", self.downtime_limit, HOUR)?;
        check_max_bandwidth(self.max_bandwidth)?;
        check_bandwidth("switchover_bandwidth", self.switchover_bandwidth)?;
        let capped = self.switchover_max_bandwidth;
        check_bandwidth("switchover_max_bandwidth", capped)?;
        for (name, total) in [
            (TOTAL, self.total_timeout),
            ("the incoming timeout", self.incoming_timeout),
        ] {
            if let Some(total) = total {
                time_within(name, total, HOUR * 24 * 30)?;
            }
        }
        self.check_expected()?;
        self.check_policy()?;
        self.check_postcopy()?;
        let slack = Words(self.downtime_slack);
        within(
            "the downtime slack",
            slack,
            Words(Duration::ZERO),
            Words(HOUR),
        )?;
        time_within("the connect timeout", self.connect_timeout, HOUR)?;
        time_within("the I/O timeout", self.io_timeout, HOUR)?;
        time_within("the switchover timeout", self.switchover_timeout, HOUR)?;
        time_within("the hand-over timeout", self.handover_timeout, HOUR)?;
        let most = u32::from(wire::CHANNELS_MAX);
        within("channels", self.channels, 1, most)?;
        within("incoming_channels", self.incoming_channels, 1, most)?;
        if let Some(bytes) = self.delta_cache_bytes {
            within("delta_cache_bytes", bytes, 1 << 20, 1 << 40)?;
        }
        within("max_state_bytes", self.max_state_bytes, 4096, 1 << 40)?;
        within(
            "max_device_buffer",
            self.max_device_buffer,
            1 << 20,
            1 << 40,
        )?;
        if self.compression != Compression::Off {
            compress::available()?;
        }
        let level = self.compression_level;
        if level != 0 && !(LEVEL_MIN..=LEVEL_MAX).contains(&level) {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "compression_level is {level}; it can be {LEVEL_MIN} to {LEVEL_MAX}, or 0 for \
                     the default"
                ),
            ));
        }
        Ok(())
    }

    /// The default decider, as these parameters want it.
    pub(super) fn decider(&self) -> FitsDowntime {
        FitsDowntime::new(self.downtime_limit, self.total_timeout)
            .with_slack(self.downtime_slack)
            .on_overrun(self.overrun)
    }

    /// A deadline after the total timeout would never come.
    fn check_policy(&self) -> Result<()> {
        self.policy.check(self.downtime_limit)?;
        match (self.policy.deadline, self.total_timeout) {
            (Some(deadline), Some(total)) if deadline > total => Err(Error::new(
                Kind::Invalid,
                format!(
                    "the policy's deadline is {}; {TOTAL} of {} ends the migration before it",
                    Words(deadline),
                    Words(total)
                ),
            )),
            _ => Ok(()),
        }
    }

    fn check_postcopy(&self) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(Kind::Invalid, message));
        if self.postcopy && self.verify {
            return invalid(
                "a migration that may be switched to postcopy is not verified: when the guest runs at the \
                 destination, its memory is not there yet",
            );
        }
        if self.postcopy && self.hand_over != HandOver::Off {
            return invalid(
                "memory is handed over by descriptors, or the guest may be sent ahead of its memory \
                 (postcopy); not both in one migration",
            );
        }
        if !self.postcopy && self.policy.on_deadline == OnDeadline::Postcopy {
            return invalid("the policy switches to postcopy, which the parameters do not allow");
        }
        Ok(())
    }

    fn check_expected(&self) -> Result<()> {
        let expected = &self.expected;
        for (name, time) in [
            ("the expected time of `pause`", expected.pause),
            ("the expected time of `save`", expected.save),
            ("the expected time of `load`", expected.load),
            ("the expected time of `release`", expected.release),
            ("the expected time of `run`", expected.run),
        ] {
            let time = Words(time.unwrap_or_default());
            within(name, time, Words(Duration::ZERO), Words(HOUR))?;
        }
        let bytes = expected.state_bytes.unwrap_or(0);
        within("the expected size of the device state", bytes, 0, 1 << 40)
    }

    /// The level of zstd, the default where none is given.
    pub(super) fn level(&self) -> i32 {
        match self.compression_level {
            0 => LEVEL_MIN,
            level => level,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_takes_checksums_by_default_and_a_source_has_to_be_told() {
        use PageChecksums as C;
        // The settings of source and destination, and the agreement on checksums. `None`: there is
        // no agreement.
        let table = [
            (C::Default, C::Default, Some(false)),
            (C::Default, C::Off, Some(false)),
            (C::Default, C::On, None),
            (C::On, C::Default, Some(true)),
            (C::On, C::On, Some(true)),
            (C::On, C::Off, None),
            (C::Off, C::Default, Some(false)),
            (C::Off, C::On, None),
            (C::Off, C::Off, Some(false)),
        ];
        for (source, destination, agreed) in table {
            let of = |page_checksums, side| {
                let params = Params {
                    page_checksums,
                    ..Params::default()
                };
                params.ours(side, false, false)
            };
            let ours = of(source, Side::Source);
            let hello = wire::Hello {
                version_min: 1,
                version_max: 1,
                features_offered: ours.offered,
                features_required: ours.required,
                token: [0; 16],
                channel: 0,
                channels: 1,
                page_shift: 12,
                role: wire::ROLE_BULK,
                software: String::new(),
            };
            let reply = wire::negotiate(&hello, &of(destination, Side::Destination));
            let found = reply
                .as_ref()
                .map(|(_, bits)| bits & wire::FEATURE_PAGE_CHECKSUMS != 0);
            let row = (source, destination);
            assert_eq!(found.ok(), agreed, "{row:?}");
            if let Err(e) = reply {
                assert!(
                    e.message().contains("page-checksums (bit 5)"),
                    "{row:?}: {e}"
                );
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_its_name_with_the_range() {
        let d = Params::default;
        d().check().unwrap();
        let wrong = [
            (
                Params {
                    downtime_limit: Duration::ZERO,
                    ..d()
                },
                "the downtime limit is 0 ms; it can be 1 ms to 1 h",
            ),
            (
                Params {
                    max_bandwidth: Some(1),
                    ..d()
                },
                "max_bandwidth (bytes a second) is 1; it can be 65536 to 1099511627776",
            ),
            (
                Params {
                    switchover_max_bandwidth: Some(65_535),
                    ..d()
                },
                "switchover_max_bandwidth (bytes a second) is 65535; it can be 65536 to",
            ),
            (
                Params {
                    switchover_bandwidth: Some(u64::MAX),
                    ..d()
                },
                "switchover_bandwidth (bytes a second) is 18446744073709551615; it can be 65536 to",
            ),
            (
                Params {
                    total_timeout: Some(Duration::from_micros(10)),
                    ..d()
                },
                "the total timeout is 10 µs; it can be 1 ms to 30 days",
            ),
            (
                Params {
                    incoming_timeout: Some(Duration::ZERO),
                    ..d()
                },
                "the incoming timeout is 0 ms; it can be 1 ms to 30 days",
            ),
            (
                Params {
                    incoming_timeout: Some(HOUR * 24 * 31),
                    ..d()
                },
                "the incoming timeout is 31 days; it can be 1 ms to 30 days",
            ),
            (
                Params {
                    downtime_slack: HOUR * 2,
                    ..d()
                },
                "the downtime slack is 2 h; it can be 0 ms to 1 h",
            ),
            (
                Params {
                    expected: Operations {
                        load: Some(HOUR * 2),
                        ..Operations::default()
                    },
                    ..d()
                },
                "the expected time of `load` is 2 h; it can be 0 ms to 1 h",
            ),
            (
                Params {
                    expected: Operations {
                        state_bytes: Some(1 << 41),
                        ..Operations::default()
                    },
                    ..d()
                },
                "the expected size of the device state is 2199023255552; it can be 0 to",
            ),
            (
                Params {
                    connect_timeout: HOUR * 2,
                    ..d()
                },
                "the connect timeout is 2 h; it can be 1 ms to 1 h",
            ),
            (
                Params {
                    io_timeout: HOUR + Duration::from_secs(1),
                    ..d()
                },
                "the I/O timeout is 3601 s; it can be 1 ms to 1 h",
            ),
            (
                Params {
                    switchover_timeout: HOUR * 24,
                    ..d()
                },
                "the switchover timeout is 1 day; it can be 1 ms to 1 h",
            ),
            (
                Params {
                    handover_timeout: HOUR + Duration::from_millis(1),
                    ..d()
                },
                "the hand-over timeout is 3600001 ms; it can be 1 ms to 1 h",
            ),
            (
                Params { channels: 0, ..d() },
                "channels is 0; it can be 1 to 64",
            ),
            (
                Params {
                    channels: 65,
                    ..d()
                },
                "channels is 65; it can be 1 to 64",
            ),
            (
                Params {
                    incoming_channels: 65,
                    ..d()
                },
                "incoming_channels is 65; it can be 1 to 64",
            ),
            (
                Params {
                    max_state_bytes: 0,
                    ..d()
                },
                "max_state_bytes is 0; it can be 4096 to",
            ),
            (
                Params {
                    delta_cache_bytes: Some(4096),
                    ..d()
                },
                "delta_cache_bytes is 4096; it can be 1048576 to 1099511627776",
            ),
            (
                Params {
                    delta_cache_bytes: Some((1 << 40) + 1),
                    ..d()
                },
                "delta_cache_bytes is 1099511627777; it can be 1048576 to 1099511627776",
            ),
            (
                Params {
                    compression_level: 20,
                    ..d()
                },
                "compression_level is 20; it can be 1 to 19, or 0 for the default",
            ),
            (
                Params {
                    compression_level: -1,
                    ..d()
                },
                "1 to 19",
            ),
        ];
        for (params, range) in wrong {
            let error = params.check().unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().contains(range), "{range} in: {error}");
        }
    }
}
