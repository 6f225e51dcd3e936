//! Rules of a specification, and how often a guest broke each: what `--virtio-check` counts.
//!
//! ```text
//!   who finds it --broke(rule, device, seen)--> first time: an event, a warning
//!                                               every time: counted
//! ```
//!
//! As many entries as there are rules, whatever a guest does.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How binding a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// MUST, MUST NOT.
    Must,
    /// Described by the standard as the way it is done, without one of its words of obligation.
    Text,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Must => "MUST",
            Level::Text => "text",
        })
    }
}

/// One rule, as data.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name; it never changes.
    pub id: &'static str,
    /// How binding it is.
    pub level: Level,
    /// Name and version of the specification.
    pub source: &'static str,
    /// Number of the section there.
    pub section: &'static str,
    /// Title of that section.
    pub title: &'static str,
    /// What it asks for, in our words.
    pub clause: &'static str,
}

/// What is known of a rule that was broken.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// The rule.
    pub rule: &'static Rule,
    /// The device whose driver broke it first.
    pub device: Arc<str>,
    /// What was seen then.
    pub seen: String,
    /// How often it was broken since the start.
    pub count: u64,
}

/// The rules that were broken.
#[derive(Debug, Default)]
pub struct Violations(Mutex<BTreeMap<&'static str, Violation>>);

impl Violations {
    /// Counts one; what is to be told, if it is the first of its kind.
    pub fn count(
        &self,
        rule: &'static Rule,
        device: &Arc<str>,
        seen: impl FnOnce() -> String,
    ) -> Option<(Arc<str>, String)> {
        let mut all = self.lock();
        if let Some(known) = all.get_mut(rule.id) {
            known.count = known.count.saturating_add(1);
            return None;
        }
        let (device, seen) = (Arc::clone(device), seen());
        all.insert(rule.id, Violation { rule, device: Arc::clone(&device), seen: seen.clone(), count: 1 });
        Some((device, seen))
    }

    /// All so far, by name.
    pub fn all(&self) -> Vec<Violation> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Violation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static RULE: Rule = Rule { id: "a", level: Level::Must, source: "s", section: "1", title: "t", clause: "no" };

    #[test]
    fn each_kind_is_told_once_and_counted_always() {
        let (violations, vda): (Violations, Arc<str>) = (Violations::default(), "vda".into());
        assert_eq!(violations.count(&RULE, &vda, || "first".into()), Some(("vda".into(), "first".into())));
        assert_eq!(violations.count(&RULE, &vda, || panic!("built for nothing")), None);
        assert_eq!(violations.all().iter().map(|v| (v.rule.id, v.count)).collect::<Vec<_>>(), [("a", 2)]);
    }
}
