//! `axvm ctl MACHINE disk add`, `net add`, `disk remove`, `net remove`: devices that come and go while the guest runs.
//!
//! ```text
//!   axvm ctl                                            the machine, which opens no file any more
//!   open, check, lock   --PUT /drives/vdb, descriptors--> adopts them, puts the disk into a slot
//!   (with the rights    --PUT /network-interfaces/net1--> likewise the cable
//!   of its user)
//!   remove              --DELETE-----------------------> asks the guest; gone from /status when it has let go
//! ```

use std::path::absolute;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use axvm_api::Client;
use axvm_api::types::{Added, CableKind, CacheType, NewDrive, NewNetwork, Removal, Status};
use axvm_boot::plan::{VirtioKind, disk_name};
use axvm_virtio::block::{Cache, DiskConfig, DiskImage, Engine, OnFull};
use axvm_virtio::net::LinkKind;

use crate::cli::Removed;
use crate::network;
use crate::rates;
use crate::settings::{NetEnd, NetSetting};
use crate::speech::print;

/// How long a guest has to let go of a device.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Adds a disk.
pub fn add_disk(client: &mut Client, disk: &DiskConfig) -> Result<()> {
    if disk.engine == Engine::IoUring {
        bail!(
            "{}: a disk that is added has engine=sync: the sandbox of a machine that runs lets no io_uring be made. Leave \
             engine=io_uring out, or give the disk to axvm run",
            disk.path.display()
        );
    }
    let status: Status = client.get("/status")?;
    let name = lowest(disk_name, status.disks.iter().map(|disk| &disk.name));
    let image = DiskImage::open(disk)?;
    let drive = NewDrive {
        drive_id: name.clone(),
        path_on_host: absolute(&disk.path).unwrap_or_else(|_| disk.path.clone()),
        is_root_device: false,
        is_read_only: disk.read_only,
        cache_type: Some(match disk.cache {
            Cache::WriteBack => CacheType::Writeback,
            Cache::WriteThrough => CacheType::Writethrough,
        }),
        rate_limiter: (!disk.rate.is_none()).then(|| rates::update(disk.rate)),
        is_ephemeral: disk.ephemeral,
        is_direct: disk.direct,
        serial: disk.serial.clone(),
        block_size: Some(image.block_size()),
        reports_full: disk.on_full == OnFull::Report,
        queues: disk.queues,
    };
    told(client.add(&format!("/drives/{name}"), &drive, &image.descriptors())?)
}

/// Adds a network card.
pub fn add_card(client: &mut Client, setting: &NetSetting) -> Result<()> {
    let status: Status = client.get("/status")?;
    let of = |number| VirtioKind::Net(number).name();
    let name = lowest(of, status.networks.iter().map(|card| &card.interface.iface_id));
    let mac = setting.mac.unwrap_or_else(|| network::usual_mac(&status.name, &name));
    let opened = network::open(&name, setting, mac)?;
    let offloads = opened.link.offloads();
    let words = [
        (offloads.checksum, "checksum"),
        (offloads.tso4, "tso4"),
        (offloads.tso6, "tso6"),
        (offloads.ecn, "ecn"),
        (offloads.uso, "uso"),
    ];
    let card = NewNetwork {
        iface_id: name.clone(),
        host_dev_name: match setting.end() {
            NetEnd::Tap(name) => name.to_owned(),
            other => other.to_string(),
        },
        guest_mac: Some(mac.to_string()),
        mtu: network::usual_mtu(setting).or(opened.mtu),
        cable: match opened.link.kind() {
            LinkKind::Tap => CableKind::Tap,
            LinkKind::Stream => CableKind::Stream,
            LinkKind::Datagram => CableKind::Datagram,
        },
        rx_rate_limiter: (!setting.rx.is_none()).then(|| rates::update(setting.rx)),
        tx_rate_limiter: (!setting.tx.is_none()).then(|| rates::update(setting.tx)),
        offloads: words.into_iter().filter(|(offered, _)| *offered).map(|(_, word)| word.to_owned()).collect(),
        forwards: setting.forward.iter().map(ToString::to_string).collect(),
    };
    let added = client.add(&format!("/network-interfaces/{name}"), &card, &opened.link.descriptors())?;
    // The machine has the socket now, and its file is there for the other side.
    opened.file.into_iter().for_each(std::mem::forget);
    told(added)
}

/// The first name of a kind that is not taken.
fn lowest<'a>(name: impl Fn(usize) -> String, taken: impl Iterator<Item = &'a String>) -> String {
    let taken: Vec<_> = taken.collect();
    let mut number = 0;
    while taken.contains(&&name(number)) {
        number += 1;
    }
    name(number)
}

fn told(Added { name, place }: Added) -> Result<()> {
    print(format!("{name} at {place}\n"))?;
    Ok(())
}

/// Removes a device, and waits until it has gone.
pub fn remove(client: &mut Client, resource: &str, Removed { name, force }: &Removed) -> Result<()> {
    let removal = Removal { id: name.clone(), force: *force };
    client.delete(&format!("/{resource}/{name}"), &removal)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status: Status = client.get("/status")?;
        if !status.parts.iter().any(|part| part.name == *name) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "The guest has not let go of {name} within {} s: it may use it, or have no driver for PCI hotplug \
                 (acpiphp). It may still do so; `axvm ctl {} {} remove {name} --force` takes {name} away as it is",
                PATIENCE.as_secs(),
                status.name,
                if resource == "drives" { "disk" } else { "net" }
            );
        }
        thread::sleep(PAUSE);
    }
}
