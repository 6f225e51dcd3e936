//! `axvm inspect`: prints what [`axvm_inspect::xray`] shows of the machine that `axvm run` would start.
//!
//! ```text
//!   arguments of run --> Config --> PowerOn (RAM of its own, no KVM) --> Facts --> Xray --> text, JSON, HTML
//!   two settings files --> two Xrays --> Diff -------------------------------> the same
//! ```
//!
//! Kernel and initrd are opened for reading, disks not at all: it can be asked while the machine runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use anyhow::Result;
use axvm_arch::{Gpa, cpuinfo};
use axvm_inspect::xray::{CpuidFacts, Diff, Facts, Style, Xray, diff_html, html, text};
use axvm_kvm::Kvm;
use axvm_machine::{KernelSource, MachineSpec, PowerOn, ProcessorModel};
use serde::Serialize;

use crate::cli::{InspectArgs, InspectFormat, RunArgs};
use crate::config::Config;
use crate::lint::GuestFiles;
use crate::speech;

/// Prints a machine at power-on.
pub fn inspect(args: InspectArgs) -> Result<u8> {
    let style = Style { colour: speech::colour(io::stdout()), columns: speech::columns(io::stdout()) };
    speech::print(match &args.diff[..] {
        [a, b] => {
            let look = |path: &PathBuf| {
                let run = RunArgs { config: Some(path.clone()), ..args.run.clone() };
                Ok::<_, anyhow::Error>(look(run, &args.walk, &args.only)?.only(&args.only))
            };
            let names = [a, b].map(|path| path.display().to_string());
            let diff = Diff::of((&names[0], &look(a)?), (&names[1], &look(b)?));
            match args.format {
                InspectFormat::Text => diff.text(style),
                InspectFormat::Json => json(&diff)?,
                InspectFormat::Html => diff_html(&diff),
            }
        }
        _ => {
            let xray = look(args.run, &args.walk, &args.only)?.only(&args.only);
            match args.format {
                InspectFormat::Text => text(&xray, style),
                InspectFormat::Json => json(&xray)?,
                InspectFormat::Html => html(&xray),
            }
        }
    })?;
    Ok(0)
}

fn json(tree: &impl Serialize) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(tree)?))
}

/// The machine that these arguments mean.
fn look(run: RunArgs, walks: &[u64], only: &[String]) -> Result<Xray> {
    let config = Config::from_args(run)?;
    let PowerOn { plan, apic_ids: _, placed, ram, kernel, initrd } = PowerOn::of(&config.machine)?;
    // To unpack a kernel takes a second: not for those who do not ask.
    let lacks = (only.is_empty() || only.iter().any(|id| id == "lacks")).then(|| {
        let files = GuestFiles::opened(&config, Arc::new(kernel), initrd.map(Arc::new));
        files.ok_or("no Linux is expected there").map(|files| files.lacks(&config, &plan, &placed.start.command_line))
    });
    let cpuid = cpuid(&config.machine);
    let read = |gpa: Gpa, bytes: &mut [u8]| ram.read(gpa, bytes).is_ok();
    Ok(Xray::of(&Facts {
        name: &config.name,
        said: &said(&config),
        plan: &plan,
        tables: placed.tables.as_ref(),
        mp: &placed.mp,
        start: &placed.start,
        default_command_line: &placed.default_command_line,
        append: &config.machine.append,
        read: &read,
        walks,
        cpuid: cpuid.as_ref().map_err(String::as_str),
        lacks: lacks.as_ref().map(|looked| looked.as_ref().map_err(|why| *why)),
    }))
}

/// What KVM says of the first processor, if there is one here; and what /proc/cpuinfo says of the host's.
fn cpuid(spec: &MachineSpec) -> Result<CpuidFacts, String> {
    // No VM is made: the frequency of its TSC stays unknown.
    let model = Kvm::open().and_then(|kvm| ProcessorModel::of(&kvm, spec, None)).map_err(|error| error.to_string())?;
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let host_flags = cpuinfo::field(&text, "flags").unwrap_or_default().to_owned();
    Ok(CpuidFacts { guest: model.cpuid(spec, 0), supported: model.supported, host_flags })
}

/// The machine in words, and what `axvm run` would warn of.
fn said(config: &Config) -> Vec<(&'static str, String)> {
    let MachineSpec { kernel, initrd, topology, cpu, memory, acpi, disks, nets, .. } = &config.machine;
    let mut said = Vec::new();
    said.push((
        "kernel",
        match kernel {
            KernelSource::File(path) => path.display().to_string(),
            KernelSource::Embedded(_) => "the embedded guest".into(),
        },
    ));
    said.extend(initrd.iter().map(|path| ("initrd", path.display().to_string())));
    let (sockets, cores, threads) = (topology.sockets, topology.cores, topology.threads);
    said.push(("vCPUs", format!("{}: sockets {sockets}, cores {cores}, threads {threads}", topology.count())));
    said.push(("cpu", cpu.to_string()));
    said.push(("memory", format!("{} MiB", memory.size >> 20)));
    let bus = if config.machine.plan().is_ok_and(|plan| plan.has_pci()) { "PCI" } else { "virtio-mmio" };
    said.push(("bus", bus.into()));
    said.push(("acpi", acpi.to_string()));
    said.extend(disks.iter().map(|disk| {
        let read_only = if disk.read_only { ", read-only" } else { "" };
        ("disk", format!("{}{read_only}", disk.path.display()))
    }));
    said.extend(nets.iter().enumerate().map(|(n, _)| ("network card", format!("net{n}"))));
    let warnings = config.machine.contradictions().into_iter().chain(config.machine.bus_chosen());
    said.extend(warnings.map(|warning| ("warning", warning)));
    said
}
