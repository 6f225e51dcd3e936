//! The scenarios as one shell script for the outer machine.

use super::{Boot, Scenario};
use crate::lab::quoted;

const LIBRARY: &str = include_str!("../../files/lab/scenarios.sh");

/// The job: the library, then one `boot` line for each boot.
pub(super) fn job(scenarios: &[&Scenario]) -> String {
    let mut job = LIBRARY.to_owned();
    job.push_str("truncate -s 1M second.img; printf 'host was here' | dd of=second.img conv=notrunc 2>/dev/null\n");
    job.push_str(
        "truncate -s 1M grow.img; mkdir -p /var/tmp tight; mount -t tmpfs -o size=4m tmpfs tight; truncate -s 32M tight/disk.img
        truncate -s 16M load.img\n",
    );
    // For the guest's cards: a server behind the default route, and a tap.
    job.push_str(
        "mkdir -p www; dd if=/dev/urandom of=www/data bs=64k count=32 2>/dev/null; md5sum <www/data >www/sum\n",
    );
    job.push_str("httpd -p 198.51.100.7:80 -h www; tunctl -t tap0 >/dev/null; ip address add 10.0.0.1/24 dev tap0; ip link set tap0 up\n");
    // A disk with a file system that comes while the guest runs.
    job.push_str("for plugged in disks/pci-hotplug*.img; do cp $plugged plug.img 2>/dev/null; done\n");
    // A guest fetches a server of SSH there, and who may log in.
    job.push_str(
        "if [ -x /bin/dropbear ]; then
            mkdir -p ssh/root/.ssh; cp -a host/bin host/lib host/lib64 ssh; dropbearkey -t ed25519 -f key >/dev/null 2>&1
            dropbearkey -y -f key | grep ^ssh- >ssh/root/.ssh/authorized_keys
            tar -c -f www/ssh.tar -C ssh .
        fi\n",
    );
    // The pool of huge pages that one of them needs; early, while memory is in one piece.
    job.push_str("echo 300 >/proc/sys/vm/nr_hugepages\n");
    for scenario in scenarios {
        job.push_str(&format!("disk=disks/{}.img\n", scenario.name));
        for (number, boot) in scenario.boots.iter().enumerate() {
            job.push_str(&line(scenario.name, number, boot));
        }
        job.push_str(&format!("du -k $disk >out/{}/du\n", scenario.name));
    }
    job.push_str("true\n");
    job
}

fn line(name: &str, number: usize, boot: &Boot) -> String {
    let (mark, action) = boot.on.unwrap_or_default();
    let kernel = if boot.elf { "vmlinux" } else { "bzImage" };
    let checks = boot.checks.replace("NOW", "$(date +%s)");
    let arguments = boot.arguments.replace("DISK", "$disk");
    if let Some(other) = boot.other {
        let (limit, mark, action) = (boot.limit, quoted(mark), quoted(action));
        let (kernel, append) = (quoted(other.name), quoted(other.append));
        return format!(
            "boot {name}/{number} {limit} {mark} {action} --kernel {kernel} {arguments} --append {append}\n"
        );
    }
    // Each character of the guest's console costs the emulation much: quiet.
    let check = if boot.checks == "typed" { String::new() } else { format!("axvm.check={checks}") };
    let append = format!("quiet {} {check}", boot.append);
    let command = boot.command.map(|command| format!(" -- {command}")).unwrap_or_default();
    format!(
        "{}\nboot {name}/{number} {} {} {} --kernel {kernel} --initrd initrd.img {arguments} --append \"{append}\"{command}\n",
        boot.before,
        boot.limit,
        quoted(mark),
        quoted(action),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_is_a_script_that_the_shell_understands() {
        let all: Vec<_> = super::super::all().into_iter().chain(super::super::others()).collect();
        let job = job(&all.iter().collect::<Vec<_>>());
        let path = std::env::temp_dir().join(format!("axvm-job-{}", std::process::id()));
        std::fs::write(&path, &job).unwrap();
        let checked = crate::tool::output(crate::tool::tool("sh").arg("-n").arg(&path));
        std::fs::remove_file(&path).unwrap();
        checked.unwrap();
        assert!(job.contains("boot cpus-1/0 90 '' '' --kernel bzImage"), "{job}");
        assert!(job.contains("--kernel 'memtest86+' --memory 64M"), "{job}");
        assert!(!job.contains("DISK") && !job.contains("NOW"));
    }
}
