//! Where a trace goes: a file that the program opens before its sandbox closes, or one that a client hands over.
//!
//! ```text
//!   axvm run --trace FILE            --open-->  Output  --\
//!   axvm ctl NAME trace start FILE   --open, SCM_RIGHTS-->  +--> thread `trace`
//! ```

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use axvm_inspect::timeline::chrome::BEGIN;
use rustix::fs::OFlags;

use crate::settings::TraceTo;

/// A file to write, and how long it may become.
pub struct Output {
    /// What the user calls it.
    pub path: PathBuf,
    /// It, which is empty.
    pub file: File,
    /// Bytes.
    pub limit: u64,
}

impl Output {
    /// Makes the file.
    pub fn open(to: &TraceTo) -> Result<Output> {
        Ok(Output { path: to.path.clone(), file: new_file(&to.path)?, limit: to.bytes() })
    }
}

/// An empty file. One that is there is overwritten if it is a trace: `--trace disk.img` shall cost no disk.
fn new_file(path: &Path) -> Result<File> {
    let shown = path.display();
    let cannot = || format!("Cannot make the trace {shown}; name a file in a directory that you may write to");
    let mut options = File::options();
    // A pipe without a reader is an error, and no wait.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let mut file = options.open(path).with_context(cannot)?;
    let mut head = Vec::new();
    (&mut file).take(BEGIN.len() as u64).read_to_end(&mut head).with_context(cannot)?;
    ensure!(head.is_empty() || head == BEGIN, "{shown} is there and is no trace; name another file for --trace");
    file.set_len(0).and_then(|()| file.rewind()).with_context(cannot)?;
    Ok(file)
}
