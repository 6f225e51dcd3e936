//! Writes the guest to a file: `cargo run -p axvm_guest --example write -- selftest FILE`, then `axvm run -k FILE`.

fn main() -> std::io::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match &arguments[..] {
        [guest, file] if guest == "selftest" => std::fs::write(file, axvm_guest::selftest()),
        _ => Err(std::io::Error::other("Cannot write a guest: give its name and a file; usage: write selftest FILE")),
    }
}
