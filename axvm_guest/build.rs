//! Compiles the guests: freestanding programs for the bare machine, made by the compiler that builds the rest.
//!
//! ```text
//!   guest/main.rs      --rustc--> objects --cc, guest/link.ld-->      OUT_DIR/guest.elf     --include_bytes!--> library
//!   guest/multiboot.rs --rustc--> objects --cc, guest/multiboot.ld--> OUT_DIR/multiboot.elf --include_bytes!--> library
//!   guest/bench.rs     --rustc--> objects --cc, guest/link.ld-->      OUT_DIR/bench.elf     --include_bytes!--> library
//! ```
//!
//! rustc is called directly, so that no flag meant for programs of this host (static C library, CPU
//! model) reaches the guest.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    compile("guest", "main.rs", "link.ld");
    compile("multiboot", "multiboot.rs", "multiboot.ld");
    compile("bench", "bench.rs", "link.ld");
}

/// Compiles guest/`source`, and links it by guest/`script` to `name`.elf.
fn compile(name: &str, source: &str, script: &str) {
    let out = Path::new(&variable("OUT_DIR")).join(name).with_extension("elf");
    let guest = Path::new(&variable("CARGO_MANIFEST_DIR")).join("guest");
    let (source, script) = (guest.join(source), guest.join(script));
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", name]).arg(source).arg("-o").arg(out);
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
