//! `axvm net`: taps of this host, made and removed by ip(8).
//!
//! ```text
//!   up tap0 --user--> "sudo ip tuntap add dev tap0 ..."     printed, for a shell
//!           --root--> ip tuntap add dev tap0 ...            done, and shown
//! ```
//!
//! Source: ip-tuntap(8), ip-link(8), ip-address(8).
//! Left out: routes to the world, and their filters: `--net user` is for who wants no more than that.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
use rustix::process::geteuid;

use crate::cli::NetAction;
use crate::error::ConfigError;
use crate::settings::check_tap_name;
use crate::speech::print;

/// Prints the lines, or as root does what they say; exit code 0.
pub fn net(action: &NetAction) -> Result<u8> {
    let (NetAction::Up { name, .. } | NetAction::Down { name }) = action;
    check_tap_name(name).map_err(|why| ConfigError::words("axvm net", why))?;
    let is_root = geteuid().is_root();
    let lines = lines(action, &owner(is_root), is_there(name)?);
    for line in &lines {
        print(if is_root { format!("{line}\n") } else { format!("sudo {line}\n") })?;
        if is_root {
            run(line)?;
        }
    }
    Ok(0)
}

/// Who may open a tap if no one is named: the user, also behind sudo. Root may anyway.
fn owner(is_root: bool) -> Option<String> {
    let named = |key| env::var(key).ok().filter(|user| !user.is_empty());
    named(if is_root { "SUDO_USER" } else { "USER" })
}

/// Whether there is a tap of this name; an error if there is something else.
fn is_there(name: &str) -> Result<bool> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).context("Cannot ask for network interfaces")?;
    let is_there = name_to_index(&any, name).is_ok();
    // Of another network namespace than this process's, /sys may know nothing.
    let place = Path::new("/sys/class/net").join(name);
    if is_there && place.exists() && !place.join("tun_flags").exists() {
        bail!("There is a network interface {name}, and it is no tap; choose another name, such as axvm0");
    }
    Ok(is_there)
}

fn lines(action: &NetAction, owner: &Option<String>, is_there: bool) -> Vec<String> {
    let NetAction::Up { name, multi_queue, address, bridge, mtu, user } = action else {
        let NetAction::Down { name } = action else { return Vec::new() };
        return if is_there { vec![format!("ip link delete dev {name}")] } else { Vec::new() };
    };
    let mut lines = Vec::new();
    if !is_there {
        let user = user.as_ref().or(owner.as_ref()).map(|user| format!(" user {user}")).unwrap_or_default();
        let several = if *multi_queue { " multi_queue" } else { "" };
        lines.push(format!("ip tuntap add dev {name} mode tap{user} vnet_hdr{several}"));
    }
    lines.extend(address.iter().map(|address| format!("ip address replace {address} dev {name}")));
    let mtu = mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    let bridge = bridge.as_ref().map(|bridge| format!(" master {bridge}")).unwrap_or_default();
    lines.push(format!("ip link set dev {name}{bridge}{mtu} up"));
    lines
}

fn run(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("Cannot start {program}; install it: sudo apt install iproute2"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", ");
        bail!("`{line}` fails: {said}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn said(words: &str, is_there: bool) -> String {
        let cli = Cli::try_parse_from(format!("axvm net {words}").split(' ')).unwrap();
        let Some(crate::cli::Command::Net(args)) = cli.command else { panic!("{words}") };
        lines(&args.action, &Some("alice".into()), is_there).join("; ")
    }

    #[test]
    fn a_tap_is_made_once_and_set_up_as_often_as_it_is_asked_for() {
        assert_eq!(
            said("up tap0", false),
            "ip tuntap add dev tap0 mode tap user alice vnet_hdr; ip link set dev tap0 up"
        );
        assert_eq!(
            said("up t --multi-queue --address 10.0.0.1/24 --bridge br0 --mtu 9000 --user bob", false),
            "ip tuntap add dev t mode tap user bob vnet_hdr multi_queue; ip address replace 10.0.0.1/24 dev t; \
             ip link set dev t master br0 mtu 9000 up"
        );
        assert_eq!(said("up tap0", true), "ip link set dev tap0 up");
        assert_eq!(
            (said("down tap0", true), said("down tap0", false)),
            ("ip link delete dev tap0".into(), String::new())
        );
    }
}
