//! The guest's memory at power-on, step 7 of the recipe: what is written there, and how the first CPU starts.
//!
//! ```text
//!   plan, APIC ids --> ACPI tables, MP table --\
//!   spec.append    --> command line             +--> guest RAM, and where the kernel's and the initrd's bytes go
//!   kernel's headers, length of the initrd   --/
//! ```
//!
//! Nothing here needs KVM: the recipe does it with a machine's RAM, and [`PowerOn::of`] with memory of its own, for who
//! wants to look at a machine and not to run it.
//!
//! No specification: each table and each format cites its own where it is made.

use std::sync::Arc;

use axvm_boot::acpi::{self, Tables};
use axvm_boot::command_line;
use axvm_boot::linux::{self, LinuxStart};
use axvm_boot::mp::{self, MpTable};
use axvm_boot::plan::Plan;
use axvm_boot::read_at::ReadAt;
use axvm_memory::GuestRam;

use crate::image::Image;
use crate::{MachineError, MachineSpec};

/// What was put into guest RAM before the first instruction.
pub struct Placed {
    /// The ACPI tables, on a machine that has some.
    pub tables: Option<Tables>,
    /// The MP table.
    pub mp: MpTable,
    /// The command line that AxVM gives where the user does not decide otherwise.
    pub default_command_line: String,
    /// How the first CPU starts, and what else is to be loaded where.
    pub start: LinuxStart,
}

impl Placed {
    /// Writes tables and command line of the machine `spec` into `ram`, which must be zero.
    pub(crate) fn place(
        spec: &MachineSpec,
        plan: &Plan,
        apic_ids: &[u32],
        ram: &GuestRam,
        (kernel, initrd): (&Image, Option<&Image>),
    ) -> Result<Placed, MachineError> {
        let boot = |source| MachineError::Boot { kernel: kernel.name(), source };
        let tables = plan.acpi().has_tables().then(|| acpi::build(apic_ids, plan)).transpose()?;
        let rsdp = tables.as_ref().map(|tables| tables.place(ram)).transpose()?;
        let defaults = command_line::Defaults {
            root_read_only: spec.disks.first().is_some_and(|disk| disk.read_only),
            virtio_console: spec.kernel_uses_virtio_console,
        };
        let default_command_line = command_line::default_command_line(plan, defaults);
        let config = linux::LinuxConfig {
            command_line: command_line::build(&default_command_line, &spec.append),
            plain_command_line: spec.append.trim().to_owned(),
            initrd_len: initrd.map(ReadAt::len),
            entry: spec.entry,
            ecam: plan.has_pci(),
        };
        let start = linux::prepare(ram, kernel, &config, rsdp).map_err(boot)?;
        let mp = mp::build(apic_ids);
        mp.place(ram).map_err(boot)?;
        Ok(Placed { tables, mp, default_command_line, start })
    }
}

/// A machine at power-on that does not run: for looking at it.
pub struct PowerOn {
    /// Who sits where.
    pub plan: Plan,
    /// The local APIC id of each vCPU.
    pub apic_ids: Vec<u32>,
    /// What AxVM wrote into its memory.
    pub placed: Placed,
    /// That memory, without the bytes of kernel and initrd.
    pub ram: Arc<GuestRam>,
    /// The kernel's file.
    pub kernel: Image,
    /// The initrd's.
    pub initrd: Option<Image>,
}

impl PowerOn {
    /// The machine `spec` as its first instruction would find it. Its RAM is a reservation of addresses: of it only what is
    /// written to takes memory of the host. Disks are not opened.
    pub fn of(spec: &MachineSpec) -> Result<PowerOn, MachineError> {
        let plan = spec.plan()?;
        let apic_ids = spec.apic_ids();
        let kernel = Image::kernel(&spec.kernel)?;
        let initrd = Image::initrd(spec.initrd.as_deref(), spec.initrd_after.as_ref())?;
        let ram = GuestRam::allocate_to_inspect(spec.memory.size)?;
        let placed = Placed::place(spec, &plan, &apic_ids, &ram, (&kernel, initrd.as_ref()))?;
        Ok(PowerOn { plan, apic_ids, placed, ram, kernel, initrd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelSource;
    use axvm_arch::layout;
    use axvm_memory::RamConfig;

    #[test]
    fn a_large_machine_is_looked_at_on_a_small_host() {
        let mut spec = MachineSpec::new(KernelSource::Embedded(axvm_guest::selftest()));
        spec.memory = RamConfig::new(1 << 40);
        spec.append = "quiet".into();
        let PowerOn { plan, placed, ram, .. } = PowerOn::of(&spec).unwrap();
        assert!(plan.parts().len() > 10);
        assert_eq!(
            (&*placed.default_command_line, &*placed.start.command_line),
            ("console=ttyS0", "console=ttyS0 quiet")
        );
        let mut text = [0; 13];
        ram.read(layout::COMMAND_LINE, &mut text).unwrap();
        assert_eq!(&text, b"console=ttyS0");
        assert!(placed.tables.is_some_and(|tables| tables.iter().count() == 7));
    }
}
