//! The work of the lanes' threads behind the switch to postcopy: pages come until the final marker of
//! each lane. The urgent lane's thread also asks the source for the pages that somebody waits for.
//!
//! Behind the switch the source may have nothing to say on a lane for long. It says KEEPALIVE
//! meanwhile, so a lane that is silent for the patience of [`Waits`] is lost.

use super::requests::{Requests, Wanted};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::served::Served;
use crate::migrate::control;
use crate::migrate::incoming::lane::Waits;
use crate::migrate::incoming::receiver::{Came, Receiver};
use crate::units::Pages;
use crate::wire::{Record, Request, MISSING_PAGES_MAX, REQUEST_RUNS_MAX};

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

/// The records that ask for `wanted`, which ascends.
fn asked(wanted: &[Wanted]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for of_block in wanted.chunk_by(|one, next| one.block == next.block) {
        let mut runs: Vec<(Pages, u32)> = Vec::new();
        let block = of_block[0].block;
        let mut put = |runs: &mut Vec<(Pages, u32)>| {
            let runs = std::mem::take(runs);
            match runs.is_empty() {
                true => Ok(()),
                false => {
                    let record = Record::Request(Request { block, runs });
                    fallible::push(&mut records, record, "requests for pages")
                }
            }
        };
        for run in of_block {
            let mut at = run.pages.start;
            while at < run.pages.end {
                let end = run.pages.end.min(at + Pages(MISSING_PAGES_MAX.into()));
                fallible::push(&mut runs, (at, (end - at).0 as u32), "requested pages")?;
                if runs.len() == REQUEST_RUNS_MAX as usize {
                    put(&mut runs)?;
                }
                at = end;
            }
        }
        put(&mut runs)?;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(block: u32, first: u64, end: u64) -> Wanted {
        Wanted {
            block,
            pages: Pages(first)..Pages(end),
        }
    }

    fn runs(record: &Record) -> (u32, &[(Pages, u32)]) {
        match record {
            Record::Request(request) => (request.block, &request.runs),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_wanted_pages_of_a_block_are_asked_for_in_one_record() {
        let records = asked(&[wanted(1, 3, 4), wanted(1, 9, 12), wanted(5, 0, 1)]).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(runs(&records[0]), (1, &[(Pages(3), 1), (Pages(9), 3)][..]));
        assert_eq!(runs(&records[1]), (5, &[(Pages(0), 1)][..]));
        assert!(asked(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_record_of_requests_never_exceeds_its_limits() {
        let many: Vec<Wanted> = (0..600).map(|i| wanted(1, 2 * i, 2 * i + 1)).collect();
        let records = asked(&many).unwrap();
        let counts: Vec<usize> = records.iter().map(|r| runs(r).1.len()).collect();
        assert_eq!(counts, [256, 256, 88]);
        let most = u64::from(MISSING_PAGES_MAX);
        let records = asked(&[wanted(1, 5, 5 + 2 * most + 7)]).unwrap();
        let lengths: Vec<u32> = runs(&records[0]).1.iter().map(|(_, n)| *n).collect();
        assert_eq!(lengths, [MISSING_PAGES_MAX, MISSING_PAGES_MAX, 7]);
        for record in records {
            record.encode(&mut Vec::new()).unwrap();
        }
    }
}
