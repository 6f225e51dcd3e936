//! `--gdb`: where gdb finds the machine.
//!
//! ```text
//!   --gdb                      tcp=127.0.0.1:1234, as QEMU's -s
//!   --gdb unix=web.gdb         a socket of this user, target remote web.gdb
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::setting::Value;
use super::text::is_text;

/// Where gdb connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GdbAt {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port. The protocol has no password: who reaches it has the guest.
    Tcp(SocketAddr),
}

impl Value for GdbAt {
    fn move_to(&mut self, directory: &Path) {
        if let GdbAt::Unix(path) = self {
            path.move_to(directory);
        }
    }
}

impl FromStr for GdbAt {
    type Err = String;

    fn from_str(text: &str) -> Result<GdbAt, String> {
        let why = || "not a place for gdb; say unix=PATH, tcp=PORT or tcp=ADDRESS:PORT".to_owned();
        match text.split_once('=') {
            Some(("unix", path)) if !path.is_empty() => Ok(GdbAt::Unix(path.into())),
            Some(("tcp", place)) => {
                let port = place.parse::<u16>().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
                port.or_else(|_| place.parse()).map(GdbAt::Tcp).map_err(|_| why())
            }
            _ => Err(why()),
        }
    }
}

impl fmt::Display for GdbAt {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GdbAt::Unix(path) => write!(to, "unix={}", path.display()),
            GdbAt::Tcp(place) => write!(to, "tcp={place}"),
        }
    }
}

is_text!(GdbAt);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_for_this_host() {
        for (text, told) in [
            ("tcp=1234", "tcp=127.0.0.1:1234"),
            ("tcp=0.0.0.0:1", "tcp=0.0.0.0:1"),
            ("tcp=[::1]:9", "tcp=[::1]:9"),
            ("unix=a=b", "unix=a=b"),
        ] {
            assert_eq!(text.parse::<GdbAt>().unwrap().to_string(), told);
        }
        for text in ["", "1234", "tcp=", "tcp=x:1", "tcp=70000", "unix=", "serial=1"] {
            assert!(text.parse::<GdbAt>().unwrap_err().contains("say unix=PATH"), "{text}");
        }
    }
}
