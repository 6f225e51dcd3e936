//! `axvm doctor`: prints what [`axvm_inspect::doctor`] finds on this host.
//!
//! ```text
//!   rows --+--> table: text, coloured on a terminal     exit code 0: AxVM can run Linux here
//!          '--> JSON, with --json                                 1: it cannot
//! ```

use std::io;

use anyhow::Result;
use axvm_inspect::doctor::{Host, Style, can_run, examine, summary, table};

use crate::cli::DoctorArgs;
use crate::speech;

/// Examines this host and prints what was found; exit code 1 when AxVM cannot run Linux here.
pub fn doctor(args: &DoctorArgs) -> Result<u8> {
    let host = Host::here();
    let rows = examine(&host);
    let text = if args.json {
        let report = serde_json::json!({ "can_run_linux": can_run(&rows), "rows": rows });
        format!("{report:#}\n")
    } else {
        let columns = speech::columns(io::stdout());
        table(&rows, &summary(&host, &rows), Style { colour: speech::colour(io::stdout()), columns })
    };
    speech::print(text)?;
    Ok(if can_run(&rows) { 0 } else { 1 })
}
