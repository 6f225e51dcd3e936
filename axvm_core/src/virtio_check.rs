//! `--virtio-check`: whether the guest's drivers keep to the standard; what is told, what ends the machine, the totals.
//!
//! ```text
//!   a rule is broken --> event --> stderr, control socket, and the stop switch (stop)
//!                    --> count --> status, and the totals at the end
//! ```
//!
//! The rules are in `axvm_virtio::check`.

use std::sync::Arc;

use axvm_api::types::BrokenRule;
use axvm_devices::StopReason;
use axvm_events::rules::Violations;
use axvm_events::{Event, Events, Sink};

use crate::current::Current;
use crate::settings::{Settings, VirtioCheck};
use crate::speech;

/// The check of a run; without one, nothing is checked.
#[derive(Clone, Default)]
pub struct Check(Option<Arc<Violations>>);

/// Ends the machine at the first rule that is broken.
struct StopAtFirst(Arc<Current>);

impl Sink for StopAtFirst {
    fn event(&self, event: &Event) {
        if let Event::VirtioRule { .. } = event {
            self.0.request_stop(StopReason::DriverFault(event.to_string()));
        }
    }
}

impl Check {
    /// As the settings say; the events with it.
    pub fn of(settings: &Settings, current: &Arc<Current>, events: Events) -> (Check, Events) {
        let events = match settings.virtio_check() {
            VirtioCheck::Off => return (Check::default(), events),
            VirtioCheck::Log => events,
            VirtioCheck::Stop => events.and(Events::warnings_to(Arc::new(StopAtFirst(Arc::clone(current))))),
        };
        let violations = Arc::<Violations>::default();
        (Check(Some(Arc::clone(&violations))), events.with_rules(violations))
    }

    /// What was broken so far; `None` if nothing is checked.
    pub fn broken(&self) -> Option<Vec<BrokenRule>> {
        let broken = self.0.as_ref()?.all().into_iter().map(|violation| BrokenRule {
            rule: violation.rule.id.into(),
            level: violation.rule.level.to_string(),
            specification: violation.rule.source.into(),
            section: violation.rule.section.into(),
            title: violation.rule.title.into(),
            clause: violation.rule.clause.into(),
            device: violation.device.to_string(),
            seen: violation.seen,
            count: violation.count,
        });
        Some(broken.collect())
    }

    /// The totals, at the end of the machine.
    pub fn tell_totals(&self) {
        let Some(broken) = self.broken() else { return };
        let list = broken.iter().map(|broken| format!("{} {}", broken.rule, broken.count)).collect::<Vec<_>>();
        speech::tell(match list.len() {
            0 => "virtio check: no rule was broken".to_owned(),
            count => format!("virtio check: rules broken: {count} ({})", list.join(", ")),
        });
    }
}
