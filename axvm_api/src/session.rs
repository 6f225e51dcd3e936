//! One client's conversation: bytes in, bytes out, and what the bytes make the machine do. No socket here.
//!
//! ```text
//!             +-- Requests --+-- GET /events --> Events  (lines until the client goes)
//!   bytes --> |              |
//!             +--------------+-- GET /console -> Console (the connection leaves)
//! ```
//!
//! All buffers are bounded: while the answers are not taken, no further request is looked at.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use crate::control::{Attach, Control};
use crate::events::{self, EventFeed, Subscription};
use crate::http::{CONTINUE, LAST_CHUNK, Progress, Reader, Request, Response, SWITCHING, chunk};
use crate::openapi;
use crate::routes::{self, CONSOLE_PROTOCOL, Route, Work};

/// Answers that may wait for a client before no more are made.
const OUTPUT_LIMIT: usize = 64 << 10;
/// Most descriptors that come with a request: as many as a network card has queue pairs.
pub(crate) const DESCRIPTOR_LIMIT: usize = 64;

/// Why descriptors did not come.
const NO_ROOM: &str = "The descriptors of this request did not come: AxVM's process may not have more of them open, or \
                       there were more than 64. Start the machine where `ulimit -n` says more";

/// The API of one machine.
pub struct Api {
    control: Arc<dyn Control>,
    feed: Arc<EventFeed>,
    routes: Vec<Route>,
    /// The OpenAPI document, made when a client asks for it first: most machines end before one does.
    document: OnceLock<Response>,
}

/// What a request leads to.
enum Outcome {
    Answer(Response),
    Events(Subscription),
    Console(Attach),
}

impl Api {
    /// The API of the machine behind `control`, with events from `feed`.
    pub fn new(control: Arc<dyn Control>, feed: Arc<EventFeed>) -> Api {
        Api { control, feed, routes: routes::table(), document: OnceLock::new() }
    }

    fn serve(&self, request: &Request, descriptors: Vec<OwnedFd>) -> Outcome {
        let Some(route) = self.routes.iter().find(|route| route.is(&request.method, &request.path)) else {
            return refuse(format!(
                "{} {}: no such resource; GET /openapi.json lists all",
                request.method, request.path
            ));
        };
        match &route.work {
            Work::Call(call) => match call(&*self.control, &request.path, &request.body, descriptors) {
                Ok(response) => Outcome::Answer(response),
                Err(fault) => refuse(fault.0),
            },
            Work::Document => {
                let document = self.document.get_or_init(|| Response::json(&openapi::document(&self.routes)));
                Outcome::Answer(document.clone())
            }
            Work::Refuse(why) => refuse(*why),
            Work::Events if request.old => refuse("Events need HTTP/1.1"),
            Work::Events => match self.feed.subscribe() {
                Some(subscription) => Outcome::Events(subscription),
                None => Outcome::Answer(Response::fault(503, "Too many clients read events already")),
            },
            Work::Console if request.old || request.upgrade.as_deref() != Some(CONSOLE_PROTOCOL) => {
                refuse(format!("The console needs HTTP/1.1 and the header Upgrade: {CONSOLE_PROTOCOL}"))
            }
            Work::Console => match self.control.attach_console() {
                Ok(attach) => Outcome::Console(attach),
                Err(fault) => refuse(fault.0),
            },
        }
    }
}

fn refuse(message: impl Into<String>) -> Outcome {
    Outcome::Answer(Response::fault(400, message))
}

/// One client's conversation.
#[derive(Default)]
pub struct Session {
    reader: Reader,
    output: Vec<u8>,
    mode: Mode,
    /// What came with the bytes of the next request.
    descriptors: Vec<OwnedFd>,
    /// Not all of them came.
    descriptors_lost: bool,
}

#[derive(Default)]
enum Mode {
    #[default]
    Requests,
    /// In the middle of a request.
    Unfinished,
    Events(Subscription),
    Console(Attach),
    /// The output is the last.
    Ended,
}

impl Session {
    /// Takes bytes from the client; `room` at most.
    pub fn receive(&mut self, bytes: &[u8]) {
        match self.mode {
            Mode::Requests | Mode::Unfinished | Mode::Console(_) => self.reader.push(bytes),
            Mode::Events(_) | Mode::Ended => {}
        }
    }

    /// Takes descriptors that came with bytes of a request; they are closed with it, if it has no use for them, or if
    /// there are more than any request has. With `lost` the kernel could not hand over all of them.
    pub fn receive_descriptors(&mut self, descriptors: Vec<OwnedFd>, lost: bool) {
        self.descriptors.extend(descriptors);
        self.descriptors.truncate(DESCRIPTOR_LIMIT);
        self.descriptors_lost |= lost;
    }

    /// How many bytes may come now.
    pub fn room(&self) -> usize {
        match self.mode {
            // What comes now is not kept.
            Mode::Ended | Mode::Events(_) => usize::MAX,
            _ => self.reader.room(),
        }
    }

    /// Serves one request, or sends some events. Whether there may be more to do at once.
    pub fn advance(&mut self, api: &Api) -> bool {
        if self.output.len() >= OUTPUT_LIMIT {
            return false;
        }
        match &mut self.mode {
            Mode::Ended | Mode::Console(_) => false,
            Mode::Events(subscription) => {
                while let Some(line) = subscription.next_line() {
                    self.output.extend(chunk(format!("{line}\n").as_bytes()));
                    if self.output.len() >= OUTPUT_LIMIT {
                        break;
                    }
                }
                false
            }
            Mode::Requests | Mode::Unfinished => self.next_request(api),
        }
    }

    fn next_request(&mut self, api: &Api) -> bool {
        match self.reader.next() {
            Ok(Progress::Request(request)) => {
                self.mode = Mode::Requests;
                let descriptors = std::mem::take(&mut self.descriptors);
                let outcome = match std::mem::take(&mut self.descriptors_lost) {
                    true => refuse(NO_ROOM),
                    false => api.serve(&request, descriptors),
                };
                self.answer(outcome, &request);
                return true;
            }
            Ok(Progress::More { idle }) => self.mode = if idle { Mode::Requests } else { Mode::Unfinished },
            Ok(Progress::WaitsForContinue) => {
                self.mode = Mode::Unfinished;
                self.output.extend(CONTINUE);
            }
            Err(refusal) => self.end(&Response::fault(refusal.status, refusal.message)),
        }
        false
    }

    fn answer(&mut self, outcome: Outcome, request: &Request) {
        match outcome {
            // The answer to HEAD has no body (RFC 9110, 9.3.2): only the end of the connection makes that clear here.
            Outcome::Answer(response) if request.close || request.method == "HEAD" => self.end(&response),
            Outcome::Answer(response) => self.output.extend(response.bytes(false)),
            Outcome::Events(subscription) => {
                self.output.extend(Response::stream_head());
                self.output.extend(chunk(format!("{}\n", events::hello()).as_bytes()));
                self.mode = Mode::Events(subscription);
            }
            Outcome::Console(attach) => {
                self.output.extend(SWITCHING);
                self.mode = Mode::Console(attach);
            }
        }
    }

    /// Says a last word.
    pub fn end(&mut self, response: &Response) {
        self.output.extend(response.bytes(true));
        self.mode = Mode::Ended;
    }

    /// Ends a stream of events as its form wants it.
    pub fn finish(&mut self) {
        if self.is_stream() {
            self.output.extend(LAST_CHUNK);
        }
        self.mode = Mode::Ended;
    }

    /// What the client has not taken yet.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The client took so many bytes.
    pub fn sent(&mut self, len: usize) {
        self.output.drain(..len.min(self.output.len()));
    }

    /// Nothing more will be said.
    pub fn has_ended(&self) -> bool {
        matches!(self.mode, Mode::Ended)
    }

    /// The client began a request and did not end it.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.mode, Mode::Unfinished)
    }

    /// A stream of events is on.
    pub fn is_stream(&self) -> bool {
        matches!(self.mode, Mode::Events(_))
    }

    /// The way onto the console, with what the client typed already, once the client has every answer.
    pub fn take_console(&mut self) -> Option<(Attach, Vec<u8>)> {
        if !matches!(self.mode, Mode::Console(_)) || !self.output.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.mode, Mode::Ended) {
            Mode::Console(attach) => Some((attach, self.reader.rest())),
            _ => None,
        }
    }
}
