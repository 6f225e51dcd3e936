//! An agent, and a host for one command.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axvm_exec::{FromGuest, FromHost, HostEnd, Outcome, Refusal, Request};

pub const LIMIT: Duration = Duration::from_secs(20);

const PROGRAM: &str = env!("CARGO_BIN_EXE_axvm-agent");

/// An agent, until dropped.
pub struct Agent {
    process: Child,
    directory: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Agent {
        Agent::start_by(Command::new(PROGRAM))
    }

    /// An agent that a script has started, as `axvm-agent &`: with signals that it ignores.
    pub fn start_by_script() -> Agent {
        let mut script = Command::new("sh");
        script.args(["-c", "trap '' INT QUIT; exec \"$0\" \"$@\"", PROGRAM]);
        Agent::start_by(script)
    }

    fn start_by(mut command: Command) -> Agent {
        let directory = tempfile::tempdir().unwrap();
        let process = command.arg("--unix").arg(directory.path().join("s")).stdin(Stdio::null()).spawn().unwrap();
        Agent { process, directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub fn connect(&self) -> UnixStream {
        let begin = Instant::now();
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    return stream;
                }
                Err(error) if begin.elapsed() > LIMIT => panic!("no agent: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// A host that has asked for `request`.
    pub fn ask(&self, request: Request) -> Host {
        let mut host = Host { stream: self.connect(), end: HostEnd::default(), said: Said::default() };
        let mut bytes = Vec::new();
        HostEnd::hello(&mut bytes);
        host.stream.write_all(&bytes).unwrap();
        host.say(&FromHost::Request(request));
        host
    }

    /// Waits until all that it started is gone.
    pub fn leaves_no_process_behind(&self) {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let begin = Instant::now();
        loop {
            let left = std::fs::read_to_string(&children).unwrap();
            if left.is_empty() {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "processes {left} are left");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs a command to its end, without input.
    pub fn run(&self, words: &[&str]) -> Said {
        let mut host = self.ask(request(words));
        host.say(&FromHost::StdinEnd);
        host.ended()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

pub fn request(words: &[&str]) -> Request {
    Request { arguments: words.iter().map(Into::into).collect(), ..Request::default() }
}

/// What a guest said.
#[derive(Debug, Default)]
pub struct Said {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub granted: u64,
    pub outcome: Option<Outcome>,
    pub refused: Option<(Refusal, String)>,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn code(&self) -> Option<u8> {
        self.outcome.map(Outcome::exit_code)
    }
}

/// A host with one command.
pub struct Host {
    pub stream: UnixStream,
    end: HostEnd,
    pub said: Said,
}

impl Host {
    pub fn say(&mut self, message: &FromHost<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Takes what comes; false at the end.
    pub fn turn(&mut self) -> bool {
        let mut buffer = [0; 8192];
        let count = self.stream.read(&mut buffer).expect("the agent answers");
        self.end.receive(&buffer[..count]);
        while let Some(message) = self.end.message().expect("the agent keeps to the protocol") {
            match message {
                FromGuest::Grant(count) => self.said.granted += u64::from(count),
                FromGuest::Stdout(bytes) => self.said.stdout.extend_from_slice(bytes),
                FromGuest::Stderr(bytes) => self.said.stderr.extend_from_slice(bytes),
                FromGuest::Exit(outcome) => self.said.outcome = Some(outcome),
                FromGuest::Refused(why, text) => self.said.refused = Some((why, text.to_owned())),
            }
        }
        count > 0 && self.said.outcome.is_none() && self.said.refused.is_none()
    }

    /// Until it has said this on standard output.
    pub fn expect(&mut self, words: &str) {
        while !self.said.text().contains(words) {
            assert!(self.turn(), "ended without {words:?}: {:?}", self.said);
        }
    }

    pub fn ended(mut self) -> Said {
        while self.turn() {}
        self.said
    }
}
