//! The consoles of a machine: COM1; hvc0 and a debug console if the user wants them. They outlive resets.
//!
//! ```text
//!   UART           <--> Port <--> Console: --console
//!   virtio-console <--> Port <--> Console: --virtio-console
//!   port 0xe9       --> Port  --> Console: --debugcon
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use axvm_console::{Attacher, BackEnd, Console, Hooks, Key, Opened, Port};
use axvm_devices::StopReason;
use axvm_events::{Event, Events};
use axvm_inspect::text::clean;
use axvm_machine::Ports;
use axvm_sync::EventFd;

use crate::config::Config;
use crate::current::Current;
use crate::speech::{tell, try_tell};

/// A console's two ends.
struct Line {
    port: Port,
    console: Console,
    /// Where it goes, for people.
    place: String,
}

/// All consoles of a machine, open but without a thread yet.
pub struct OpenedConsoles {
    com1: (Opened, String),
    hvc0: Option<(Opened, String)>,
    debug: Option<(Opened, String)>,
}

impl OpenedConsoles {
    /// Opens files, sockets and ptys.
    pub fn open(config: &Config) -> Result<OpenedConsoles> {
        let open = |back_end: &BackEnd| anyhow::Ok((Opened::open(back_end)?, back_end.to_string()));
        let hvc0 = config.virtio_console.as_ref().map(open).transpose()?;
        let debug = config.debug_console.as_ref().map(open).transpose()?;
        Ok(OpenedConsoles { com1: open(&config.console)?, hvc0, debug })
    }

    /// Starts their threads; a terminal is raw from now on.
    pub fn start(self, current: &Arc<Current>, events: &Events) -> Result<Consoles> {
        let explain = EventFd::new().context("Cannot make an event for keys (see ulimit -n)")?;
        let keys = Arc::new(Keys { quit: AtomicBool::new(false), explain });
        let start = |(opened, name): (Opened, String), has_break| {
            let port = Port::new().context("Cannot make a console")?;
            let console = Console::start(opened, port.clone(), hooks(current, events, &keys, has_break))?;
            let place = console.pty_path().map_or(name, |path| {
                tell(format_args!("The console is at {}", path.display()));
                format!("pty {}", path.display())
            });
            if console.has_terminal() {
                tell("Ctrl-A h tells the keys");
            }
            anyhow::Ok(Line { port, console, place })
        };
        let com1 = start(self.com1, true)?;
        let hvc0 = self.hvc0.map(|hvc0| start(hvc0, false)).transpose()?;
        let debug = self.debug.map(|debug| start(debug, false)).transpose()?;
        Ok(Consoles { com1, hvc0, debug, keys })
    }
}

/// All consoles of a machine.
pub struct Consoles {
    com1: Line,
    hvc0: Option<Line>,
    debug: Option<Line>,
    keys: Arc<Keys>,
}

/// Keys that the main thread looks at.
struct Keys {
    /// Ctrl-A x was pressed.
    quit: AtomicBool,
    /// Signalled by Ctrl-A d.
    explain: EventFd,
}

/// The last lines of the consoles, for reports.
pub struct LastWords(Vec<(Attacher, Port)>);

impl Consoles {
    /// Whether the user ended the machine with Ctrl-A x.
    pub fn were_quit(&self) -> bool {
        self.keys.quit.load(Ordering::Relaxed)
    }

    /// The machine's ends of them.
    pub fn ports(&self) -> Ports {
        let port = |line: &Option<Line>| line.as_ref().map(|line| line.port.clone());
        Ports { com1: self.com1.port.clone(), hvc0: port(&self.hvc0), debug: port(&self.debug) }
    }

    /// The way onto the console that people use: hvc0 if there is one.
    pub fn for_people(&self) -> Attacher {
        self.hvc0.as_ref().unwrap_or(&self.com1).console.attacher()
    }

    /// The way onto the UART's console.
    pub fn com1_attacher(&self) -> Attacher {
        self.com1.console.attacher()
    }

    /// The way to their last lines: of the UART's, and of the one that people use if nothing came there.
    pub fn last_words(&self) -> LastWords {
        let for_people = self.hvc0.as_ref().unwrap_or(&self.com1);
        LastWords([&self.com1, for_people].map(|line| (line.console.attacher(), line.port.clone())).into())
    }

    /// Readable when Ctrl-A d was pressed; take it then.
    pub fn explain(&self) -> &EventFd {
        &self.keys.explain
    }

    /// Where they go, for people.
    pub fn places(&self) -> String {
        let others = [("hvc0", &self.hvc0), ("debug", &self.debug)];
        let others = others.into_iter().filter_map(|(name, line)| Some(format!("{name} {}", line.as_ref()?.place)));
        match others.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => self.com1.place.clone(),
            others => format!("{} ({others})", self.com1.place),
        }
    }

    /// Whether the guest has shown anything on any of them, since AxVM started.
    pub fn have_spoken(&self) -> bool {
        self.lines().any(|line| line.port.has_spoken())
    }

    /// The terminal has another size.
    pub fn resized(&self) {
        self.lines().for_each(|line| line.console.resized());
    }

    /// The process was stopped and goes on.
    pub fn continued(&self) {
        self.lines().for_each(|line| line.console.continued());
    }

    /// Do not wait for slow readers at the end.
    pub fn give_up(&self) {
        self.lines().for_each(|line| line.console.give_up());
    }

    /// There is no more output: ends each when its readers have all of it. Dropping them gives the terminal back.
    pub fn close(&self) {
        self.lines().for_each(|line| line.console.close());
    }

    /// Each readable once its console has ended.
    pub fn endings(&self) -> impl Iterator<Item = &EventFd> {
        self.lines().map(|line| line.console.ended())
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        std::iter::once(&self.com1).chain(&self.hvc0).chain(&self.debug)
    }
}

impl LastWords {
    /// The last lines, as text: what a guest writes is no command for a terminal here.
    pub fn last(&self, count: usize) -> Vec<String> {
        self.0
            .iter()
            .map(|(console, port)| last_lines(console, port, count))
            .find(|lines| !lines.is_empty())
            .unwrap_or_default()
    }
}

/// The last lines of one console.
fn last_lines(console: &Attacher, port: &Port, count: usize) -> Vec<String> {
    // What the console has not taken yet; in between it may.
    let untaken = port.untaken();
    let mut bytes = console.latest_output();
    if !bytes.ends_with(&untaken) {
        bytes.extend(untaken);
    }
    lines_of(&bytes, count)
}

/// The last lines of what a guest wrote, empty ones left out.
fn lines_of(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    // A carriage return begins a line anew: of a progress bar, the last state is the last line.
    let mut lines: Vec<String> = text.split(['\r', '\n']).filter(|line| !line.is_empty()).map(clean).collect();
    lines.split_off(lines.len().saturating_sub(count))
}

fn hooks(current: &Arc<Current>, events: &Events, keys: &Arc<Keys>, has_break: bool) -> Hooks {
    let (current, events, keys) = (Arc::clone(current), events.clone(), Arc::clone(keys));
    Hooks {
        on_key: Box::new(move |key| match key {
            Key::Quit => {
                keys.quit.store(true, Ordering::Relaxed);
                current.request_stop(StopReason::Quit);
            }
            Key::PowerButton => current.press_power_button(),
            Key::Explain => keys.explain.signal(),
        }),
        on_warning: Box::new(move |message| events.warn(|| Event::Warning { from: "console", message })),
        on_help: Box::new(|words| _ = try_tell(words)),
        quit: "ends the machine",
        has_break,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_harmless_and_show_where_something_was() {
        let written = b"first\r\n\r\nat 10%\rat 99%\r\r\n\x1b]0;title\x07ok\xff\r\n";
        assert_eq!(lines_of(written, 3), ["at 10%", "at 99%", "\u{fffd}]0;title\u{fffd}ok\u{fffd}"]);
        assert_eq!(lines_of(b"\r\n\r\n", 3), [""; 0]);
    }
}
