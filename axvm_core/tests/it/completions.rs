//! Completions as shells use them: what Tab offers after `axvm ctl`, and inside of values.
//!
//! ```text
//!   axvm ctl <Tab>                --> machines that run
//!   axvm run --disk disk.img,<Tab> --> ro serial= ...
//! ```
//!
//! A shell that this machine lacks is skipped. Zsh completes at a terminal only: its script is checked for syntax.

use crate::common;

use std::process::Command;

use common::{AXVM, Place, has_kvm, skip};

/// What bash offers for `words`, the last of which is being typed.
const BASH: &str = r#"
PATH=$(dirname "$0"):$PATH
source <(axvm completions bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_axvm_more axvm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}""#;

const FISH: &str = r#"
set PATH (dirname $argv[1]) $PATH
axvm completions fish | source
complete -C "$argv[2..]" | string replace -r '\t.*' ''"#;

fn offered(place: &Place, shell: &str, script: &str, words: &str) -> Option<Vec<String>> {
    let mut command = Command::new(shell);
    let command = match shell {
        "bash" => command.args(["--norc", "-c", script, AXVM]),
        _ => command.args(["--no-config", "-c", script, AXVM]),
    };
    let command = command.args(words.split(' ')).env("XDG_RUNTIME_DIR", place.path("")).current_dir(place.path(""));
    let Ok(output) = command.output() else {
        skip(&format!("no {shell} to complete with"));
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.is_empty(), "{shell}: {words}: {errors}");
    Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn a_shell_knows_machines_and_the_words_of_values() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (_axvm, _talk) = place.shell("--name web-1");
    for (shell, script) in [("bash", BASH), ("fish", FISH)] {
        for (words, expected, unwanted) in [
            ("axvm ctl ", "web-1", "status"),
            ("axvm ctl w", "web-1", "status"),
            ("axvm exec ", "web-1", "status"),
            ("axvm ctl web-1 st", "status", "web-1"),
            ("axvm run --disk disk.img,", "disk.img,ro", "web-1"),
            ("axvm run --disk disk.img,ro,bl", "disk.img,ro,block=4096", "disk.img,ro,ro"),
            ("axvm run --console f", "file=", "stdio"),
            ("axvm run --cpus 4,", "4,sockets=", "4,ro"),
            ("axvm run --entry p", "pvh", "64"),
            ("axvm run --cpu ", "ivybridge", "web-1"),
            ("axvm run --cpu h", "host", "ivybridge"),
            ("axvm run --cpu host,", "host,nested=on", "host"),
            ("axvm run --cpu host,nested=on,p", "host,nested=on,pmu=on", "host,nested=on,ro"),
        ] {
            let Some(offers) = offered(&place, shell, script, words) else { break };
            let has = |word: &str| offers.iter().any(|offer| offer == word);
            assert!(has(expected) && !has(unwanted), "{shell}: {words:?}: {offers:?}");
        }
    }
}
