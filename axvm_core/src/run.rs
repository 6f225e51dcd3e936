//! `axvm run`: the life of a process, from settings to exit code.
//!
//! ```text
//!   settings -> sockets -> host -> consoles -> guest, again after each reset -> what it ended with
//! ```
//!
//! What can go wrong because of the user comes first; the terminal is taken last and given back before AxVM speaks.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_api::{ApiServer, Bound, EventFeed, Registry};
use axvm_console::BackEnd;
use axvm_devices::StopReason;
use axvm_events::{Event, Events};
use axvm_machine::{KernelSource, Machine, Resources, cpuinfo};
use axvm_memory::heap;
use axvm_sandbox::Files;
use axvm_virtio::StillBusy;

use crate::agent_port::AgentPortSocket;
use crate::cli::RunArgs;
use crate::config::Config;
use crate::consoles::{Consoles, OpenedConsoles};
use crate::current::Current;
use crate::debug::{Debugger, OpenedGdb};
use crate::end::{End, Restarts};
use crate::exec::machine::Expected;
use crate::exec::{self, Ended};
use crate::explain::Explainer;
use crate::lint::GuestFiles;
use crate::narrator::Narrator;
use crate::network::{self, Network};
use crate::notify::{Notifier, NotifyError, ServiceState};
use crate::panel::{Around, Panel};
use crate::reception::Reception;
use crate::serve::{Outside, Signals, see_off, serve};
use crate::settings::{GdbAt, Time};
use crate::signs::Signs;
use crate::speech;
use crate::trace::{Output, Recorder};
use crate::virtio_check::Check;
use crate::vsock::VsockSocket;

/// Runs a machine to its end; the exit code.
pub fn run(args: RunArgs) -> Result<u8> {
    let mut config = Config::from_args(args)?;
    let feed = EventFeed::new().context("Cannot make the event stream (see ulimit -n)")?;
    let narrator = Arc::new(Narrator::new(config.settings.verbose()));
    let narration = if config.settings.verbose() { Events::to(narrator) } else { Events::warnings_to(narrator) };
    let trace = config.settings.trace.as_ref().map(Output::open).transpose()?;
    let recorder = Arc::new(Recorder::new(&config.settings));
    let events = narration.and(feed.events()).and(recorder.events());
    let current = Arc::new(Current::default());
    let (check, events) = Check::of(&config.settings, &current, events);
    if config.by_default {
        speech::tell(taken(&config));
    }

    let (sockets, bound) = bind(&config, &events)?;
    let mut resources = Resources::open(&config.machine, events.clone())?;
    let mut network = Network::open(&config.settings.net, &config.machine.nets)?;
    network.complete(&mut config.machine.nets);
    resources.plug(&config.machine, network.links());
    let vsock = VsockSocket::open(&config, &events)?;
    vsock.iter().for_each(|vsock| resources.connect(&config.machine, vsock.host()));
    let agent_port = AgentPortSocket::open(&config, &events)?;
    agent_port.iter().for_each(|port| resources.connect_agent(port.host()));
    let command = Expected::open(&config)?;
    let signals = Signals::catch().context("Cannot catch signals")?;
    let consoles = OpenedConsoles::open(&config)?;
    let explainer = Explainer::open(&config, resources.images().0, &events)?;
    let gdb = config.settings.gdb.as_ref().map(OpenedGdb::open).transpose()?;
    let files = Cell::new(GuestFiles::of(&config, &resources));
    let output = speech::open().context("Cannot make an event for messages (see ulimit -n)")?;
    let notifier = Notifier::from_env().unwrap_or_else(|error| not_told(&error, &events));
    axvm_sandbox::on_crash(axvm_console::restore_terminal_in_handler);
    if config.settings.sandbox() {
        close_sandbox(&config, &sockets, &events)?;
    }

    trace.map(|output| recorder.begin(output)).transpose()?;
    speech::start_writer(output).context("Cannot start a thread for messages (see ulimit -u)")?;
    network.watch(&events)?;
    let consoles = consoles.start(&current, &events)?;
    let explainer = Arc::new(explainer.listen(consoles.last_words()));
    let debugger = Debugger::open(&config, &resources, &current, &explainer)?;
    let around = Around { current: Arc::clone(&current), explainer: Arc::clone(&explainer), recorder, debugger };
    let panel = Panel::new(&config, &resources, &consoles, around).with_check(&check);
    let debugger = Arc::clone(panel.debugger());
    let _gdb = gdb.map(|gdb| gdb.start(Arc::clone(&debugger))).transpose()?;
    let server = bound.serve(Arc::new(panel), feed)?;
    let mut outside = Outside::of(&config, &signals);
    (outside.server, outside.explainer, outside.debugger) = (Some(&server), Some(&*explainer), Some(&*debugger));
    let reading_ends = outside.end.map(|end| end + SLOW_READER);
    let command = command.map(|command| command.start(&current, outside.grace)).transpose()?;
    let takes = |signal| command.as_ref().is_some_and(|command| command.signal(signal));
    outside.taker = Some(&takes);
    let starts =
        Starts { config: &config, resources: &resources, consoles: &consoles, current: &current, outside: &outside };
    let began = Cell::new(false);
    let ready = || {
        if !began.get() {
            warn_about_host(&events);
        }
        // A guest may write to the same terminal or file: the words come first, each as a whole line.
        speech::finish();
    };
    let end = starts.run(&ready, |state| {
        if !began.replace(true) {
            // What set-up needed.
            heap::give_back();
        }
        if let (Some(files), Some(machine)) = (files.take(), current.machine()) {
            files.look(&config, &machine, &events);
        }
        tell(&notifier, state, &events);
    });
    debugger.finish(end.as_ref().ok().and_then(|end| end.code().ok()).unwrap_or(1));
    tell(&notifier, ServiceState::Stopping, &events);
    // The machine is gone, and nothing records any more. With the panel the recorder goes, and its file is complete.
    server.stop();
    check.tell_totals();
    let (quit, end) = (consoles.were_quit(), end.map(|end| explained(end, &explainer)));
    if let Some(command) = command {
        return of_command(command.ended(), &end?, &config, &consoles);
    }
    see_off(consoles, &signals, reading_ends);
    say_end(&end?, quit, &config)
}

/// The same, with all that is known of a crash.
fn explained(mut end: End, explainer: &Explainer) -> End {
    end.report_mut().into_iter().for_each(|report| explainer.complete(report));
    end
}

/// Says how the machine ended, by Ctrl-A x if `quit`; the exit code.
fn say_end(end: &End, quit: bool, config: &Config) -> Result<u8> {
    if quit && end.is_quit() {
        speech::tell("Ended by Ctrl-A x");
    }
    if let Some(words) = end.words(&config.settings) {
        speech::tell(words);
    }
    show_report(end);
    end.code()
}

/// Shows why a vCPU could not go on, if that is how it ended.
fn show_report(end: &End) {
    if let Some(report) = end.report() {
        speech::show(format_args!("\n{report}"));
    }
}

/// The exit code of a machine for one command, whose guest ended like this; what must be said is.
fn of_command(ended: Option<Result<Ended>>, end: &End, config: &Config, consoles: &Consoles) -> Result<u8> {
    match ended {
        None | Some(Ok(Ended::Gone)) => {}
        Some(ended) => return exec::code(ended?),
    }
    if config.console == BackEnd::None {
        let last = consoles.last_words().last(LAST_LINES);
        last.iter().for_each(|line| speech::tell(format_args!("console: {line}")));
    }
    speech::tell(end.words(&config.settings).unwrap_or_else(|| "The guest ended before its command did".into()));
    show_report(end);
    Ok(match end.code()? {
        // The time was over, or a signal came.
        code @ 124.. => code,
        _ => exec::FAILED,
    })
}

/// So much of a console is shown if its guest does not run the command that it is there for.
const LAST_LINES: usize = 20;

/// How long the end of a machine waits for requests in the host.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the end of a machine takes if nothing hangs.
const SOON: Duration = Duration::from_millis(200);

/// How long a reader that is slow has when the time of its machine is over.
const SLOW_READER: Duration = Duration::from_secs(2);

impl Outside<'_> {
    /// What was said about them; the time begins now.
    pub fn of<'a>(config: &Config, signals: &'a Signals) -> Outside<'a> {
        let end = config.settings.timeout.map(|Time(seconds)| Instant::now() + Duration::from_secs(seconds.into()));
        let grace = Duration::from_secs(config.settings.grace().into());
        Outside { signals, server: None, grace, end, explainer: None, debugger: None, taker: None }
    }
}

/// Start after start of the guest, and what each works with.
pub struct Starts<'a> {
    pub config: &'a Config,
    pub resources: &'a Resources,
    pub consoles: &'a Consoles,
    pub current: &'a Current,
    pub outside: &'a Outside<'a>,
}

impl Starts<'_> {
    /// Runs guest after guest, until one ends for good. `ready` is called before the first instruction of each, `tell` when
    /// one runs.
    pub fn run(&self, ready: &dyn Fn(), tell: impl Fn(ServiceState)) -> Result<End> {
        let Starts { config, resources, consoles, current, outside, .. } = self;
        let mut restarts = Restarts::new(config.settings.restart_limit());
        let signs = Signs::of(config, resources.events(), outside.explainer);
        let mut told_crash = false;
        loop {
            let machine = match self.set_up(ready)? {
                Ok(machine) => Arc::new(machine),
                Err(signal) => return Ok(End::of_run(StopReason::Signal(signal))),
            };
            current.install(Arc::clone(&machine));
            tell(ServiceState::Ready);
            let served = serve(&machine, current, consoles, outside, &signs);
            let (reason, stopped) = self.stop(&machine);
            let reason = current.remove().unwrap_or(reason);
            let end = End::of(reason, machine.stop_switch()).explained_by(machine.crash_report());
            let asked_by = served?;
            let mut end = match go_on(end, stopped, asked_by, config, &mut restarts) {
                ControlFlow::Continue(end) => end,
                ControlFlow::Break(end) => {
                    resources.leave(&machine);
                    return Ok(end);
                }
            };
            resources.events().emit(|| Event::Power { reason: format!("{}, starting again", end.event()) });
            if let Some(message) = end.warning() {
                resources.events().warn(|| Event::Warning { from: "guest", message });
            }
            // The first only: a guest that crashes again and again fills no log.
            if let (Some(report), Some(explainer)) = (end.report_mut().filter(|_| !told_crash), outside.explainer) {
                told_crash = true;
                explainer.complete(report);
                show_report(&end);
            }
            // No vCPU runs any more: its memory can go.
            drop(machine);
            resources.clear()?;
        }
    }

    /// Brings a machine to its end. One that hangs in the host can be asked for the reason meanwhile.
    fn stop(&self, machine: &Machine) -> (StopReason, Result<(), StillBusy>) {
        match machine.stop(Instant::now() + SOON) {
            (_, Err(_)) => {
                Reception::of(self.outside.server).open();
                machine.stop(Instant::now() + PATIENCE)
            }
            ended => ended,
        }
    }

    /// Builds a machine, unless a signal comes first: there is no guest yet that could be asked to power off.
    fn set_up(&self, ready: &dyn Fn()) -> Result<Result<Machine, i32>> {
        let signal = Cell::new(None);
        let asked = || {
            signal.set(signal.get().or_else(|| self.outside.signals.ending(self.consoles)));
            signal.get().is_some()
        };
        let mut spec = Cow::Borrowed(&self.config.machine);
        if self.outside.debugger.is_some_and(Debugger::wants_stop) {
            spec.to_mut().stopped = true;
        }
        let built = self.resources.build_unless(&asked, ready, &spec, &self.consoles.ports());
        match signal.get() {
            Some(signal) => Ok(Err(signal)),
            None => Ok(Ok(built?)),
        }
    }
}

/// Whether a guest that came to this `end` starts again.
fn go_on(
    mut end: End,
    stopped: Result<(), StillBusy>,
    asked_by: Option<i32>,
    config: &Config,
    restarts: &mut Restarts,
) -> ControlFlow<End, End> {
    match (stopped, asked_by) {
        // RAM and disks are still being written to: there is no next start, and the process must go.
        (Err(busy), _) => ControlFlow::Break(End::of_run(StopReason::HostError(busy.to_string()))),
        _ if !end.starts_again(&config.settings) => ControlFlow::Break(end),
        // A guest that was to end and resets does not live on.
        (_, Some(signal)) => ControlFlow::Break(End::of_run(StopReason::Signal(signal))),
        _ if !restarts.allow(&mut end, Instant::now()) => ControlFlow::Break(end),
        _ => ControlFlow::Continue(end),
    }
}

/// The control sockets: the user's, and the one by which `axvm ps` finds the machine. The second may be missing.
fn bind(config: &Config, events: &Events) -> Result<(Vec<PathBuf>, Bound)> {
    let named = config.settings.api_sock.clone().into_iter().collect::<Vec<_>>();
    let trouble = match Registry::of_user().default_socket(std::process::id()) {
        Err(error) => error.to_string(),
        Ok(own) => {
            let all: Vec<_> = named.iter().cloned().chain([own]).collect();
            match ApiServer::bind(&all) {
                Ok(bound) => return Ok((all, bound)),
                Err(error) => error.to_string(),
            }
        }
    };
    let bound = ApiServer::bind(&named)?;
    let message = format!("`axvm ps` will not show this machine: {trouble}");
    events.emit(|| Event::Warning { from: "control socket", message });
    Ok((named, bound))
}

/// From here on the process can do what its threads need, and nothing else. All files are open; what is left are
/// sockets to remove at the end, and the program's side of a pseudo-terminal, opened again for each program.
pub fn close_sandbox(config: &Config, sockets: &[PathBuf], events: &Events) -> Result<()> {
    let others = [config.virtio_console.as_ref(), config.debug_console.as_ref()];
    let consoles = || std::iter::once(&config.console).chain(others.into_iter().flatten());
    let console_sockets = consoles().filter_map(|end| match end {
        BackEnd::Unix(path) => Some(path.as_path()),
        _ => None,
    });
    let directory = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let gdb = config.settings.gdb.iter().filter_map(|place| match place {
        GdbAt::Unix(path) => Some(path.as_path()),
        GdbAt::Tcp(_) => None,
    });
    let named = sockets.iter().chain(&config.vsock).chain(&config.agent_port).map(PathBuf::as_path).chain(gdb);
    let files = console_sockets.chain(network::socket_files(&config.settings.net));
    let sockets_in = named.chain(files).map(directory).collect();
    let write = consoles().filter(|end| matches!(end, BackEnd::Pty)).map(|_| "/dev/pts".into()).collect();
    let since = Instant::now();
    if config.machine.plan()?.has_pci() {
        axvm_sandbox::allow_pci();
    }
    axvm_sandbox::on_violation(axvm_console::restore_terminal_in_handler);
    let report = axvm_sandbox::arm(&Files { write, sockets_in, ..Files::default() })?;
    let protections = || report.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    events.emit(|| Event::BootStep { what: "sandbox", detail: protections(), took: since.elapsed() });
    Ok(())
}

fn tell(notifier: &Notifier, state: ServiceState, events: &Events) {
    if let Err(error) = notifier.tell(state) {
        not_told(&error, events);
    }
}

/// Says why the service manager learns nothing; the way to it, which is none.
fn not_told(error: &NotifyError, events: &Events) -> Notifier {
    events.emit(|| Event::Warning { from: "service manager", message: error.to_string() });
    Notifier::default()
}

/// Which files were taken because none was named.
fn taken(config: &Config) -> String {
    let machine = &config.machine;
    let mut files = Vec::new();
    if let KernelSource::File(path) = &machine.kernel {
        files.push(format!("kernel {}", path.display()));
    }
    files.extend(machine.initrd.iter().map(|path| format!("initrd {}", path.display())));
    files.extend(machine.disks.iter().map(|disk| format!("disk {}", disk.path.display())));
    format!("taking {}", files.join(", "))
}

/// A KVM without hardware behind it runs Linux too slowly to wait for: say so before the wait, when a machine runs.
fn warn_about_host(events: &Events) {
    if !cpuinfo::has_virtualization() {
        events.warn(|| Event::Warning {
            from: "host",
            message: "this processor offers no virtualization (no vmx or svm in /proc/cpuinfo): \
                      Linux will be too slow to use; `cargo xtask boot` runs it in the lab instead"
                .into(),
        });
    }
}
