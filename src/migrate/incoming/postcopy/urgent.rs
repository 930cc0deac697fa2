//! The work of the lanes' threads behind the switch to postcopy: pages come until the final marker of
//! each lane. The urgent lane's thread also asks the source for the pages that somebody waits for.
//!
//! Behind the switch the source may have nothing to say on a lane for long. It says KEEPALIVE
//! meanwhile, so a lane that is silent for the patience of [`Waits`] is lost.

use super::requests::{asked, Requests};
use crate::error::{Error, Kind, Result};
use crate::memory::served::Served;
use crate::migrate::control;
use crate::migrate::incoming::lane::Waits;
use crate::migrate::incoming::receiver::{Came, Receiver};

/// Takes pages of a bulk lane until its final marker.
pub(in crate::migrate::incoming) fn bulk(lane: &mut Receiver, waits: &Waits<'_>) -> Result<()> {
    while !one(lane, waits)? {}
    lane.lane.flush_all(waits)
}

/// Takes one record. Returns whether it was the final marker.
pub(in crate::migrate::incoming) fn one(lane: &mut Receiver, waits: &Waits<'_>) -> Result<bool> {
    let expected = "pages or a marker";
    match lane.take_or_skip(waits, waits.patience().from_now())? {
        Some(Came::Marker(marker)) if marker.is_final() => {
            lane.finish();
            Ok(true)
        }
        None | Some(Came::Pages | Came::Marker(_)) => Ok(false),
        Some(Came::Other(other)) => Err(control::unexpected(other.kind(), expected)),
        Some(Came::Piece | Came::PagesEnd | Came::Switch) => Err(Error::new(
            Kind::Protocol,
            format!("expected {expected}, found a piece of a device or a marker before the switch"),
        )),
    }
}

/// Takes pages of the urgent lane until its final marker, and asks for those of `requests`.
pub(in crate::migrate::incoming) fn urgent(
    lane: &mut Receiver,
    waits: &Waits<'_>,
    requests: &Requests,
    served: &Served,
) -> Result<()> {
    let mut silent = waits.patience().from_now();
    loop {
        if requests.was_lost() {
            served.ask_again();
        }
        for record in asked(&requests.take())? {
            lane.lane.say(&record)?;
        }
        let came = lane
            .lane
            .wait_for_more_unless(requests.some(), waits.cancel, silent.at())?;
        waits.cancel.check("waiting for pages")?;
        if came {
            if one(lane, waits)? {
                return lane.lane.flush_all(waits);
            }
            silent = waits.patience().from_now();
        } else if silent.expired() {
            let message = format!("{silent} ran out: the source said nothing");
            return Err(Error::new(Kind::Timeout, message));
        }
    }
}
