//! Compiles the agent of guests, which `axvm` carries: one static program, by the cargo and the compiler that build the
//! rest.
//!
//! ```text
//!   axvm_agent, axvm_exec --cargo, static C library--> OUT_DIR/agent --include_bytes!--> axvm agent > file
//! ```
//!
//! A cargo inside of cargo: the agent is for another place than what is being built here, so flags meant for that
//! (sanitizers, coverage, a processor model) must not reach it, and it has a profile of its own. It needs no target but
//! the host's and no network: its crates are a part of what the program itself is built from.
//!
//! Where there is no static C library (Fedora has it in glibc-static), the program is built without an agent, and says
//! so when it is asked for one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Writes `OUT_DIR/agent`; empty if it cannot be built.
pub fn build() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for source in ["axvm_agent/src", "axvm_agent/Cargo.toml", "axvm_exec/src", "axvm_exec/Cargo.toml", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=build_agent.rs");
    let out = PathBuf::from(variable("OUT_DIR"));
    let agent = compile(&root, &out.join("agent-target")).unwrap_or_else(|why| {
        println!("cargo::warning=axvm is built without an agent for guests: {why}");
        Vec::new()
    });
    fs::write(out.join("agent"), agent).unwrap_or_else(|error| panic!("Cannot write to {}: {error}", out.display()));
}

fn compile(root: &Path, target: &Path) -> Result<Vec<u8>, String> {
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--package", "axvm_agent", "--profile", "agent", "--target", TARGET]);
    cargo.arg("--manifest-path").arg(root.join("Cargo.toml")).arg("--target-dir").arg(target);
    // What the outer cargo said to this process, and what its user said to it.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let is_outer = ["CARGO_", "RUSTFLAGS", "RUSTC_", "RUSTDOC", "DEP_"].iter().any(|start| name.starts_with(start));
        if is_outer && !["CARGO_HOME", "CARGO_NET_OFFLINE"].contains(&&*name) {
            cargo.env_remove(&*name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static");
    let output = cargo.output().map_err(|error| format!("cannot start {cargo:?}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().find(|line| line.contains("error")).unwrap_or("cargo failed");
        return Err(format!("{why}; is there a static C library (Fedora: glibc-static)?"));
    }
    let program = target.join(TARGET).join("agent/axvm-agent");
    fs::read(&program).map_err(|error| format!("cannot read {}: {error}", program.display()))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("Cargo did not set {name}: {error}"))
}
