//! What `--net` stands on: passt and a way out for `user`, the device of all taps for `tap`.
//!
//! ```text
//!   passt   /usr/bin/passt             a way out   /proc/net/route, ipv6_route: a default route
//!   taps    /sys/class/net/*/tun_flags             /dev/net/tun, and who may open it
//! ```
//!
//! Source: Linux Documentation/networking/tuntap.rst; proc_pid_net(5). Left out: bridges, filters, forwarding.

use super::{Host, Root, Row};

const PART: &str = "Network";
const DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

pub(super) fn rows(host: &Host) -> Vec<Row> {
    vec![passt(&host.root), way_out(&host.root), tun(host), taps(&host.root)]
}

fn passt(root: &Root) -> Row {
    let found = DIRECTORIES.iter().map(|directory| format!("{directory}/passt")).find(|path| root.has(path));
    match found {
        Some(path) => Row::ok(PART, "passt", path),
        None => Row::ok(PART, "passt", "not installed").note(
            "there is no --net user, the network without rights",
            "sudo apt install passt, or sudo dnf install passt",
        ),
    }
}

/// passt copies what the default route leads over.
fn way_out(root: &Root) -> Row {
    let column = |text: &str, number: usize| text.split_whitespace().nth(number).map(str::to_owned);
    let lines = |name: &str| root.text(name).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let is_default = |line: &String| column(line, 1).as_deref() == Some("00000000");
    let v4 = lines("/proc/net/route").iter().find(|line| is_default(line)).and_then(|line| column(line, 0));
    let is_default = |line: &&String| line.starts_with(&format!("{:032} 00 ", 0)) && !line.ends_with(" lo");
    let v6 = lines("/proc/net/ipv6_route").iter().find(is_default).and_then(|line| column(line, 9));
    let found = [v4.map(|name| format!("IPv4 over {name}")), v6.map(|name| format!("IPv6 over {name}"))];
    match found.into_iter().flatten().collect::<Vec<_>>() {
        none if none.is_empty() => Row::ok(PART, "default route", "none")
            .note("passt has no network to show to a guest of --net user", "ip route   (what there is)"),
        found => Row::ok(PART, "default route", found.join(", ")),
    }
}

fn tun(host: &Host) -> Row {
    const WHAT: &str = "/dev/net/tun";
    let Some(access) = host.root.access(WHAT) else {
        return Row::ok(PART, WHAT, "missing").note("there is no --net tap=NAME", "sudo modprobe tun");
    };
    let owner = if access.uid == 0 { "root".into() } else { access.uid.to_string() };
    let row = Row::ok(PART, WHAT, format!("{owner}, mode {:04o}", access.mode));
    match access.allows(&host.user) {
        true => row,
        false => row.note("you may open no tap: no --net tap=NAME", "sudo setfacl -m u:$USER:rw /dev/net/tun"),
    }
}

fn taps(root: &Root) -> Row {
    let is_tap = |name: &String| root.has(&format!("/sys/class/net/{name}/tun_flags"));
    let taps: Vec<String> = root.names("/sys/class/net").into_iter().filter(is_tap).collect();
    let found = if taps.is_empty() { "none; axvm net up tap0 makes one".into() } else { taps.join(", ") };
    Row::ok(PART, "taps", found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn networks_and_taps_are_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!((way_out(&root).found, taps(&root).found.starts_with("none; ")), ("none".into(), true));
        put("proc/net/route", "Iface Destination\neth0 000200C0 00000000\neth0 00000000 010200C0\n");
        let zeroes = "0".repeat(32);
        let route = |target: &str, name: &str| format!("{target} 00 {zeroes} 00 {zeroes} ffffffff 1 0 200200 {name}\n");
        let routes = [route(&zeroes, "lo"), route(&"f".repeat(32), "eth0"), route(&zeroes, "wlan0")].concat();
        put("proc/net/ipv6_route", &routes);
        put("sys/class/net/tap0/tun_flags", "0x5002");
        put("sys/class/net/eth0/mtu", "1500");
        assert_eq!(way_out(&root).found, "IPv4 over eth0, IPv6 over wlan0");
        assert_eq!(taps(&root).found, "tap0");
    }
}
