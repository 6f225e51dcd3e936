//! The scenarios of PCI, network, sockets, and commands in a guest.

use super::plain::{PLAIN, TYPE, scenario};
use super::{Boot, Proof, Scenario};
use crate::lab;

/// Devices on PCI: found through ACPI and without it, as many as MMIO has no lines for.
pub(super) fn pci() -> Vec<Scenario> {
    let plain = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --bus pci",
        checks: "msix:3:2,disk,clock:NOW:30,log:lab",
        ..PLAIN
    };
    let high =
        Boot { arguments: "--disk DISK --memory 4G --cpus 4 --bus pci", checks: "msix:3:4,disk,log:lab", ..plain };
    let twice = Boot { checks: "boots:2,msix:3:2,log:lab", append: "reboot=acpi", rounds: 2, ..plain };
    let plug = format!("{SAID}{PLUG}").leak();
    let plug = Boot { checks: "hotplug,disk,log:lab", on: Some(("MARK plug", plug)), limit: 180, ..plain };
    let proofs = vec![
        Proof::CleanDisk,
        Proof::Seen("a disk and a card that came and went", |seen| {
            ["vdb at 00:04.0", "vdb is gone", "net0 at 00:04.0", "net0 is gone"].iter().all(|said| seen.contains(said))
        }),
        Proof::Seen("all slots free at the end", |seen| seen.contains("slots    28 of 28 free")),
    ];
    let plugged = Scenario { name: "pci-hotplug", boots: vec![plug], proofs };
    let listed = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --bus pci --net user --vsock",
        checks: "lspci:198.51.100.7:5,log:lab",
        brings: Some(lab::lspci),
        ..plain
    };
    let listed = scenario("lspci", listed);
    vec![scenario("pci", plain), scenario("pci-4g", high), scenario("pci-reset", twice), plugged, listed]
}

/// `said NAME` waits for the guest's mark.
pub(super) const SAID: &str = "said() { until grep -q \"MARK $1\" $dir/console; do sleep 1; done; }\n";

/// What a person does to a machine whose guest waits for a disk and a card: each comes, and goes when the guest is done.
const PLUG: &str = "(
    axvm ctl $pid disk add plug.img,serial=PLUG
    said unmounted
    axvm ctl $pid disk remove vdb && echo vdb is gone
    axvm ctl $pid net add tap=tap0
    said carded
    axvm ctl $pid net remove net0 && echo net0 is gone
    axvm ctl $pid status
) &";

/// Connections between programs of host and guest: 200 from the host and 60 from the guest, with random ends; a pause in
/// the middle, and what is left when all is over. Then 200 each way, by Python in the guest.
pub(super) fn sockets() -> Vec<Scenario> {
    // The guest's connections may go on when all of the host's are over.
    let both = "rm -f /tmp/v_5000; vsock-trial programs /tmp/v_5000 & programs=$!
        { while kill -0 $pid; do sleep 1; done; kill $programs; } 2>/dev/null &
        { sleep 3; axvm ctl $pid pause; sleep 1; axvm ctl $pid resume; echo paused $?; } &
        vsock-trial clients /tmp/v 200; wait $!
        vsock-trial end /tmp/v; sleep 1; axvm ctl $pid status | grep -w vsock";
    let sockets = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --vsock cid=7,socket=/tmp/v",
        checks: "vsock:60,disk,log:lab",
        limit: 180,
        on: Some(("MARK vsock", both)),
        ..PLAIN
    };
    let python = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --net user --vsock cid=7,socket=/tmp/v",
        checks: "python:198.51.100.7:200,log:lab",
        brings: Some(lab::python),
        ..sockets
    };
    let whole = |seen: &str| {
        seen.contains("150 came back whole, 50 left, 0 failed") && seen.contains("paused 0") && seen.contains("CID 7,")
    };
    let proofs = vec![Proof::CleanDisk, Proof::Seen("each byte of 200 connections", whole)];
    vec![
        Scenario { name: "vsock", boots: vec![sockets], proofs: proofs.clone() },
        Scenario { name: "vsock-python", boots: vec![python], proofs },
    ]
}

/// Two cards: one by passt, with a server outside and a port that leads in; one on a tap, whose cable is pulled at the end.
pub(super) fn network() -> Vec<Scenario> {
    let look = "timeout 20 wget -q -O back http://127.0.0.1:8080/data && cmp back www/data && echo the same
        axvm ctl $pid net; cat /proc/$pid/task/*/comm; axvm ctl $pid net net1 down";
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --net user,forward=8080:80 --net tap=tap0",
        checks: "net:198.51.100.7:10.0.0,log:lab",
        brings: Some(lab::passt),
        limit: 150,
        on: Some(("MARK net", look)),
        ..PLAIN
    };
    let told = |seen: &str| {
        let has = |words: &[&str]| seen.lines().any(|line| words.iter().all(|word| line.contains(word)));
        has(&["the same"]) && has(&["net0", "up", "user tcp:8080:80", " MiB"]) && has(&["net1", "up", "tap0", "KiB"])
    };
    let named = |seen: &str| ["net0-q0", "net1-q0", "passt"].iter().all(|name| seen.lines().any(|line| line == *name));
    let proofs = vec![
        Proof::CleanDisk,
        Proof::Seen("the guest's page, and both cards in a table", told),
        Proof::Seen("threads net0-q0, net1-q0 and passt", named),
    ];
    vec![Scenario { name: "network", boots: vec![boot], proofs }]
}

/// A guest of QEMU at the other end of both kinds of sockets: each gets answers from the other, until QEMU ends.
pub(super) fn peer() -> Vec<Scenario> {
    let look = "tries=0
        until grep -q 'CHECK end' /tmp/peer || [ $tries -ge 300 ]; do tries=$((tries + 1)); usleep 100000; done
        cat /tmp/peer.said /tmp/peer; kill $(cat /tmp/peer.pid)";
    let boot = Boot {
        arguments: "--disk path=DISK,ephemeral --memory 512M --net stream=/tmp/one,mac=02:00:00:00:01:01 \
                    --net dgram=127.0.0.1:4001:127.0.0.1:4002,mac=02:00:00:00:01:02",
        before: "peer peer:2:1",
        checks: "peer:1:2,unplugged:eth0,log:lab",
        brings: Some(lab::qemu),
        on: Some(("MARK peer", look)),
        limit: 150,
        ..PLAIN
    };
    let answered = |seen: &str| seen.contains("CHECK peer: ok");
    let proofs = vec![Proof::SameDisk, Proof::Seen("answers for the guest of QEMU, too", answered)];
    vec![Scenario { name: "qemu-peer", boots: vec![boot], proofs }]
}

/// A server in the guest, of which both the key that may log in and the program come from outside, and its client.
pub(super) fn ssh() -> Vec<Scenario> {
    let look =
        "dbclient -y -i key -p 2222 root@127.0.0.1 'uname -sn; echo $SSH_CONNECTION >/tmp/by; exit 5' 2>/dev/null
        echo code $?";
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --net user,forward=2222:22",
        checks: "ssh:198.51.100.7,log:lab",
        brings: Some(lab::ssh),
        limit: 150,
        on: Some(("MARK ssh", look)),
        ..PLAIN
    };
    let logged_in = |seen: &str| seen.contains("Linux axvm\ncode 5");
    let proofs = vec![Proof::CleanDisk, Proof::Seen("a command by ssh, and its exit code", logged_in)];
    vec![Scenario { name: "ssh", boots: vec![boot], proofs }]
}

/// Commands of the host: in a guest that runs, and as all that a guest runs.
pub(super) fn commands() -> Vec<Scenario> {
    let look = "in_guest() { axvm exec web -- \"$@\"; echo \"code $?\"; }
        in_guest sh -c 'echo out; echo err >&2; exit 7' 2>/tmp/err; cat /tmp/err
        head -c 300000 /dev/urandom >/tmp/sent
        axvm exec web -- cat </tmp/sent >/tmp/back; cmp /tmp/sent /tmp/back && echo whole
        in_guest no-such
        axvm exec web -- sleep 100 & sleep 2; kill -TERM $!; wait $!; echo ended $?
        axvm exec web -e A=b -w /proc -- sh -c 'echo $A in $PWD by $(id -u)'";
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --name web --vsock",
        checks: "typed",
        on: Some(("Welcome to Linux on AxVM", format!("{look}\n{TYPE}").leak())),
        ..PLAIN
    };
    let by_port = Boot {
        // There is no vsock at all.
        arguments: "--disk DISK --memory 512M --name web --agent-port /tmp/a",
        on: Some(("Welcome to Linux on AxVM", format!("{look}\n{TYPE}").leak())),
        ..boot
    };
    let own = Boot {
        arguments: "--disk DISK --memory 512M",
        checks: "typed",
        rounds: 0,
        command: Some("sh -c 'grep \"^/dev/vda / \" /proc/mounts; ping -c 1 127.0.0.1; echo by $(uname -s); exit 7'"),
        says: &["/dev/vda / ext4 rw", "1 packets received", "by Linux"],
        exit: 7,
        ..PLAIN
    };
    let own_by_port = Boot { arguments: "--disk DISK --memory 512M --agent-port /tmp/a", ..own };
    let none = Boot { command: Some("no-such"), says: &[], exit: 127, ..own };
    vec![
        Scenario {
            name: "exec",
            boots: vec![boot],
            proofs: vec![Proof::CleanDisk, Proof::Seen("commands as if they ran here", ran)],
        },
        Scenario {
            name: "exec-console",
            boots: vec![by_port, own_by_port],
            proofs: vec![Proof::CleanDisk, Proof::Seen("commands by the agent's port", ran)],
        },
        Scenario { name: "run-command", boots: vec![own, none], proofs: vec![Proof::CleanDisk] },
    ]
}

/// What the commands did.
fn ran(seen: &str) -> bool {
    let lines: Vec<&str> = seen.lines().collect();
    let expected = ["out", "code 7", "err", "whole", "code 127", "ended 143", "b in /proc by 0"];
    let mut left = lines.iter();
    expected.iter().all(|wanted| left.any(|line| line == wanted))
}
