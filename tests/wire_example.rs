//! docs/wire-example.md is what brant sends: a session of one block, two pages and one device, which
//! is recorded here and compared with the page, byte by byte.
//!
//! `BRANT_REGEN_FIXTURES=1 cargo test --test all wire_example::` writes the page's bytes anew.

use crate::support::deciders::until;
use crate::support::guest::differences;
use crate::support::memory::{ram, PAGE};
use crate::support::pair::Pair;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, quick};
use crate::support::time::LONG;
use brant::error::Result;
use brant::migrate::{AcceptFrom, ConnectTo, Params};
use brant::vmm::device::{Device, Left};
use brant::wire::{Direction, Header, Record, RecordType, HEADER_LEN};
use std::fmt::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

const PAGE_OF_DOCS: &str = "docs/wire-example.md";
const BEGIN: &str = "<!-- session: written by tests/wire_example.rs -->\n";
const END: &str = "<!-- end of session -->\n";

/// A device that gives eight bytes while the guest runs, which must be loaded before the pause, and
/// five afterwards.
#[derive(Default)]
struct Nic(Mutex<usize>);

const RUNNING: &[u8] = b"firmware";
const STOPPED: &[u8] = b"rings";

impl Nic {
    fn give(&self, from: &[u8], before: usize, buffer: &mut [u8]) -> usize {
        let mut given = self.0.lock().unwrap();
        let rest = &from[(*given - before).min(from.len())..];
        buffer[..rest.len()].copy_from_slice(rest);
        *given += rest.len();
        rest.len()
    }
}

impl Device for Nic {
    fn left(&self) -> Result<Left> {
        let left = RUNNING.len().saturating_sub(*self.0.lock().unwrap()) as u64;
        Ok(Left {
            initial: left,
            running: left,
            stopped: Some(STOPPED.len() as u64),
        })
    }
    fn read_running(&self, buffer: &mut [u8]) -> Result<usize> {
        Ok(self.give(RUNNING, 0, buffer))
    }
    fn stop(&self) -> Result<()> {
        Ok(())
    }
    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize> {
        Ok(self.give(STOPPED, RUNNING.len(), buffer))
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn load_running(&self, data: &[u8]) -> Result<()> {
        assert_eq!(data, RUNNING);
        Ok(())
    }
    fn load_stopped(&self, data: &[u8]) -> Result<()> {
        assert_eq!(data, STOPPED);
        Ok(())
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
}

/// Every record of the session, with its header, in the order in which they passed.
fn recorded() -> Vec<Vec<u8>> {
    let pair = Pair::new(&[ram("ram", 2)]);
    let text = b"a guest's page";
    let memory = pair.source.ram("ram");
    // SAFETY: within the block's second page, which nobody else writes yet.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), memory.host().add(PAGE), text.len());
    }
    for side in [&pair.source, &pair.destination] {
        let nic = Arc::new(Nic::default());
        side.memory.add_device("nic", 0, 1, nic).unwrap();
    }
    let records = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&records);
    let (_proxy, near, far) = Proxy::new(Box::new(move |header, payload| {
        if header.record_type().unwrap() != Some(RecordType::Keepalive) {
            seen.lock()
                .unwrap()
                .push([&header.encode()[..], payload].concat());
        }
        Verdict::Forward
    }));
    let params = Params {
        downtime_limit: LONG,
        ..quick()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(far)).unwrap();
    // One pass, however long a busy machine makes it.
    let decider = until(&Arc::new(AtomicBool::new(true)));
    out.start_with(ConnectTo::Connected(near), decider).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(
        differences(&pair.source, &pair.destination),
        [""; 0],
        "memory"
    );
    let records = records.lock().unwrap().clone();
    in_turn(records.iter().map(|record| settled(record)).collect())
}

fn parts(record: &[u8]) -> (Header, RecordType, &[u8]) {
    let (head, payload) = record.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = Header::decode(head).unwrap();
    (header, header.classify().unwrap().unwrap(), payload)
}

/// The record with the page's values for what differs in each session: the token and measured times.
fn settled(bytes: &[u8]) -> Vec<u8> {
    let (header, kind, payload) = parts(bytes);
    let token: [u8; 16] = std::array::from_fn(|i| i as u8 * 0x11);
    if !matches!(
        kind,
        RecordType::Hello | RecordType::Ready | RecordType::Handover | RecordType::Running
    ) {
        return bytes.to_vec();
    }
    let mut record = Record::decode(&header, payload).unwrap();
    match &mut record {
        Record::Hello(hello) => hello.token = token,
        Record::Ready(ready) => ready.load_micros = 250,
        Record::Handover(handover) => handover.token = token,
        Record::Running(running) => running.run_micros = 40,
        _ => unreachable!(),
    }
    let mut out = Vec::new();
    record.encode(&mut out).unwrap();
    out
}

/// The destination's records, each right behind the record that it answers: the two directions do not
/// pass in one order.
fn in_turn(records: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let is_answer = |record: &Vec<u8>| parts(record).1.direction() == Direction::ToSource;
    let (mut answers, source): (Vec<_>, Vec<_>) = records.into_iter().partition(is_answer);
    let mut turns = Vec::new();
    for record in source {
        let (_, kind, payload) = parts(&record);
        let expected = match kind {
            RecordType::Hello => Some(RecordType::HelloReply),
            RecordType::EarlyEnd => Some(RecordType::EarlyOk),
            RecordType::LayoutEnd => Some(RecordType::LayoutOk),
            RecordType::Marker => Some(RecordType::Ack),
            RecordType::StateEnd => Some(RecordType::Ready),
            RecordType::Handover => Some(RecordType::Running),
            RecordType::Device if payload[4] & 4 != 0 => Some(RecordType::DeviceLoaded),
            _ => None,
        };
        turns.push(record);
        if let Some(expected) = expected {
            let at = answers
                .iter()
                .position(|answer| parts(answer).1 == expected);
            turns.extend(at.map(|at| answers.remove(at)));
        }
    }
    assert_eq!(answers.len(), 0, "answers to nothing");
    turns
}

/// A field of a payload: its length and name. A name with `=` is a number, with `"` a text.
fn fields(kind: RecordType, payload: &[u8]) -> Vec<(usize, &'static str)> {
    match kind {
        RecordType::Hello => vec![
            (2, "version_min ="),
            (2, "version_max ="),
            (8, "features_offered"),
            (8, "features_required"),
            (16, "token"),
            (2, "channel ="),
            (2, "channels ="),
            (1, "page_shift ="),
            (1, "role ="),
            (1, "length of software ="),
            (payload[42] as usize, "software \""),
        ],
        RecordType::HelloReply => vec![
            (2, "version ="),
            (8, "features"),
            (1, "length of software ="),
            (payload[10] as usize, "software \""),
        ],
        RecordType::Block => vec![
            (8, "length ="),
            (8, "page_size ="),
            (4, "flags ="),
            (2, "length of name ="),
            (payload[20] as usize, "name \""),
        ],
        RecordType::DeviceNamed => vec![
            (4, "number ="),
            (4, "instance ="),
            (4, "version ="),
            (1, "length of name ="),
            (payload[12] as usize, "name \""),
        ],
        RecordType::LayoutEnd => vec![(4, "blocks ="), (8, "bytes =")],
        RecordType::Pages => vec![(payload.len(), "the page's contents")],
        RecordType::Device => vec![
            (4, "device ="),
            (4, "flags ="),
            (8, "offset ="),
            (payload.len() - 16, "state \""),
        ],
        RecordType::DeviceLoaded => vec![(4, "device ="), (8, "bytes =")],
        RecordType::Marker => vec![
            (8, "number ="),
            (4, "pass ="),
            (4, "flags ="),
            (8, "records ="),
            (8, "data_pages ="),
            (8, "zero_pages ="),
        ],
        RecordType::Ack => vec![(8, "number =")],
        RecordType::State => vec![
            (1, "length of name ="),
            (payload[0] as usize, "name \""),
            (4, "instance ="),
            (4, "version ="),
            (8, "length ="),
            (payload.len() - 17 - payload[0] as usize, "data"),
        ],
        RecordType::EarlyEnd => vec![(4, "count ="), (8, "bytes =")],
        RecordType::StateEnd => vec![(4, "count ="), (8, "bytes ="), (4, "handover_millis =")],
        RecordType::Ready => vec![(8, "load_micros ="), (8, "digest_micros =")],
        RecordType::Handover => vec![(16, "token")],
        RecordType::Running => vec![(8, "run_micros =")],
        _ => vec![],
    }
}

fn hex(bytes: &[u8]) -> String {
    let each: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    each.join(" ")
}

/// One record as lines of bytes and what they are.
fn described(record: &[u8]) -> String {
    let (header, kind, payload) = parts(record);
    let mut text = String::new();
    let mut line = |bytes: String, what: &str| {
        writeln!(text, "{}", format!("{bytes:<49}{what}").trim_end()).unwrap();
    };
    let head: Vec<String> = [4, 2, 2, 4, 4, 8, 4, 4]
        .iter()
        .scan(0, |at, length| {
            *at += length;
            Some(hex(&record[*at - length..*at]))
        })
        .collect();
    let count = match kind.is_page_run() {
        true => format!("pages {}, first page {}", header.count, header.first_page),
        false if payload.is_empty() => "no payload: 0, first page".into(),
        false => "CRC-32 of the payload, first page".into(),
    };
    let kind_number = header.kind;
    line(
        head[..4].join("  "),
        &format!("magic, type {kind_number}, flags, block {}", header.block),
    );
    line(head[4..6].join("  "), &count);
    line(
        head[6..].join("  "),
        &format!("payload {}, CRC-32 of the header", payload.len()),
    );
    let mut rest = payload;
    for (length, name) in fields(kind, payload) {
        let (bytes, behind) = rest.split_at(length);
        rest = behind;
        let what = if name.ends_with('"') {
            format!("{name}{}\"", std::str::from_utf8(bytes).unwrap())
        } else if let Some(name) = name.strip_suffix(" =") {
            let mut number = [0; 8];
            number[..length].copy_from_slice(bytes);
            format!("{name} {}", u64::from_le_bytes(number))
        } else {
            name.to_owned()
        };
        // Most of a page is zeros, of which nobody wants to read each.
        let mut named = false;
        let mut rows = bytes.chunks(16).peekable();
        while let Some(row) = rows.next() {
            let mut same = row.len();
            while length > 64 && row.iter().all(|byte| *byte == 0) {
                match rows.next_if(|next| next.iter().all(|byte| *byte == 0)) {
                    Some(next) => same += next.len(),
                    None => break,
                }
            }
            let shown = match same > row.len() {
                true => format!("{same} bytes 00"),
                false => hex(row),
            };
            line(shown, if named { "" } else { &what });
            named = true;
        }
    }
    assert_eq!(rest, [0; 0], "{kind:?}: bytes without a field");
    text
}

/// The session as the page has it.
fn page(records: &[Vec<u8>]) -> String {
    let mut text = String::from(BEGIN);
    for record in records {
        let (_, kind, _) = parts(record);
        let way = match kind.direction() {
            Direction::ToSource => "Destination",
            _ => "Source",
        };
        let name = format!("{kind:?}");
        let name = name.chars().fold(String::new(), |mut name, letter| {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
            name
        });
        write!(
            text,
            "\n**{way}: {name}**\n\n```text\n{}```\n",
            described(record)
        )
        .unwrap();
    }
    text + "\n" + END
}

/// How often a session is made until it has the page's records. A source measures the round trip by a marker more where
/// it knows less of it, which depends on the machine's speed.
const TRIES: usize = 60;

#[test]
fn the_page_has_the_bytes_that_brant_sends() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE_OF_DOCS);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = &text[before.len()..text.len() - after.len()];
    let mut found = String::new();
    for _ in 0..TRIES {
        found = page(&recorded());
        if found == expected {
            return;
        }
        if std::env::var_os("BRANT_REGEN_FIXTURES").is_some() {
            std::fs::write(&path, format!("{before}{found}{after}")).unwrap();
            return;
        }
    }
    for (number, (said, is)) in expected.lines().zip(found.lines()).enumerate() {
        let line = before.lines().count() + number + 1;
        assert_eq!(
            said, is,
            "{PAGE_OF_DOCS}:{line} (BRANT_REGEN_FIXTURES=1 writes it anew)"
        );
    }
    panic!(
        "{PAGE_OF_DOCS} has {} lines, a session {}",
        expected.lines().count(),
        found.lines().count()
    );
}
