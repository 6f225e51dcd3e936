//! `--vsock`: the guest's address, and the socket by which programs of the host reach it.
//!
//! ```text
//!   --vsock cid=5,socket=web.vsock --FromStr-->
//!   [vsock] cid = 5                --serde---->  Vsock
//! ```
//!
//! Spec: virtio 1.2, 5.10.4 "Device configuration layout": which addresses a guest may have.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::setting::Value;

/// The address of a guest that was given none: the first that one may have.
pub const CID: u32 = 3;
/// The address after the last: any address.
const ANY: u32 = u32::MAX;
/// Most bytes of the socket's path: `sun_path` holds 107, and `_4294967295` comes after it.
pub const PATH_LIMIT: usize = 107 - 11;

/// `--vsock`: a socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "a table: [vsock], or [vsock] with cid = 3 and socket = \"FILE\"")]
pub struct Vsock {
    /// The guest's address: 3 to 4294967294 [default: 3]
    #[serde(deserialize_with = "possible_cid")]
    #[schemars(range(min = 3, max = 4294967294_u32))]
    pub cid: u32,
    /// Socket for programs of the host that connect to the guest; those that the guest connects to listen at the same
    /// path with _PORT after it [default: in the directory of the user's machines, which `axvm ctl MACHINE status` tells]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl Default for Vsock {
    fn default() -> Vsock {
        Vsock { cid: CID, socket: None }
    }
}

impl Value for Vsock {
    fn move_to(&mut self, directory: &Path) {
        self.socket.iter_mut().for_each(|path| path.move_to(directory));
    }
}

impl FromStr for Vsock {
    type Err = String;

    /// The path of the socket goes to the end: it may have commas.
    fn from_str(text: &str) -> Result<Vsock, String> {
        let mut vsock = Vsock::default();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(path) = rest.strip_prefix("socket=") {
                vsock.socket = Some(checked_path(path)?.into());
                break;
            }
            let (part, after) = rest.split_once(',').unwrap_or((rest, ""));
            match part.split_once('=') {
                Some(("cid", cid)) => {
                    let number = cid.parse().map_err(|_| format!("cid={cid} is no number; {}", Cids))?;
                    vsock.cid = checked_cid(number)?;
                }
                _ => return Err(format!("'{part}' is unknown; there are cid=N and then socket=PATH")),
            }
            rest = after;
        }
        Ok(vsock)
    }
}

/// Which addresses there are, for people.
struct Cids;

impl fmt::Display for Cids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a guest's is {CID} to {}", ANY - 1)
    }
}

fn checked_cid(cid: u32) -> Result<u32, String> {
    match cid {
        0..CID => Err(format!("cid={cid} is the host's own; {Cids}")),
        ANY => Err(format!("cid={cid} means any; {Cids}")),
        cid => Ok(cid),
    }
}

fn checked_path(path: &str) -> Result<&str, String> {
    if path.is_empty() { Err("socket= needs a path; leave it out for the usual one".into()) } else { Ok(path) }
}

fn possible_cid<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    checked_cid(u32::deserialize(from)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_a_path_each_may_be_left_out() {
        let parse = |text: &str| text.parse::<Vsock>().unwrap();
        assert_eq!(parse(""), Vsock::default());
        assert_eq!(parse("cid=3"), Vsock::default());
        let socket = |cid, path: &str| Vsock { cid, socket: Some(path.into()) };
        assert_eq!(parse("socket=v"), socket(3, "v"));
        assert_eq!(parse("cid=4294967294,socket=/a,b=c"), socket(u32::MAX - 1, "/a,b=c"));
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (text, word) in [
            ("cid=2", "host's own; a guest's is 3 to 4294967294"),
            ("cid=0", "host's own"),
            ("cid=4294967295", "means any"),
            ("cid=4294967296", "no number"),
            ("cid=-3", "no number"),
            ("cid=", "no number"),
            ("3", "'3' is unknown"),
            ("socket=", "needs a path"),
            ("path=v", "'path=v' is unknown; there are cid=N and then socket=PATH"),
        ] {
            let error = text.parse::<Vsock>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        let file = |text: &str| toml::from_str::<Vsock>(text).map_err(|error| error.to_string());
        assert_eq!(file(""), Ok(Vsock::default()));
        assert!(file("cid = 2").unwrap_err().contains("host's own"));
        assert!(file("port = 2").unwrap_err().contains("unknown field `port`"));
    }
}
