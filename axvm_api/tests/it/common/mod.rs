//! A machine that does not exist, behind a real socket.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axvm_api::testing::FakeMachine;
use axvm_api::{ApiServer, Client, EventFeed};
use tempfile::TempDir;

pub struct Machine {
    pub fake: Arc<FakeMachine>,
    pub feed: Arc<EventFeed>,
    pub server: ApiServer,
    pub path: PathBuf,
    pub dir: TempDir,
}

impl Machine {
    pub fn start() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let (fake, feed) = (Arc::new(FakeMachine::default()), EventFeed::new().unwrap());
        let bound = ApiServer::bind(&[&path]).unwrap();
        let server = bound.serve(fake.clone(), feed.clone()).unwrap();
        server.start().unwrap();
        Machine { fake, feed, server, path, dir }
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    /// `METHOD /path body` on a connection of its own: the answer.
    pub fn ask(&self, request: &str) -> String {
        let mut parts = request.splitn(3, ' ');
        let (method, path, body) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap_or_default());
        let mut stream = self.connect();
        let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Another client is served, and soon; many tries, for the host may be busy too, but hardly each time.
    pub fn still_serves(&self, after: &str) {
        let try_once = || {
            let before = Instant::now();
            assert_eq!(status_of(&self.ask("GET /status")), 200, "{after}");
            before.elapsed()
        };
        let took = (0..20).map(|_| try_once()).find(|&took| took < Duration::from_millis(100));
        assert!(took.is_some(), "{after}: another client waited for more than 100 ms, each of 20 times");
    }
}

/// Status of an answer.
pub fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// Reads `count` answers and gives their status.
pub fn answers(stream: &mut UnixStream, count: usize) -> Vec<u16> {
    let mut stream = BufReader::new(stream);
    let mut all = Vec::new();
    while all.len() < count {
        let (mut head, mut len) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            if let Some(text) = line.strip_prefix("Content-Length: ") {
                len = text.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
            head += &line;
        }
        stream.read_exact(&mut vec![0; len]).unwrap();
        all.push(status_of(&head));
    }
    all
}
