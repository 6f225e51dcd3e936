//! Requests out of bytes, whatever the pieces they come in.
//!
//! ```text
//!   GET /balloon HTTP/1.1 CRLF  Name: value CRLF ...  CRLF  body (Content-Length bytes)  | the next request ...
//!   `------------------- head, httparse -----------------'
//! ```
//!
//! After a refusal the rest of the bytes means nothing any more, for where the next request would begin is unknown:
//! the connection ends.

use super::{BODY_LIMIT, HEAD_LIMIT, HEADER_LIMIT};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// As sent, such as `GET`.
    pub method: String,
    /// Without a query.
    pub path: String,
    /// The client closes, or wants it closed, after the answer. HTTP/1.0 clients do only if they say so: some
    /// send `HTTP/1.0` and go on, and none is harmed by a connection that it may close itself.
    pub close: bool,
    /// HTTP/1.0: no chunks, no `Upgrade`.
    pub old: bool,
    /// What `Upgrade` asks for.
    pub upgrade: Option<String>,
    /// As sent.
    pub body: Vec<u8>,
}

/// Bytes that are no request: what to answer before closing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 400 and its more exact relatives.
    pub status: u16,
    /// For people.
    pub message: String,
}

/// Where a [`Reader`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A whole request.
    Request(Request),
    /// More bytes must come; none of a next request is here if `idle`.
    More {
        /// Between two requests.
        idle: bool,
    },
    /// The body must come, and the client waits for [`super::CONTINUE`] first. Said once a request.
    WaitsForContinue,
}

/// Takes bytes, gives requests.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// The head that was read, while its body is not complete.
    head: Option<Head>,
    told_to_continue: bool,
}

/// A request without its body.
#[derive(Debug)]
struct Head {
    request: Request,
    body_len: usize,
    expects_continue: bool,
}

impl Reader {
    /// Adds what came from the client. More than [`Reader::room`] is never needed.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that may still come before the next call of [`Reader::next`] must make progress.
    pub fn room(&self) -> usize {
        (HEAD_LIMIT + BODY_LIMIT).saturating_sub(self.bytes.len())
    }

    /// Bytes behind the last request: after an upgrade they are no requests.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// The next request, or what it waits for.
    #[expect(clippy::should_implement_trait, reason = "more than an iterator can say")]
    pub fn next(&mut self) -> Result<Progress, Refusal> {
        let head = match self.head.take() {
            Some(head) => head,
            None => match parse_head(&self.bytes)? {
                Some((head, len)) => {
                    self.bytes.drain(..len);
                    self.told_to_continue = false;
                    head
                }
                None => return Ok(Progress::More { idle: self.bytes.is_empty() }),
            },
        };
        if self.bytes.len() >= head.body_len {
            let body = self.bytes.drain(..head.body_len).collect();
            return Ok(Progress::Request(Request { body, ..head.request }));
        }
        let waits = head.expects_continue && self.bytes.is_empty() && !self.told_to_continue;
        self.told_to_continue |= waits;
        self.head = Some(head);
        Ok(if waits { Progress::WaitsForContinue } else { Progress::More { idle: false } })
    }
}

fn refuse<T>(status: u16, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, message: message.into() })
}

/// The head at the start of `bytes` and its length, if it is complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_LIMIT];
    let mut parsed = httparse::Request::new(&mut headers);
    let within = &bytes[..bytes.len().min(HEAD_LIMIT)];
    match parsed.parse(within) {
        Ok(httparse::Status::Complete(len)) => Ok(Some((head(&parsed)?, len))),
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_LIMIT => {
            refuse(431, format!("The head of the request is longer than {HEAD_LIMIT} bytes"))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => refuse(431, format!("More than {HEADER_LIMIT} headers")),
        Err(httparse::Error::Version) => refuse(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here"),
        Err(error) => refuse(400, format!("This is no HTTP request: {error}")),
    }
}

fn head(parsed: &httparse::Request) -> Result<Head, Refusal> {
    let old = parsed.version == Some(0);
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path(parsed.path.unwrap_or_default()).to_owned(),
        close: false,
        old,
        upgrade: None,
        body: Vec::new(),
    };
    let mut head = Head { request, body_len: 0, expects_continue: false };
    let mut length = None;
    for header in parsed.headers.iter() {
        let value = || String::from_utf8_lossy(header.value).trim().to_ascii_lowercase();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" if length.is_some() => return refuse(400, "Content-Length is given twice"),
            "content-length" => length = Some(content_length(&value())?),
            "transfer-encoding" => return refuse(411, "Send the body with Content-Length, not with Transfer-Encoding"),
            "connection" => head.request.close |= value().split(',').any(|option| option.trim() == "close"),
            "upgrade" => head.request.upgrade = Some(value()),
            "expect" if value() == "100-continue" => head.expects_continue = !old,
            "expect" => return refuse(417, "Of all expectations only 100-continue is met here"),
            _ => {}
        }
    }
    head.body_len = length.unwrap_or(0);
    Ok(head)
}

/// Digits, nothing else, and not too much.
fn content_length(text: &str) -> Result<usize, Refusal> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(400, "Content-Length is not a number of bytes");
    }
    match text.parse() {
        Ok(len) if len <= BODY_LIMIT => Ok(len),
        _ => refuse(413, format!("The body is longer than {BODY_LIMIT} bytes")),
    }
}

/// The path of a request target: without query, and without `http://host` in front.
fn path(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    path.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All requests in `pieces`, then how it ended.
    fn read(pieces: impl IntoIterator<Item = Vec<u8>>) -> (Vec<Request>, Result<bool, Refusal>) {
        let mut reader = Reader::default();
        let (mut requests, mut idle) = (Vec::new(), true);
        for piece in pieces {
            reader.push(&piece);
            loop {
                match reader.next() {
                    Ok(Progress::Request(request)) => requests.push(request),
                    Ok(Progress::More { idle: now }) => {
                        idle = now;
                        break;
                    }
                    Ok(Progress::WaitsForContinue) => {}
                    Err(refusal) => return (requests, Err(refusal)),
                }
            }
        }
        (requests, Ok(idle))
    }

    fn one(text: &str) -> Result<Request, Refusal> {
        let (mut requests, end) = read([text.as_bytes().to_vec()]);
        end.map(|_| requests.pop().expect("a request"))
    }

    #[test]
    fn a_request_is_read_with_its_body() {
        let request = one("PATCH /vm?x=1 HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 4\r\n\r\nbody").unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PATCH", "/vm"));
        assert_eq!((request.body.as_slice(), request.close, request.old), (&b"body"[..], false, false));
    }

    #[test]
    fn a_connection_stays_open_unless_the_client_says_close() {
        for (text, close) in [
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Close\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nConnection: te, close\r\n\r\n", true),
        ] {
            assert_eq!(one(text).unwrap().close, close, "{text}");
        }
    }

    #[test]
    fn targets_lose_what_is_not_path() {
        for (target, expected) in
            [("/", "/"), ("/a?b=c", "/a"), ("http://localhost/vm/config", "/vm/config"), ("http://x", "/"), ("*", "*")]
        {
            assert_eq!(path(target), expected);
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_fitting_status() {
        let long = "x".repeat(HEAD_LIMIT);
        let many = "A: b\r\n".repeat(HEADER_LIMIT + 1);
        let with = |headers: &str| format!("PUT / HTTP/1.1\r\n{headers}\r\n\r\n");
        for (text, status) in [
            ("\0\0\0\0".into(), 400),
            ("\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".into(), 400),
            ("GET  HTTP/1.1\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nNo colon\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nA: \0\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\rX".into(), 400),
            ("GET / HTTP/2.0\r\n\r\n".into(), 505),
            ("GET / FTP/1.1\r\n\r\n".into(), 505),
            (format!("GET /{long} HTTP/1.1\r\n\r\n"), 431),
            (format!("GET / HTTP/1.1\r\nA: {long}"), 431),
            (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431),
            ("\r\n".repeat(HEAD_LIMIT), 431),
            (with("Content-Length: -1"), 400),
            (with("Content-Length: +1"), 400),
            (with("Content-Length: 0x10"), 400),
            (with("Content-Length: 1, 1"), 400),
            (with("Content-Length:"), 400),
            (with("Content-Length: 1\r\nContent-Length: 1"), 400),
            (with("Content-Length: 65537"), 413),
            (with("Content-Length: 99999999999999999999999999"), 413),
            (with("Transfer-Encoding: chunked"), 411),
            (with("Content-Length: 3\r\nTransfer-Encoding: chunked"), 411),
            (with("Expect: the Spanish Inquisition"), 417),
        ] {
            let refusal = one(&text).map_err(|refusal| refusal.status);
            assert_eq!(refusal, Err(status), "{:.60}", text.escape_debug().to_string());
        }
    }

    #[test]
    fn a_client_that_waits_is_told_once_to_go_on() {
        let mut reader = Reader::default();
        reader.push(b"PUT /actions HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!(reader.next(), Ok(Progress::WaitsForContinue));
        assert_eq!(reader.next(), Ok(Progress::More { idle: false }));
        reader.push(b"{}");
        assert!(matches!(reader.next(), Ok(Progress::Request(request)) if request.body == b"{}"));
        reader.push(b"PUT / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!(reader.next(), Ok(Progress::More { idle: false }));
    }

    fn any_request() -> impl Strategy<Value = String> {
        let body = proptest::option::of("[ -~]{0,40}");
        let parts = ("(GET|PUT|PATCH|BREW)", "/[a-z/]{0,12}", "1\\.[01]", "(X-A: [ -~]{0,20}\r\n){0,3}", body);
        parts.prop_map(|(method, path, version, headers, body)| match body {
            Some(body) => {
                format!("{method} {path} HTTP/{version}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
            }
            None => format!("{method} {path} HTTP/{version}\r\n{headers}\r\n"),
        })
    }

    proptest! {
        #[test]
        fn pipelined_requests_are_split_the_same_whatever_the_pieces(
            requests in proptest::collection::vec(any_request(), 1..6),
            garbage in proptest::collection::vec(any::<u8>(), 0..20),
            piece in 1_usize..50,
        ) {
            let mut all = requests.concat().into_bytes();
            let (whole, end) = read([all.clone()]);
            prop_assert_eq!(end, Ok(true));
            prop_assert_eq!(whole.len(), requests.len());
            all.extend(garbage);
            let (at_once, end) = read([all.clone()]);
            let (in_pieces, same_end) = read(all.chunks(piece).map(<[u8]>::to_vec));
            prop_assert_eq!(at_once, in_pieces);
            prop_assert_eq!(end.map_err(|refusal| refusal.status), same_end.map_err(|refusal| refusal.status));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            _ = read([bytes]);
        }
    }
}
