//! The figures of one channel.

use super::json;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// What a lane is doing. The numbers are part of the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum LaneState {
    /// There is no connection yet, or the migration is over.
    #[default]
    Closed = 0,
    /// All work of the lane is done and acknowledged.
    Idle = 1,
    /// The lane has work, or waits for its peer.
    Busy = 2,
}

impl LaneState {
    /// The state in one word, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            LaneState::Closed => "closed",
            LaneState::Idle => "idle",
            LaneState::Busy => "busy",
        }
    }
}

impl Serialize for LaneState {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// The figures of one lane of a migration: a connection, and its encoder or decoder.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LaneStats {
    /// What the lane is doing.
    pub state: LaneState,
    /// Bytes that went over the connection, headers included.
    pub wire_bytes: u64,
    /// Pages sent (received) with their contents.
    pub data_pages: u64,
    /// Pages sent (received) as zero.
    pub zero_pages: u64,
    /// Pages sent that the destination has not acknowledged. Source only.
    pub unacknowledged_pages: u64,
    /// Pages that wait for the lane. Source only; 0 when there is one channel.
    pub queued_pages: u64,
    /// How long the migration's thread waited because this lane's queue was full. Source only; 0 on
    /// channel 0.
    #[serde(rename = "queue_wait_ns", serialize_with = "json::as_nanos")]
    pub queue_wait: Duration,
    /// How long the connection had no room. Source only.
    #[serde(rename = "send_wait_ns", serialize_with = "json::as_nanos")]
    pub send_wait: Duration,
    /// How long the lane had nothing to do. Source: 0 on channel 0. Destination: how long it waited
    /// for bytes.
    #[serde(rename = "idle_ns", serialize_with = "json::as_nanos")]
    pub idle: Duration,
    /// How long the destination has had something to acknowledge and has acknowledged nothing;
    /// `None` when it has nothing to acknowledge. Source only.
    #[serde(rename = "silence_ns", serialize_with = "json::as_nanos_or_0")]
    pub silence: Option<Duration>,
}
