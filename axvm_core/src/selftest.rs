//! `axvm selftest`: a guest of our own proves, device by device, what this host can run.
//!
//! ```text
//!   embedded guest --COM1--> "AXVM smp ok 17946us 3 of 3 others up" --> a row of the table
//! ```
//!
//! The machine is one as `axvm run` makes it, sandbox included: 64 MiB, one disk, every device. A second one has its
//! devices on PCI, and proves these only. See `axvm_guest` for the lines that the guests print.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_boot::bus::Bus;
use axvm_console::BackEnd;
use axvm_devices::StopReason;
use axvm_events::Events;
use axvm_inspect::wrap::wrapped;
use axvm_machine::{KernelSource, Resources, cpuinfo};
use axvm_sandbox::Role;
use axvm_virtio::block::{DiskConfig, OnFull};
use axvm_virtio::net::{Link, LinkKind, NetConfig, NetHandle};
use serde::Serialize;

use crate::cli::SelftestArgs;
use crate::config::Config;
use crate::consoles::OpenedConsoles;
use crate::current::Current;
use crate::end::End;
use crate::narrator::Narrator;
use crate::run::{Starts, close_sandbox};
use crate::serve::{Outside, Signals, see_off};
use crate::settings::{OnReboot, Settings, Vsock};
use crate::speech::{columns, print};
use crate::vsock::VsockSocket;

/// A guest that says nothing for so long hangs; each of its own waits is shorter.
const SILENCE: Duration = Duration::from_secs(20);
const DISK_LEN: u64 = 1 << 20;
const MEMORY: u64 = 64 << 20;
/// The address of the network card; it meets no other.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Tells the guest of the client that sends back what it gets.
const ECHO: &str = "echo";
/// One with its devices on MMIO, one on PCI.
const MACHINES: usize = 2;

/// What was proved.
#[derive(Debug, Serialize, PartialEq)]
struct Proof {
    name: String,
    /// `ok`, `FAILED` or `skip`.
    verdict: String,
    microseconds: u64,
    detail: String,
}

/// All of it.
#[derive(Serialize)]
struct Report {
    ok: bool,
    cpus: u32,
    seconds: f64,
    /// Whether the processor offers virtualization; without it only small guests are fast enough.
    hardware_virtualization: bool,
    proofs: Vec<Proof>,
}

/// Runs the guest and prints what it proved. Exit code 0 if all holds, else 1.
pub fn selftest(args: &SelftestArgs) -> Result<u8> {
    let since = Instant::now();
    let mut proofs = prove(args.cpus)?;
    let count = proofs.len();
    let last = proofs.last().map_or("its first line", |proof| &proof.name).to_owned();
    proofs.retain(|proof| proof.name != "end");
    if count - proofs.len() < MACHINES {
        proofs.push(Proof::failed("end", format!("nothing came after {last}")));
    }
    let report = Report {
        ok: proofs.iter().all(|proof| proof.verdict != "FAILED"),
        cpus: args.cpus,
        seconds: since.elapsed().as_secs_f64(),
        hardware_virtualization: cpuinfo::has_virtualization(),
        proofs,
    };
    match args.json {
        true => print(serde_json::to_string_pretty(&report)? + "\n")?,
        false => print(report.table(columns(io::stdout())))?,
    }
    Ok(if report.ok { 0 } else { 1 })
}

/// The machine's life, and what its guest said in it.
fn prove(cpus: u32) -> Result<Vec<Proof>> {
    let disk = Disk::make()?;
    let (config, on_pci) = (config(cpus, &disk)?, on_pci(config(cpus, &disk)?));
    let events = Events::warnings_to(Arc::new(Narrator::new(false)));
    let mut resources = Resources::open(&config.machine, events.clone())?;
    drop(disk);
    let vsock = VsockSocket::open(&config, &events)?;
    vsock.iter().for_each(|vsock| resources.connect(&config.machine, vsock.host()));
    let client = ask_for_echo(&config)?;
    let (cable, peer) = UnixStream::pair().context("Cannot be the peer of a network card")?;
    let card = Link::new(LinkKind::Stream, cable.into()).and_then(NetHandle::new);
    resources.plug(&config.machine, [card.context("Cannot plug a cable in")?]);
    let signals = Signals::catch().context("Cannot catch signals")?;
    let consoles = OpenedConsoles::open(&config)?;
    let (console, said) = UnixStream::pair().context("Cannot listen to the guest")?;
    axvm_sandbox::allow_pci();
    close_sandbox(&config, &[], &events)?;
    let current = Arc::new(Current::default());
    let consoles = consoles.start(&current, &events)?;
    consoles.com1_attacher().attach(console, Vec::new());
    let listened = Arc::clone(&current);
    let listener = axvm_sandbox::spawn(Role::Console, "selftest", move || listen(said, &listened));
    let listener = listener.context("Cannot listen to the guest")?;
    let echo = axvm_sandbox::spawn(Role::Console, "selftest-vsock", move || echo(client));
    let echo = echo.context("Cannot be a client of the guest")?;
    // A frame has the same form both ways.
    let frames = axvm_sandbox::spawn(Role::Console, "selftest-net", move || send_back(&peer, &peer));
    let frames = frames.context("Cannot be the peer of a network card")?;
    let outside = Outside::of(&config, &signals);
    let mut ends = Vec::new();
    for config in [&config, &on_pci] {
        let starts =
            Starts { config, resources: &resources, consoles: &consoles, current: &current, outside: &outside };
        let end = starts.run(&|| {}, |_| {});
        let is_good = end.as_ref().is_ok_and(|end| outcome(end, config).is_none());
        ends.push(end);
        if !is_good || resources.clear().is_err() {
            break;
        }
    }
    see_off(consoles, &signals, None);
    // The client is closed with the guest's last connection, or with the host's end of them; the cable with its card.
    drop((resources, vsock));
    let _ = (echo.join(), frames.join());
    let mut proofs = listener.join().unwrap_or_default();
    for end in ends {
        proofs.extend(outcome(&end?, &config));
    }
    Ok(proofs)
}

/// A disk image that is gone when AxVM is.
struct Disk(tempfile::TempPath);

impl Disk {
    fn make() -> Result<Disk> {
        let dir = std::env::temp_dir();
        let trouble =
            || format!("Cannot make a disk image in {}; set TMPDIR to a directory where you may write", dir.display());
        let file = tempfile::Builder::new().prefix("axvm-selftest-").tempfile_in(&dir).with_context(trouble)?;
        file.as_file().set_len(DISK_LEN).with_context(trouble)?;
        Ok(Disk(file.into_temp_path()))
    }
}

fn config(cpus: u32, disk: &Disk) -> Result<Config> {
    let (kernel, on_reboot) = (Some("selftest".into()), Some(OnReboot::End));
    let said = Settings { kernel, on_reboot, vsock: Some(Vsock::default()), ..Settings::default() };
    let mut config = Config::from_settings(said)?;
    let machine = &mut config.machine;
    machine.kernel = KernelSource::Embedded(axvm_guest::selftest());
    machine.topology = axvm_arch::cpuid::Topology::flat(cpus);
    machine.memory.size = MEMORY;
    // No user would make room and resume it.
    let on_full = OnFull::Report;
    let disk = DiskConfig { serial: Some("SELFTEST".into()), on_full, ..DiskConfig::new(disk.0.to_path_buf()) };
    machine.disks = vec![disk];
    machine.virtio_console = true;
    machine.nets = vec![NetConfig { mac: MAC, mtu: None }];
    machine.append = format!("{ECHO} {}", axvm_guest::LOOP);
    config.console = BackEnd::None;
    config.virtio_console = Some(BackEnd::None);
    Ok(config)
}

/// The same machine with its devices on the other bus.
fn on_pci(mut config: Config) -> Config {
    config.machine.bus = Bus::Pci;
    config.machine.append = axvm_guest::PCI.to_owned();
    config
}

/// A client of the guest, which waits there for its driver. The sandbox that closes makes no sockets.
fn ask_for_echo(config: &Config) -> Result<UnixStream> {
    let path = config.vsock.as_deref().context("The self-test has a socket device")?;
    let mut client = UnixStream::connect(path).with_context(|| format!("Cannot connect to {}", path.display()))?;
    client.write_all(b"CONNECT 1024\n").context("Cannot be a client of the guest")?;
    Ok(client)
}

/// Sends back what comes after the answer's line.
fn echo(client: UnixStream) {
    let mut lines = BufReader::new(&client);
    let _ = lines.read_until(b'\n', &mut Vec::new());
    send_back(lines, &client);
}

fn send_back(mut from: impl Read, mut to: impl Write) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

/// Reads what the guest says until it has ended; ends a guest that hangs.
fn listen(said: UnixStream, current: &Current) -> Vec<Proof> {
    let mut proofs = Vec::new();
    // Without a limit, a guest that hangs is ended by the user.
    let _ = said.set_read_timeout(Some(SILENCE));
    let mut lines = BufReader::new(said);
    loop {
        let mut line = Vec::new();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return proofs,
            Ok(_) => proofs.extend(parse(&String::from_utf8_lossy(&line))),
            Err(_) => {
                proofs.push(Proof::failed("guest", format!("silent for {} s: it hangs", SILENCE.as_secs())));
                current.request_stop(StopReason::Quit);
                return proofs;
            }
        }
    }
}

/// A line of the guest, if it is a verdict.
fn parse(line: &str) -> Option<Proof> {
    let mut words = line.trim_end().strip_prefix("AXVM ")?.splitn(4, ' ');
    let (name, verdict) = (words.next()?, words.next()?);
    let microseconds = words.next().and_then(|time| time.strip_suffix("us")?.parse().ok()).unwrap_or(0);
    let detail = words.next().unwrap_or_default();
    match (name, verdict) {
        ("begin", _) => None,
        ("panic", _) => Some(Proof::failed("guest", line.trim_end().trim_start_matches("AXVM ").to_owned())),
        (name, "ok" | "FAILED" | "skip") => {
            Some(Proof { name: name.into(), verdict: verdict.into(), microseconds, detail: detail.into() })
        }
        _ => None,
    }
}

/// How the machine ended is a proof too: the guest was to power it off.
fn outcome(end: &End, config: &Config) -> Option<Proof> {
    match end.code() {
        Ok(0) => None,
        _ => Some(Proof::failed(
            "power",
            end.words(&config.settings).unwrap_or_else(|| "the guest did not power off".into()),
        )),
    }
}

impl Proof {
    fn failed(name: &str, detail: String) -> Proof {
        Proof { name: name.into(), verdict: "FAILED".into(), microseconds: 0, detail }
    }
}

/// Columns before what was seen.
const INDENT: usize = 36;
/// Columns that it has on a terminal which is narrower.
const LEAST_COLUMNS: usize = 20;

impl Report {
    /// The proofs, and what follows from them; in lines of so many columns, if that is said.
    fn table(&self, columns: Option<usize>) -> String {
        let mut text = String::new();
        let width = |before| columns.map_or(usize::MAX, |all| all.saturating_sub(before).max(LEAST_COLUMNS));
        for Proof { name, verdict, microseconds, detail } in &self.proofs {
            let detail = wrapped(detail, width(INDENT)).join(&format!("\n{:INDENT$}", ""));
            let line = format!("{verdict:6}  {name:14} {:>8.1} ms  {detail}", *microseconds as f64 / 1e3);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let count = |verdict| self.proofs.iter().filter(|proof| proof.verdict == verdict).count();
        let (ok, failed) = (count("ok"), count("FAILED"));
        let vcpus = if self.cpus == 1 { "1 vCPU".into() } else { format!("{} vCPUs", self.cpus) };
        let follows = match (self.ok, self.hardware_virtualization) {
            (false, _) => "This host has trouble with AxVM; `axvm doctor` looks at it.",
            (true, true) => "This host can run AxVM.",
            (true, false) => {
                "This host can run AxVM, but no Linux at a useful speed: the processor offers no virtualization; \
                 `axvm doctor` explains."
            }
        };
        let end = format!("{ok} proofs hold, {failed} failed, with {vcpus} in {:.2} s. {follows}", self.seconds);
        text + "\n" + &wrapped(&end, width(0)).join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_become_proofs() {
        let proof = parse("AXVM smp ok 17946us 3 of 3 others up\r\n").unwrap();
        assert_eq!(
            (proof.name.as_str(), proof.microseconds, proof.detail.as_str()),
            ("smp", 17946, "3 of 3 others up")
        );
        assert_eq!(parse("AXVM end FAILED 2").unwrap().verdict, "FAILED");
        assert_eq!(parse("AXVM panic page fault").unwrap().detail, "panic page fault");
        assert!(parse("AXVM begin selftest 1").is_none() && parse("Linux version 6.12").is_none());
    }

    #[test]
    fn a_failure_is_seen_in_the_last_line() {
        let report = |proofs: Vec<Proof>| Report {
            ok: proofs.iter().all(|proof| proof.verdict != "FAILED"),
            cpus: 2,
            seconds: 0.1,
            hardware_virtualization: true,
            proofs,
        };
        let good = report(vec![parse("AXVM pit ok 5us pin 2").unwrap()]).table(None);
        assert!(good.starts_with("ok      pit                 0.0 ms  pin 2\n"), "{good}");
        assert!(good.ends_with("This host can run AxVM.\n"), "{good}");
        let bad = report(vec![Proof::failed("pit", "no interrupt".into())]).table(None);
        assert!(bad.contains("0 proofs hold, 1 failed") && bad.contains("axvm doctor"), "{bad}");
    }
}
