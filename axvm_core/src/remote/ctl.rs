//! `axvm ctl`: one request to one machine.
//!
//! ```text
//!   status          GET /status, /balloon    --> a few lines
//!   pause, resume   PATCH /vm                    shutdown, reset, stop, nmi, break    PUT /actions
//!   registers, memory, dump   GET /registers, /memory; PUT /dump
//!   balloon         PATCH /balloon               console, events             a stream, until one side ends
//! ```

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use axvm_api::registry::Found;
use axvm_api::types::{
    Action, ActionRequest, Balloon, BalloonUpdate, DriveUpdate, Explanation, Status, VmUpdate, VsockStatus, WantedState,
};
use axvm_api::{Client, ClientError, Registry};

use crate::cli::{CardAction, CtlAction, CtlArgs, DiskAction};
use crate::error::ConfigError;
use crate::rates;
use crate::speech::{print, tell};

use super::ps::{duration, mebibytes, resident, state};
use super::{attach, debug, examine, find, hotplug, net, trace};

/// Does it; exit code 0, or 1 with the reason as an error.
pub fn ctl(args: &CtlArgs) -> Result<u8> {
    match &args.machine {
        Some(machine) => ask(find(machine)?, &args.action),
        None => ask_all(&args.action),
    }
}

/// Does it to each machine of the user, whatever becomes of the others: then the exit code is 1.
fn ask_all(action: &CtlAction) -> Result<u8> {
    if let CtlAction::Console | CtlAction::Events = action {
        let action = if matches!(action, CtlAction::Console) { "console" } else { "events" };
        return Err(ConfigError::option("--all", action, "a terminal takes one machine at a time; name it").into());
    }
    let machines = Registry::of_user().machines().context("Cannot look for machines that run")?;
    if machines.is_empty() {
        tell("No machine of yours runs. Start one with `axvm run`");
    }
    let mut code = 0;
    for Found { socket, .. } in machines {
        if let Err(error) = ask(socket, action) {
            tell(format_args!("{error:#}"));
            code = 1;
        }
    }
    Ok(code)
}

fn ask(socket: PathBuf, action: &CtlAction) -> Result<u8> {
    let mut client = Client::connect(&socket)?;
    match action {
        CtlAction::Status => {
            let status: Status = client.get("/status")?;
            // A machine may have no balloon.
            let balloon = client.get::<Balloon>("/balloon").ok();
            print(describe(&status, balloon.as_ref()))?;
        }
        CtlAction::Pause => change(&mut client, WantedState::Paused)?,
        CtlAction::Resume => change(&mut client, WantedState::Resumed)?,
        CtlAction::Shutdown => act(&mut client, Action::PowerButton)?,
        CtlAction::Explain { json } => {
            let explanation: Explanation = client.get("/explain")?;
            match json {
                true => print(format!("{}\n", serde_json::to_string_pretty(&explanation)?))?,
                false => print(explanation.text)?,
            }
        }
        CtlAction::Inspect { walk, json } => examine::inspect(&mut client, walk.as_deref(), *json)?,
        CtlAction::Symbols => examine::symbols(&mut client)?,
        CtlAction::Registers { vcpu, bits, json } => examine::registers(&mut client, *vcpu, *bits, *json)?,
        CtlAction::Memory(args) => examine::memory(&mut client, args)?,
        CtlAction::Gdb => debug::connect(&mut client)?,
        CtlAction::Dump { file } => examine::dump(&mut client, file)?,
        CtlAction::Nmi => act(&mut client, Action::Nmi)?,
        CtlAction::Break => act(&mut client, Action::Break)?,
        CtlAction::Reset => act(&mut client, Action::Reset)?,
        CtlAction::Stop => act(&mut client, Action::Stop)?,
        CtlAction::Balloon { mib } => {
            client.patch("/balloon", &BalloonUpdate { amount_mib: *mib })?;
        }
        CtlAction::Console => {
            let status: Status = client.get("/status")?;
            // People use hvc0 where there is one.
            let is_serial = !status.parts.iter().any(|part| part.name == "hvc0");
            return attach::attach(client.console()?, socket, is_serial);
        }
        CtlAction::Disk { action: DiskAction::Add { disk }, .. } => hotplug::add_disk(&mut client, disk)?,
        CtlAction::Disk { action: DiskAction::Remove(removed), .. } => hotplug::remove(&mut client, "drives", removed)?,
        CtlAction::Disk { name: None, .. } => {
            return Err(ConfigError::option("disk", "", "name the disk: axvm ctl MACHINE disk vda resize").into());
        }
        CtlAction::Disk { name: Some(name), action: DiskAction::Resize } => {
            resize(&mut client, name)?;
        }
        CtlAction::Disk { name: Some(name), action: DiskAction::Rate { rate } } => {
            let rate_limiter = Some(rates::update(*rate));
            let update = DriveUpdate { drive_id: name.clone(), path_on_host: None, rate_limiter };
            client.patch(&format!("/drives/{name}"), &update)?;
        }
        CtlAction::Net { action: Some(CardAction::Add { card }), .. } => hotplug::add_card(&mut client, card)?,
        CtlAction::Net { action: Some(CardAction::Remove(removed)), .. } => {
            hotplug::remove(&mut client, "network-interfaces", removed)?;
        }
        CtlAction::Net { name, link, rx, tx, action: None } => match name {
            Some(name) if link.is_some() || rx.is_some() || tx.is_some() => {
                net::change(&mut client, name, *link, [*rx, *tx])?;
            }
            name => net::tell(&mut client, name.as_deref())?,
        },
        CtlAction::Trace { action } => trace::act(&mut client, action)?,
        CtlAction::Events => events(client)?,
    }
    Ok(0)
}

fn resize(client: &mut Client, name: &str) -> Result<()> {
    let size = |client: &mut Client| {
        let status: Status = client.get("/status")?;
        let size = status.disks.iter().find(|disk| disk.name == *name).map(|disk| disk.size);
        size.with_context(|| {
            format!("There is no disk {name} in this machine; `axvm ctl {} status` lists them", status.name)
        })
    };
    let before = size(client)?;
    let update = DriveUpdate { drive_id: name.to_owned(), path_on_host: None, rate_limiter: None };
    client.patch(&format!("/drives/{name}"), &update)?;
    print(match size(client)? {
        after if after == before => format!("{name}: {after} bytes, as before\n"),
        after => format!("{name}: {after} bytes, {before} before\n"),
    })?;
    Ok(())
}

fn change(client: &mut Client, state: WantedState) -> Result<(), ClientError> {
    client.patch("/vm", &VmUpdate { state }).map(drop)
}

fn act(client: &mut Client, action_type: Action) -> Result<(), ClientError> {
    client.put("/actions", &ActionRequest { action_type }).map(drop)
}

/// Prints events until the machine ends, or standard output has no reader any more.
fn events(client: Client) -> Result<()> {
    let mut out = io::stdout().lock();
    for line in client.events()? {
        match writeln!(out, "{}", line?).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written.context("Cannot print events")?,
        }
    }
    Ok(())
}

/// A request that is in the host for so many seconds is no longer one of many.
const WORTH_TELLING: f64 = 1.0;

fn describe(status: &Status, balloon: Option<&Balloon>) -> String {
    let lasts = match status.paused_s {
        Some(paused) => format!("{}, up {}", duration(paused), duration(status.uptime_s)),
        None => duration(status.uptime_s),
    };
    let mut text = format!(
        "{} (process {}): {} for {lasts}, AxVM {}\n",
        status.name,
        status.pid,
        state(status.state),
        status.version
    );
    let mut row = |name: &str, value: String| text.push_str(&format!("  {name:8} {value}\n"));
    row("vCPUs", format!("{}; {} exits, {:.0} a second", status.cpus, status.exits.total, status.exits.per_second));
    row("memory", format!("{}; the host holds {}", mebibytes(status.memory.size), resident(&status.memory)));
    if let Some(balloon) = balloon {
        row("balloon", format!("{}M wanted", balloon.amount_mib));
    }
    for disk in &status.disks {
        let how = match (disk.read_only, disk.ephemeral) {
            (true, _) => " (read-only)",
            (_, true) => " (ephemeral)",
            _ => "",
        };
        let rate = disk.rate.as_ref().map(|rate| format!(", at most {rate}")).unwrap_or_default();
        row(&disk.name, format!("{}{how}{rate}", disk.path.display()));
    }
    for (name, full) in status.disks.iter().filter_map(|disk| Some((&disk.name, disk.full.as_ref()?))) {
        let free = full.free.map(|free| format!("; {} KiB are free", free / 1024)).unwrap_or_default();
        let what = format!("{name} has no room to {} in {}: {}{free}", full.action, full.path.display(), full.error);
        row("full", format!("{what}; make room, then resume"));
    }
    for card in &status.networks {
        let interface = &card.interface;
        let mac = interface.guest_mac.as_deref().unwrap_or_default();
        row(&interface.iface_id, format!("{}; {mac}, link {}", interface.host_dev_name, net::link(card.link)));
    }
    if let Some(VsockStatus { guest_cid, uds_path, connections }) = &status.vsock {
        let plural = if *connections == 1 { "" } else { "s" };
        row("vsock", format!("{}; CID {guest_cid}, {connections} connection{plural}", uds_path.display()));
    }
    if let Some(path) = &status.agent_port {
        row("agent", path.display().to_string());
    }
    row("console", status.console.clone());
    let mut lines: Vec<_> = status.parts.iter().filter_map(|part| Some((part.line?, &part.name))).collect();
    if !lines.is_empty() {
        lines.sort();
        row("lines", lines.iter().map(|(line, name)| format!("{line} {name}")).collect::<Vec<_>>().join(", "));
    }
    // As the plan's places are told: "pci 00:01.0, BAR 0 at ...".
    let function = |place: &String| place.strip_prefix("pci ")?.split(',').next().map(str::to_owned);
    let functions = status.parts.iter().filter_map(|part| Some((part.places.iter().find_map(function)?, &part.name)));
    let functions: Vec<_> = functions.map(|(function, name)| format!("{function} {name}")).collect();
    if !functions.is_empty() {
        row("pci", functions.join(", "));
    }
    if let Some(slots) = &status.slots {
        row("slots", format!("{} of {} free", slots.free, slots.count));
    }
    for broken in status.virtio_check.iter().flatten() {
        row("broken", format!("{} {} times, first by {}: {}", broken.rule, broken.count, broken.device, broken.seen));
    }
    for busy in status.busy.iter().filter(|busy| busy.seconds >= WORTH_TELLING) {
        row("waits", format!("{} has had a request in the host for {:.0} s", busy.thread, busy.seconds));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_api::types::{
        BusyThread, Disk, Exits, FullStorage, MachinePart, MachineState, Memory, Resident, SlotCount,
    };

    fn part(name: &str, line: Option<u32>) -> MachinePart {
        MachinePart { name: name.into(), kind: "chip".into(), places: Vec::new(), line }
    }

    fn busy(thread: &str, seconds: f64) -> BusyThread {
        BusyThread { thread: thread.into(), seconds }
    }

    #[test]
    fn status_is_told_in_words() {
        let (action, path, error) = ("write".into(), "d.img".into(), "No space left on device".into());
        let full = FullStorage { action, path, error, free: Some(4096) };
        let status = Status {
            name: "web".into(),
            pid: 7,
            state: MachineState::Paused,
            uptime_s: 61.5,
            paused_s: Some(5.2),
            cpus: 4,
            memory: Memory { size: 1 << 30, resident: Resident { small: 1 << 20, ..Resident::default() } },
            disks: vec![
                Disk {
                    name: "vda".into(),
                    path: "root.img".into(),
                    read_only: true,
                    ephemeral: false,
                    size: 512,
                    rate: None,
                    full: None,
                },
                Disk {
                    name: "vdb".into(),
                    path: "d.img".into(),
                    read_only: false,
                    ephemeral: true,
                    size: 512,
                    rate: Some("10M/s".into()),
                    full: Some(full),
                },
            ],
            networks: Vec::new(),
            parts: vec![
                part("vda", Some(5)),
                part("COM1", Some(4)),
                part("i8042", None),
                MachinePart { places: vec!["pci 00:01.0, BAR 0 at 0xc0000000".into()], ..part("rng", None) },
            ],
            vsock: Some(VsockStatus { guest_cid: 3, uds_path: "/run/v".into(), connections: 1 }),
            agent_port: Some("/run/a".into()),
            virtio_check: None,
            busy: vec![busy("vda-q0", 12.2), busy("rng-q0", 0.1)],
            exits: Exits { per_vcpu: vec![10, 2], total: 12, per_second: 3.2 },
            slots: Some(SlotCount { count: 28, free: 27 }),
            console: "stdio".into(),
            version: "1.2.3".into(),
        };
        let text = describe(&status, Some(&Balloon { amount_mib: 64, ..Balloon::default() }));
        let expected = "web (process 7): paused for 5s, up 1m01s, AxVM 1.2.3\n  vCPUs    4; 12 exits, 3 a second\n  \
                        memory   1G; the host holds 1M: 1M in 4K\n  balloon  64M wanted\n  vda      root.img (read-only)\n  \
                        vdb      d.img (ephemeral), at most 10M/s\n  \
                        full     vdb has no room to write in d.img: No space left on device; 4 KiB are free; make room, then resume\n  \
                        vsock    /run/v; CID 3, 1 connection\n  agent    /run/a\n  console  stdio\n  lines    4 COM1, 5 vda\n  \
                        pci      00:01.0 rng\n  \
                        slots    27 of 28 free\n  \
                        waits    vda-q0 has had a request in the host for 12 s\n";
        assert_eq!(text, expected);
    }
}
