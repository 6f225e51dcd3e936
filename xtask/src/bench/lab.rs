//! Stock kernels to user space, in the lab: there a KVM with virtualization runs them on any host.
//!
//! ```text
//!   one job for each round, the outer machine as it was saved:
//!     for each kernel and number of vCPUs, for each subject:   start --> "AXVM-BENCH up 4" on ttyS0, seconds --> killed
//! ```
//!
//! All boot the same vmlinux with the same initrd, whose first process says how many processors it sees; no disk, for
//! drivers of disks are modules. The clock is the outer machine's, in hundredths of a second.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Samples;
use super::subject::{Kind, Subject};
use crate::assets;
use crate::lab::{Console, End, Files, Lab, LabJob, qemu, standard_files};
use crate::progress::Progress;
use crate::project;

const MARK: &str = "AXVM-BENCH";
const INIT: &str = "#!/bin/sh\n/bin/busybox mount -t proc none /proc\n\
    echo AXVM-BENCH up $(/bin/busybox grep -c ^processor /proc/cpuinfo)\nwhile :; do /bin/busybox sleep 1000; done\n";
const LINE: &str = "console=ttyS0 quiet panic=1 reboot=k";
const MEMORY_MIB: u32 = 512;
/// Of one boot, in seconds.
const PATIENCE: u32 = 200;

/// One row: kernel, vCPUs, id.
pub type Boot = (&'static str, u32, &'static str);

/// Everything.
pub const FULL: [Boot; 6] = [
    ("6.1", 1, "lab-6.1-1"),
    ("6.1", 4, "lab-6.1-4"),
    ("6.1", 20, "lab-6.1-20"),
    ("6.12", 1, "lab-6.12-1"),
    ("6.12", 4, "lab-6.12-4"),
    ("6.12", 20, "lab-6.12-20"),
];

/// What takes a quarter of the time.
pub const QUICK: [Boot; 2] = [FULL[0], FULL[1]];

/// Boots all of it so many times.
pub fn measure(boots: &[Boot], rounds: usize, subjects: &[Subject]) -> Result<Samples> {
    let able: Vec<usize> = (0..subjects.len()).filter(|&at| takes_part(&subjects[at])).collect();
    let files = files(subjects)?;
    let lab = Lab::open()?;
    let mut samples = Samples::new();
    let progress = Progress::steps("Measuring: stock kernels in the lab", rounds as u64);
    for round in 0..rounds {
        progress.at(round as u64);
        let turns: Vec<usize> = (0..able.len()).map(|turn| able[(round + turn) % able.len()]).collect();
        let limit = Duration::from_secs((PATIENCE * boots.len() as u32 * turns.len() as u32).into());
        let script = script(boots, &turns, subjects)?;
        let job = LabJob { script, files: files.clone(), limit: Some(limit), console: Console::Kept, note: &|_| {} };
        let report = lab.run(&job)?;
        let said = String::from_utf8_lossy(&report.console).into_owned();
        ensure!(report.end == End::Exit(0), "The lab ended with {:?}. It said:\n{said}", report.end);
        for (_, vcpus, id) in boots {
            for &at in &turns {
                let seconds = seconds(&said, id, at, *vcpus).with_context(|| subjects[at].name())?;
                samples.entry(((*id).to_owned(), at)).or_default().push(seconds);
            }
        }
    }
    Ok(samples)
}

/// Floor and PCI boot no stock kernel; how Cloud Hypervisor does could not be tried.
fn takes_part(subject: &Subject) -> bool {
    matches!(subject.kind, Kind::Axvm | Kind::Firecracker | Kind::Qemu)
}

fn files(subjects: &[Subject]) -> Result<Files> {
    let scratch = project::target().join("bench");
    fs::create_dir_all(&scratch).with_context(|| format!("Cannot create {}", scratch.display()))?;
    let initrd = scratch.join("lab-initrd.img");
    let mut files = standard_files(subjects.first().map(|axvm| axvm.path.clone()))?;
    let _lock = assets::lock()?;
    let busybox = assets::busybox()?;
    let mut archive =
        assets::skeleton(&fs::read(&busybox).with_context(|| format!("Cannot read {}", busybox.display()))?);
    archive.file("init", 0o755, INIT.as_bytes());
    fs::write(&initrd, archive.finish()).with_context(|| format!("Cannot write {}", initrd.display()))?;
    files.push((initrd, "bench-initrd.img".to_owned()));
    for subject in subjects {
        match subject.kind {
            Kind::Firecracker => files.push((subject.path.clone(), "firecracker".to_owned())),
            Kind::Qemu => files.extend(qemu()?),
            _ => {}
        }
    }
    Ok(files)
}

/// What one VMM says is read up to the mark; the guest says nothing more then, and the VMM is killed.
fn script(boots: &[Boot], turns: &[usize], subjects: &[Subject]) -> Result<String> {
    let mut script = format!(
        "cd /axvm\nmkfifo said\necho '{{\"kvm_capabilities\":[\"!56\"]}}' >cpu.json\n\
         # NAME COMMAND..: when it started, when the mark was there, the mark\n\
         boot() {{\n    name=$1; shift\n    read -r begin rest </proc/uptime\n\
         \x20   \"$@\" >said 2>errors </dev/null &\n    vmm=$!\n\
         \x20   {{ timeout {PATIENCE} grep -m 1 '{MARK} up'; cut -d ' ' -f 1 /proc/uptime; }} <said >seen\n\
         \x20   kill -9 $vmm; wait $vmm 2>/dev/null\n\
         \x20   echo \"AXVM-BOOT $name $begin $(tail -n 1 seen) $(grep {MARK} seen)\"\n    tail -n 3 errors\n}}\n"
    );
    for (series, vcpus, id) in boots {
        for &at in turns {
            let command = command(subjects[at].kind, series, *vcpus)?;
            script.push_str(&format!("{}boot {id}-{at} {}\n", command.0, command.1));
        }
    }
    Ok(script)
}

/// What must be there before, and the command.
fn command(kind: Kind, series: &str, vcpus: u32) -> Result<(String, String)> {
    let kernel = format!("vmlinux-{series}");
    Ok(match kind {
        Kind::Axvm => (
            String::new(),
            format!(
                "axvm run --kernel {kernel} --initrd bench-initrd.img --memory {MEMORY_MIB}M --cpus {vcpus} --append '{LINE}'"
            ),
        ),
        Kind::Firecracker => {
            let machine = serde_json::json!({
                "boot-source": { "kernel_image_path": kernel, "initrd_path": "bench-initrd.img", "boot_args": LINE },
                "machine-config": { "vcpu_count": vcpus, "mem_size_mib": MEMORY_MIB },
                "drives": [],
                // The processor of the lab has no XSAVE, which Firecracker asks for otherwise.
                "cpu-config": "cpu.json",
            });
            let before = format!("echo '{machine}' > machine.json\n");
            (before, "./firecracker --no-api --level Error --config-file machine.json".to_owned())
        }
        Kind::Qemu => (
            String::new(),
            format!(
                "qemu/ld-linux-x86-64.so.2 --library-path qemu qemu/qemu-system-x86_64 -L qemu -M microvm,accel=kvm,rtc=on \
                 -cpu host -m {MEMORY_MIB} -smp {vcpus} -nodefaults -no-user-config -display none -serial stdio -no-reboot \
                 -kernel {kernel} -initrd bench-initrd.img -append '{LINE}'"
            ),
        ),
        other => bail!("{other:?} boots no stock kernel in the lab"),
    })
}

/// From the line of this boot: begin, end, and the processors that the guest saw.
fn seconds(said: &str, id: &str, at: usize, vcpus: u32) -> Result<f64> {
    let head = format!("AXVM-BOOT {id}-{at} ");
    let line = said.lines().find_map(|line| line.trim_end().split_once(&*head)).map(|(_, rest)| rest);
    let line = line.with_context(|| format!("There is no word of {id}. The lab said:\n{said}"))?;
    ensure!(line.ends_with(&format!("{MARK} up {vcpus}")), "{id}: not up with {vcpus} processors: {line}\n{said}");
    let mut words = line.split(' ').map(str::parse::<f64>);
    match (words.next(), words.next()) {
        (Some(Ok(begin)), Some(Ok(end))) => Ok(end - begin),
        _ => bail!("{id}: no times in {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_timed_by_its_line() {
        let said = "noise\r\nAXVM-BOOT lab-6.1-1-0 10.50 14.75 8.00 2 AXVM-BENCH up 1\r\n";
        assert_eq!(seconds(said, "lab-6.1-1", 0, 1).unwrap(), 4.25);
        assert!(seconds(said, "lab-6.1-1", 0, 4).unwrap_err().to_string().contains("not up with 4"));
        assert!(seconds(said, "lab-6.1-1", 3, 1).is_err());
    }

    #[test]
    fn each_subject_has_its_turn() {
        let subject = |kind| Subject { kind, path: "/x".into(), version: String::new() };
        let subjects = [Kind::Axvm, Kind::AxvmPci, Kind::Firecracker, Kind::Qemu].map(subject);
        let script = script(&QUICK, &[2, 3, 0], &subjects).unwrap();
        let order: Vec<&str> =
            script.lines().filter_map(|line| line.strip_prefix("boot lab-6.1-4-")?.split(' ').next()).collect();
        assert_eq!(order, ["2", "3", "0"]);
        assert!(
            script.contains("\"vcpu_count\":4") && script.contains("-smp 4") && script.contains("--cpus 4"),
            "{script}"
        );
    }
}
