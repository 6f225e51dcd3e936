//! The scenarios that hold stock Linux's virtio drivers to the standard, under load: no rule may be broken.

use super::connected::SAID;
use super::plain::PLAIN;
use super::{Boot, Proof, Scenario};
use crate::lab;

/// What AxVM says at the end, then.
pub(super) const KEPT: Proof = Proof::Said("virtio check: no rule was broken");

/// Each kind of device on both buses: disks with several queues, both kinds of network, sockets, consoles, random numbers, a
/// balloon that grows and shrinks, a pause; and what a driver does when it lets its device go and takes it again.
pub(super) fn drivers() -> Vec<Scenario> {
    let mmio = Boot {
        arguments: "--disk DISK --disk path=load.img,queues=2 --memory 512M --cpus 2 --bus mmio --net user,forward=8080:80 \
                    --net tap=tap0 --vsock cid=7,socket=/tmp/v --virtio-console pty --agent-port /tmp/a --virtio-check stop",
        checks: "load:vdb,discard:8,net:198.51.100.7:10.0.0,vsock:20,again:8,disk",
        brings: Some(lab::passt),
        limit: 200,
        on: Some(("MARK load", format!("{SAID}{WORK}").leak())),
        ..PLAIN
    };
    let pci = Boot { arguments: mmio.arguments.replace("--bus mmio", "--bus pci").leak(), ..mmio };
    let seen = |seen: &str| ["exec whole", "paused 0", "the same", "0 failed"].iter().all(|words| seen.contains(words));
    let proofs = vec![KEPT, Proof::CleanDisk, Proof::Seen("what host and guest did for each other", seen)];
    let scenario = |(name, boot)| Scenario { name, boots: vec![boot], proofs: proofs.clone() };
    [("virtio-check", mmio), ("virtio-check-pci", pci)].map(scenario).into()
}

/// The host's part.
const WORK: &str = "(
    head -c 100000 /dev/urandom >/tmp/sent
    axvm exec $pid -- cat </tmp/sent >/tmp/back; cmp /tmp/sent /tmp/back && echo exec whole
    axvm ctl $pid balloon 128; sleep 2
    axvm ctl $pid pause; sleep 1; axvm ctl $pid resume; echo paused $?
    axvm ctl $pid balloon 0; sleep 2
    echo by the host >$(sed -n 's/.*The console is at //p' $dir/stderr)
    said net
    timeout 20 wget -q -O back http://127.0.0.1:8080/data && cmp back www/data && echo the same
    axvm ctl $pid net net1 down
    said vsock
    grep LOG $dir/console
    rm -f /tmp/v_5000; vsock-trial programs /tmp/v_5000 & programs=$!
    vsock-trial clients /tmp/v 40; vsock-trial end /tmp/v
    while kill -0 $pid 2>/dev/null; do sleep 1; done; kill $programs
) &";
