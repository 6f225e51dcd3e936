//! A machine and its parts in the words of the API, and back.
//!
//! ```text
//!   Config, Plan, HangReport --> types::VmConfig, MachinePart, Explanation      NewDrive --> DiskConfig
//! ```

use std::cmp::Reverse;
use std::sync::Arc;

use axvm_api::ControlError;
use axvm_api::types::{self, CacheType};
use axvm_boot::plan::{Part, disk_name};
use axvm_inspect::crash::Cause;
use axvm_inspect::hang::HangReport;
use axvm_machine::{KernelSource, Machine};
use axvm_memory::PageSize;
use axvm_virtio::Busy;
use axvm_virtio::block::{Cache, DiskConfig, Engine, OnFull};
use axvm_virtio::limiter::RateLimit;

use crate::config::Config;
use crate::network::Cards;
use crate::rates;

/// A report in the words of the API.
pub(super) fn explanation(report: HangReport) -> types::Explanation {
    let text = report.to_string();
    let cause = |cause: Cause| types::LikelyCause { what: cause.what, remedy: cause.remedy };
    let HangReport { quiet_seconds, causes, vcpus, last_exits, lines, devices, console, .. } = report;
    let causes = causes.into_iter().map(cause).collect();
    types::Explanation { quiet_seconds, causes, vcpus, last_exits, lines, devices, console, text }
}

/// What a disk is to be that is added.
pub(super) fn disk_config(drive: &types::NewDrive) -> Result<DiskConfig, ControlError> {
    if drive.is_root_device {
        return Err(
            "A machine that runs has been booted already: is_root_device is false for a disk that is added".into()
        );
    }
    let cache = match drive.cache_type {
        Some(CacheType::Writethrough) => Cache::WriteThrough,
        Some(CacheType::Writeback) | None => Cache::WriteBack,
        Some(CacheType::Unsafe) => return Err("cache_type is Writeback or Writethrough; AxVM has no Unsafe".into()),
    };
    Ok(DiskConfig {
        read_only: drive.is_read_only,
        ephemeral: drive.is_ephemeral,
        direct: drive.is_direct,
        engine: Engine::Sync,
        serial: drive.serial.clone(),
        cache,
        block_size: Some(drive.block_size.unwrap_or(512)),
        on_full: if drive.reports_full { OnFull::Report } else { OnFull::Pause },
        rate: rates::updated(RateLimit::default(), &drive.rate_limiter.unwrap_or_default()),
        queues: drive.queues,
        ..DiskConfig::new(&drive.path_on_host)
    })
}

/// All parts of a machine: those of the plan, and those that were added.
pub(super) fn parts(machine: &Machine) -> Vec<types::MachinePart> {
    let added = machine.inventory().slots().map(|slots| slots.parts()).unwrap_or_default();
    machine.plan().parts().iter().chain(&added).map(part).collect()
}

/// A part of the plan, for clients.
fn part(part: &Part) -> types::MachinePart {
    types::MachinePart {
        name: part.name.to_string(),
        kind: part.kind.to_string(),
        places: part.places.iter().map(ToString::to_string).collect(),
        line: part.line,
    }
}

/// The threads that wait for the host, longest first.
pub(super) fn busy(machine: &Arc<Machine>) -> Vec<types::BusyThread> {
    let mut busy = machine.busy();
    busy.sort_by_key(|busy| Reverse(busy.duration));
    let thread = |busy: Busy| types::BusyThread { thread: busy.thread, seconds: busy.duration.as_secs_f64() };
    busy.into_iter().map(thread).collect()
}

/// The machine in Firecracker's words.
pub(super) fn describe(config: &Config, cards: &Cards) -> types::VmConfig {
    let machine = &config.machine;
    let drive = |(n, disk): (usize, &DiskConfig)| types::Drive {
        drive_id: disk_name(n),
        path_on_host: disk.path.clone(),
        is_root_device: n == 0,
        is_read_only: disk.read_only,
        cache_type: match disk.cache {
            Cache::WriteThrough => CacheType::Writethrough,
            Cache::WriteBack => CacheType::Writeback,
        },
    };
    types::VmConfig {
        boot_source: types::BootSource {
            kernel_image_path: match &machine.kernel {
                KernelSource::File(path) => path.clone(),
                KernelSource::Embedded(_) => Default::default(),
            },
            initrd_path: machine.initrd.clone(),
            boot_args: None,
        },
        drives: machine.disks.iter().enumerate().map(drive).collect(),
        machine_config: types::MachineConfig {
            vcpu_count: machine.topology.count(),
            mem_size_mib: machine.memory.size >> 20,
            smt: machine.topology.threads > 1,
            huge_pages: match machine.memory.pages {
                PageSize::Thp => types::HugePages::Transparent,
                PageSize::Small => types::HugePages::None,
                PageSize::Huge2M => types::HugePages::Huge2M,
                PageSize::Huge1G => types::HugePages::Huge1G,
            },
            ..types::MachineConfig::default()
        },
        network_interfaces: cards.interfaces(),
        balloon: None,
        entropy: Some(types::Entropy {}),
        vsock: machine
            .vsock
            .zip(config.vsock.clone())
            .map(|(guest_cid, uds_path)| types::Vsock { guest_cid, uds_path }),
    }
}
