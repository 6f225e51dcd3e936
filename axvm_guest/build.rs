//! Compiles the guest: one freestanding program for the bare machine, made by the compiler that builds the rest.
//!
//! ```text
//!   guest/main.rs --rustc--> objects --cc, guest/link.ld--> OUT_DIR/guest.elf --include_bytes!--> library
//! ```
//!
//! rustc is called directly, so that no flag meant for programs of this host (static C library, CPU
//! model) reaches the guest.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    let out = Path::new(&variable("OUT_DIR")).join("guest.elf");
    let script = Path::new(&variable("CARGO_MANIFEST_DIR")).join("guest/link.ld");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "guest", "guest/main.rs", "-o"]).arg(out);
    rustc.args(["-D", "unsafe_op_in_unsafe_fn"]);
    for option in [
        "opt-level=s",
        "codegen-units=1",
        "panic=abort",
        "strip=symbols",
        "relocation-model=static",
        "code-model=kernel",
        "no-redzone=yes",
        "no-vectorize-loops",
        "no-vectorize-slp",
        "force-unwind-tables=no",
    ] {
        rustc.args(["-C", option]);
    }
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    rustc.arg("-C").arg(format!("link-arg=-Wl,-T,{}", script.display()));
    let output = rustc.output().unwrap_or_else(|error| panic!("Cannot start {rustc:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "Cannot compile the guest: {rustc:?} ended with {}\n{said}", output.status);
    // A newer compiler may find something new: seen, but no reason not to build.
    said.lines().for_each(|line| println!("cargo::warning={line}"));
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("Cargo did not set {name}: {error}"))
}
