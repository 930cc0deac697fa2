//! A listener takes one connection, and a second one achieves nothing.

use super::bounds::bounded;
use super::params::quick;
use super::records::{hello, sample, PAGES, TOKEN};
use crate::support::fuzz::bytes;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::incoming;
use crate::support::time::LONG;
use brant::channel::Endpoint;
use brant::error::Kind;
use brant::wire;
use brant::wire::{Header, Record, RecordType, HEADER_LEN};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

#[test]
fn a_listener_takes_one_connection_and_a_second_gets_nowhere() {
    bounded();
    let dir = tempfile::tempdir().unwrap();
    for endpoint in [
        Endpoint::parse("tcp:127.0.0.1:0").unwrap(),
        Endpoint::Unix(dir.path().join("s")),
    ] {
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        let inc = incoming(&pair, &quick());
        let at = inc.listen(&endpoint).unwrap();
        let call = || -> std::io::Result<Box<dyn Stream>> {
            Ok(match &at {
                Endpoint::Tcp(at) => Box::new(TcpStream::connect(at)?),
                Endpoint::Unix(path) => Box::new(UnixStream::connect(path)?),
                other => panic!("{other} is nowhere that these tests listen"),
            })
        };
        let mut first = call().unwrap();
        first.write_all(&sample(RecordType::Hello)).unwrap();
        let mut head = [0; HEADER_LEN];
        first.read_exact(&mut head).unwrap();
        let kind = Header::decode(&head).unwrap().record_type();
        assert_eq!(kind, Ok(Some(RecordType::HelloReply)));
        // With the same token or another one, no thread looks at it.
        for token in [TOKEN, [6; 16]] {
            let Ok(mut second) = call() else {
                continue;
            };
            let hello = Record::Hello(wire::Hello { token, ..hello() });
            let _ = second.write_all(&bytes(&hello));
            let mut answer = Vec::new();
            let _ = second.read_to_end(&mut answer);
            assert_eq!(answer, b"", "{at}: a second session");
        }
        // The first connection's session goes on undisturbed.
        let mut raw = vec![0; Header::decode(&head).unwrap().payload as usize];
        first.read_exact(&mut raw).unwrap();
        first.write_all(&sample(RecordType::EarlyEnd)).unwrap();
        first.read_exact(&mut head).unwrap();
        let kind = Header::decode(&head).unwrap().record_type();
        assert_eq!(kind, Ok(Some(RecordType::EarlyOk)), "{at}");
        drop(first);
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert!(matches!(error.kind(), Kind::PeerGone | Kind::Io), "{error}");
    }
    bounded();
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}
