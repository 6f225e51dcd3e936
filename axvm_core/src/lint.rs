//! `--lint`: whether the guest's kernel and initrd have what the machine needs, told while the guest starts.
//!
//! ```text
//!   before the sandbox   kernel, initrd: open already    config-* beside the kernel, start of the first disk: read
//!   the first guest runs --> thread `lint`, behind all others: unpack, rules --> a warning in one line each
//! ```
//!
//! The start of a machine takes milliseconds, unpacking a kernel a tenth of a second and more: so no guest waits for it,
//! and without a terminal, where machines start by the thousand and no one reads, it is not done. Once in a process: after
//! a reset the files are the same.

use std::io::{self, IoSliceMut, IsTerminal};
use std::sync::Arc;
use std::time::Instant;

use axvm_boot::linux::Entry;
use axvm_boot::plan::Plan;
use axvm_console::BackEnd;
use axvm_events::{Event, Events};
use axvm_inspect::kernel::{self, Beside, FileSystem, Finding, KernelFacts, Needs};
use axvm_inspect::xray::Lacks;
use axvm_machine::{Image, KernelSource, Machine, Resources};
use axvm_memory::heap;
use axvm_sandbox::Role;
use rustix::io::preadv;
use rustix::process::setpriority_process;

use crate::config::Config;
use crate::opened::Opened;
use crate::settings::{Lint, Settings};

/// The last place in the host's order of threads.
const LAST: i32 = 19;

/// Whether it is to be done.
pub fn is_wanted(settings: &Settings) -> bool {
    match settings.lint() {
        Lint::On => true,
        Lint::Off => false,
        Lint::Auto => io::stderr().is_terminal(),
    }
}

/// What is to be looked into.
pub struct GuestFiles {
    kernel: Opened,
    initrd: Option<Opened>,
    beside: Beside,
    first_disk: Option<FileSystem>,
}

impl GuestFiles {
    /// Takes what is open, and reads what will not be in reach any more; none if it is not to be looked into.
    pub fn of(config: &Config, resources: &Resources) -> Option<GuestFiles> {
        if !is_wanted(&config.settings) {
            return None;
        }
        let (kernel, initrd) = resources.images();
        let files = GuestFiles::opened(config, kernel, initrd)?;
        Some(GuestFiles { first_disk: first_disk(resources), ..files })
    }

    /// The same of files that are open; none if they are not for Linux.
    pub fn opened(config: &Config, kernel: Arc<Image>, initrd: Option<Arc<Image>>) -> Option<GuestFiles> {
        let KernelSource::File(path) = &config.machine.kernel else { return None };
        if config.machine.entry == Some(Entry::Multiboot) {
            return None;
        }
        let beside = Beside::of(path, kernel::release(&*kernel).as_deref());
        Some(GuestFiles { kernel: Opened::of(kernel), initrd: initrd.map(Opened::of), beside, first_disk: None })
    }

    /// What a machine with this plan and this command line needs.
    fn needs(&self, config: &Config, plan: &Plan, command_line: &str) -> Needs {
        Needs {
            entry: config.machine.entry,
            has_initrd: self.initrd.is_some(),
            serial_is_shown: config.console != BackEnd::None,
            first_disk: self.first_disk,
            ..Needs::of(plan, &config.machine.apic_ids(), command_line)
        }
    }

    /// What is missing, now.
    pub fn lacks(&self, config: &Config, plan: &Plan, command_line: &str) -> Lacks {
        let (findings, facts) = self.findings(&self.needs(config, plan, command_line));
        Lacks { findings, evidence: facts.evidence().to_string() }
    }

    /// Looks into them in a thread of its own, for the machine that runs.
    pub fn look(self, config: &Config, machine: &Machine, events: &Events) {
        let Ok(plan) = config.machine.plan() else { return };
        let needs = self.needs(config, &plan, machine.command_line());
        let told = events.clone();
        let body = move || {
            // Where that is not allowed it has the place of all threads.
            let _ = setpriority_process(None, LAST);
            self.tell(&needs, &told);
            heap::give_back();
        };
        if let Err(error) = axvm_sandbox::spawn(Role::Lint, "lint", body) {
            let message = format!("no thread for a look into the kernel: {error} (see ulimit -u)");
            events.warn(|| Event::Warning { from: "--lint", message });
        }
    }

    fn tell(self, needs: &Needs, events: &Events) {
        let since = Instant::now();
        let (found, facts) = self.findings(needs);
        let count = found.len();
        for finding in found {
            events.warn(|| Event::Warning { from: "guest", message: finding.to_string() });
        }
        let findings = if count == 1 { "finding" } else { "findings" };
        let detail = || format!("{count} {findings}, from {}", facts.evidence());
        events.emit(|| Event::BootStep { what: "lint", detail: detail(), took: since.elapsed() });
    }

    /// What is beside the kernel spares a look into it.
    fn findings(&self, needs: &Needs) -> (Vec<Finding>, KernelFacts) {
        let looked = || {
            kernel::examine(&self.kernel, &self.beside).unwrap_or_else(|error| KernelFacts::unknown(error.to_string()))
        };
        let facts = KernelFacts::beside(&self.beside).unwrap_or_else(looked);
        let initrd = self.initrd.as_ref().filter(|_| facts.is_known()).map(|initrd| kernel::initrd::examine(initrd));
        (kernel::lint(&facts, initrd.as_ref(), needs), facts)
    }
}

/// The file system on the first disk, by its first bytes; read through the descriptor that has the image's lock, as the end
/// of another would end the lock.
fn first_disk(resources: &Resources) -> Option<FileSystem> {
    let disk = resources.disks().first()?;
    let mut head = vec![0; FileSystem::HEAD_LEN];
    let len = preadv(disk.descriptors().first()?, &mut [IoSliceMut::new(&mut head)], 0).ok()?;
    FileSystem::on(&head[..len])
}
