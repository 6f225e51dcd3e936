//! `axvm report`: tells what [`axvm_inspect::timeline`] finds in a trace file.
//!
//! ```text
//!   FILE --> Timeline --> summary, on standard output
//! ```

use std::fs::File;
use std::io::BufReader;

use anyhow::{Context, Result};
use axvm_inspect::timeline::read::Timeline;
use axvm_inspect::timeline::summary::summary;

use crate::cli::ReportArgs;
use crate::speech;

/// Reads a trace, and prints its summary.
pub fn report(args: &ReportArgs) -> Result<u8> {
    let shown = args.file.display();
    let file = File::open(&args.file)
        .with_context(|| format!("Cannot open {shown}; name a file that axvm run --trace FILE has written"))?;
    let timeline = Timeline::read(BufReader::with_capacity(1 << 20, file))
        .with_context(|| format!("Cannot read {shown}; name a file that axvm run --trace FILE has written"))?;
    speech::print(summary(&timeline))?;
    Ok(0)
}
