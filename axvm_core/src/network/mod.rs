//! The other ends of the network cards' cables, opened before the sandbox closes.
//!
//! ```text
//!   --net stream=PATH   sockets.rs --connected socket--> NetHandle --.
//!   --net dgram=A:B     sockets.rs --bound, connected--> NetHandle --+--> Resources::plug --> net0, net1 ...
//!   --net fd=N          sockets.rs --inherited---------> NetHandle --'
//! ```
//!
//! What is opened here outlives resets of the guest. What it leaves in the file system goes when it is dropped.

mod sockets;

use std::io;
use std::path::Path;

use axvm_virtio::net::{NetConfig, NetHandle};
use thiserror::Error;

use crate::settings::{Datagrams, Mac, NetEnd, NetSetting};

use sockets::SocketFile;

/// A network that cannot be had; what was tried, on which object, and what to do.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// No process listens, or not to us.
    #[error("Cannot connect {card} to {place}; {remedy}")]
    Connect {
        /// Such as `net0`.
        card: String,
        /// The path or address.
        place: String,
        /// What to do.
        remedy: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Our own end is not to be had.
    #[error("Cannot make the end of {card} at {place}; {remedy}")]
    Bind {
        /// Such as `net0`.
        card: String,
        /// The path or address.
        place: String,
        /// What to do.
        remedy: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptor is missing or is something else.
    #[error("Cannot use descriptor {number} for {card}: {why}; {REDIRECT}")]
    Descriptor {
        /// Such as `net0`.
        card: String,
        /// Its number.
        number: u32,
        /// What is wrong with it.
        why: String,
    },
    /// Not in this version.
    #[error("Cannot connect {card}: only fd=, stream= and dgram= are there yet")]
    NotYet {
        /// Such as `net0`.
        card: String,
    },
    /// The host refuses something small.
    #[error("Cannot make the link of {card}; raise the host's limits (ulimit -n)")]
    Link {
        /// Such as `net0`.
        card: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How a descriptor comes to AxVM.
const REDIRECT: &str = "the program that starts AxVM opens it: a stream or datagram socket, or a tap with IFF_VNET_HDR";

/// All cables of a machine.
pub struct Network {
    links: Vec<NetHandle>,
    /// Held for its end.
    files: Vec<SocketFile>,
}

impl Network {
    /// Connects every card.
    pub fn open(settings: &[NetSetting]) -> Result<Network, NetworkError> {
        let mut network = Network { links: Vec::new(), files: Vec::new() };
        for (number, setting) in settings.iter().enumerate() {
            network.connect(format!("net{number}"), setting)?;
        }
        Ok(network)
    }

    fn connect(&mut self, card: String, setting: &NetSetting) -> Result<(), NetworkError> {
        let link = match setting.end() {
            Ok(NetEnd::Stream(path)) => sockets::stream(&card, path)?,
            Ok(NetEnd::Datagrams(places)) => {
                let (link, file) = sockets::datagrams(&card, places)?;
                self.files.extend(file);
                link
            }
            Ok(NetEnd::Fd(number)) => sockets::inherited(&card, number)?,
            Ok(NetEnd::User | NetEnd::Tap(_)) | Err(_) => return Err(NetworkError::NotYet { card }),
        };
        let handle = NetHandle::new(link).map_err(|source| NetworkError::Link { card, source })?;
        self.links.push(handle);
        Ok(())
    }

    /// The links, net0's first.
    pub fn links(&self) -> Vec<NetHandle> {
        self.links.clone()
    }
}

/// What the guest is told of each card; the machine is called `name`.
pub fn cards(settings: &[NetSetting], name: &str) -> Vec<NetConfig> {
    let card = |(number, net): (usize, &NetSetting)| NetConfig {
        mac: net.mac.unwrap_or_else(|| Mac::of(name, number)).0,
        mtu: net.mtu,
    };
    settings.iter().enumerate().map(card).collect()
}

/// The socket files that are removed at the end.
pub fn socket_files(settings: &[NetSetting]) -> impl Iterator<Item = &Path> {
    settings.iter().filter_map(|net| match &net.dgram {
        Some(Datagrams::Unix { local, .. }) => Some(local.as_path()),
        _ => None,
    })
}
