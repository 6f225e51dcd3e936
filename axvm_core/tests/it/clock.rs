//! The clock's alarm, as a guest's kernel uses it.
//!
//! Needs /dev/kvm; without it the test says that it was skipped. The sandbox is on, as for users.

use crate::common::{Place, has_kvm};

#[test]
fn an_alarm_interrupts_and_wakes_a_guest_that_has_masked_the_interrupt() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("");
    talk.say("alarm\n");
    talk.hear("= interrupt event alarm done");
    talk.say("off\n");
    axvm.ends_with(0);
}
