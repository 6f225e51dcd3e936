//! Which name servers a guest behind passt can have.
//!
//! ```text
//!   /etc/resolv.conf   192.0.2.53            passt tells the guest so
//!                      127.0.0.53 only       the guest's own loopback: what systemd-resolved asks instead, if that is known
//! ```
//!
//! Source: resolv.conf(5); systemd-resolved.service(8), "/etc/resolv.conf".
//! Left out: search lists; servers by interface.

use std::fs;
use std::net::IpAddr;

/// What programs of this host ask.
const USUAL: &str = "/etc/resolv.conf";
/// What systemd-resolved asks, when programs ask that.
const BEHIND: &str = "/run/systemd/resolve/resolv.conf";

/// What the guest is to be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Resolvers {
    /// passt finds them itself.
    Found,
    /// These.
    Servers(Vec<IpAddr>),
    /// There is none that a guest could ask.
    Unreachable,
}

/// Looks at this host.
pub fn look() -> Resolvers {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    choose(&read(USUAL), || read(BEHIND))
}

fn choose(usual: &str, behind: impl FnOnce() -> String) -> Resolvers {
    let asked: Vec<IpAddr> = servers(usual).collect();
    // A host without any has no names, which it knows.
    if asked.is_empty() || asked.iter().any(|server| !server.is_loopback()) {
        return Resolvers::Found;
    }
    match servers(&behind()).filter(|server| !server.is_loopback()).collect::<Vec<_>>() {
        none if none.is_empty() => Resolvers::Unreachable,
        servers => Resolvers::Servers(servers),
    }
}

fn servers(text: &str) -> impl Iterator<Item = IpAddr> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok();
    text.lines().filter_map(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_the_hosts_loopback_is_replaced_by_what_it_asks() {
        let resolved = "# by systemd\nnameserver 127.0.0.53\noptions edns0\n";
        let choose = |usual: &str, behind: &str| choose(usual, || behind.to_owned());
        assert_eq!(choose("nameserver 192.0.2.53\nnameserver 127.0.0.1\n", ""), Resolvers::Found);
        assert_eq!(choose("", "nameserver 192.0.2.53"), Resolvers::Found);
        assert_eq!(
            choose(resolved, "nameserver 192.0.2.53\n nameserver\tfd00::1 \nnameserver fe80::1%eth0"),
            Resolvers::Servers(["192.0.2.53", "fd00::1"].map(|server| server.parse().unwrap()).into())
        );
        assert_eq!(choose(resolved, ""), Resolvers::Unreachable);
        assert_eq!(choose("nameserver ::1", "nameserver 127.0.0.1"), Resolvers::Unreachable);
    }
}
