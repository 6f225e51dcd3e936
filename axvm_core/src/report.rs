//! `axvm report`: tells what [`axvm_inspect::timeline`] finds in a trace file.
//!
//! ```text
//!   FILE --> Timeline --> summary, on standard output
//!                     --> page, into the file of -o
//! ```

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use axvm_inspect::symbols::Symbols;
use axvm_inspect::timeline::page::page;
use axvm_inspect::timeline::read::Timeline;
use axvm_inspect::timeline::summary::summary;

use axvm_machine::Image;

use crate::cli::ReportArgs;
use crate::speech;

/// What the kernel in this file calls its functions.
fn symbols(path: &Path) -> Result<Symbols> {
    let file = Image::open(path, "--symbols")?;
    Symbols::read(&file).with_context(|| format!("{} (--symbols)", path.display()))
}

/// Reads a trace, and prints its summary, or writes a page.
pub fn report(args: &ReportArgs) -> Result<u8> {
    let shown = args.file.display();
    let file = File::open(&args.file)
        .with_context(|| format!("Cannot open {shown}; name a file that axvm run --trace FILE has written"))?;
    let timeline = Timeline::read(BufReader::with_capacity(1 << 20, file))
        .with_context(|| format!("Cannot read {shown}; name a file that axvm run --trace FILE has written"))?;
    let symbols = args.symbols.as_deref().map(symbols).transpose()?;
    let symbols = symbols.as_ref();
    if symbols.is_some_and(|symbols| symbols.moved(timeline.entry).is_none()) {
        speech::tell("the names of --symbols are those of another kernel: addresses stay numbers");
    }
    if let Some(output) = &args.output {
        let title = args.file.file_name().unwrap_or_default().to_string_lossy();
        fs::write(output, page(&timeline, &title, symbols)).with_context(|| {
            format!("Cannot write {}; name a file in a directory that you may write to", output.display())
        })?;
    }
    if args.text || args.output.is_none() {
        speech::print(summary(&timeline, symbols))?;
    }
    Ok(0)
}
