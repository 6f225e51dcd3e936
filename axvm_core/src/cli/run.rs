//! `axvm run`: a settings file, and every setting as an option.
//!
//! ```text
//!   axvm run --config vm.toml -m 8G
//!              file: Settings  <-over-  command line: Settings
//! ```
//!
//! What each option is stands in [`crate::settings`], once for the command line and the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use crate::error::ConfigError;
use crate::settings::{Amount, Setting, Settings, read};

/// A machine, as it was typed.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Settings file, TOML; what the command line says goes before it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// The same as --kernel
    #[arg(value_name = "KERNEL", value_hint = ValueHint::FilePath, conflicts_with = "kernel")]
    pub kernel_file: Option<PathBuf>,

    /// A command that the guest runs instead of its init; its exit code is AxVM's, and the machine ends with it
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,

    /// What was typed besides --config.
    #[command(flatten)]
    pub said: Settings,
}

impl RunArgs {
    /// What the command line says, over what the file says that it names.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        let RunArgs { config, kernel_file, command: _, mut said } = self;
        said.kernel = said.kernel.or(kernel_file);
        let mut below = Settings::default();
        if let Some(path) = config {
            below = read(&path)?;
            below.move_to(path.parent().unwrap_or(Path::new("")));
        }
        // --memory decides about sharing too, also when it does not mention it.
        if let Some(Amount { size, shared }) = said.memory.amount.take() {
            (below.memory.size, below.memory.shared) = (Some(size), shared);
        }
        // --acpi and its old name are one setting.
        if said.acpi.is_some() || said.no_acpi.is_some() {
            (below.acpi, below.no_acpi) = (None, None);
        }
        Ok(said.over(below))
    }
}
