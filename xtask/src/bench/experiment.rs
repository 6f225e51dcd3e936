//! One run of one subject, from start to end, and the numbers it gives.
//!
//! ```text
//!   start    idle guest: exec --> '~' | 20 ms later: CPU time, faults, memory | killed
//!   calls    the same under strace; its clock is of no use, its count is
//!   exits    '~' OUT =ticks IN =ticks MMIO =ticks z
//!   outside  the same, each exit timed by the tracer from KVM_RUN's return to the next KVM_RUN
//!   block    '~' 4K random read, QD1 =ticks, QD32 =ticks, the same of writes, 128K sequential reads
//!   woken    '~' 4K random reads, QD1, asleep until each one's interrupt
//!   spread   '~' 4K random reads on four queues by four vCPUs
//!   cold     '~' 4K random reads, QD32, of a file that the host has no page of
//!   trace    exits and requests as above, of a machine that is recorded (--trace) and of one that is not, in pairs
//!   net      '~' frames to the host, of 1514 bytes and 64 KiB; echoes; frames to the guest
//!   off      '~' z --> process end
//!   kernel   a stock kernel with our first instruction: exec --> '~'
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};
use axvm_guest::Phase;

use super::net::{self, Net};
use super::setup::{Bench, forget, settle};
use super::subject::{Disk, Machine, Subject};
use super::watched::{Watched, cpu_time};
use super::{process, quantity, statistics, trace};
use crate::tool::find;

/// What is done after the first byte counts as part of the start, for so long.
const SETTLE: Duration = Duration::from_millis(20);

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experiment {
    /// An idle guest, and the first words of its quantities.
    Start(&'static str, u32, u32),
    /// System calls of the first kind of start.
    Calls,
    /// Exits, so many of each kind.
    Exits(u32),
    /// The part of exits that is the VMM's, of so many of each kind.
    Outside(u32),
    /// Disk requests: a number for QD1 of 4 KiB, from which the others follow.
    Block(u32),
    /// One disk request after the other, each with its interrupt.
    Woken(u32),
    /// Four queues, so many requests of each.
    Spread(u32),
    /// What is not in the page cache.
    Cold(u32),
    /// What recording costs, of so many exits and five times as many requests.
    Trace(u32),
    /// Frames over a tap, so many of 1514 bytes.
    Net(u32),
    /// The end of a machine.
    Off,
    /// A vmlinux.
    Vmlinux,
    /// A bzImage.
    BzImage,
}

/// Numbers of one run, by the id of their quantity.
pub type Numbers = Vec<(String, f64)>;

impl Experiment {
    /// For progress, and to choose by.
    pub fn name(self) -> &'static str {
        match self {
            Experiment::Start(name, ..) => name,
            Experiment::Calls => "calls",
            Experiment::Exits(_) => "exits",
            Experiment::Outside(_) => "outside",
            Experiment::Block(_) => "block",
            Experiment::Woken(_) => "woken",
            Experiment::Spread(_) => "spread",
            Experiment::Cold(_) => "cold",
            Experiment::Trace(_) => "trace",
            Experiment::Net(_) => "net",
            Experiment::Off => "off",
            Experiment::Vmlinux => "vmlinux",
            Experiment::BzImage => "bzimage",
        }
    }

    /// Whether it can be done with this subject, here.
    pub fn suits(self, subject: &Subject, bench: &Bench) -> bool {
        let here = match self {
            Experiment::Net(_) => return subject.has_disk() && net::works(),
            Experiment::Block(_) | Experiment::Woken(_) => return subject.has_disk(),
            Experiment::Spread(_) => return subject.has_queues(),
            Experiment::Cold(_) => subject.has_disk(),
            Experiment::Trace(_) => subject.is_recorded(),
            Experiment::Vmlinux => bench.vmlinux.is_some(),
            Experiment::BzImage => bench.bzimage.is_some() && subject.takes_bzimage(),
            Experiment::Outside(_) => trace::works(),
            Experiment::Calls => find("strace").is_some(),
            Experiment::Start(..) | Experiment::Exits(_) | Experiment::Off => true,
        };
        here && subject.is_itself()
    }

    /// What is missing where it does not suit AxVM.
    pub fn needs(self) -> &'static str {
        match self {
            Experiment::Outside(_) => "root and tracefs in /sys/kernel/tracing",
            Experiment::Calls => "strace",
            Experiment::Net(_) => "root, ip(8) and /dev/net/tun",
            Experiment::Vmlinux | Experiment::BzImage => "a stock kernel",
            _ => "/dev/kvm",
        }
    }

    /// Does it once.
    pub fn run(self, subject: &Subject, bench: &Bench) -> Result<Numbers> {
        match self {
            Experiment::Start(name, memory_mib, vcpus) => bench.start(name, memory_mib, vcpus, subject),
            Experiment::Calls => bench.calls(subject),
            Experiment::Exits(count) => bench.exits(count, subject),
            Experiment::Outside(count) => bench.outside(count, subject),
            Experiment::Block(count) => bench.block(count, subject),
            Experiment::Woken(count) => {
                bench.requests(bench.machine(128, 1), &[("wr1", Phase::Woken(4096, 1, count))], subject)
            }
            Experiment::Spread(count) => bench.spread(count, subject),
            Experiment::Cold(count) => bench.cold(count, subject),
            Experiment::Trace(count) => bench.trace(count, subject),
            Experiment::Net(count) => net::in_namespace(|net| bench.net(count, net, subject)),
            Experiment::Off => bench.off(subject),
            Experiment::Vmlinux => bench.kernel("vmlinux", bench.vmlinux.as_deref(), subject),
            Experiment::BzImage => bench.kernel("bzimage", bench.bzimage.as_deref(), subject),
        }
    }
}

impl Bench {
    fn machine(&self, memory_mib: u32, vcpus: u32) -> Machine {
        let disk = Disk { path: self.disk.clone(), queues: 1, direct: false };
        Machine { kernel: PathBuf::new(), memory_mib, vcpus, disk, net: false, trace: self.trace.clone() }
    }

    fn command(&self, subject: &Subject, kernel: &Path, memory_mib: u32, vcpus: u32) -> Result<Command> {
        let machine = Machine { kernel: kernel.to_owned(), ..self.machine(memory_mib, vcpus) };
        subject.command(&machine, &self.scratch)
    }

    /// The guest with this job, as a file.
    fn guest(&self, name: &str, phases: Option<&[Phase]>) -> Result<PathBuf> {
        let path = self.scratch.join(name).with_extension("elf");
        fs::write(&path, axvm_guest::bench(phases)).with_context(|| format!("Cannot write {}", path.display()))?;
        Ok(path)
    }

    fn seconds(&self, ticks: u64) -> f64 {
        ticks as f64 / self.tsc_khz / 1e3
    }

    fn start(&self, name: &str, memory_mib: u32, vcpus: u32, subject: &Subject) -> Result<Numbers> {
        let guest = self.guest("idle", None)?;
        let mut vmm = Watched::start(self.command(subject, &guest, memory_mib, vcpus)?)?;
        let first = vmm.until(b'~')?;
        thread::sleep(SETTLE);
        let mut numbers = vec![
            (name.to_owned(), milliseconds(first - vmm.started)),
            (format!("{name}-cpu"), cpu_time(&self.cpu_time, vmm.pid())? as f64 / 1e6),
        ];
        if name == "start-128m" {
            let memory = process::memory(vmm.pid())?;
            numbers.push((format!("{name}-faults"), process::faults(vmm.pid())? as f64));
            numbers.push(("private-dirty".to_owned(), memory.private_dirty as f64));
            numbers.push(("resident".to_owned(), memory.resident as f64));
        }
        Ok(numbers)
    }

    /// Lines of strace up to the first byte and a little more, each a call; signals and ends of threads are none.
    fn calls(&self, subject: &Subject) -> Result<Numbers> {
        let (guest, trace) = (self.guest("idle", None)?, self.scratch.join("trace"));
        let inner = self.command(subject, &guest, 128, 1)?;
        let mut command = Command::new("strace");
        // -D: the VMM is our child, so that it can be ended; strace ends with it.
        command.args(["-D", "-f", "-qq", "-o"]).arg(&trace).arg(inner.get_program()).args(inner.get_args());
        let mut vmm = Watched::start(command)?;
        vmm.until(b'~')?;
        thread::sleep(SETTLE * 5);
        drop(vmm);
        thread::sleep(SETTLE * 5);
        let text = fs::read(&trace).with_context(|| format!("Cannot read {}", trace.display()))?;
        Ok(vec![("start-128m-calls".to_owned(), calls_in(&String::from_utf8_lossy(&text)) as f64)])
    }

    fn exits(&self, count: u32, subject: &Subject) -> Result<Numbers> {
        let phases = [Phase::Out(count), Phase::In(count), Phase::Mmio(count)];
        let guest = self.guest("exits", Some(&phases))?;
        let mut vmm = Watched::start(self.command(subject, &guest, 128, 1)?)?;
        let mut numbers = Numbers::new();
        for name in ["exit-out", "exit-in", "exit-mmio"] {
            numbers.push((name.to_owned(), self.seconds(vmm.phase()?) * 1e6 / f64::from(count)));
        }
        Ok(numbers)
    }

    /// The tracer is attached while the guest rests. Of what it saw, each kind's exits are known by their number: between
    /// them lie the few bytes by which the guest tells.
    fn outside(&self, count: u32, subject: &Subject) -> Result<Numbers> {
        const TELLING: usize = 100;
        let phases = [Phase::Rest(200), Phase::Out(count), Phase::In(count), Phase::Mmio(count)];
        let guest = self.guest("outside", Some(&phases))?;
        let mut vmm = Watched::start(self.command(subject, &guest, 128, 1)?)?;
        vmm.until(b'~')?;
        let trace = trace::Trace::start(vmm.pid())?;
        phases.iter().try_for_each(|_| vmm.phase().map(drop))?;
        let exits = trace.exits()?;
        let names = ["outside-out", "outside-in", "outside-mmio"];
        let numbers = names.iter().enumerate().map(|(number, name)| {
            let first = number * count as usize + TELLING;
            let seen = exits.get(first..first + count as usize - 2 * TELLING);
            let seen: Option<Vec<f64>> = seen.map(|seen| seen.iter().map(|&ticks| ticks as f64).collect());
            let median = seen.and_then(|seen| statistics::summary(&seen)).with_context(|| {
                format!("Cannot tell exits apart: the tracer saw {} of {}", exits.len(), count * names.len() as u32)
            })?;
            Ok(((*name).to_owned(), self.seconds(1) * 1e9 * median.median))
        });
        numbers.collect()
    }

    fn block(&self, count: u32, subject: &Subject) -> Result<Numbers> {
        let (small, large) = (4096, 128 << 10);
        let phases = [
            ("rr1", Phase::RandomRead(small, 1, count)),
            ("rr32", Phase::RandomRead(small, 32, count * 5)),
            ("rw1", Phase::RandomWrite(small, 1, count)),
            ("rw32", Phase::RandomWrite(small, 32, count * 3)),
            ("sr1", Phase::Read(large, 1, count / 2)),
            ("sr32", Phase::Read(large, 32, count / 2)),
            ("rr64", Phase::RandomRead(small, 64, count * 5)),
            ("rr128", Phase::RandomRead(small, 128, count * 5)),
        ];
        self.requests(self.machine(128, 1), &phases, subject)
    }

    fn spread(&self, count: u32, subject: &Subject) -> Result<Numbers> {
        let mut machine = self.machine(128, 4);
        machine.disk.queues = 4;
        self.requests(machine, &[("sp32", Phase::Spread(4096, 32, count))], subject)
    }

    fn cold(&self, count: u32, subject: &Subject) -> Result<Numbers> {
        let mut machine = self.machine(128, 1);
        machine.disk.direct = true;
        forget(&self.disk)?;
        self.requests(machine, &[("cold32", Phase::RandomRead(4096, 32, count))], subject)
    }

    /// Phases with disk requests, each with its name: rate and CPU time.
    fn requests(&self, machine: Machine, phases: &[(&str, Phase)], subject: &Subject) -> Result<Numbers> {
        // At the end the guest rests, or its threads may be gone before they are looked at; it is killed meanwhile.
        let job: Vec<Phase> = phases.iter().map(|&(_, phase)| phase).chain([Phase::Rest(1000)]).collect();
        let machine = Machine { kernel: self.guest("requests", Some(&job))?, ..machine };
        // What the one before wrote is not to be written back beside this one.
        settle(&self.disk)?;
        let mut vmm = Watched::start(subject.command(&machine, &self.scratch)?)?;
        vmm.until(b'~')?;
        let mut before = process::time_beside_vcpus(vmm.pid())?;
        let mut numbers = Numbers::new();
        for &(name, phase) in phases {
            let ticks = vmm.phase()?;
            let cpu = process::time_beside_vcpus(vmm.pid())?;
            // 0: a queue that holds no so many requests, or too few queues.
            if ticks > 0 {
                let (requests, cpu) = (f64::from(phase.requests()), cpu.saturating_sub(before) as f64);
                let (bytes, cpu_name) = (requests * f64::from(phase.bytes()), format!("{name}-cpu"));
                let unit = |id: &str| quantity::by_id(id).map_or("", |quantity| quantity.unit);
                let done = if unit(name) == "MB/s" { bytes / 1e6 } else { requests / 1e3 };
                numbers.push((name.to_owned(), done / self.seconds(ticks)));
                let done = if unit(&cpu_name) == "ms/GB" { bytes / 1e12 } else { requests / 1e6 };
                numbers.push((cpu_name, cpu / 1e9 / done));
            }
            before = cpu;
        }
        Ok(numbers)
    }

    /// What recording adds: ratios of times, and nanoseconds where the tracer sees them.
    fn trace(&self, count: u32, subject: &Subject) -> Result<Numbers> {
        let file = self.scratch.join("trace.json");
        let recorded = Bench { trace: Some(file.clone()), ..self.clone() };
        let reads = [("rr32", Phase::RandomRead(4096, 32, count * 5))];
        let once = |bench: &Bench| -> Result<Numbers> {
            let mut numbers = bench.exits(count, subject)?;
            numbers.extend(bench.requests(bench.machine(128, 1), &reads, subject)?);
            if trace::works() {
                numbers.extend(bench.outside(count.min(1000), subject)?);
            }
            Ok(numbers)
        };
        // Off, on, on, off: what drifts meanwhile hits both alike.
        let [off, on, on_too, off_too] = [once(self)?, once(&recorded)?, once(&recorded)?, once(self)?];
        let both = |runs: [&Numbers; 2], id: &str| {
            let number = |run: &Numbers| run.iter().find(|(name, _)| name == id).map(|(_, number)| *number);
            Some(f64::midpoint(number(runs[0])?, number(runs[1])?))
        };
        let pair = |id| Some((both([&on, &on_too], id)?, both([&off, &off_too], id)?));
        let times = ["exit-out", "exit-in", "exit-mmio"].map(|id| (id, pair(id).map(|(on, off)| on / off)));
        let added = ["outside-out", "outside-in", "outside-mmio"].map(|id| (id, pair(id).map(|(on, off)| on - off)));
        let read = [("rr32", pair("rr32").map(|(on, off)| off / on))];
        fs::remove_file(&file).with_context(|| format!("Cannot remove {}", file.display()))?;
        let all = times.into_iter().chain(added).chain(read);
        Ok(all.filter_map(|(id, number)| Some((format!("trace-{id}"), number?))).collect())
    }

    /// Frames to the guest come all the time, so they have a machine of their own.
    fn net(&self, count: u32, net: &Net, subject: &Subject) -> Result<Numbers> {
        let machine = Machine { net: true, ..self.machine(128, 1) };
        let phases = [
            ("net-out", Phase::Send(1514, 64, count)),
            ("net-cut", Phase::Send(65_000, 32, count / 8)),
            ("net-echo", Phase::Echo(64, count / 40)),
        ];
        let echo = net.echo()?;
        let mut numbers = self.requests(machine.clone(), &phases, subject)?;
        drop(echo);
        let flood = net.flood()?;
        numbers.extend(self.requests(machine, &[("net-in", Phase::Receive(1514, count))], subject)?);
        drop(flood);
        Ok(numbers)
    }

    fn off(&self, subject: &Subject) -> Result<Numbers> {
        let guest = self.guest("off", Some(&[]))?;
        let mut vmm = Watched::start(self.command(subject, &guest, 128, 1)?)?;
        let off = vmm.until(b'z')?;
        Ok(vec![("off".to_owned(), milliseconds(vmm.end()? - off))])
    }

    fn kernel(&self, name: &str, kernel: Option<&Path>, subject: &Subject) -> Result<Numbers> {
        let kernel = kernel.context("There is no stock kernel here")?;
        let mut vmm = Watched::start(self.command(subject, kernel, 512, 1)?)?;
        let first = vmm.until(b'~')?;
        thread::sleep(SETTLE);
        Ok(vec![
            (name.to_owned(), milliseconds(first - vmm.started)),
            (format!("{name}-cpu"), cpu_time(&self.cpu_time, vmm.pid())? as f64 / 1e6),
            (format!("{name}-peak"), process::peak(vmm.pid())? as f64),
        ])
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A call that another thread interrupted has a second line, `<... read resumed>`.
fn calls_in(trace: &str) -> usize {
    let what = trace.lines().filter_map(|line| Some(line.split_once(' ')?.1.trim_start()));
    what.filter(|what| what.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_counts_once() {
        let trace = "12 execve(\"/a\") = 0\n12 futex(0x1 <unfinished ...>\n13  ioctl(9, KVM_RUN, 0) = 0\n\
                     12 <... futex resumed>) = 0\n12 --- SIGCHLD {} ---\n13 +++ exited with 0 +++\n";
        assert_eq!(calls_in(trace), 3);
    }
}
