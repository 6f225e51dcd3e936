//! Pages that AxVM writes about itself, each from the one description that it obeys: the command line's own, or the
//! types of the settings.
//!
//! ```text
//!   Cli       -> manual (clap_mangen)
//!   Settings  -> settings file (toml), schema (schemars)
//! ```

use clap::CommandFactory;
use clap::builder::Resettable;

use crate::cli::{Cli, ConfigArgs, ManArgs};
use crate::error::ConfigError;
use crate::settings;
use crate::speech;

/// `axvm config`.
pub fn config(args: ConfigArgs) -> Result<u8, ConfigError> {
    if args.schema {
        return print("the schema", schema().as_bytes());
    }
    if args.example {
        return print("the example", settings::EXAMPLE.as_bytes());
    }
    if let Some(command) = args.run.command.first() {
        let why = "a settings file has no command for the guest; leave it out, and give it to axvm run --config";
        return Err(ConfigError::option("--", command.display(), why));
    }
    print("the settings", args.run.settings()?.write()?.as_bytes())
}

/// The published schema: what `axvm config --schema` prints.
pub fn schema() -> String {
    format!("{:#}\n", settings::schema().as_value())
}

/// `axvm man`.
pub fn man(args: &ManArgs) -> Result<u8, ConfigError> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let command = match &args.command {
        None => program,
        Some(name) => {
            let known: Vec<&str> = program.get_subcommands().map(|command| command.get_name()).collect();
            let why = format!("no such command; there are {}", known.join(", "));
            let command = program.find_subcommand(name).cloned();
            command.ok_or_else(|| ConfigError::option("axvm man", name, why))?
        }
    };
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut page = Vec::new();
    let failed = |source| ConfigError::Output { what: "the manual", source };
    let manual = clap_mangen::Man::new(command.after_help(Resettable::Reset))
        .source(concat!("axvm ", env!("CARGO_PKG_VERSION")));
    manual.render(&mut page).map_err(failed)?;
    page.extend_from_slice(sections(&notes).as_bytes());
    print("the manual", &page)
}

/// The end of a help text as sections of a manual page: examples keep their lines, the rest is filled.
fn sections(notes: &str) -> String {
    let escaped = notes.replace('\\', "\\e").replace('-', "\\-");
    let (examples, prose): (Vec<&str>, Vec<&str>) =
        escaped.split("\n\n").partition(|part| part.starts_with("Examples:\n"));
    let mut text = String::new();
    if !prose.concat().is_empty() {
        text += &format!(".SH NOTES\n{}\n", prose.join("\n.PP\n"));
    }
    for part in examples {
        text += &format!(".SH EXAMPLES\n.nf\n{}\n.fi\n", part.trim_start_matches("Examples:\n"));
    }
    text
}

/// Prints a page.
fn print(what: &'static str, page: &[u8]) -> Result<u8, ConfigError> {
    speech::write(page).map(|()| 0).map_err(|source| ConfigError::Output { what, source })
}
