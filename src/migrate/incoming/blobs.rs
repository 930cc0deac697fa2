//! Reading the blobs of the source's VMM: early configuration, and the device state.

use super::lane::{Incomer, Lane, Waits};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::control::{self, StoredBlob};
use crate::runtime::Limit;
use crate::vmm::StateBlob;
use crate::wire::{self, BlobEnd, Record, RecordType};
use std::time::Duration;

/// All blobs of one kind.
pub(super) struct Blobs {
    pub(super) list: Vec<StoredBlob>,
    pub(super) bytes: u64,
    /// How long a hand-over is valid, as the end of the device state says.
    pub(super) handover_limit: Duration,
}

/// Reads blobs of `kind` (EARLY or STATE) until their end, within the limits for the size and the
/// number of blobs.
pub(super) fn receive(
    lane: &mut Lane,
    waits: &Waits<'_>,
    kind: RecordType,
    limit: Limit,
) -> Result<Blobs> {
    let most = waits.params.max_state_bytes;
    let mut list: Vec<StoredBlob> = Vec::new();
    let mut bytes = 0u64;
    let what = match kind {
        RecordType::Early => "EARLY or EARLY_END",
        _ => "STATE or STATE_END",
    };
    let (end, handover_limit) = loop {
        match lane.next(waits, limit, what)? {
            Incomer::Blob(found, header) if found == kind => {
                if u64::from(header.payload) > most.saturating_sub(bytes) {
                    return Err(Error::new(
                        Kind::Protocol,
                        format!(
                            "the source sends more {} than the {most} bytes allowed here",
                            kind.name()
                        ),
                    ));
                }
                if list.len() >= wire::BLOBS_MAX as usize {
                    return Err(Error::new(
                        Kind::Protocol,
                        format!("more than {} blobs", wire::BLOBS_MAX),
                    ));
                }
                let mut data = lane.payload(&header, &waits.record(&header, limit))?;
                let (blob, prefix) = wire::Blob::decode(&header, &data)?;
                blob.check(&header, &data)?;
                data.drain(..prefix);
                bytes += u64::from(header.payload);
                fallible::push(&mut list, StoredBlob::received(blob, data), kind.name())?;
            }
            Incomer::Control(Record::EarlyEnd(end)) if kind == RecordType::Early => {
                break (end, Duration::ZERO);
            }
            Incomer::Control(Record::StateEnd(end)) if kind == RecordType::State => {
                break (end.blobs, Duration::from_millis(end.handover_millis.into()));
            }
            other => return Err(control::unexpected(other.kind(), kind.name())),
        }
    };
    let bytes = check_end(&list, end)?;
    Ok(Blobs {
        list,
        bytes,
        handover_limit,
    })
}

fn check_end(list: &[StoredBlob], end: BlobEnd) -> Result<u64> {
    let bytes: u64 = list.iter().map(|b| b.data.len() as u64).sum();
    if (end.count as usize, end.bytes) != (list.len(), bytes) {
        return Err(Error::new(
            Kind::Protocol,
            format!(
                "the end says {} blobs of {} bytes, and {} of {bytes} came",
                end.count,
                end.bytes,
                list.len()
            ),
        ));
    }
    Ok(bytes)
}

impl StoredBlob {
    pub(super) fn as_blob(&self) -> StateBlob<'_> {
        StateBlob {
            name: &self.blob.name,
            instance: self.blob.instance,
            version: self.blob.version,
            data: &self.data,
        }
    }
}
