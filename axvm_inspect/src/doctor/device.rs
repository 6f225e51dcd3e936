//! /dev/kvm: is it there, may this user open it, what does it offer, and is the processor free for it.
//!
//! ```text
//!   the file --> owner, group, mode --> open --> API version, limits, capabilities --> KVM_CREATE_VM
//!   missing:     this user may not:              missing: which Linux has it           busy: another hypervisor
//!   modprobe     usermod -aG kvm
//! ```
//!
//! Source: KVM API 4.1 `KVM_GET_API_VERSION`, 4.2 `KVM_CREATE_VM`, 4.4 `KVM_CHECK_EXTENSION`; group(5).

use axvm_boot::cpu::{CpuConfig, CpuModel, CpuTemplate, Explained, groundless, missing_features};
use axvm_kvm::{KvmError, Survey};

use super::processor::{vendor_module, virtualization};
use super::{Host, Row};

const PART: &str = "KVM";
/// The version of the KVM API that AxVM speaks; it has not changed since Linux 2.6.22.
const API_VERSION: i32 = 12;

pub(super) fn rows(host: &Host) -> Vec<Row> {
    let mut rows = vec![permissions(host), opened(host)];
    if let Ok(survey) = &host.kvm {
        rows.extend([api(survey), free(host, survey), vcpus(survey), tsc(survey), cpuid(survey), ivy_bridge(survey)]);
        rows.extend(capabilities(survey));
    }
    rows
}

/// Whether a machine can be built with this KVM, fast or slow.
pub(super) fn is_usable(survey: &Survey) -> bool {
    let complete = survey.answers.iter().all(|(capability, has)| *has || !capability.is_required());
    survey.api_version == API_VERSION && survey.vm.is_ok() && complete
}

fn permissions(host: &Host) -> Row {
    let Some(access) = host.root.access("/dev/kvm") else {
        return missing(host);
    };
    let kvm_group = host.root.group(|name, _| name == "kvm").map(|(_, gid)| gid);
    let group = host.root.group(|_, gid| gid == access.gid).map_or_else(|| access.gid.to_string(), |(name, _)| name);
    let owner = if access.uid == 0 { "root".into() } else { access.uid.to_string() };
    let member = match kvm_group {
        _ if host.user.uid == 0 => "you are root",
        None => "there is no group kvm",
        Some(gid) if host.user.groups.contains(&gid) => "you are in group kvm",
        Some(_) => "you are not in group kvm",
    };
    let row = Row::ok(PART, "/dev/kvm", format!("{owner}:{group}, mode {:04o}; {member}", access.mode)).required();
    if host.kvm.is_ok() || access.allows(&host.user) {
        return row;
    }
    // Distributions give the device to group kvm; elsewhere that has to come first.
    let give = "sudo groupadd -rf kvm; sudo chgrp kvm /dev/kvm; sudo chmod 0660 /dev/kvm";
    let join = "sudo usermod -aG kvm $USER   (then log in again)";
    let change = match kvm_group {
        Some(gid) if gid == access.gid && access.mode & 0o060 == 0o060 => join.to_owned(),
        _ => format!("{give}\n{join}"),
    };
    row.problem("you may not open /dev/kvm, so no machine can start", change)
}

fn missing(host: &Host) -> Row {
    let row = Row::ok(PART, "/dev/kvm", "missing").required();
    let cost = "without KVM no machine can start";
    if host.root.has("/sys/module/kvm") {
        return row.problem(
            cost,
            "in a container: start it with --device /dev/kvm\nelse: sudo mknod -m 0660 /dev/kvm c 10 232",
        );
    }
    let load = format!("sudo modprobe {}", vendor_module(&host.root));
    match virtualization(&host.root) {
        Some(_) => row.problem(cost, load),
        None => row.problem(cost, format!("first vmx or svm (see Processor below), then:\n{load}")),
    }
}

fn opened(host: &Host) -> Row {
    match &host.kvm {
        Ok(_) => Row::ok(PART, "open", "for reading and writing").required(),
        Err(error) => {
            let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let change = match error {
                KvmError::Missing { .. } => "mend the row above; then axvm doctor again",
                KvmError::Permission { .. } if host.user.uid == 0 => {
                    "the device controller refuses it; start the container with --device /dev/kvm"
                }
                KvmError::Permission { .. } => "mend the row above; then log in again",
                _ => "ls -l /dev/kvm   (should show a character device 10, 232)",
            };
            let found = if source.is_empty() { "it is not a KVM".into() } else { source };
            Row::ok(PART, "open", found).required().problem("no machine can start", change)
        }
    }
}

fn api(survey: &Survey) -> Row {
    let row = Row::ok(PART, "API version", survey.api_version.to_string()).required();
    match survey.api_version {
        API_VERSION => row,
        _ => row.problem(format!("AxVM speaks version {API_VERSION}"), "install a kernel of this century: uname -r"),
    }
}

/// Whether another hypervisor holds the processor.
fn free(host: &Host, survey: &Survey) -> Row {
    let others: Vec<&str> = [("vboxdrv", "VirtualBox"), ("vmmon", "VMware"), ("xen_evtchn", "Xen")]
        .into_iter()
        .filter(|(module, _)| host.root.has(&format!("/sys/module/{module}")))
        .map(|(_, name)| name)
        .collect();
    let others = if others.is_empty() { "none known is loaded".into() } else { others.join(", ") };
    match &survey.vm {
        Ok(()) => Row::ok(PART, "create a VM", format!("works (other hypervisors: {others})")).required(),
        Err(KvmError::Busy(_)) => {
            let row = Row::ok(PART, "create a VM", format!("busy (other hypervisors: {others})")).required();
            let change = "stop its machines; VirtualBox: sudo modprobe -r vboxnetadp vboxnetflt vboxdrv";
            row.problem("another hypervisor holds the processor's virtualization", change)
        }
        Err(error) => {
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let row = Row::ok(PART, "create a VM", format!("fails: {why}")).required();
            row.problem("no machine can start", "sudo dmesg | grep -i kvm   (tells why)")
        }
    }
}

fn vcpus(survey: &Survey) -> Row {
    let limits = &survey.limits;
    let found = format!("{} in a machine ({} recommended)", limits.max_vcpus, limits.recommended_vcpus);
    let row = Row::ok(PART, "vCPUs", found);
    match limits.max_vcpus {
        20.. => row,
        _ => row.note("the examples start up to 20 vCPUs", "give --cpus no more than this"),
    }
}

fn tsc(survey: &Survey) -> Row {
    let found = if survey.limits.tsc_control {
        "yes; AxVM gives guests the host's frequency all the same"
    } else {
        "no; guests run at the host's frequency, as AxVM wants"
    };
    Row::ok(PART, "TSC scaling", found)
}

/// Whether the processor, as KVM shows it, holds together. An emulated or masked one need not.
fn cpuid(survey: &Survey) -> Row {
    // With what only some guests ask for: it is the host that is looked at.
    let model = CpuModel::ALL_OF_HOST;
    let config = CpuConfig { model, tsc_deadline: true, tsc_aux: true, ..CpuConfig::default() };
    let groundless = groundless(&survey.cpuid, &config);
    let row = Row::ok(PART, "CPUID", "each feature has what it stands on");
    if groundless.is_empty() {
        return row;
    }
    Row::ok(PART, "CPUID", format!("reports {}", Explained(&groundless))).note(
        "guests are not told of these features, and do without",
        "none is needed; in a virtual machine, try another processor model",
    )
}

fn ivy_bridge(survey: &Survey) -> Row {
    let missing = missing_features(&survey.cpuid, CpuTemplate::IvyBridge);
    if missing.is_empty() {
        return Row::ok(PART, "Ivy Bridge (2012)", "--cpu ivybridge is complete here");
    }
    Row::ok(PART, "Ivy Bridge (2012)", format!("--cpu ivybridge lacks {}", missing.join(", ")))
        .note("such a guest does without them", "use --cpu host, or another host")
}

fn capabilities(survey: &Survey) -> impl Iterator<Item = Row> {
    const PART: &str = "KVM capabilities that AxVM uses";
    survey.answers.iter().map(|(capability, has)| {
        let what = capability.name.trim_start_matches("KVM_CAP_");
        let found = if *has { capability.what_for.into() } else { format!("missing: {}", capability.what_for) };
        let row = Row::ok(PART, what, found);
        let change = format!("use Linux {} or later, with all parts of KVM for x86", capability.since);
        match (has, capability.without) {
            (true, None) => row.required(),
            (true, Some(_)) => row,
            (false, None) => row.required().problem("no machine can do without it", change),
            (false, Some(cost)) => row.note(cost, change),
        }
    })
}
