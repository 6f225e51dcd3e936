//! The other ends of the network cards' cables, opened before the sandbox closes.
//!
//! ```text
//!   --net user          passt.rs   --child process-----> NetHandle --.
//!   --net tap=NAME      axvm_tap   --queues of a tap---> NetHandle --|
//!   --net stream=PATH   sockets.rs --connected socket--> NetHandle --+--> Resources::plug --> net0, net1 ...
//!   --net dgram=A:B     sockets.rs --bound, connected--> NetHandle --|
//!   --net fd=N          sockets.rs --inherited---------> NetHandle --'
//! ```
//!
//! What is opened here outlives resets of the guest. What it leaves in the file system goes when it is dropped.

mod cards;
mod passt;
mod resolver;
mod sockets;
mod up;

use std::io;
use std::path::Path;

use axvm_boot::plan::VirtioKind;
use axvm_events::Events;
use axvm_virtio::net::{Link, NetConfig, NetHandle, Offloads, Tap, TapError};
use thiserror::Error;

use crate::settings::{Datagrams, Mac, NetEnd, NetSetting};

pub use cards::Cards;
use passt::{Passt, Watched};
use sockets::SocketFile;
pub use up::net;

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
    /// passt is not installed.
    #[error(
        "Cannot give {card} the host's network: there is no program passt. Install it ({INSTALL}), or give the card \
             another cable"
    )]
    NoPasst {
        /// Such as `net0`.
        card: String,
    },
    /// passt does not start.
    #[error("Cannot start passt for {card}; `passt --help` should work by itself")]
    PasstStart {
        /// Such as `net0`.
        card: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// passt has ended at once.
    #[error("Cannot give {card} the host's network: passt has ended: {said}; {remedy}")]
    Passt {
        /// Such as `net0`.
        card: String,
        /// Its last words.
        said: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The tap is not to be had.
    #[error("Cannot connect {card}")]
    Tap {
        /// Such as `net0`.
        card: String,
        /// Why, and what to do.
        source: TapError,
    },
    /// No thread.
    #[error("Cannot start a thread for {card} (see ulimit -u)")]
    Thread {
        /// Such as `net0`.
        card: String,
        /// What the kernel said.
        source: io::Error,
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
/// How passt comes to a host.
const INSTALL: &str = "sudo apt install passt, or sudo dnf install passt";

/// All cables of a machine.
pub struct Network {
    cables: Vec<Cable>,
    /// Held for its end.
    files: Vec<SocketFile>,
    /// Those that have no thread yet, with the numbers of their cards.
    passts: Vec<(usize, Passt)>,
    /// Those that have one.
    watched: Vec<Watched>,
}

/// One cable.
struct Cable {
    handle: NetHandle,
    /// The largest packet that the other end takes, if that is known.
    mtu: Option<u16>,
}

impl Network {
    /// Connects every card, as `settings` say; `cards` is what the guest is told of each.
    pub fn open(settings: &[NetSetting], cards: &[NetConfig]) -> Result<Network, NetworkError> {
        let (cables, files, passts, watched) = Default::default();
        let mut network = Network { cables, files, passts, watched };
        for (setting, config) in settings.iter().zip(cards) {
            network.connect(setting, Mac(config.mac))?;
        }
        Ok(network)
    }

    fn connect(&mut self, setting: &NetSetting, mac: Mac) -> Result<(), NetworkError> {
        let number = self.cables.len();
        let card = card_name(number);
        let Opened { link, mtu, passt, file } = open(&card, setting, mac)?;
        self.passts.extend(passt.map(|passt| (number, passt)));
        self.files.extend(file);
        let handle = NetHandle::new(link).map_err(|source| NetworkError::Link { card, source })?;
        handle.set_rx_rate(setting.rx);
        handle.set_tx_rate(setting.tx);
        self.cables.push(Cable { handle, mtu });
        Ok(())
    }

    /// Tells the cards what is known of their cables and was not said.
    pub fn complete(&self, cards: &mut [NetConfig]) {
        for (card, cable) in cards.iter_mut().zip(&self.cables) {
            card.mtu = card.mtu.or(cable.mtu);
        }
    }

    /// The links, net0's first.
    pub fn links(&self) -> impl Iterator<Item = NetHandle> {
        self.cables.iter().map(|cable| cable.handle.clone())
    }

    /// Listens to what passt says, in a thread for each.
    pub fn watch(&mut self, events: &Events) -> Result<(), NetworkError> {
        for (number, passt) in self.passts.drain(..) {
            let watched = passt.watch(self.cables[number].handle.clone(), events);
            self.watched.push(watched.map_err(|source| NetworkError::Thread { card: card_name(number), source })?);
        }
        Ok(())
    }
}

/// The cable of one card, open.
pub struct Opened {
    /// The cable.
    pub link: Link,
    /// The largest packet that the other end takes, if that is known.
    pub mtu: Option<u16>,
    /// What is at its other end, if we have started it.
    passt: Option<Passt>,
    /// What is in the file system as long as the cable is there.
    pub file: Option<SocketFile>,
}

/// Connects `card` as `setting` says.
pub fn open(card: &str, setting: &NetSetting, mac: Mac) -> Result<Opened, NetworkError> {
    let (mut mtu, mut started, mut file) = (None, None, None);
    let link = match setting.end() {
        NetEnd::User => {
            let (link, passt) = Passt::start(card, setting, mac)?;
            started = Some(passt);
            link
        }
        NetEnd::Tap(name) => {
            let taps = Tap::open(name, setting.queues());
            let taps = taps.map_err(|source| NetworkError::Tap { card: card.into(), source })?;
            mtu = taps.first().and_then(|tap| tap.mtu().ok()).and_then(|mtu| u16::try_from(mtu).ok());
            let link = Link::tap(taps).map_err(|source| NetworkError::Link { card: card.into(), source })?;
            if setting.offload() { link } else { link.offering(Offloads::NONE) }
        }
        NetEnd::Stream(path) => sockets::stream(card, path)?,
        NetEnd::Datagrams(places) => {
            let (link, made) = sockets::datagrams(card, places)?;
            file = made;
            link
        }
        NetEnd::Fd(number) => {
            let link = sockets::inherited(card, number)?;
            if setting.offload() { link } else { link.offering(Offloads::NONE) }
        }
    };
    Ok(Opened { link, mtu, passt: started, file })
}

/// The address of card `card` of a machine called `name` whose setting has none.
pub fn usual_mac(name: &str, card: &str) -> Mac {
    Mac::of(name, card.trim_start_matches("net").parse().unwrap_or(0))
}

/// The largest packet of a card whose setting says nothing of it.
pub fn usual_mtu(setting: &NetSetting) -> Option<u16> {
    setting.mtu.or(setting.user.then_some(passt::MTU))
}

fn card_name(number: usize) -> String {
    VirtioKind::Net(number).name()
}

/// What the guest is told of each card; the machine is called `name`.
pub fn cards(settings: &[NetSetting], name: &str) -> Vec<NetConfig> {
    let card = |(number, net): (usize, &NetSetting)| NetConfig {
        mac: net.mac.unwrap_or_else(|| Mac::of(name, number)).0,
        mtu: usual_mtu(net),
    };
    settings.iter().enumerate().map(card).collect()
}

/// Whether the cards can be in one machine: no address and no descriptor twice. What is wrong, and with which.
pub fn check(settings: &[NetSetting], cards: &[NetConfig]) -> Result<(), (String, String)> {
    for (number, (setting, card)) in settings.iter().zip(cards).enumerate() {
        let before = || settings[..number].iter().zip(cards).enumerate();
        let mac = Mac(card.mac);
        if let Some((other, _)) = before().find(|(_, (_, other))| other.mac == card.mac) {
            return Err((
                format!("mac={mac}"),
                format!("{} has this address too; give each another", card_name(other)),
            ));
        }
        let end = setting.end();
        let is_same = |other: &NetSetting| matches!(end, NetEnd::Fd(_)) && other.end() == end;
        if let Some((other, _)) = before().find(|(_, (other, _))| is_same(other)) {
            return Err((end.to_string(), format!("{} has this descriptor too; pass another", card_name(other))));
        }
    }
    Ok(())
}

/// The socket files that are removed at the end.
pub fn socket_files(settings: &[NetSetting]) -> impl Iterator<Item = &Path> {
    settings.iter().filter_map(|net| match &net.dgram {
        Some(Datagrams::Unix { local, .. }) => Some(local.as_path()),
        _ => None,
    })
}
