//! Machines that run elsewhere: `axvm ctl` and `axvm ps`, clients of the control socket.
//!
//! ```text
//!   path | process id | name --find--> socket --HTTP--> the machine's `api` thread
//! ```

mod attach;
mod ctl;
mod debug;
mod examine;
mod hotplug;
mod net;
mod ps;
mod table;
mod trace;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use axvm_api::Registry;
use axvm_api::registry::Found;

pub use ctl::ctl;
pub use debug::gdb;
pub use ps::ps;

/// The socket of the machine that the user means.
pub fn find(machine: &OsStr) -> Result<PathBuf> {
    // A machine is often called like its kernel, whose file may lie here. What is no text is no name.
    let is_socket = fs::metadata(machine).is_ok_and(|file| file.file_type().is_socket());
    let Some(machine) = machine.to_str().filter(|machine| !machine.contains('/') && !is_socket) else {
        return Ok(machine.into());
    };
    let running = Registry::of_user().machines().context("Cannot look for machines that run")?;
    let pid = machine.parse::<u32>().ok();
    let is_meant = |found: &&Found| {
        pid == Some(found.pid) || matches!(&found.status, Ok(status) if pid.is_none() && status.name == machine)
    };
    let meant: Vec<&Found> = running.iter().filter(is_meant).collect();
    match meant[..] {
        [one] => Ok(one.socket.clone()),
        [] if running.is_empty() => {
            bail!("No machine '{machine}': no machine of yours runs. Start one with `axvm run`")
        }
        [] => bail!("No machine '{machine}': there is {}. `axvm ps` tells more", names(&running)),
        _ => {
            let pids: Vec<String> = meant.iter().map(|found| found.pid.to_string()).collect();
            bail!(
                "{} machines are called '{machine}': say which by its process id, one of {}",
                meant.len(),
                pids.join(", ")
            )
        }
    }
}

fn names(running: &[Found]) -> String {
    let name = |found: &Found| match &found.status {
        Ok(status) => format!("{} ({})", status.name, found.pid),
        Err(_) => found.pid.to_string(),
    };
    running.iter().map(name).collect::<Vec<_>>().join(", ")
}
