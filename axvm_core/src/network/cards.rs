//! The network cards as the control socket sees them: what was said of each, and its link.
//!
//! ```text
//!   GET /network-interfaces    <-- name, address, cable, link up or down, frames each way
//!   PATCH ... {"link": "down"} --> NetHandle::set_up(false): the cable is pulled
//!         ... {"rx_rate_limiter": ..} --> NetHandle::set_rx_rate
//! ```
//!
//! Source: Firecracker API 1.17, "NetworkInterface", for the names. Left out: other cables while the machine runs.

use std::sync::Mutex;

use axvm_api::ControlError;
use axvm_api::types::{LinkState, NetworkCount, NetworkInterface, NetworkStatus, NetworkUpdate, WantedLink};
use axvm_boot::plan::VirtioKind;
use axvm_sync::lock;
use axvm_virtio::net::{NetConfig, NetCount, NetHandle};

use crate::rates;
use crate::settings::{Mac, NetEnd, NetSetting};

/// The cards of a machine, net0 first.
pub struct Cards {
    fixed: Vec<Card>,
    /// Those that were added.
    added: Mutex<Vec<Card>>,
}

#[derive(Clone)]
struct Card {
    interface: NetworkInterface,
    forwards: Vec<String>,
    handle: NetHandle,
}

impl Cards {
    /// Of what was said, and what became of it.
    pub fn new(settings: &[NetSetting], nets: &[(NetConfig, NetHandle)]) -> Cards {
        let card = |(number, (setting, (config, handle))): (usize, (&NetSetting, &(NetConfig, NetHandle)))| Card {
            interface: NetworkInterface {
                iface_id: VirtioKind::Net(number).name(),
                host_dev_name: match setting.end() {
                    NetEnd::Tap(name) => name.to_owned(),
                    other => other.to_string(),
                },
                guest_mac: Some(Mac(config.mac).to_string()),
                mtu: config.mtu,
            },
            forwards: setting.forward.iter().map(ToString::to_string).collect(),
            handle: handle.clone(),
        };
        Cards { fixed: settings.iter().zip(nets).enumerate().map(card).collect(), added: Mutex::default() }
    }

    /// What they were made from.
    pub fn interfaces(&self) -> Vec<NetworkInterface> {
        self.fixed.iter().map(|card| card.interface.clone()).collect()
    }

    /// What they are and do now.
    pub fn status(&self) -> Vec<NetworkStatus> {
        self.all().iter().map(Card::status).collect()
    }

    /// A card was added.
    pub fn add(&self, interface: NetworkInterface, forwards: Vec<String>, handle: NetHandle) {
        lock(&self.added).push(Card { interface, forwards, handle });
    }

    /// Of the cards that were added these are there.
    pub fn keep(&self, names: &[String]) {
        lock(&self.added).retain(|card| names.contains(&card.interface.iface_id));
    }

    fn all(&self) -> Vec<Card> {
        self.fixed.iter().cloned().chain(lock(&self.added).iter().cloned()).collect()
    }

    /// Plugs a cable in, or pulls it; sets other rates.
    pub fn update(&self, update: &NetworkUpdate) -> Result<(), ControlError> {
        let name = &update.iface_id;
        let cards = self.all();
        let Some(card) = cards.iter().find(|card| card.interface.iface_id == *name) else {
            let names: Vec<&str> = cards.iter().map(|card| &*card.interface.iface_id).collect();
            return Err(match names.is_empty() {
                true => {
                    format!("There is no network card {name}: this machine has none; start it with --net user").into()
                }
                false => format!("There is no network card {name}; this machine has {}", names.join(", ")).into(),
            });
        };
        let handle = &card.handle;
        if let Some(rate) = &update.rx_rate_limiter {
            handle.set_rx_rate(rates::updated(handle.rx_rate(), rate));
        }
        if let Some(rate) = &update.tx_rate_limiter {
            handle.set_tx_rate(rates::updated(handle.tx_rate(), rate));
        }
        match update.link {
            Some(WantedLink::Up) if card.handle.is_broken() => {
                Err(format!("The cable of {name} has come to its end; start the machine again to give it another")
                    .into())
            }
            Some(link) => {
                card.handle.set_up(link == WantedLink::Up);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Card {
    fn status(&self) -> NetworkStatus {
        let count = |NetCount { frames, bytes, dropped }| NetworkCount { frames, bytes, dropped };
        let handle = &self.handle;
        NetworkStatus {
            interface: self.interface.clone(),
            link: match (handle.is_broken(), handle.is_up()) {
                (true, _) => LinkState::Ended,
                (_, true) => LinkState::Up,
                (_, false) => LinkState::Down,
            },
            queue_pairs: handle.pairs(),
            rx_rate: rates::told(handle.rx_rate()),
            tx_rate: rates::told(handle.tx_rate()),
            forwards: self.forwards.clone(),
            to_guest: count(handle.to_guest()),
            from_guest: count(handle.from_guest()),
        }
    }
}
