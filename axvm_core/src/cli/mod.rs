//! The command line: what the user typed, as clap understands it. No decisions here.
//!
//! ```text
//!   axvm [run] ARGS   run.rs       a machine
//!   axvm config ...   this file    what is printed and ends
//!   axvm ctl ...      tools.rs     about machines that run, and about the host
//!   axvm net ...      net.rs       taps of this host
//!   axvm -hda ...     habits.rs    what other programs' words mean here
//!   axvm --cpus x     mistakes.rs  what is wrong, in one line
//! ```
//!
//! Two stages: [`crate::settings::Settings`] is what was said, here or in a file; [`crate::config::Config`] is what will
//! be done.

mod habits;
mod mistakes;
mod net;
mod run;
mod tools;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;

use clap::{ArgGroup, Args, ColorChoice, CommandFactory, FromArgMatches, Id, Parser, Subcommand};

pub use net::{NetAction, NetArgs};
pub use run::RunArgs;
pub use tools::{
    CardAction, CtlAction, CtlArgs, DiskAction, DoctorArgs, ExecArgs, GdbArgs, InspectArgs, InspectFormat, LinkWord,
    MemoryArgs, PsArgs, Removed, ReportArgs, SelftestArgs, TraceWord,
};

use crate::error::ConfigError;
use crate::speech;

/// A hypervisor you can read like a book and run like a product.
#[derive(Debug, Parser)]
#[command(name = "axvm", version = env!("AXVM_VERSION"), args_conflicts_with_subcommands = true, max_term_width = 100)]
#[command(help_template = "{about-with-newline}\n{usage-heading} axvm [OPTIONS of axvm run]\n       axvm COMMAND\n
Commands:\n{subcommands}{after-help}")]
#[command(after_help = "\
Without a command, axvm means `axvm run`: it takes ./bzImage, ./initrd.img and ./disk.img (or the \
same in ..) and boots them. The guest's serial console is this terminal; Ctrl-A x ends the machine, \
Ctrl-A h tells the other keys.

Examples:
  axvm                                                 what lies here
  axvm bzImage                                         this kernel
  axvm -k bzImage -d disk.img -c 4 -m 2G               files, 4 vCPUs, 2 GiB
  axvm selftest                                        can this host run AxVM?
  axvm --config vm.toml                                what a file says
  axvm config --from-args -k bzImage -m 2G > vm.toml   write such a file
  axvm run --help                                      every option

Exit codes: 0 the guest powered off, 1 host or set-up error, 2 wrong usage, 3 the guest rebooted \
(with --on-reboot end), 4 the guest's kernel panicked, 5 the guest crashed, 6 it halted for good, 7 a driver broke a rule of virtio, \
124 its time was over (--timeout), 128+N by signal N.

A first SIGTERM, SIGINT or SIGHUP presses the guest's power button; a second one, or --grace \
seconds, ends the machine.")]
pub struct Cli {
    /// The command; none means run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The arguments of run, without its name.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What AxVM can do. A command's own arguments are described when it is the one that was typed, or when the description is
/// built as a whole: each start of a machine would pay for all of them.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Boot a Linux kernel in a new machine
    #[command(after_help = "\
Examples:
  axvm run bzImage
  axvm run --kernel bzImage --initrd initrd.img --disk disk.img
  axvm run --kernel bzImage --disk disk.img --cpus 20 --memory 4G --append quiet
  axvm run --kernel bzImage --disk root.img,ro --disk data.img,serial=DATA1
  axvm run --kernel vmlinux --entry pvh --cpus 4,sockets=2,cores=2 --pin 0-3
  axvm run -k bzImage --console unix=web.sock --api-sock web.api --name web
  axvm run -k bzImage -d root.img -- make -C /src test; echo $?
  axvm run --config vm.toml --memory 8G --verbose")]
    Run(RunArgs),

    /// Control a machine that runs: pause, power button, memory, console
    Ctl(CtlArgs),

    /// Run a command in the guest of a machine that runs
    Exec(ExecArgs),

    /// Print the agent, the program in a guest that runs commands
    #[command(after_help = "\
Examples:
  axvm agent > axvm-agent                     for a guest's root file system
  axvm agent --systemd > axvm-agent.service   its unit there
  axvm agent --initrd >> initrd.img           /axvm-agent in an initrd

The agent is one static program for any Linux on x86-64. It is started as root, without arguments, and \
listens at vsock port 348, for the host alone, or at the machine's --agent-port.")]
    Agent(AgentArgs),

    /// Make or remove a tap of this host, for --net tap=NAME
    Net(NetArgs),

    /// List the machines that run
    Ps(PsArgs),

    /// Prove, device by device, that this host can run AxVM
    Selftest(SelftestArgs),

    /// Start gdb at a machine that runs
    Gdb(GdbArgs),

    /// Tell where a machine's time went, from what `axvm run --trace` wrote
    Report(ReportArgs),

    /// Explain this host: what AxVM finds, what it misses, what to change
    Doctor(DoctorArgs),

    /// Show a machine at power-on, without starting it: memory, tables, registers
    Inspect(InspectArgs),

    /// Print a settings file: from arguments, an example, or the schema of all
    #[command(after_help = "\
Examples:
  axvm config --from-args -k bzImage -d disk.img -c 4 -m 2G > vm.toml
  axvm config --from-args --config vm.toml -m 4G     the same with more memory
  axvm config --example > vm.toml                    every key, explained
  axvm config --schema > vm.schema.json              for editors

An editor that reads `#:schema ./vm.schema.json` in the first line completes keys and checks values.

Relative paths in a settings file are taken from the directory that the file is in.")]
    Config(ConfigArgs),

    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  axvm completions bash > ~/.local/share/bash-completion/completions/axvm
  axvm completions zsh > ~/.zfunc/_axvm
  axvm completions fish > ~/.config/fish/completions/axvm.fish")]
    Completions(CompletionsArgs),

    /// Print a manual page
    #[command(after_help = "\
Examples:
  axvm man | man -l -                                      the program
  axvm man run | man -l -                                  one command
  axvm man run > /usr/local/share/man/man1/axvm-run.1      for good")]
    Man(ManArgs),
}

/// `axvm config`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("page").required(true).args(["from_args", "example", "schema"])))]
pub struct ConfigArgs {
    /// Print the settings file that means the same as the arguments of run that follow
    #[arg(long)]
    pub from_args: bool,

    /// Print a settings file that explains every key
    #[arg(long, conflicts_with_all = options_of_run())]
    pub example: bool,

    /// Print the JSON Schema of settings files
    #[arg(long, conflicts_with_all = options_of_run())]
    pub schema: bool,

    /// The arguments.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The ids of all options of run. (clap's own group of them leaves out those that are flattened into it.)
fn options_of_run() -> Vec<Id> {
    RunArgs::augment_args(clap::Command::new("run")).get_arguments().map(|option| option.get_id().clone()).collect()
}

/// `axvm agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Print the unit that starts it in a guest with systemd, from /usr/local/sbin/axvm-agent
    #[arg(long)]
    pub systemd: bool,
    /// Print it as an archive that Linux unpacks after another one: cat initrd.img agent.cpio
    #[arg(long, conflicts_with = "systemd")]
    pub initrd: bool,
}

/// `axvm completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that is to complete
    #[arg(value_enum, required_unless_present = "machines")]
    pub shell: Option<clap_complete::Shell>,

    /// Print the names of the machines that run: what the scripts ask at each Tab
    #[arg(long, conflicts_with = "shell")]
    pub machines: bool,
}

/// `axvm man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command to tell about; without: the whole program
    pub command: Option<String>,
}

impl Cli {
    /// Whether these words, the command line after the program's name, have a command for a guest, or should have.
    pub fn is_for_guest(mut words: impl Iterator<Item = OsString>) -> bool {
        let Some(first) = words.next() else { return false };
        match Cli::command().find_subcommand(&first).map(clap::Command::get_name) {
            Some("exec") => true,
            Some("run") | None => first == "--" || words.any(|word| word == "--"),
            Some(_) => false,
        }
    }

    /// What `axvm run` and correct arguments mean, by the grammar of that command alone: the whole program's takes a tenth of
    /// a machine's start. None if there is more to it: another command, a mistake, a page, or a word such as `-kernel`, which
    /// clap would take for `-k ernel`.
    fn plainly_run(words: impl Iterator<Item = OsString>) -> Option<RunArgs> {
        let words: Vec<_> = words.collect();
        let run = words.first()?.to_str()? == "run";
        let ours = words.split(|word| word == "--").next()?;
        let is_short = |word: &OsString| word.len() == 2 || !word.as_bytes().starts_with(b"-");
        if !run || !ours.iter().all(|word| is_short(word) || word.as_bytes().starts_with(b"--")) {
            return None;
        }
        let mut read = RunArgs::augment_args(clap::Command::new("run")).try_get_matches_from(words).ok()?;
        RunArgs::from_arg_matches_mut(&mut read).ok()
    }

    /// Reads the command line of this process. A mistake is an error in our own words; for help and version clap prints
    /// its page, and the process ends.
    pub fn read() -> Result<Cli, ConfigError> {
        if let Some(run) = Cli::plainly_run(std::env::args_os().skip(1)) {
            return Ok(Cli { command: Some(Command::Run(run)), run: RunArgs::default() });
        }
        let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        let program = Cli::command();
        if let Some(error) = habits::meant(&program, &words) {
            return Err(error);
        }
        // Its pages have colours where ours have them; on its own, clap would look at other variables (CI, CLICOLOR).
        let colours = if speech::colour(io::stdout()) { ColorChoice::Always } else { ColorChoice::Never };
        let read = program.color(colours).try_get_matches();
        let cli = read.and_then(|mut read| Cli::from_arg_matches_mut(&mut read));
        cli.map_err(|error| mistakes::told(&error, &words).unwrap_or_else(|| error.exit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_a_terminal_of_80_columns() {
        let mut program = Cli::command();
        program.build();
        for command in program.get_subcommands().chain([&program]) {
            let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for part in notes.split("\n\n") {
                // Examples stay as they are; a paragraph is one line, which clap breaks.
                let is_good = match part.strip_prefix("Examples:\n") {
                    Some(examples) => examples.lines().all(|line| line.chars().count() <= 80),
                    None => !part.contains('\n'),
                };
                assert!(is_good, "axvm {}: {part}", command.get_name());
            }
        }
    }

    #[test]
    fn a_command_for_a_guest_is_known_before_anything_is_read() {
        for (words, is) in [
            ("exec", true),
            ("exec web ls", true),
            ("run -k k -- true", true),
            ("-k k -- true", true),
            ("-- true", true),
            ("run -k k", false),
            ("ctl -- web status", false),
            ("", false),
        ] {
            assert_eq!(Cli::is_for_guest(words.split(' ').map(OsString::from)), is, "{words}");
        }
    }

    #[test]
    fn the_command_line_is_what_clap_wants() {
        Cli::command().debug_assert();
    }
}
