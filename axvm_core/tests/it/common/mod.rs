//! AxVM as a user has it: the program on the real KVM, with our command interpreter as guest.
//!
//! ```text
//!   test --say, hear--> pipe, terminal or socket --> axvm --> guest (shell: COM1, shell=hvc0)
//!        --control----> its socket in a directory of the test's own
//! ```
#![allow(dead_code, reason = "each test file uses a part")]

pub mod net;
pub mod talk;
pub mod terminal;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axvm_api::Client;
use axvm_api::types::Status;
use rustix::process::{Pid, Signal, kill_process};
pub use talk::Talk;
use tempfile::TempDir;

pub const AXVM: &str = env!("CARGO_BIN_EXE_axvm");
/// How long anything may take: it takes milliseconds, this is for crowded machines.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether there is a KVM; said past libtest's capture if not.
pub fn has_kvm() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened.inspect_err(|error| skip(&format!("no /dev/kvm: {error}"))).is_ok()
}

pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Waits until `condition`.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A directory with a guest, a disk, and room for what AxVM makes.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("guest.elf"), axvm_guest::selftest()).unwrap();
        File::create(directory.path().join("disk.img")).unwrap().set_len(1 << 20).unwrap();
        Place(directory)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `axvm WORDS`, in this directory, with a registry of machines of its own. Words are split at spaces.
    pub fn axvm(&self, words: &str) -> Command {
        // AxVM leaves ignored what is ignored where it starts; a shell that runs tests in the background ignores SIGINT.
        let mut command = Command::new("env");
        command.args(["--default-signal", AXVM]);
        self.with(command, words)
    }

    fn with(&self, mut command: Command, words: &str) -> Command {
        command.args(words.split_whitespace());
        command.current_dir(self.0.path()).env("XDG_RUNTIME_DIR", self.0.path()).env_remove("NOTIFY_SOCKET");
        command
    }

    /// A machine whose guest is the interpreter; `more` are further words.
    pub fn machine(&self, shell: &str, more: &str) -> Command {
        self.axvm(&Self::words(shell, more))
    }

    /// The same for a starter that says which signals are ignored.
    pub fn machine_as_started(&self, shell: &str, more: &str) -> Command {
        self.with(Command::new(AXVM), &Self::words(shell, more))
    }

    fn words(shell: &str, more: &str) -> String {
        format!("run --kernel guest.elf --memory 32M --cpus 1 --api-sock api --append {shell} {more}")
    }

    /// Runs `axvm WORDS` to its end: exit code, output, errors.
    pub fn run(&self, words: &str) -> (i32, String, String) {
        let output = self.axvm(words).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (code(output.status), text(&output.stdout), text(&output.stderr))
    }

    /// Starts `command` with these streams; its errors go to a file.
    pub fn start(&self, command: Command, input: impl Into<Stdio>, output: impl Into<Stdio>) -> Axvm {
        Axvm::start(
            self.path("api"),
            tempfile::NamedTempFile::new_in(self.0.path()).unwrap().keep().unwrap(),
            command,
            input,
            output,
        )
    }

    /// Starts an interpreter on stdio: COM1, or hvc0. Comes back when it is ready.
    pub fn shell(&self, more: &str) -> (Axvm, Talk) {
        self.talking(self.machine("shell", more))
    }

    /// Starts an interpreter on stdio of a machine that waits when it is halted; `size` says its vCPUs and memory.
    pub fn waiting_shell(&self, size: &str) -> (Axvm, Talk) {
        let words =
            "run --kernel guest.elf --api-sock api --append shell --console stdio --disk disk.img --on-halt wait";
        self.talking(self.axvm(&format!("{words} {size}")))
    }

    pub fn shell_on_hvc0(&self, more: &str) -> (Axvm, Talk) {
        self.talking(self.machine("shell=hvc0", &format!("--virtio-console stdio {more}")))
    }

    /// Connects to a console's socket; waits until it listens.
    pub fn attach(&self, socket: &str) -> Talk {
        let mut stream = None;
        until("the console's socket listens", || {
            stream = UnixStream::connect(self.path(socket)).ok();
            stream.is_some()
        });
        Talk::on(stream.unwrap())
    }

    /// Starts `command` with pipes. Comes back when the interpreter is ready.
    pub fn talking(&self, command: Command) -> (Axvm, Talk) {
        let (input, keys) = std::io::pipe().unwrap();
        let (screen, output) = std::io::pipe().unwrap();
        let axvm = self.start(command, input, output);
        let mut talk = Talk::new(Some(OwnedFd::from(keys)), screen);
        talk.hear("ready\n> ");
        (axvm, talk)
    }
}

/// A running AxVM. Dropped, it is killed.
pub struct Axvm {
    child: Child,
    errors: PathBuf,
    api: PathBuf,
}

/// What is left of an AxVM.
#[derive(Debug)]
pub struct End {
    /// Of the process; as a shell tells it when a signal ended it.
    pub code: i32,
    pub errors: String,
}

impl Axvm {
    fn start(
        api: PathBuf,
        (errors, path): (File, PathBuf),
        mut command: Command,
        input: impl Into<Stdio>,
        output: impl Into<Stdio>,
    ) -> Axvm {
        let child = command.stdin(input).stdout(output).stderr(errors).spawn().unwrap();
        Axvm { child, errors: path, api }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// As in `/proc/PID/stat`: `S` sleeps, `T` is stopped ...
    pub fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('X')
    }

    /// Whether it has ended and the test has not asked how.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state(), 'Z' | 'X')
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap()
    }

    /// A connection to its control socket; waits until it listens.
    pub fn control(&self) -> Client {
        let mut client = None;
        until("the control socket answers", || {
            client = Client::connect(&self.api).ok();
            client.is_some()
        });
        client.unwrap()
    }

    pub fn status(&self) -> Status {
        self.control().get("/status").unwrap()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> End {
        let start = Instant::now();
        while self.is_running() {
            assert!(start.elapsed() < PATIENCE, "AxVM does not end: {}", self.errors());
            std::thread::sleep(Duration::from_millis(2));
        }
        let end = End { code: code(self.child.wait().unwrap()), errors: self.errors() };
        assert!(!end.errors.contains("panicked at"), "{end:?}");
        assert!(!end.errors.contains("The sandbox stopped"), "{end:?}");
        assert!(!end.errors.contains('\r'), "that is for terminals: {end:?}");
        end
    }

    /// Waits for its end, which has exit code `code`.
    #[track_caller]
    pub fn ends_with(self, code: i32) -> End {
        let end = self.end();
        assert_eq!(end.code, code, "{end:?}");
        end
    }

    /// How often each thread has gone to sleep so far, by its name.
    pub fn sleeps(&self) -> Vec<(String, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let sleeps = |task: PathBuf| {
            let status = fs::read_to_string(task.join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            Some((field("Name:")?.to_owned(), field("voluntary_ctxt_switches:")?.parse().ok()?))
        };
        tasks.filter_map(|task| sleeps(task.unwrap().path())).collect()
    }

    /// CPU time so far, of each thread by its name.
    pub fn cpu_time(&self) -> Vec<(String, Duration)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let time = |task: PathBuf| {
            let name = fs::read_to_string(task.join("comm")).ok()?.trim().to_owned();
            let nanos = fs::read_to_string(task.join("schedstat")).ok()?;
            Some((name, Duration::from_nanos(nanos.split(' ').next()?.parse().ok()?)))
        };
        tasks.filter_map(|task| time(task.unwrap().path())).collect()
    }

    /// Entries of a directory of `/proc/PID`, such as `fd` and `task`.
    pub fn count(&self, directory: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{directory}", self.pid())).unwrap().count()
    }
}

impl Drop for Axvm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn code(status: std::process::ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Whether a file is there, broken or not.
pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}
