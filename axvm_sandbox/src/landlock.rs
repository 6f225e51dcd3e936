//! Landlock: only the files of the machine can be opened.
//!
//! It judges when a file is opened: what is open already (disks, /dev/kvm, the terminal) stays usable. So the list is
//! short: what a reset opens again, what is removed at the end, and what the Rust and C libraries read for themselves.
//! TCP is refused too, and so are signals and abstract sockets to processes outside.
//!
//! Spec: Linux `Documentation/userspace-api/landlock.rst`, ABI 1 to 7; the kernel's older ABI means fewer rules.

use std::path::PathBuf;

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

use crate::SandboxError;
use crate::report::Protection;

const NAME: &str = "files";
const NEWEST: ABI = ABI::V7;
/// What stays possible without it: the filter closes the rest.
const OPEN: &str = "until then files of this user can be read and removed, though not written";

/// What is read without being one of the machine's files: backtraces, the processor's name, how many threads are of use.
/// Missing ones are skipped.
const HOST: [&str; 3] = ["/proc/self", "/proc/cpuinfo", "/sys/fs/cgroup"];

/// The files of a machine that are opened after set-up.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Opened for reading, after the sandbox is closed.
    pub read: Vec<PathBuf>,
    /// Opened for reading and writing, after the sandbox is closed: pseudo-terminals.
    pub write: Vec<PathBuf>,
    /// Directories in which a socket is removed at the end.
    pub sockets_in: Vec<PathBuf>,
}

/// Limits this thread, and all it makes, to `files`.
pub(crate) fn limit(files: &Files) -> Result<Protection, SandboxError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    for path in HOST.iter().filter_map(|path| PathFd::new(path).ok()) {
        rules = rules.add_rule(PathBeneath::new(path, read))?;
    }
    rules = allow(rules, &files.read, AccessFs::ReadFile.into())?;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    rules = allow(rules, &files.write, write)?;
    rules = allow(rules, &files.sockets_in, AccessFs::RemoveFile.into())?;
    Ok(describe(rules.restrict_self()?.landlock))
}

fn allow(
    mut rules: RulesetCreated,
    paths: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    for path in paths {
        let fd = PathFd::new(path).map_err(|source| SandboxError::Path { path: path.clone(), source })?;
        rules = rules.add_rule(PathBeneath::new(fd, access))?;
    }
    Ok(rules)
}

/// Whether this kernel has Landlock.
pub(crate) fn probe() -> Protection {
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    match strict.handle_access(AccessFs::from_all(ABI::V1)).is_ok() {
        true => Protection::on(NAME, "a process can give up all files but its own"),
        false => Protection::missing(
            NAME,
            format!("this kernel has no Landlock, or it is off: see lsm= on its command line; {OPEN}"),
        ),
    }
}

fn describe(status: LandlockStatus) -> Protection {
    match status {
        LandlockStatus::Available { effective_abi, .. } => {
            Protection::on(NAME, format!("only those of the machine; Landlock ABI {}", effective_abi as i32))
        }
        LandlockStatus::NotEnabled => {
            Protection::missing(NAME, format!("Landlock is off: boot with lsm=landlock,...; {OPEN}"))
        }
        _ => Protection::missing(NAME, format!("this kernel has no Landlock: 5.13 or newer has it; {OPEN}")),
    }
}
