//! Writes the guest to a file: `cargo run -p axvm_guest --example write -- guest.elf`, then `axvm run -k guest.elf`.

fn main() -> std::io::Result<()> {
    match std::env::args_os().nth(1) {
        Some(path) => std::fs::write(path, axvm_guest::selftest()),
        None => Err(std::io::Error::other("Cannot write the guest: no file was named; usage: write FILE")),
    }
}
