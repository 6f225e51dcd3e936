//! The consoles of a machine: COM1; hvc0 and a debug console if the user wants them. They outlive resets.
//!
//! ```text
//!   UART           <--> Port <--> Console: --console
//!   virtio-console <--> Port <--> Console: --virtio-console
//!   port 0xe9       --> Port  --> Console: --debugcon
//! ```

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axvm_console::{Attacher, BackEnd, Console, Hooks, Key, Opened, Port};
use axvm_devices::StopReason;
use axvm_events::{Event, Events};
use axvm_machine::Ports;
use axvm_sync::EventFd;

use crate::config::Config;
use crate::current::Current;
use crate::speech::{tell, try_tell};

/// After so long without a byte a console that is asked for its last words has none left.
const BRIEFLY: Duration = Duration::from_millis(200);

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
        let quit = Arc::<AtomicBool>::default();
        let start = |(opened, name): (Opened, String), has_break| {
            let port = Port::new().context("Cannot make a console")?;
            let console = Console::start(opened, port.clone(), hooks(current, events, &quit, has_break))?;
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
        Ok(Consoles { com1, hvc0, debug, quit })
    }
}

/// All consoles of a machine.
pub struct Consoles {
    com1: Line,
    hvc0: Option<Line>,
    debug: Option<Line>,
    /// Ctrl-A x was pressed.
    quit: Arc<AtomicBool>,
}

impl Consoles {
    /// Whether the user ended the machine with Ctrl-A x.
    pub fn were_quit(&self) -> bool {
        self.quit.load(Ordering::Relaxed)
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

    /// The last lines on the UART's console, as text: what a guest writes is no command for a terminal here.
    pub fn last_words(&self, count: usize) -> Vec<String> {
        let mut bytes = Vec::new();
        if let Ok((mut reader, client)) = UnixStream::pair() {
            self.com1_attacher().attach(client, Vec::new());
            // A client gets all that is kept at once, and then nothing: no guest writes any more.
            let _ = reader.set_read_timeout(Some(BRIEFLY));
            let _ = reader.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let printable = |line: &str| line.chars().filter(|letter| !letter.is_control()).collect::<String>();
        let mut lines: Vec<String> = text.lines().map(printable).filter(|line| !line.is_empty()).collect();
        lines.split_off(lines.len().saturating_sub(count))
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

fn hooks(current: &Arc<Current>, events: &Events, quit: &Arc<AtomicBool>, has_break: bool) -> Hooks {
    let (current, events, quit) = (Arc::clone(current), events.clone(), Arc::clone(quit));
    Hooks {
        on_key: Box::new(move |key| match key {
            Key::Quit => {
                quit.store(true, Ordering::Relaxed);
                current.request_stop(StopReason::Quit);
            }
            Key::PowerButton => current.press_power_button(),
        }),
        on_warning: Box::new(move |message| events.warn(|| Event::Warning { from: "console", message })),
        on_help: Box::new(|words| _ = try_tell(words)),
        quit: "ends the machine",
        has_break,
    }
}
