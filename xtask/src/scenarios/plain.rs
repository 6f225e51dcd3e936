//! The boot that all others differ from.

use super::{Boot, Proof, Scenario};

/// What most boots prove about themselves beside their own subject.
const COMMON: &str = "disk,clock:NOW:30,log:lab";

/// That boot.
pub(super) const PLAIN: Boot = Boot {
    arguments: "--disk DISK --memory 512M",
    elf: false,
    other: None,
    brings: None,
    before: "",
    checks: COMMON,
    append: "",
    rounds: 1,
    command: None,
    exit: 0,
    limit: 90,
    on: None,
    says: &[],
};

/// A scenario of one boot that leaves its disk clean.
pub(super) fn scenario(name: &'static str, boot: Boot) -> Scenario {
    Scenario { name, boots: vec![boot], proofs: vec![Proof::CleanDisk] }
}

/// Types a command line. The echo of the typed words proves nothing.
pub(super) const TYPE: &str =
    "echo \"printf 'CHE%s\\\\n' 'CK typed: ok'; printf 'CHE%s\\\\n' 'CK end: ok'; poweroff\" >$keyboard";
