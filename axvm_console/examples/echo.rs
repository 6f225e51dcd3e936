//! A console without a machine: what is typed is shown. `cargo run -p axvm_console --example echo -- pty`
//!
//! Ctrl-A x ends it. Signals are not caught, as the machine does that: try job control (`&`, `fg`, `kill -STOP`).

use std::sync::mpsc::channel;

use axvm_console::{BackEnd, Console, Hooks, Key, Port};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let back_end: BackEnd = std::env::args().nth(1).as_deref().unwrap_or("stdio").parse()?;
    let (port, (quit, ended)) = (Port::new()?, channel());
    let device = port.clone();
    port.connect(move || {
        let mut buffer = [0; 1024];
        let count = device.receive(&mut buffer[..device.room().min(1024)]);
        device.send(&buffer[..count]);
    });
    let hooks = Hooks {
        on_key: Box::new(move |key| match key {
            Key::Quit => drop(quit.send(())),
            Key::PowerButton => eprint!("power button\r\n"),
            Key::Explain => eprint!("it does what it is told\r\n"),
        }),
        on_warning: Box::new(|text| eprint!("{text}\r\n")),
        on_help: Box::new(|text| eprint!("{text}\r\n")),
        quit: "ends it",
        has_break: false,
    };
    let console = Console::open(&back_end, port.clone(), hooks)?;
    if let Some(path) = console.pty_path() {
        eprintln!("Open {}", path.display());
    }
    port.send(b"Type: ");
    ended.recv()?;
    console.finish();
    Ok(())
}
