//! Events on their way to the subscribers: clients that asked for `GET /events`.
//!
//! ```text
//!   any thread --event--> ring of the last lines --+--> subscription 1   (next line: 17)
//!                           | eventfd              `--> subscription 2   (next line: 3: some were lost)
//!                           v
//!                      thread api
//! ```
//!
//! No thread waits for a slow reader: the ring forgets its oldest line, and a subscription that was there is told how
//! many it lost. Without a subscription no event is even built.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fmt, io};

use axvm_events::{Event, Events, Sink, Value};
use axvm_sync::{EventFd, lock};
use serde_json::{Map, json};

/// Lines kept for readers that are not fast enough.
pub const RING_LINES: usize = 1024;
/// Most subscriptions at once.
pub const SUBSCRIPTION_LIMIT: usize = 32;

/// Where events become lines of JSON.
pub struct EventFeed {
    ring: Mutex<Ring>,
    /// Whether there is a subscription.
    wanted: Arc<AtomicBool>,
    /// Readable when there are lines.
    ready: EventFd,
    /// `ready` is set already: a system call less.
    is_ready: AtomicBool,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Arc<str>>,
    /// Number of the first line kept.
    first: u64,
    subscriptions: usize,
}

impl EventFeed {
    /// A feed without a subscription.
    pub fn new() -> io::Result<Arc<EventFeed>> {
        Ok(Arc::new(EventFeed {
            ring: Mutex::default(),
            wanted: Arc::default(),
            ready: EventFd::new()?,
            is_ready: AtomicBool::new(false),
        }))
    }

    /// The stream to put beside the others: `narration.and(feed.events())`.
    pub fn events(self: &Arc<EventFeed>) -> Events {
        Events::at_times_to(self.clone(), self.wanted.clone())
    }

    /// From now on; none if there are too many already.
    pub fn subscribe(self: &Arc<EventFeed>) -> Option<Subscription> {
        let mut ring = self.ring();
        if ring.subscriptions == SUBSCRIPTION_LIMIT {
            return None;
        }
        ring.subscriptions += 1;
        self.wanted.store(true, Ordering::Relaxed);
        Some(Subscription { feed: self.clone(), next: ring.first + ring.lines.len() as u64 })
    }

    /// Makes [`EventFeed::ready_fd`] readable.
    fn wake(&self) {
        if !self.is_ready.swap(true, Ordering::AcqRel) {
            self.ready.signal();
        }
    }

    /// What to poll.
    pub(crate) fn ready_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Call before looking for lines, from one thread: what comes later wakes again.
    pub(crate) fn calm(&self) {
        self.ready.take();
        self.is_ready.swap(false, Ordering::AcqRel);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        lock(&self.ring)
    }
}

impl Sink for EventFeed {
    fn event(&self, event: &Event) {
        let line = line(event);
        let mut ring = self.ring();
        if ring.subscriptions == 0 {
            return;
        }
        ring.lines.push_back(line);
        if ring.lines.len() > RING_LINES {
            ring.lines.pop_front();
            ring.first += 1;
        }
        drop(ring);
        self.wake();
    }
}

impl fmt::Debug for EventFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventFeed({})", self.ready.as_raw_fd())
    }
}

/// One reader of the feed.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<EventFeed>,
    next: u64,
}

impl Subscription {
    /// The next line, without its end.
    pub fn next_line(&mut self) -> Option<Arc<str>> {
        let ring = self.feed.ring();
        if self.next < ring.first {
            let lost = ring.first - self.next;
            self.next = ring.first;
            return Some(json!({ "event": "lost", "time_us": now_us(), "count": lost }).to_string().into());
        }
        let line = ring.lines.get((self.next - ring.first) as usize)?.clone();
        self.next += 1;
        Some(line)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut ring = self.feed.ring();
        ring.subscriptions -= 1;
        if ring.subscriptions == 0 {
            self.feed.wanted.store(false, Ordering::Relaxed);
            ring.first += ring.lines.len() as u64;
            ring.lines.clear();
        }
    }
}

/// The first line of every stream.
pub(crate) fn hello() -> String {
    json!({ "event": "hello", "time_us": now_us(), "version": env!("CARGO_PKG_VERSION") }).to_string()
}

/// `{"event": kind, "time_us": ..., facts, "text": for people}`
fn line(event: &Event) -> Arc<str> {
    let mut object = Map::new();
    object.insert("event".into(), event.kind().into());
    object.insert("time_us".into(), now_us().into());
    for (name, value) in event.fields() {
        let value = match value {
            Value::Text(text) => text.into(),
            Value::Number(number) => number.into(),
            Value::Flag(flag) => flag.into(),
        };
        object.insert(name.into(), value);
    }
    object.insert("text".into(), event.to_string().into());
    serde_json::Value::Object(object).to_string().into()
}

/// Microseconds since 1970.
fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power(reason: &str) -> Event {
        Event::Power { reason: reason.into() }
    }

    fn parsed(line: &str) -> serde_json::Value {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn events_are_built_only_for_a_subscriber() {
        let feed = EventFeed::new().unwrap();
        let events = feed.events();
        events.emit(|| panic!("built without a subscriber"));
        let mut subscription = feed.subscribe().unwrap();
        events.emit(|| power("off"));
        let line = parsed(&subscription.next_line().unwrap());
        assert_eq!(
            (&line["event"], &line["reason"], &line["text"]),
            (&"power".into(), &"off".into(), &"power: off".into())
        );
        assert_eq!(subscription.next_line(), None);
        drop(subscription);
        events.emit(|| panic!("built without a subscriber"));
    }

    #[test]
    fn a_slow_reader_loses_the_oldest_and_is_told_how_many() {
        let feed = EventFeed::new().unwrap();
        let (mut slow, mut fast) = (feed.subscribe().unwrap(), feed.subscribe().unwrap());
        for n in 0..RING_LINES + 3 {
            feed.event(&power(&n.to_string()));
            assert!(fast.next_line().is_some());
        }
        let lost = parsed(&slow.next_line().unwrap());
        assert_eq!((&lost["event"], &lost["count"]), (&"lost".into(), &3.into()));
        assert_eq!(parsed(&slow.next_line().unwrap())["reason"], "3");
        assert_eq!(std::iter::from_fn(|| slow.next_line()).count(), RING_LINES - 1);
        assert_eq!(fast.next_line(), None);
    }

    #[test]
    fn a_later_reader_starts_with_what_comes_later() {
        let feed = EventFeed::new().unwrap();
        let _first = feed.subscribe().unwrap();
        feed.event(&power("before"));
        let mut second = feed.subscribe().unwrap();
        assert_eq!(second.next_line(), None);
        feed.event(&power("after"));
        assert_eq!(parsed(&second.next_line().unwrap())["reason"], "after");
    }

    #[test]
    fn subscriptions_are_limited() {
        let feed = EventFeed::new().unwrap();
        let mut all: Vec<_> = std::iter::from_fn(|| feed.subscribe()).collect();
        assert_eq!(all.len(), SUBSCRIPTION_LIMIT);
        all.pop();
        assert!(feed.subscribe().is_some());
    }
}
