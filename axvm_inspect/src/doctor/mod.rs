//! The doctor (`axvm doctor`): what this host has for virtual machines, what it lacks, and what to do about it.
//!
//! ```text
//!   Host: files below a Root (/proc, /sys, /dev)  --+
//!         this user's ids                           +--> examine --> rows --> table
//!         what /dev/kvm answers (Survey)          --+     device, processor, memory, kernel, network
//! ```
//!
//! A row that is not ok says what that costs, and how to change it. Everything comes in through [`Host`], so a test
//! can describe any host.
//!
//! Source: KVM API 4.4 `KVM_CHECK_EXTENSION`; Linux Documentation: admin-guide/mm/transhuge, admin-guide/mm/hugetlbpage,
//! admin-guide/sysctl, admin-guide/cgroup-v2, admin-guide/hw-vuln; proc(5).
//! Left out: trying things by doing them (that is `axvm selftest`).

mod cgroup;
mod device;
mod kernel;
mod memory;
mod network;
mod processor;
mod root;
mod row;
mod table;

use std::path::Path;

use axvm_kvm::{Kvm, KvmError, Survey};

pub use root::Root;
pub use row::{Advice, Row, Verdict};
pub use table::{Style, table};

/// All that the rows are made from.
#[derive(Debug)]
pub struct Host {
    /// Where /proc, /sys, /dev and /etc are.
    pub root: Root,
    /// Who asks.
    pub user: User,
    /// What KVM said, or why it said nothing.
    pub kvm: Result<Survey, KvmError>,
    /// Which fences around a process this kernel has.
    pub sandbox: axvm_sandbox::SandboxReport,
}

/// A user as the kernel sees one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id and supplementary groups.
    pub groups: Vec<u32>,
}

impl Host {
    /// The host that this program runs on.
    pub fn here() -> Host {
        let mut groups: Vec<u32> =
            rustix::process::getgroups().unwrap_or_default().iter().map(|g| g.as_raw()).collect();
        groups.push(rustix::process::getegid().as_raw());
        Host {
            root: Root::new("/"),
            user: User { uid: rustix::process::geteuid().as_raw(), groups },
            kvm: Kvm::survey(Path::new("/dev/kvm")),
            sandbox: axvm_sandbox::probe(),
        }
    }
}

/// All rows, in the order in which they are shown.
pub fn examine(host: &Host) -> Vec<Row> {
    let parts =
        [device::rows(host), processor::rows(host), memory::rows(&host.root), kernel::rows(host), network::rows(host)];
    parts.into_iter().flatten().collect()
}

/// Whether AxVM can run Linux here: no required row has a problem.
pub fn can_run(rows: &[Row]) -> bool {
    !rows.iter().any(|row| row.required && row.verdict == Verdict::Problem)
}

/// The last words below the table.
pub fn summary(host: &Host, rows: &[Row]) -> String {
    if can_run(rows) {
        return "AxVM can run Linux here. Next: axvm selftest tries every device; then axvm --kernel bzImage".into();
    }
    let starts = host.kvm.as_ref().is_ok_and(device::is_usable);
    if starts && processor::virtualization(&host.root).is_none() {
        "AxVM starts machines here (axvm selftest shows it), but Linux will be too slow to use.".into()
    } else {
        "AxVM cannot run Linux here. First mend the problems above, from top to bottom.".into()
    }
}
