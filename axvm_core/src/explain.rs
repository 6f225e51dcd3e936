//! Explaining a guest while it runs: what it does, and why that may be no progress.
//!
//! ```text
//!   SIGUSR1, Ctrl-A d              \
//!   --explain: nothing has moved    > Machine::look_into --> HangReport --> standard error
//!   axvm ctl MACHINE explain       /                                   '--> the client
//! ```
//!
//! Names of the guest's functions come from the kernel itself, or from another file (`--symbols`), which is open before the
//! sandbox closes and read when the first report wants them.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use axvm_events::{Event, Events};
use axvm_inspect::crash::{CONSOLE_LINES, CrashReport};
use axvm_inspect::hang::HangReport;
use axvm_inspect::symbols::Symbols;
use axvm_inspect::xray::Xray;
use axvm_machine::{Image, Machine, View};
use axvm_memory::GuestRam;
use axvm_sync::lock;

use crate::config::Config;
use crate::consoles::LastWords;
use crate::opened::Opened;
use crate::speech;

/// A file of symbols, before and after it was read.
enum SymbolFile {
    None,
    /// Whether the user named it, and misses its names then.
    Open(Opened, bool),
    Read(Symbols),
}

impl SymbolFile {
    /// The one that the user named; else the kernel, which usually carries the names of its functions.
    fn open(config: &Config, kernel: Arc<Image>) -> Result<SymbolFile> {
        Ok(match &config.settings.symbols {
            Some(path) => SymbolFile::Open(Opened::of(Arc::new(Image::open(path, "--symbols")?)), true),
            None => SymbolFile::Open(Opened::of(kernel), false),
        })
    }
}

/// Makes reports of the machines of this process.
pub struct Explainer {
    symbols: Mutex<SymbolFile>,
    consoles: LastWords,
    events: Events,
}

impl Explainer {
    /// With the symbols that the user named, or the kernel's own. Before the sandbox closes.
    pub fn open(config: &Config, kernel: Arc<Image>, events: &Events) -> Result<OpenedExplainer> {
        Ok(OpenedExplainer(SymbolFile::open(config, kernel)?, events.clone()))
    }

    /// What the guest does; none if it is on its way to an end.
    pub fn report(&self, machine: &Machine) -> Option<HangReport> {
        let console = self.consoles.last(CONSOLE_LINES);
        self.with_symbols(|symbols| machine.look_into(&console, symbols))
    }

    /// All of the machine at one moment; none if it is on its way to an end.
    pub fn inspect(
        &self,
        machine: &Machine,
        name: &str,
        said: &[(&'static str, String)],
        walks: &[u64],
        ram: &GuestRam,
    ) -> Option<Xray> {
        let console = &self.consoles.last(CONSOLE_LINES)[..];
        self.with_symbols(|symbols| machine.inspect(&View { name, said, walks, console, symbols, ram }))
    }

    /// The last lines on the guest's console.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        self.consoles.last(count)
    }

    /// Shows a report on standard error.
    pub fn tell(&self, machine: &Machine) {
        match self.report(machine) {
            Some(report) => speech::show(format_args!("\n{report}\n")),
            None => _ = speech::try_tell("the machine is on its way to an end: there is nothing to explain"),
        }
    }

    /// Completes the report of a crash.
    pub fn complete(&self, report: &mut CrashReport) {
        report.add_console(&self.consoles.last(CONSOLE_LINES));
        if let SymbolFile::Read(symbols) = &*self.symbols() {
            report.add_symbols(symbols);
        }
    }

    /// What `look` finds with the names of the guest's functions, if there are some.
    pub fn with_symbols<T>(&self, look: impl FnOnce(Option<&Symbols>) -> T) -> T {
        match &*self.symbols() {
            SymbolFile::Read(symbols) => look(Some(symbols)),
            SymbolFile::None | SymbolFile::Open(..) => look(None),
        }
    }

    /// The symbols, read by now if there are some. A file without any is told once.
    fn symbols(&self) -> MutexGuard<'_, SymbolFile> {
        let mut symbols = lock(&self.symbols);
        if let SymbolFile::Open(file, named) = &*symbols {
            *symbols = match Symbols::read(file) {
                Ok(read) => SymbolFile::Read(read),
                Err(error) => {
                    if *named {
                        let message = format!("{:#}", anyhow::Error::new(error));
                        self.events.warn(|| Event::Warning { from: "symbols", message });
                    }
                    SymbolFile::None
                }
            };
        }
        symbols
    }
}

/// An explainer that waits for its consoles.
pub struct OpenedExplainer(SymbolFile, Events);

impl OpenedExplainer {
    /// The last lines come from `consoles`.
    pub fn listen(self, consoles: LastWords) -> Explainer {
        Explainer { symbols: Mutex::new(self.0), consoles, events: self.1 }
    }
}

/// Explains by itself a guest that does not move.
pub struct Standstill<'a> {
    explainer: &'a Explainer,
    /// How long; none if that is not to be explained.
    after: Option<Duration>,
    /// How many exits there were when it was explained.
    explained: Cell<Option<u64>>,
}

impl Standstill<'_> {
    /// What the user wants.
    pub fn of<'a>(config: &Config, explainer: &'a Explainer) -> Standstill<'a> {
        let after = Some(config.settings.explain()).filter(|&seconds| seconds > 0);
        let after = after.map(|seconds| Duration::from_secs(seconds.into()));
        Standstill { explainer, after, explained: Cell::new(None) }
    }

    /// When to look first at a guest that starts now.
    pub fn first_look(&self) -> Option<Instant> {
        self.explained.set(None);
        self.after.map(|after| Instant::now() + after)
    }

    /// Explains a guest that has not moved for so long, once until it moves; when to look again.
    pub fn look(&self, machine: &Machine) -> Option<Instant> {
        let after = self.after?;
        let exits = machine.exits().iter().sum();
        let left = after.saturating_sub(machine.quiet());
        if machine.is_paused() || self.explained.get() == Some(exits) {
            return Some(Instant::now() + after);
        }
        if !left.is_zero() {
            return Some(Instant::now() + left);
        }
        self.explained.set(Some(exits));
        self.explainer.tell(machine);
        Some(Instant::now() + after)
    }
}
