//! The outer machine: what QEMU is given to start with, and its saved state.
//!
//! ```text
//!   first time   kernel + initrd --boots 10 s--> "waiting" --migrate to a file--> cache/lab-KEY/state
//!   each run     the same command line + -incoming state --0.5 s--> "waiting"
//! ```
//!
//! KEY covers all that must be alike between save and restore: QEMU's version, kernel, initrd, command line. The
//! payload's content may differ, its size may not.
//!
//! One CPU and one TCG thread: with more, QEMU's nested SVM loses the outer kernel now and then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::qemu::{Qemu, Said};
use crate::assets::{self, Kernel, Wanted};
use crate::progress::Progress;
use crate::project::{cache, fingerprint};
use crate::tool::{self, output, tool};

const INIT: &str = include_str!("../../files/lab/init");
const MODULES: [&str; 6] = ["irqbypass", "kvm", "kvm_amd", "virtio_pci", "virtio_blk", "tun"];
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off no5lvl nokaslr no_timer_check init_on_alloc=0";
// Without XSAVE: the emulated SVM does not intercept XSETBV, so KVM would never learn the guest's XCR0, and CPUID leaf
// 0xD would contradict it (Linux: "XSAVE consistency problem").
const MACHINE: &str = "-M pc -accel tcg,thread=single -cpu EPYC,+svm,-xsave -smp 1 -m 8192 -nodefaults -no-user-config \
                       -display none -no-reboot";
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Each boot measures its clock against other programs' noise.
const SAVE_TRIES: u32 = 5;
const SAVE_LIMIT: Duration = Duration::from_secs(120);

/// Everything to start the outer machine with.
pub(super) struct Outer {
    kernel: PathBuf,
    /// `outer.cpio` and `state` are here.
    dir: PathBuf,
}

impl Outer {
    /// Prepares kernel, initrd and saved state; quick when they are there.
    pub(super) fn prepare() -> Result<Self> {
        if tool::find("qemu-system-x86_64").is_none() {
            let _progress = Progress::spinner("Installing qemu-system-x86 for the lab");
            tool::apt_install(&["qemu-system-x86"])?;
        }
        let version = output(tool("qemu-system-x86_64").arg("--version"))?;
        let kernel = Kernel::get(&Wanted::V6_1).or_else(|_| Kernel::get(&Wanted::STOCK))?;
        let words = [version.as_str(), &kernel.release, INIT, &MODULES.join(" "), COMMAND_LINE, MACHINE, &processor()];
        let dir = cache().join(format!("lab-{}", fingerprint(&words.map(str::as_bytes))));
        fs::create_dir_all(&dir).with_context(|| format!("Cannot create {}", dir.display()))?;
        let outer = Self { kernel: kernel.image.clone(), dir };
        if !outer.initrd().exists() {
            assets::sweep("lab-");
            fs::write(outer.initrd(), initrd(&kernel)?)?;
        }
        outer.ensure_state()?;
        Ok(outer)
    }

    /// Saves a state if there is none. The caller holds the cache's lock.
    pub(super) fn ensure_state(&self) -> Result<()> {
        let mut problem = None;
        for _ in 0..SAVE_TRIES {
            if self.state().exists() {
                return Ok(());
            }
            problem = self.save()?;
        }
        problem.map_or(Ok(()), |problem| bail!("Cannot save a good state of the lab: {problem}"))
    }

    /// Throws the saved state away: it turned out to be no good.
    pub(super) fn forget_state(&self) {
        let _ = fs::remove_file(self.state());
    }

    /// QEMU's command line around this payload.
    pub(super) fn command(&self, payload: &Path, restore: bool) -> Command {
        let mut command = match tool::find("setpriv") {
            // The outer machine must not outlive us, however we end.
            Some(_) => {
                let mut command = tool("setpriv");
                command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
                command
            }
            None => tool("qemu-system-x86_64"),
        };
        command.args(MACHINE.split_whitespace()).arg("-kernel").arg(&self.kernel).arg("-initrd").arg(self.initrd());
        command.args(["-append", COMMAND_LINE, "-device", "virtio-blk-pci,drive=payload", "-drive"]);
        command.arg(format!("id=payload,format=raw,if=none,cache=unsafe,discard=unmap,file={}", payload.display()));
        if restore {
            command.args(["-incoming", "exec:cat state"]);
        }
        command.current_dir(&self.dir);
        command
    }

    fn initrd(&self) -> PathBuf {
        self.dir.join("outer.cpio")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Boots and saves; or says what is wrong with this boot.
    fn save(&self) -> Result<Option<String>> {
        let _progress = Progress::spinner("Starting the lab for the first time, and saving its state");
        let work = self.dir.join("saving");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        let payload = work.join("payload.img");
        fs::File::create(&payload)?.set_len(super::payload::SIZE)?;
        let mut qemu = Qemu::start(self.command(&payload, false), &work)?;
        let deadline = Instant::now() + BOOT_LIMIT;
        let (mut tick, mut second) = (Instant::now(), Duration::ZERO);
        loop {
            match qemu.control.line(deadline)? {
                Said::Line(line) if line.contains("axvm-lab: tick") => tick = Instant::now(),
                Said::Line(line) if line.contains("axvm-lab: tock") => second = tick.elapsed(),
                Said::Line(line) if line.contains("axvm-lab: waiting") => break,
                Said::Line(_) => {}
                end => {
                    bail!("The lab's outer machine did not start ({end:?}): {}{}", qemu.control.tail(), qemu.errors())
                }
            }
        }
        if !(900..1300).contains(&second.as_millis()) {
            return Ok(Some(format!("its second took {} ms", second.as_millis())));
        }
        qemu.migrate("exec:cat > state.unfinished", Instant::now() + SAVE_LIMIT)?;
        drop(qemu);
        fs::rename(self.dir.join("state.unfinished"), self.state())?;
        let _ = fs::remove_dir_all(&work);
        Ok(None)
    }
}

/// The host's processor: the saved state holds its TSC's frequency.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines().find(|line| line.starts_with("model name")).unwrap_or_default().to_owned()
}

fn initrd(kernel: &Kernel) -> Result<Vec<u8>> {
    let busybox = assets::busybox()?;
    let mut archive = assets::skeleton(&fs::read(&busybox)?);
    archive.file("init", 0o755, INIT.as_bytes());
    assets::add_modules(&mut archive, kernel, &MODULES)?;
    Ok(archive.finish())
}
