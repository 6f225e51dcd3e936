//! `axvm ctl MACHINE net`: the network cards of a machine, and their cables plugged in or pulled.
//!
//! ```text
//!   net              GET /status               --> NAME  ADDRESS  LINK  CABLE  TO GUEST  FROM GUEST
//!   net net0 down    PATCH /network-interfaces/net0     net net0 --tx 1M/s    the same
//! ```

use anyhow::{Result, bail};
use axvm_api::Client;
use axvm_api::types::{LinkState, NetworkCount, NetworkStatus, NetworkUpdate, Status, WantedLink};

use crate::cli::{CardArgs, LinkWord};
use crate::rates;
use crate::speech::print;

use super::table::aligned;

const HEAD: [&str; 6] = ["NAME", "ADDRESS", "LINK", "CABLE", "TO GUEST", "FROM GUEST"];

/// Tells of all cards, or of one; or changes its link and its rates.
pub fn net(client: &mut Client, card: &CardArgs) -> Result<()> {
    let CardArgs { name, link, rx, tx } = card;
    let name = name.as_deref();
    if let Some(name) = name.filter(|_| link.is_some() || rx.is_some() || tx.is_some()) {
        let update = NetworkUpdate {
            iface_id: name.to_owned(),
            rx_rate_limiter: rx.map(rates::update),
            tx_rate_limiter: tx.map(rates::update),
            link: link.map(|link| if link == LinkWord::Up { WantedLink::Up } else { WantedLink::Down }),
        };
        client.patch(&format!("/network-interfaces/{name}"), &update)?;
        return Ok(());
    }
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
        row.extend([
            link(card.link).into(),
            cable(card),
            count(&card.to_guest, &card.rx_rate),
            count(&card.from_guest, &card.tx_rate),
        ]);
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

/// `user forward tcp:2222:22`
fn cable(card: &NetworkStatus) -> String {
    let forwards = card.forwards.iter().map(|forward| format!(" {forward}")).collect::<String>();
    card.interface.host_dev_name.clone() + &forwards
}

/// `12 frames, 3 KiB, 1 dropped, at most 1M/s`
fn count(count: &NetworkCount, rate: &Option<String>) -> String {
    let rate = rate.as_ref().map(|rate| format!(", at most {rate}")).unwrap_or_default();
    let dropped = if count.dropped > 0 { format!(", {} dropped", count.dropped) } else { String::new() };
    let bytes = match count.bytes {
        bytes @ 0..1024 => format!("{bytes} B"),
        bytes @ 1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        bytes => format!("{} MiB", bytes >> 20),
    };
    format!("{} frames, {bytes}{dropped}{rate}", count.frames)
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
            forwards: vec!["tcp:2222:22".into()],
            rx_rate: None,
            tx_rate: Some("1M/s".into()),
            to_guest: NetworkCount { frames: 3, bytes: 5000, dropped: 0 },
            from_guest: NetworkCount { frames: 2, bytes: 100, dropped: 1 },
        };
        let expected = "\
NAME  ADDRESS            LINK  CABLE             TO GUEST         FROM GUEST
net0  02:00:00:00:00:01  up    user tcp:2222:22  3 frames, 4 KiB  2 frames, 100 B, 1 dropped, at most 1M/s
";
        assert_eq!(table(&[&card]), expected);
    }
}
