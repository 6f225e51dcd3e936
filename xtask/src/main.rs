//! `cargo xtask COMMAND`: see the library of this crate.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use xtask::{commands, progress};

/// Developer commands of AxVM
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    Bench(commands::bench::Bench),
    Book(commands::book::Book),
    Boot(commands::boot::Boot),
    Build(commands::build::Build),
    Clean(commands::clean::Clean),
    Fuzz(commands::fuzz::Fuzz),
    Lab(commands::lab::Lab),
    Package(commands::package::Package),
    Test(commands::test::Test),
    Tidy(commands::tidy::Tidy),
}

fn main() -> ExitCode {
    let end = match Command::parse() {
        Command::Bench(bench) => bench.run(),
        Command::Book(book) => book.run(),
        Command::Boot(boot) => boot.run(),
        Command::Build(build) => build.run(),
        Command::Clean(clean) => clean.run(),
        Command::Fuzz(fuzz) => fuzz.run(),
        Command::Lab(lab) => lab.run(),
        Command::Package(package) => package.run(),
        Command::Test(test) => test.run(),
        Command::Tidy(tidy) => tidy.run(),
    };
    end.unwrap_or_else(|error| {
        progress::say(&format!("Error: {error:#}"));
        ExitCode::FAILURE
    })
}
