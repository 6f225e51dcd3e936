//! AxVM as it is used: one static program, built once for this machine, the lab and packages.
//!
//! ```text
//!   cargo xtask build, boot, lab, package --> target/x86_64-unknown-linux-musl/release/axvm
//!   the same, where Rust has no musl      --> target/x86_64-unknown-linux-gnu/release/axvm
//!   cargo build --release                 --> target/release/axvm        the C library is the host's
//! ```
//!
//! Static, for the lab's outer machine and a container from scratch have no C library. With musl it is smaller, and starts
//! faster: glibc asks the processor about its caches at each start, some forty times, and each time is an exit where this
//! is a guest itself. `--target` keeps them apart in one directory: what runs while compiling (build scripts, macros) is
//! built without the flag, and shared.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::project;
use crate::tool::{output, tool};

/// Which C library becomes part of it. Rust's own musl is fetched once, as compilers are; without it glibc does.
fn target() -> &'static str {
    static TARGET: OnceLock<&str> = OnceLock::new();
    TARGET.get_or_init(|| {
        let sysroot = output(tool("rustc").args(["--print", "sysroot"])).unwrap_or_default();
        if Path::new(sysroot.trim()).join("lib/rustlib").join(MUSL).exists() {
            return MUSL;
        }
        eprintln!("Fetching musl for this Rust (rustup target add {MUSL})");
        // Where packets get lost, it would wait for many minutes.
        match output(tool("timeout").args(["120", "rustup", "target", "add", MUSL])) {
            Ok(_) => MUSL,
            Err(_) => {
                eprintln!("That cannot be done here: taking glibc, with which AxVM starts half a millisecond later");
                GNU
            }
        }
    })
}

const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// The agent of guests, which this AxVM carries.
pub fn agent(axvm: &Path) -> Result<Vec<u8>> {
    let output = tool(&axvm.to_string_lossy())
        .arg("agent")
        .output()
        .with_context(|| format!("Cannot start {}", axvm.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// Builds it, if it is not there; says before that this takes a while.
pub fn build() -> Result<PathBuf> {
    let axvm = project::target().join(target()).join("release/axvm");
    let mut command = release("axvm_core");
    match axvm.exists() {
        true => eprintln!("Building AxVM"),
        false => eprintln!("Building AxVM: one to three minutes the first time"),
    }
    if std::io::stderr().is_terminal() {
        // Cargo has a bar of its own.
        let status = command.status().context("Cannot start cargo")?;
        ensure!(status.success(), "Building AxVM failed");
    } else {
        output(command.arg("--quiet"))?;
    }
    ensure!(axvm.exists(), "No program {} after the build", axvm.display());
    Ok(axvm)
}

/// Builds an example of `axvm_kvm` in the same way.
pub fn example(name: &str) -> Result<PathBuf> {
    output(release("axvm_kvm").args(["--quiet", "--example", name]))?;
    Ok(project::target().join(target()).join("release/examples").join(name))
}

fn release(package: &str) -> Command {
    let mut command = tool(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(["build", "--release", "-p", package, "--target", target()]).current_dir(project::root());
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command
}
