//! `cargo xtask package`: a .deb, a tarball, and the program alone.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::packages::{self, Packages};
use crate::program;
use crate::progress::print;

/// Make a .deb, a tarball and the program for a container, in target/package
///
/// Each holds the static program; the first two also manual pages, completions, the systemd unit with its user, the book
/// and the licence. The same commit gives the same bytes.
#[derive(Args)]
pub struct Package {
    /// Unpack each into an empty root and run it there: its version, and the self-test where there is a KVM
    #[arg(long)]
    check: bool,
}

impl Package {
    /// Makes them.
    pub fn run(self) -> Result<ExitCode> {
        let axvm = program::build()?;
        let packages = packages::make(&axvm)?;
        let Packages { deb, tarball, program } = &packages;
        for (path, use_it) in [
            (deb, "sudo apt install FILE"),
            (tarball, "sudo tar -xzf FILE -C /usr/local --strip-components=1"),
            (program, "podman build -f packaging/container/Containerfile -t axvm target/package"),
        ] {
            let path = path.display().to_string();
            print(format_args!("{path}\n    {}\n", use_it.replace("FILE", &path)));
        }
        if self.check {
            for line in packages::try_out(&packages)? {
                print(format_args!("ok      {line}\n"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
