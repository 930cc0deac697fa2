//! The text form of endpoints: `tcp:HOST:PORT` or `unix:/path`. This file only parses and prints.
//! Names are not looked up, because a lookup cannot be cancelled.

use crate::error::{Error, Kind, Result};
use crate::sys::net::{Address, UNIX_PATH_MAX};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to connect to or to listen at.
/// ```
/// use brant::migrate::Endpoint;
///
/// let text = "tcp:[::1]:4444";
/// assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
/// assert!(Endpoint::parse("unix:/run/guest.sock").is_ok());
/// assert!(Endpoint::parse("example.org").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// TCP over IPv4 or IPv6. Port 0 means any free port, and is allowed for a listener only.
    Tcp(SocketAddr),
    /// A unix stream socket at an absolute path of at most 107 bytes.
    Unix(PathBuf),
}

impl Endpoint {
    /// Parses `tcp:HOST:PORT` (HOST is an IPv4 address, an IPv6 address in brackets, or `localhost`
    /// for 127.0.0.1) or `unix:/path`.
    ///
    /// # Errors
    /// `Invalid`, with what to write instead.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("tcp:") {
            parse_tcp(text, rest).map(Endpoint::Tcp)
        } else if let Some(path) = text.strip_prefix("unix:") {
            parse_unix(text, path).map(Endpoint::Unix)
        } else {
            Err(invalid(
                text,
                "expected tcp:HOST:PORT or unix:/path".to_owned(),
            ))
        }
    }

    pub(crate) fn address(&self) -> Address {
        match self {
            Endpoint::Tcp(address) => Address::Inet(*address),
            Endpoint::Unix(path) => Address::Unix(path.clone()),
        }
    }
}

fn invalid(text: &str, why: String) -> Error {
    Error::new(Kind::Invalid, format!("endpoint {text:?}: {why}"))
}

fn parse_tcp(text: &str, rest: &str) -> Result<SocketAddr> {
    let Some((host, port)) = rest.rsplit_once(':') else {
        return Err(invalid(text, "no port; expected tcp:HOST:PORT".to_owned()));
    };
    // The parser of u16 accepts a plus sign, which no port has.
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = match port.parse::<u16>() {
        Ok(port) if digits => port,
        _ => {
            let why = format!("the port is {port:?}, expected a number from 0 to 65535");
            return Err(invalid(text, why));
        }
    };
    if host == "localhost" {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    // The standard parser accepts the brackets and a numeric scope (%2) of IPv6.
    format!("{host}:{port}").parse().map_err(|_| {
        let why = if host.contains(':') && !host.starts_with('[') {
            format!("an IPv6 address is written in brackets: tcp:[{host}]:{port}")
        } else {
            format!(
                "host {host:?} is not an IPv4 address, an IPv6 address in brackets or localhost; \
                 names are not looked up here (that cannot be cancelled): resolve the name \
                 yourself and give an address, or hand in a connected descriptor"
            )
        };
        invalid(text, why)
    })
}

fn parse_unix(text: &str, path: &str) -> Result<PathBuf> {
    if !path.starts_with('/') {
        let why = "expected an absolute path: unix:/path".to_owned();
        return Err(invalid(text, why));
    }
    if path.contains('\0') {
        return Err(invalid(text, "the path contains a NUL byte".to_owned()));
    }
    if path.len() > UNIX_PATH_MAX {
        let why = format!(
            "the path has {} bytes, a unix socket's may have {UNIX_PATH_MAX}",
            path.len()
        );
        return Err(invalid(text, why));
    }
    Ok(PathBuf::from(path))
}

impl FromStr for Endpoint {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Endpoint::parse(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "tcp:{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for text in [
            "tcp:127.0.0.1:4444",
            "tcp:0.0.0.0:0",
            "tcp:[::1]:65535",
            "tcp:[fe80::1%2]:1",
            "unix:/run/vm.sock",
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        let local = Endpoint::parse("tcp:localhost:80").unwrap();
        assert_eq!(local.to_string(), "tcp:127.0.0.1:80");
    }

    #[test]
    fn what_cannot_be_read_says_what_to_write() {
        for (text, hint) in [
            ("", "tcp:HOST:PORT or unix:/path"),
            ("127.0.0.1:1", "tcp:HOST:PORT or unix:/path"),
            ("tcp:", "no port"),
            ("tcp:127.0.0.1", "no port"),
            ("tcp:127.0.0.1:", "0 to 65535"),
            ("tcp:127.0.0.1:+1", "0 to 65535"),
            ("tcp:127.0.0.1:65536", "0 to 65535"),
            ("tcp:example.org:1", "resolve the name yourself"),
            ("tcp::1", "resolve the name yourself"),
            ("tcp:::1:80", "tcp:[::1]:80"),
            ("unix:", "absolute path"),
            ("unix:vm.sock", "absolute path"),
            ("unix:/a\0b", "NUL"),
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_path_has_at_most_107_bytes() {
        let path = |n: usize| format!("unix:/{}", "x".repeat(n - 1));
        assert!(Endpoint::parse(&path(107)).is_ok());
        let error = Endpoint::parse(&path(108)).unwrap_err();
        assert!(error.message().contains("108 bytes"), "{error}");
        assert!(error.message().contains("107"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_stays_the_same(text in "(tcp|unix)?:?.{0,130}") {
            if let Ok(endpoint) = Endpoint::parse(&text) {
                prop_assert_eq!(Endpoint::parse(&endpoint.to_string()).unwrap(), endpoint);
            }
        }
    }
}
