//! Pages that AxVM writes about itself, each from the one description that it obeys: the command line's own, or the
//! types of the settings.
//!
//! ```text
//!   Cli       -> completions (clap_complete), manual (clap_mangen)
//!   Settings  -> settings file (toml), schema (schemars)
//! ```

use std::io::{self, ErrorKind, Write};

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs, ConfigArgs, ManArgs};
use crate::error::ConfigError;
use crate::settings::{self, Settings};

/// `axvm config`.
pub fn config(args: &ConfigArgs) -> Result<u8, ConfigError> {
    if args.schema {
        return print("the schema", schema().as_bytes());
    }
    print("the settings", Settings::gather(&args.run)?.write()?.as_bytes())
}

/// The published schema: what `axvm config --schema` prints.
pub fn schema() -> String {
    format!("{:#}\n", settings::schema().as_value())
}

/// `axvm completions`.
pub fn completions(args: &CompletionsArgs) -> Result<u8, ConfigError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "axvm", &mut script);
    print("the completions", &script)
}

/// `axvm man`.
pub fn man(args: &ManArgs) -> Result<u8, ConfigError> {
    let mut program = Cli::command();
    program.build();
    let page = match &args.command {
        None => program,
        Some(name) => {
            let known: Vec<&str> = program.get_subcommands().map(|command| command.get_name()).collect();
            let why = format!("no such command; there are {}", known.join(", "));
            let command = program.find_subcommand(name).cloned();
            command.ok_or_else(|| ConfigError::option("axvm man", name, why))?
        }
    };
    let mut text = Vec::new();
    let failed = |source| ConfigError::Output { what: "the manual", source };
    clap_mangen::Man::new(page).render(&mut text).map_err(failed)?;
    print("the manual", &text)
}

/// Prints a page; a reader that has seen enough may close the pipe.
fn print(what: &'static str, page: &[u8]) -> Result<u8, ConfigError> {
    let mut to = io::stdout().lock();
    match to.write_all(page).and_then(|()| to.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(ConfigError::Output { what, source }),
        _ => Ok(0),
    }
}
