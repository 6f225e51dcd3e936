//! What a user reads when the host is in the way: no KVM, no right to it, a cpuset, no place for a file.
//!
//! ```text
//!   a mount namespace, a control group, a TMPDIR --around--> axvm --> one line, as in errors.rs
//! ```
//!
//! What takes root here is skipped without.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::errors::{AXVM, HOST, USAGE, judge, run, skip};

/// What a cpuset forbids is refused before anything is built. Such a set takes root, and control groups of version 1 or 2.
#[test]
fn a_pin_outside_of_the_cpuset_is_a_usage_error() {
    let test = "a_pin_outside_of_the_cpuset_is_a_usage_error";
    let group = format!("axvm-test-{}", std::process::id());
    let script = r#"
        for tree in /sys/fs/cgroup/cpuset /sys/fs/cgroup; do
            if mkdir "$tree/$0" 2>/dev/null; then
                { cat "$tree/cpuset.mems" > "$tree/$0/cpuset.mems"; } 2>/dev/null
                echo 0 > "$tree/$0/cpuset.cpus" && echo $$ > "$tree/$0/cgroup.procs" && taskset -p 1 $$ && break
            fi
        done >/dev/null 2>&1
        if grep -q "Cpus_allowed_list:.0$" /proc/self/status && ! taskset -c 1 true 2>/dev/null; then
            "$1" run -k k --cpus 2 --pin 0,1
        else
            exit 77
        fi"#;
    let output = run(Command::new("sh").args(["-c", script, &group, AXVM]));
    for tree in ["/sys/fs/cgroup/cpuset", "/sys/fs/cgroup"] {
        let _ = fs::remove_dir(Path::new(tree).join(&group));
    }
    if output.status.code() == Some(77) {
        return skip(&format!("no cpuset of one CPU can be made here: {test}"));
    }
    judge(&output, USAGE, &["--pin 0,1: this process may not run on CPU 1", "cpuset", "on CPUs 0"]).unwrap();
}

#[test]
fn a_selftest_without_a_place_for_its_disk_says_where_it_looked() {
    let output = run(Command::new(AXVM).arg("selftest").env("TMPDIR", "/no/such/place"));
    judge(&output, HOST, &["disk image in /no/such/place: No such file", "; set TMPDIR"]).unwrap();
}

/// `/dev` as `script` makes it, in a mount namespace of its own: needs root.
fn with_other_dev(test: &str, script: &str, words: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let in_namespace = |script: &str| {
        let script = format!("mount -t tmpfs none /dev && {script}");
        run(Command::new("unshare").args(["-m", "sh", "-c", &script, "axvm", AXVM]).current_dir(directory.path()))
    };
    if Command::new("unshare").arg("--version").output().is_err() || !in_namespace("true").status.success() {
        return skip(&format!("mount namespaces need root and unshare: {test}"));
    }
    let output = in_namespace(script);
    judge(&output, HOST, words).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn a_host_without_kvm_says_what_to_load_and_turn_on() {
    let words = &["Cannot open /dev/kvm", "no KVM", "modprobe kvm_intel", "VT-x, AMD-V", "--device /dev/kvm"];
    with_other_dev("a_host_without_kvm_says_what_to_load_and_turn_on", r#"exec "$1" run -k k"#, words);
}

#[test]
fn a_forbidden_kvm_says_which_group_to_join() {
    let script =
        r#": > /dev/kvm && chmod 0 /dev/kvm && exec setpriv --bounding-set=-all --inh-caps=-all "$1" run -k k"#;
    let words = &["Cannot open /dev/kvm", "sudo usermod -aG kvm $USER", "ermission denied"];
    with_other_dev("a_forbidden_kvm_says_which_group_to_join", script, words);
}

#[test]
fn a_file_in_the_place_of_kvm_is_recognized() {
    let words = &["/dev/kvm", "character device 10, 232"];
    with_other_dev("a_file_in_the_place_of_kvm_is_recognized", r#": > /dev/kvm && exec "$1" run -k k"#, words);
}
