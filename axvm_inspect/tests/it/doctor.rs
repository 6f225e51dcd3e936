//! Hosts that do not exist, and what the doctor says about each.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use axvm_arch::cpuid::CpuidEntry;
use axvm_inspect::doctor::{Host, Root, Row, Style, User, Verdict, can_run, examine, summary, table};
use axvm_kvm::{CAPABILITIES, Capabilities, KvmError, Survey};
use axvm_sandbox::{Availability, Protection, SandboxReport};
use tempfile::TempDir;

/// A host on which all is well: the files that the doctor reads.
const GOOD: &[(&str, &str)] = &[
    ("dev/kvm", ""),
    ("dev/net/tun", ""),
    ("etc/group", "root:x:0:\nkvm:x:4242:student\n"),
    (
        "proc/cpuinfo",
        "vendor_id\t: GenuineIntel\nmodel name\t: Xeon E5 v2\nflags\t\t: fpu vmx constant_tsc nonstop_tsc\n",
    ),
    ("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"),
    ("proc/self/cgroup", "0::/user.slice/shell\n"),
    (
        "proc/self/limits",
        "Max open files            1024   4096   files\nMax locked memory         unlimited unlimited bytes\n",
    ),
    ("proc/sys/kernel/osrelease", "6.1.0-32-amd64\n"),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    ("proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno allow\n"),
    ("proc/sys/vm/overcommit_memory", "0\n"),
    ("proc/net/route", "Iface Destination Gateway\neth0 00000000 010200C0\neth0 000200C0 00000000\n"),
    ("usr/bin/passt", ""),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
    ("sys/devices/system/cpu/smt/active", "1\n"),
    ("sys/devices/system/cpu/vulnerabilities/mds", "Mitigation: Clear CPU buffers\n"),
    ("sys/devices/system/node/online", "0\n"),
    ("sys/fs/cgroup/user.slice/shell/memory.max", "max\n"),
    ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"),
    ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "512\n"),
    ("sys/kernel/mm/ksm/run", "0\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never\n"),
    ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size [advise] never deny force\n"),
    ("sys/kernel/security/lsm", "capability,landlock,yama\n"),
    ("sys/module/kvm/parameters/halt_poll_ns", "200000\n"),
    ("sys/module/kvm_intel/parameters/ept", "Y\n"),
    ("sys/module/kvm_intel/parameters/enable_apicv", "Y\n"),
    ("sys/module/kvm_intel/parameters/nested", "Y\n"),
];

/// What the sandbox finds on a kernel that has everything, or is without Landlock.
fn fences(landlock: bool) -> SandboxReport {
    let found = |name, on| Protection {
        name,
        state: if on {
            Availability::On("all of it".into())
        } else {
            Availability::Missing("not among its modules".into())
        },
    };
    SandboxReport(vec![found("files", landlock), found("cores", true)])
}

struct Fake {
    _dir: TempDir,
    host: Host,
}

impl Fake {
    fn new() -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let user = User { uid: 123_456, groups: vec![123_456, 4242] };
        let fake = Fake {
            host: Host { root: Root::new(dir.path()), user, kvm: Ok(survey()), sandbox: fences(true) },
            _dir: dir,
        };
        GOOD.iter().for_each(|(name, text)| fake.put(name, text));
        fs::set_permissions(fake.path("dev/net/tun"), fs::Permissions::from_mode(0o666)).unwrap();
        fake
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.host.root.directory().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    fn rows(&self) -> Vec<Row> {
        examine(&self.host)
    }
}

/// A complete KVM.
fn survey() -> Survey {
    let limits = Capabilities {
        max_vcpus: 1024,
        recommended_vcpus: 8,
        max_vcpu_id: 4096,
        memory_slots: 32764,
        tsc_deadline: true,
        x2apic_api: true,
        pmu_disable: true,
        tsc_control: true,
        sync_regs: true,
    };
    let answers = CAPABILITIES.iter().map(|capability| (capability, true)).collect();
    Survey { api_version: 12, limits, answers, cpuid: Vec::new(), vm: Ok(()) }
}

fn refused(errno: i32) -> KvmError {
    let (path, source) = ("/dev/kvm".into(), io::Error::from_raw_os_error(errno));
    if errno == 13 { KvmError::Permission { path, source } } else { KvmError::Missing { path, source } }
}

fn row<'a>(rows: &'a [Row], what: &str) -> &'a Row {
    rows.iter().find(|row| row.what == what).unwrap_or_else(|| panic!("no row {what} in {rows:#?}"))
}

/// A host: what is changed, the row that shows it, the verdict, a word of the advice, and whether Linux can run.
struct Case(&'static str, fn(&mut Fake), &'static str, Verdict, &'static str, bool);

const CASES: &[Case] = &[
    Case("no passt", |fake| fake.remove("usr/bin/passt"), "passt", Verdict::Note, "sudo apt install passt", true),
    Case(
        "no way out",
        |fake| fake.put("proc/net/route", "Iface Destination Gateway\neth0 000200C0 00000000\n"),
        "default route",
        Verdict::Note,
        "ip route",
        true,
    ),
    Case(
        "a tap device for others",
        |fake| fs::set_permissions(fake.path("dev/net/tun"), fs::Permissions::from_mode(0o600)).unwrap(),
        "/dev/net/tun",
        Verdict::Note,
        "setfacl -m u:$USER:rw",
        true,
    ),
    Case(
        "no kvm at all",
        |fake| {
            fake.remove("dev/kvm");
            fake.remove("sys/module/kvm");
            fake.host.kvm = Err(refused(2));
        },
        "/dev/kvm",
        Verdict::Problem,
        "sudo modprobe kvm_intel",
        false,
    ),
    Case(
        "kvm of the other vendor",
        |fake| {
            fake.remove("dev/kvm");
            fake.remove("sys/module/kvm");
            fake.put("proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : svm\n");
            fake.host.kvm = Err(refused(2));
        },
        "/dev/kvm",
        Verdict::Problem,
        "sudo modprobe kvm_amd",
        false,
    ),
    Case(
        "no kvm because there is nothing behind it",
        |fake| {
            fake.remove("dev/kvm");
            fake.remove("sys/module/kvm");
            fake.put("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : hypervisor\n");
            fake.host.kvm = Err(refused(2));
        },
        "/dev/kvm",
        Verdict::Problem,
        "first vmx or svm",
        false,
    ),
    Case(
        "a container without the device",
        |fake| {
            fake.remove("dev/kvm");
            fake.host.kvm = Err(refused(2));
        },
        "/dev/kvm",
        Verdict::Problem,
        "--device /dev/kvm",
        false,
    ),
    Case(
        "no permission",
        |fake| {
            fs::set_permissions(fake.path("dev/kvm"), fs::Permissions::from_mode(0o600)).unwrap();
            fake.host.user.groups = vec![123_456];
            fake.host.kvm = Err(refused(13));
        },
        "/dev/kvm",
        Verdict::Problem,
        "sudo usermod -aG kvm $USER",
        false,
    ),
    Case(
        "root in a container that refuses the device",
        |fake| {
            fake.host.user.uid = 0;
            fake.host.kvm = Err(refused(13));
        },
        "open",
        Verdict::Problem,
        "device controller",
        false,
    ),
    Case(
        "another hypervisor",
        |fake| {
            fake.put("sys/module/vboxdrv/refcnt", "1");
            fake.host.kvm = Ok(Survey { vm: Err(KvmError::Busy(io::Error::from_raw_os_error(16))), ..survey() });
        },
        "create a VM",
        Verdict::Problem,
        "modprobe -r vboxnetadp",
        false,
    ),
    Case(
        "a kvm without irqfd",
        |fake| {
            let answers = CAPABILITIES.iter().map(|cap| (cap, cap.name != "KVM_CAP_IRQFD")).collect();
            fake.host.kvm = Ok(Survey { answers, ..survey() });
        },
        "IRQFD",
        Verdict::Problem,
        "Linux 2.6.32",
        false,
    ),
    Case(
        "a kvm without the deadline timer",
        |fake| {
            let answers = CAPABILITIES.iter().map(|cap| (cap, cap.name != "KVM_CAP_TSC_DEADLINE_TIMER")).collect();
            fake.host.kvm = Ok(Survey { answers, ..survey() });
        },
        "TSC_DEADLINE_TIMER",
        Verdict::Note,
        "more exits",
        true,
    ),
    Case(
        "an emulated processor without XSAVE that reports AVX",
        |fake| {
            let leaf = CpuidEntry { function: 1, ecx: 1 << 28, edx: !0, ..CpuidEntry::default() };
            fake.host.kvm = Ok(Survey { cpuid: vec![leaf], ..survey() });
        },
        "CPUID",
        Verdict::Note,
        "processor model",
        true,
    ),
    Case(
        "a virtual machine without nested virtualization",
        |fake| fake.put("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu hypervisor constant_tsc\n"),
        "vmx or svm",
        Verdict::Problem,
        "nested=1",
        false,
    ),
    Case(
        "virtualization off in the firmware",
        |fake| fake.put("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu constant_tsc\n"),
        "vmx or svm",
        Verdict::Problem,
        "firmware",
        false,
    ),
    Case(
        "shadow paging",
        |fake| fake.put("sys/module/kvm_intel/parameters/ept", "N"),
        "kvm_intel.ept",
        Verdict::Problem,
        "sudo modprobe kvm_intel ept=1",
        true,
    ),
    Case(
        "thp never",
        |fake| fake.put("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]"),
        "huge pages (THP)",
        Verdict::Problem,
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        true,
    ),
    Case(
        "no memory",
        |fake| fake.put("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 65536 kB\n"),
        "memory",
        Verdict::Problem,
        "--sort=-rss",
        false,
    ),
    Case(
        "little memory",
        |fake| fake.put("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 393216 kB\n"),
        "memory",
        Verdict::Note,
        "--memory 256M",
        true,
    ),
    Case(
        "a group above with a limit",
        |fake| fake.put("sys/fs/cgroup/user.slice/memory.max", "67108864\n"),
        "cgroup memory",
        Verdict::Problem,
        "MemoryMax=",
        false,
    ),
    Case(
        "a processor and a half, as cgroup v2 says it",
        |fake| fake.put("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n"),
        "cgroup CPU time",
        Verdict::Note,
        "CPUQuota=",
        true,
    ),
    Case(
        "half a processor, as cgroup v1 says it",
        |fake| {
            fake.put("proc/self/cgroup", "3:cpu,cpuacct:/box\n");
            fake.put("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "50000\n");
            fake.put("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
        },
        "cgroup CPU time",
        Verdict::Note,
        "docker update --cpus",
        true,
    ),
    Case(
        "few threads",
        |fake| fake.put("sys/fs/cgroup/user.slice/shell/pids.max", "8\n"),
        "cgroup threads",
        Verdict::Note,
        "TasksMax=",
        true,
    ),
    Case(
        "few files",
        |fake| fake.put("proc/self/limits", "Max open files            64   64   files\n"),
        "open files",
        Verdict::Note,
        "ulimit -n",
        true,
    ),
    Case(
        "little lockable memory",
        |fake| fake.put("proc/self/limits", "Max locked memory         8388608   8388608   bytes\n"),
        "lockable memory",
        Verdict::Note,
        "memlock unlimited",
        true,
    ),
    Case(
        "strict overcommit",
        |fake| fake.put("proc/sys/vm/overcommit_memory", "2"),
        "overcommit",
        Verdict::Note,
        "vm.overcommit_memory=0",
        true,
    ),
    Case(
        "an empty pool",
        |fake| fake.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0"),
        "pool of 2 MiB pages",
        Verdict::Note,
        "echo 1024 | sudo tee",
        true,
    ),
    Case("ksm on", |fake| fake.put("sys/kernel/mm/ksm/run", "1"), "KSM", Verdict::Note, "echo 2", true),
    Case(
        "a clock that Linux does not trust",
        |fake| fake.put("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
        "TSC",
        Verdict::Note,
        "dmesg",
        true,
    ),
    Case(
        "mitigations off",
        |fake| {
            fake.put("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable");
            fake.put("proc/cmdline", "ro mitigations=off quiet");
        },
        "mitigations",
        Verdict::Note,
        "mitigations=off",
        true,
    ),
    Case(
        "an old kernel",
        |fake| fake.put("proc/sys/kernel/osrelease", "5.10.0-34-amd64"),
        "SMT",
        Verdict::Note,
        "smt/control",
        true,
    ),
    Case(
        "the lowest frequency",
        |fake| fake.put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
        "frequency",
        Verdict::Note,
        "cpupower",
        true,
    ),
    Case(
        "two nodes",
        |fake| fake.put("sys/devices/system/node/online", "0-1"),
        "NUMA nodes",
        Verdict::Note,
        "numactl",
        true,
    ),
    Case(
        "no landlock",
        |fake| {
            fake.put("sys/kernel/security/lsm", "capability,yama");
            fake.host.sandbox = fences(false);
        },
        "Landlock",
        Verdict::Note,
        "lsm=landlock,capability,yama",
        true,
    ),
    Case(
        "io_uring off",
        |fake| fake.put("proc/sys/kernel/io_uring_disabled", "2"),
        "io_uring",
        Verdict::Note,
        "kernel.io_uring_disabled=0",
        true,
    ),
];

#[test]
fn each_fault_of_a_host_is_found_with_its_remedy() {
    for Case(name, change, what, verdict, advice, runs) in CASES {
        let mut fake = Fake::new();
        change(&mut fake);
        let rows = fake.rows();
        let found = row(&rows, what);
        assert_eq!(found.verdict, *verdict, "{name}: {found:?}");
        let text = format!("{} {}", found.advice.as_ref().unwrap().cost, found.advice.as_ref().unwrap().change);
        assert!(text.contains(advice), "{name}: {text}");
        assert_eq!(can_run(&rows), *runs, "{name}: {}", summary(&fake.host, &rows));
        fits(&fake.host, &rows);
    }
}

/// Every host's table is at most 100 columns wide, and no command in it is broken.
fn fits(host: &Host, rows: &[Row]) {
    let text = table(rows, &summary(host, rows), Style { colour: false, columns: Some(100) });
    let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    let whole = |line: &str| text.lines().any(|shown| shown.ends_with(line));
    let lines = rows.iter().filter_map(|row| row.advice.as_ref()).flat_map(|advice| advice.change.lines());
    let broken: Vec<_> = lines.filter(|line| !whole(line)).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_good_host_has_nothing_to_change() {
    let fake = Fake::new();
    let rows = fake.rows();
    // The survey's CPUID is empty, so one row speaks of the missing Ivy Bridge.
    let others: Vec<&Row> =
        rows.iter().filter(|row| row.verdict != Verdict::Ok && row.what != "Ivy Bridge (2012)").collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(can_run(&rows) && summary(&fake.host, &rows).starts_with("AxVM can run Linux here"));
}

#[test]
fn a_host_that_tells_nothing_is_no_reason_to_panic() {
    let dir = tempfile::tempdir().unwrap();
    let user = User { uid: 1, groups: Vec::new() };
    let host = Host { root: Root::new(dir.path()), user, kvm: Err(refused(2)), sandbox: fences(true) };
    let rows = examine(&host);
    assert!(!can_run(&rows));
    fits(&host, &rows);
}

#[test]
fn a_user_who_may_lock_all_memory_is_not_warned() {
    let fake = Fake::new();
    fake.put("proc/self/limits", "Max locked memory         8388608   8388608   bytes\n");
    assert_eq!(row(&fake.rows(), "lockable memory").verdict, Verdict::Note);
    fake.put("proc/self/status", "Name: axvm\nCapEff:\t0000000000004000\n");
    assert_eq!(row(&fake.rows(), "lockable memory").verdict, Verdict::Ok);
}

#[test]
fn a_software_kvm_is_told_apart_from_none() {
    let fake = Fake::new();
    fake.put("proc/cpuinfo", "flags : fpu hypervisor\n");
    fake.put("sys/module/kvm_pvm/parameters/x", "");
    fake.remove("sys/module/kvm_intel");
    let rows = fake.rows();
    assert!(summary(&fake.host, &rows).contains("too slow"), "{}", summary(&fake.host, &rows));
    assert!(row(&rows, "KVM modules").advice.as_ref().unwrap().cost.contains("interpret"));
}

#[test]
fn advice_stands_exactly_where_it_is_needed() {
    for Case(name, change, ..) in CASES {
        let mut fake = Fake::new();
        change(&mut fake);
        for row in fake.rows() {
            assert_eq!(row.advice.is_some(), row.verdict != Verdict::Ok, "{name}: {row:?}");
        }
    }
}

#[test]
fn rows_are_json_with_plain_words() {
    let json = serde_json::to_value(Fake::new().rows()).unwrap();
    let first = &json[0];
    assert_eq!((&first["part"], &first["what"], &first["verdict"]), (&"KVM".into(), &"/dev/kvm".into(), &"ok".into()));
    assert!(first["advice"].is_null());
}
