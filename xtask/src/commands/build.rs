//! `cargo xtask build`: the program, and where it is.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::program;
use crate::progress::print;
use crate::project;

/// Build AxVM as one static program, and say where it is
///
/// `boot`, `lab` and `package` use the same one, so nothing is compiled twice.
#[derive(Args)]
pub struct Build {}

impl Build {
    /// Builds it.
    pub fn run(self) -> Result<ExitCode> {
        let axvm = program::build()?;
        let len = axvm.metadata().with_context(|| format!("Cannot read {}", axvm.display()))?.len();
        print(words(&axvm, len));
        Ok(ExitCode::SUCCESS)
    }
}

fn words(axvm: &Path, len: u64) -> String {
    let shown = axvm.strip_prefix(project::root()).unwrap_or(axvm).display();
    format!(
        "{shown}: {} MB, static\n\
         try it:  {shown} selftest\n\
         keep it: sudo install -m 0755 {shown} /usr/local/bin/axvm\n",
        len.div_ceil(1_000_000)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_can_be_typed_in_the_root() {
        let text = words(&project::root().join("target/axvm"), 5_800_000);
        assert!(text.starts_with("target/axvm: 6 MB, static\ntry it:  target/axvm selftest\n"), "{text}");
    }
}
