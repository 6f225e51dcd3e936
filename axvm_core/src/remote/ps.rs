//! `axvm ps`: the machines of this user that run, one line each.
//!
//! ```text
//!   registry (a directory of sockets) --each--> GET /status, 200 ms later again --> table or JSON; -q needs none
//! ```
//!
//! Two looks, for a rate of exits needs two.

use std::time::Duration;

use anyhow::{Context, Result};
use axvm_api::registry::Found;
use axvm_api::types::{MachineState, Memory, Status};
use axvm_api::{Client, ClientError, Registry};

use crate::cli::PsArgs;
use crate::speech::{print, tell};

use super::table::aligned;

/// Between the two looks that tell how often vCPUs exit now.
const LOOK: Duration = Duration::from_millis(200);
const HEAD: [&str; 9] = ["PID", "NAME", "STATE", "CPUS", "MEMORY", "RESIDENT", "UPTIME", "EXITS/S", "DISKS"];

/// Prints the table, a JSON array of what `GET /status` says, or process ids.
pub fn ps(args: &PsArgs) -> Result<u8> {
    let mut machines = Registry::of_user().machines().context("Cannot look for machines that run")?;
    if args.quiet {
        print(machines.iter().map(|machine| format!("{}\n", machine.pid)).collect::<String>())?;
        return Ok(0);
    }
    if !machines.is_empty() {
        std::thread::sleep(LOOK);
    }
    // Who did not answer would not answer now.
    for machine in machines.iter_mut().filter(|machine| machine.status.is_ok()) {
        if let Ok(status) = Client::connect(&machine.socket).and_then(|mut client| client.get::<Status>("/status")) {
            machine.status = Ok(status);
        }
    }
    if args.json {
        let answers: Vec<&Status> = machines.iter().filter_map(|machine| machine.status.as_ref().ok()).collect();
        print(serde_json::to_string_pretty(&answers)? + "\n")?;
        return Ok(0);
    }
    if machines.is_empty() {
        tell("No machine of yours runs. Start one with `axvm run`");
        return Ok(0);
    }
    print(table(&machines))?;
    machines.iter().filter_map(|machine| machine.status.as_ref().err()).for_each(tell);
    Ok(0)
}

fn table(machines: &[Found]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(machines.iter().map(|machine| match &machine.status {
        Ok(status) => row(status).to_vec(),
        Err(error) => {
            let mut row: [String; HEAD.len()] = std::array::from_fn(|_| "-".into());
            let state = if matches!(error, ClientError::Silent(_)) { "no answer" } else { "unknown" };
            (row[0], row[1], row[2]) = (machine.pid.to_string(), "?".into(), state.into());
            row.to_vec()
        }
    }));
    aligned(&rows)
}

fn row(status: &Status) -> [String; HEAD.len()] {
    let disk = |disk: &axvm_api::types::Disk| {
        format!("{}={}{}", disk.name, disk.path.display(), if disk.read_only { " (ro)" } else { "" })
    };
    [
        status.pid.to_string(),
        status.name.clone(),
        state(status.state).to_owned(),
        status.cpus.to_string(),
        mebibytes(status.memory.size),
        resident(&status.memory),
        duration(status.uptime_s),
        format!("{:.0}", status.exits.per_second),
        status.disks.iter().map(disk).collect::<Vec<_>>().join(" "),
    ]
}

pub(super) fn state(state: MachineState) -> &'static str {
    match state {
        MachineState::NotStarted => "starting",
        MachineState::Running => "running",
        MachineState::Paused => "paused",
    }
}

/// `180M: 160M in 2M, 20M in 4K`
pub(super) fn resident(memory: &Memory) -> String {
    let resident = &memory.resident;
    let sizes = [("1G", resident.huge_1g), ("2M", resident.huge_2m), ("4K", resident.small)];
    let parts: Vec<String> = sizes
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(page, bytes)| format!("{} in {page}", mebibytes(*bytes)))
        .collect();
    match parts.is_empty() {
        true => "0M".into(),
        false => format!("{}: {}", mebibytes(resident.total()), parts.join(", ")),
    }
}

/// Rounded up: nothing but nothing is shown as 0.
pub(super) fn mebibytes(bytes: u64) -> String {
    match bytes.div_ceil(1 << 20) {
        mib if mib >= 1024 && mib % 1024 == 0 => format!("{}G", mib / 1024),
        mib => format!("{mib}M"),
    }
}

/// `8s`, `3m08s`, `2h05m`, `4d03h`
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_api::types::Resident;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(
            ["0M", "1M", "512M", "4G"],
            [0, 1, 512 << 20, 4 << 30].map(mebibytes).each_ref().map(String::as_str)
        );
        let times = [8.9, 188.0, 7500.0, 356_400.0].map(duration);
        assert_eq!(times, ["8s", "3m08s", "2h05m", "4d03h"]);
        let resident_in =
            |small, huge_2m, huge_1g| resident(&Memory { size: 0, resident: Resident { small, huge_2m, huge_1g } });
        assert_eq!(resident_in(20 << 20, 160 << 20, 0), "180M: 160M in 2M, 20M in 4K");
        assert_eq!(resident_in(0, 0, 0), "0M");
    }

    #[test]
    fn a_machine_that_does_not_answer_is_shown_all_the_same() {
        let status = Err(axvm_api::ClientError::NotYours("7.sock".into()));
        let text = table(&[Found { pid: 7, socket: "7.sock".into(), status }]);
        assert!(
            text.lines().nth(1).is_some_and(|line| line.starts_with("7    ?") && line.contains("unknown")),
            "{text}"
        );
    }
}
