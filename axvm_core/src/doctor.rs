//! `axvm doctor`: prints what [`axvm_inspect::doctor`] finds on this host.
//!
//! ```text
//!   rows --+--> table: text, coloured on a terminal     exit code 0: AxVM can run Linux here
//!          '--> JSON, with --json                                 1: it cannot
//! ```

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use axvm_inspect::doctor::{Host, Style, can_run, examine, summary, table};

use crate::cli::DoctorArgs;
use crate::speech::print;

/// Examines this host and prints what was found; exit code 1 when AxVM cannot run Linux here.
pub fn doctor(args: &DoctorArgs) -> Result<u8> {
    let host = Host::here();
    let rows = examine(&host);
    let text = if args.json {
        let report = serde_json::json!({ "can_run_linux": can_run(&rows), "rows": rows });
        format!("{report:#}\n")
    } else {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        table(&rows, &summary(&host, &rows), Style { colour })
    };
    print(text).context("Cannot print what was found")?;
    Ok(if can_run(&rows) { 0 } else { 1 })
}
