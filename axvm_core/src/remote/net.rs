//! `axvm ctl MACHINE net`: the network cards of a machine, and their cables plugged in or pulled.
//!
//! ```text
//!   net              GET /status               --> NAME  ADDRESS  LINK  CABLE  TO GUEST  FROM GUEST
//!   net net0 down    PATCH /network-interfaces/net0
//! ```

use anyhow::{Result, bail};
use axvm_api::Client;
use axvm_api::types::{LinkState, NetworkCount, NetworkStatus, NetworkUpdate, Status, WantedLink};

use axvm_virtio::limiter::RateLimit;

use crate::cli::LinkWord;
use crate::rates;
use crate::speech::print;

use super::table::aligned;

const HEAD: [&str; 6] = ["NAME", "ADDRESS", "LINK", "CABLE", "TO GUEST", "FROM GUEST"];

/// Changes the link of a card, or the rates of frames for the guest and of the guest.
pub fn change(client: &mut Client, name: &str, link: Option<LinkWord>, rates: [Option<RateLimit>; 2]) -> Result<()> {
    let link = link.map(|link| if link == LinkWord::Up { WantedLink::Up } else { WantedLink::Down });
    let [rx_rate_limiter, tx_rate_limiter] = rates.map(|rate| rate.map(rates::update));
    let update = NetworkUpdate { iface_id: name.to_owned(), link, rx_rate_limiter, tx_rate_limiter };
    client.patch(&format!("/network-interfaces/{name}"), &update)?;
    Ok(())
}

/// Tells of all cards, or of one.
pub fn tell(client: &mut Client, name: Option<&str>) -> Result<()> {
    let status: Status = client.get("/status")?;
    let is_meant = |card: &&NetworkStatus| name.is_none_or(|name| card.interface.iface_id == name);
    let cards: Vec<&NetworkStatus> = status.networks.iter().filter(is_meant).collect();
    match (name, cards.is_empty()) {
        (Some(name), true) => {
            bail!("There is no network card {name} in this machine; `axvm ctl {} net` lists them", status.name)
        }
        (None, true) => bail!("This machine has no network card; start it with --net user"),
        _ => print(table(&cards))?,
    }
    Ok(())
}

fn table(cards: &[&NetworkStatus]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    for card in cards {
        let interface = &card.interface;
        let mut row = vec![interface.iface_id.clone(), interface.guest_mac.clone().unwrap_or_default()];
        row.extend([link(card.link).into(), cable(card), count(&card.to_guest), count(&card.from_guest)]);
        rows.push(row);
    }
    aligned(&rows)
}

/// A word for people.
pub fn link(link: LinkState) -> &'static str {
    match link {
        LinkState::Up => "up",
        LinkState::Down => "down",
        LinkState::Ended => "ended",
    }
}

/// `user tcp:2222:22 rx=10M/s`
fn cable(card: &NetworkStatus) -> String {
    let forwards = card.forwards.iter().map(|forward| format!(" {forward}")).collect::<String>();
    let rate =
        |name: &str, rate: &Option<String>| rate.as_ref().map_or(String::new(), |rate| format!(" {name}={rate}"));
    card.interface.host_dev_name.clone() + &forwards + &rate("rx", &card.rx_rate) + &rate("tx", &card.tx_rate)
}

/// `12 frames, 3 KiB, 1 dropped`
fn count(count: &NetworkCount) -> String {
    let dropped = if count.dropped > 0 { format!(", {} dropped", count.dropped) } else { String::new() };
    let bytes = match count.bytes {
        bytes @ 0..1024 => format!("{bytes} B"),
        bytes @ 1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        bytes => format!("{} MiB", bytes >> 20),
    };
    format!("{} frames, {bytes}{dropped}", count.frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_api::types::NetworkInterface;

    #[test]
    fn cards_are_a_table() {
        let card = NetworkStatus {
            interface: NetworkInterface {
                iface_id: "net0".into(),
                host_dev_name: "user".into(),
                guest_mac: Some("02:00:00:00:00:01".into()),
                mtu: Some(1500),
            },
            link: LinkState::Up,
            queue_pairs: 1,
            rx_rate: None,
            tx_rate: Some("1M/s".into()),
            forwards: vec!["tcp:2222:22".into()],
            to_guest: NetworkCount { frames: 3, bytes: 5000, dropped: 0 },
            from_guest: NetworkCount { frames: 2, bytes: 100, dropped: 1 },
        };
        let expected = "\
NAME  ADDRESS            LINK  CABLE                     TO GUEST         FROM GUEST
net0  02:00:00:00:00:01  up    user tcp:2222:22 tx=1M/s  3 frames, 4 KiB  2 frames, 100 B, 1 dropped
";
        assert_eq!(table(&[&card]), expected);
    }
}
