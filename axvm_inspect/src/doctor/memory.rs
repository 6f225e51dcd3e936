//! Memory and what limits it: huge pages of both kinds, sharing, free memory, process and group limits.
//!
//! ```text
//!   how much       /proc/meminfo, /proc/sys/vm/overcommit_memory
//!   which pages    /sys/kernel/mm/transparent_hugepage, /sys/kernel/mm/hugepages, /sys/kernel/mm/ksm
//!   how much here  /proc/self/limits; memory, processor time and threads of the control groups (cgroup.rs)
//! ```
//!
//! Source: Linux Documentation/admin-guide/mm: transhuge, hugetlbpage, ksm; proc_meminfo(5), proc_pid_limits(5).

use super::{Root, Row, cgroup};

const PART: &str = "Memory and limits";
const MIB: u64 = 1 << 20;
/// RAM of a machine when --memory is not given.
const DEFAULT_RAM: u64 = 512 * MIB;
/// What a stock Linux needs at least to come up.
const LEAST_RAM: u64 = 128 * MIB;
/// File descriptors of the largest machine: one for each vCPU, a few for each device.
const LARGEST_MACHINE_FILES: u64 = 512;
/// Threads of a machine of 20 vCPUs with its devices.
const THREADS: u64 = 64;

pub(super) fn rows(root: &Root) -> Vec<Row> {
    let mut rows = vec![free(root), swap(root), overcommit(root)];
    rows.extend([thp(root), shared_thp(root)]);
    rows.extend(pools(root));
    rows.extend([ksm(root), locked(root), files(root), group_memory(root), group_cpu(root), group_threads(root)]);
    rows
}

/// Bytes in words: `512 MiB`, `23.5 GiB`.
fn bytes(count: u64) -> String {
    match count / MIB {
        0 => format!("{} KiB", count >> 10),
        mib @ ..1024 => format!("{mib} MiB"),
        mib if mib % 1024 == 0 => format!("{} GiB", mib / 1024),
        mib => format!("{:.1} GiB", mib as f64 / 1024.0),
    }
}

fn meminfo(root: &Root, key: &str) -> Option<u64> {
    let kib: u64 = root.value("/proc/meminfo", key)?.split(' ').next()?.parse().ok()?;
    Some(kib << 10)
}

fn free(root: &Root) -> Row {
    let (Some(total), Some(available)) = (meminfo(root, "MemTotal"), meminfo(root, "MemAvailable")) else {
        let row = Row::ok(PART, "memory", "the kernel does not tell");
        return row.note("whether a machine fits is unknown", "mount /proc: sudo mount -t proc proc /proc");
    };
    let row = Row::ok(PART, "memory", format!("{} available of {}", bytes(available), bytes(total))).required();
    let change = "end other programs: ps aux --sort=-rss | head";
    if available < LEAST_RAM {
        row.problem("not enough for any Linux", change)
    } else if available < DEFAULT_RAM {
        row.note(
            "less than a machine has without --memory (512M)",
            format!(
                "{change}
or give --memory 256M"
            ),
        )
    } else {
        row
    }
}

fn swap(root: &Root) -> Row {
    match (meminfo(root, "SwapFree"), meminfo(root, "SwapTotal")) {
        (Some(free), Some(total)) if total > 0 => {
            Row::ok(PART, "swap", format!("{} free of {}", bytes(free), bytes(total)))
        }
        _ => Row::ok(PART, "swap", "none; guest memory always stays in RAM"),
    }
}

fn overcommit(root: &Root) -> Row {
    let name = "overcommit";
    match root.number("/proc/sys/vm/overcommit_memory") {
        Some(2) => Row::ok(PART, name, "2: never").note(
            "a guest's whole RAM counts from its start, used or not; large machines are refused",
            "sudo sysctl vm.overcommit_memory=0",
        ),
        Some(1) => Row::ok(PART, name, "1: always"),
        Some(mode) => Row::ok(PART, name, format!("{mode}: by estimate")),
        None => Row::ok(PART, name, "not told"),
    }
}

fn thp(root: &Root) -> Row {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let mode = root.chosen(FILE);
    let defrag = root.chosen("/sys/kernel/mm/transparent_hugepage/defrag").unwrap_or_else(|| "not told".into());
    let found = format!("{}; defrag {defrag}", mode.as_deref().unwrap_or("not in this kernel"));
    let row = Row::ok(PART, "huge pages (THP)", found);
    let cost = "guest RAM is in 4 KiB pages: more TLB misses, and a miss in a guest walks two page tables";
    match (mode.as_deref(), defrag.as_str()) {
        (Some("always" | "madvise"), "never") => row.note(
            "huge pages only where memory happens to lie free in one piece",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/defrag",
        ),
        (Some("always" | "madvise"), _) => row,
        (Some(_), _) => row.problem(cost, format!("echo madvise | sudo tee {FILE}")),
        (None, _) => row.problem(cost, "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or --hugepages 2M"),
    }
}

/// Memory that other processes map comes from tmpfs, which has a switch of its own.
fn shared_thp(root: &Root) -> Row {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let name = "THP, shared memory";
    match root.chosen(FILE) {
        None => Row::ok(PART, name, "not in this kernel"),
        Some(mode) if mode == "never" || mode == "deny" => Row::ok(PART, name, mode)
            .note("--memory N,shared is in 4 KiB pages", format!("echo advise | sudo tee {FILE}")),
        Some(mode) => Row::ok(PART, name, mode),
    }
}

/// One row for each size of huge page that can be reserved.
fn pools(root: &Root) -> Vec<Row> {
    const DIRECTORY: &str = "/sys/kernel/mm/hugepages";
    let size = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok();
    let mut sizes: Vec<u64> = root.names(DIRECTORY).iter().filter_map(|name| size(name)).collect();
    sizes.sort_unstable();
    let row = |kib: u64| {
        let pool = format!("{DIRECTORY}/hugepages-{kib}kB");
        let total = root.number(&format!("{pool}/nr_hugepages"))?;
        let free = root.number(&format!("{pool}/free_hugepages"))?;
        let option = if kib >= 1 << 20 { "1G" } else { "2M" };
        let row =
            Row::ok(PART, format!("pool of {} pages", bytes(kib << 10)), format!("{free} free of {total} reserved"));
        Some(match free {
            0 => row.note(
                format!("--hugepages {option} cannot be used (nothing else needs the pool)"),
                format!("for 2 GiB:\necho {} | sudo tee {pool}/nr_hugepages", (2 << 20) / kib.max(1)),
            ),
            _ => row,
        })
    };
    sizes.into_iter().filter_map(row).collect()
}

fn ksm(root: &Root) -> Row {
    match root.number("/sys/kernel/mm/ksm/run") {
        None => Row::ok(PART, "KSM", "not in this kernel"),
        Some(1) => Row::ok(PART, "KSM", "on: equal pages are merged").note(
            "AxVM does not ask for merging; others' merged pages tell a neighbour what they hold",
            "echo 2 | sudo tee /sys/kernel/mm/ksm/run   (also parts what was merged)",
        ),
        Some(_) => Row::ok(PART, "KSM", "off"),
    }
}

/// The soft limit of a line of /proc/self/limits, `None` for no limit.
fn soft_limit(root: &Root, name: &str) -> Option<u64> {
    let text = root.text("/proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether this process may lock memory beyond its limit: CAP_IPC_LOCK, which root has.
fn may_lock_all(root: &Root) -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let set = root.value("/proc/self/status", "CapEff");
    set.and_then(|set| u64::from_str_radix(&set, 16).ok()).is_some_and(|set| set & CAP_IPC_LOCK != 0)
}

fn locked(root: &Root) -> Row {
    let name = "lockable memory";
    match soft_limit(root, "Max locked memory") {
        None => Row::ok(PART, name, "unlimited"),
        Some(limit) if may_lock_all(root) => {
            Row::ok(PART, name, format!("{}, which does not bind this user (CAP_IPC_LOCK)", bytes(limit)))
        }
        Some(limit) if limit >= DEFAULT_RAM => Row::ok(PART, name, bytes(limit)),
        Some(limit) => Row::ok(PART, name, bytes(limit)).note(
            "--lock works only for machines smaller than that",
            "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/axvm.conf\nthen log in again",
        ),
    }
}

fn files(root: &Root) -> Row {
    let name = "open files";
    match soft_limit(root, "Max open files") {
        None => Row::ok(PART, name, "unlimited"),
        Some(limit) if limit >= LARGEST_MACHINE_FILES => Row::ok(PART, name, limit.to_string()),
        Some(limit) => Row::ok(PART, name, limit.to_string())
            .note("machines with many vCPUs or devices cannot be built", format!("ulimit -n {LARGEST_MACHINE_FILES}")),
    }
}

fn group_memory(root: &Root) -> Row {
    let name = "cgroup memory";
    let Some(limit) = cgroup::limit(root, "memory", "memory.max", &["memory.limit_in_bytes"]) else {
        return Row::ok(PART, name, "no limit");
    };
    let row = Row::ok(PART, name, format!("at most {}", bytes(limit))).required();
    let change = "sudo systemctl set-property UNIT MemoryMax=4G\nin a container: docker update --memory 4g NAME";
    if limit < LEAST_RAM {
        row.problem("not enough for any Linux; the kernel would kill the machine", change)
    } else if limit < DEFAULT_RAM {
        row.note("a machine that uses more is killed; without --memory it may use 512 MiB", change)
    } else {
        row
    }
}

fn group_cpu(root: &Root) -> Row {
    let name = "cgroup CPU time";
    match cgroup::limit(root, "cpu", "cpu.max", &["cpu.cfs_quota_us", "cpu.cfs_period_us"]) {
        None => Row::ok(PART, name, "no limit"),
        Some(hundredths) => {
            let row = Row::ok(PART, name, format!("at most {:.2} processors", hundredths as f64 / 100.0));
            row.note(
                "vCPUs stand still for milliseconds whenever the time is used up",
                "sudo systemctl set-property UNIT CPUQuota=\nin a container: docker update --cpus 0 NAME",
            )
        }
    }
}

fn group_threads(root: &Root) -> Row {
    let name = "cgroup threads";
    match cgroup::limit(root, "pids", "pids.max", &["pids.max"]) {
        None => Row::ok(PART, name, "no limit"),
        Some(limit) if limit >= THREADS => Row::ok(PART, name, format!("at most {limit}")),
        Some(limit) => Row::ok(PART, name, format!("at most {limit}")).note(
            "each vCPU and each queue of a device is a thread: large machines cannot start",
            "sudo systemctl set-property UNIT TasksMax=512\nin a container: docker update --pids-limit 512 NAME",
        ),
    }
}
