//! The recipe: from a specification and its resources to a machine, in nine steps.
//!
//! ```text
//!   1 /dev/kvm   2 RAM, disks, kernel files                       (resources)
//!   3 VM   4 plan   5 chips and devices, wired as planned   6 buses frozen
//!   7 kernel, zero page, ACPI: the guest's memory at power-on   8 CPUID, MSRs, registers   9 vCPUs
//! ```

use std::borrow::Cow;
use std::sync::Arc;

use axvm_arch::registers::CpuState;
use axvm_boot::plan::Plan;
use axvm_boot::{acpi, command_line, cpu, linux};
use axvm_console::Port;
use axvm_devices::StopSwitch;
use axvm_events::Event;
use axvm_kvm::{KvmVcpu, VcpuSetup, Vm};

use crate::board::Board;
use crate::gate::{Gate, Order};
use crate::machine::Built;
use crate::resources::Steps;
use crate::vcpu::{AddressSpace, Shared};
use crate::{Machine, MachineError, MachineSpec, Resources, cpuinfo};

/// The ends of a machine's consoles that are outside of it.
pub struct Ports {
    /// The UART's.
    pub com1: Port,
    /// The virtio console's, if the specification has one.
    pub hvc0: Option<Port>,
}

impl Resources {
    /// Builds a machine and starts its vCPUs. RAM must be as it was opened, or [cleared](Resources::clear).
    pub fn build(&self, spec: &MachineSpec, ports: &Ports) -> Result<Machine, MachineError> {
        let Resources { kvm, ram, events, .. } = self;
        let mut steps = Steps::start(events);
        let stop = Arc::new(StopSwitch::new().map_err(MachineError::host("the stop switch"))?);

        // 3  The VM: memory slots, interrupt controllers, PIT.
        let vm = kvm.create_vm(ram)?;
        let apic_ids = spec.apic_ids();
        if apic_ids.iter().any(|&id| id > 254) {
            vm.enable_x2apic_api()?;
        }
        steps.done("vm", || "memory slots, PIC, IOAPIC, local APICs, PIT".into());

        // 4, 5, 6  Who sits where; then each part in its place; then nothing moves any more.
        let plan = spec.plan()?;
        let mut board = Board::new(&vm, self, &stop, ports);
        for part in plan.parts() {
            board.wire(part)?;
        }
        let (port_bus, mmio_bus, inventory) = board.finish();
        steps.done("board", || plan.parts().iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));

        // 7  The guest's memory at power-on.
        let start = self.place(spec, &plan, &apic_ids)?;
        steps.done("boot", || describe(&start));
        steps.done("command line", || start.command_line.clone());

        // 8, 9  vCPUs.
        let vcpus = self.create_vcpus(spec, &vm, &apic_ids, &start.state)?;
        steps.done("vcpus", || format!("{} created, APIC ids up to {}", vcpus.len(), apic_ids[apic_ids.len() - 1]));

        let shared = Shared {
            ports: AddressSpace::new("port", port_bus, events),
            mmio: AddressSpace::new("mmio", mmio_bus, events),
            stop,
            gate: Arc::new(Gate::new(Order::Run)),
        };
        let command_line = start.command_line;
        Machine::start(Built { plan, inventory, command_line, shared: Arc::new(shared), vcpus, vm }, &spec.pins)
    }

    /// Step 7: tables, command line, kernel and initrd in guest RAM.
    fn place(&self, spec: &MachineSpec, plan: &Plan, apic_ids: &[u32]) -> Result<linux::LinuxStart, MachineError> {
        let rsdp = match plan.acpi() {
            true => Some(acpi::build(apic_ids, plan)?.place(&self.ram)?),
            false => None,
        };
        let defaults = command_line::Defaults {
            root_read_only: spec.disks.first().is_some_and(|disk| disk.read_only),
            virtio_console: spec.kernel_uses_virtio_console,
        };
        let kernel = self.kernel.read()?;
        let initrd = self.initrd.as_ref().map(|initrd| initrd.read()).transpose()?.map(Cow::into_owned);
        let by_format = if kernel.starts_with(b"\x7fELF") { linux::Entry::Pvh } else { linux::Entry::Bits32 };
        let config = linux::LinuxConfig {
            command_line: command_line::build(&command_line::default_command_line(plan, defaults), &spec.append),
            initrd,
            entry: spec.entry.unwrap_or(by_format),
        };
        linux::prepare(&self.ram, &kernel, &config, rsdp)
            .map_err(|source| MachineError::Boot { kernel: self.kernel.name(), source })
    }

    /// Steps 8 and 9: what each vCPU is, and where the first one starts.
    fn create_vcpus(
        &self,
        spec: &MachineSpec,
        vm: &Vm,
        apic_ids: &[u32],
        start: &CpuState,
    ) -> Result<Vec<KvmVcpu>, MachineError> {
        let capabilities = self.kvm.capabilities();
        let mut supported = self.kvm.supported_cpuid()?;
        // KVM leaves the processor's name empty; the guest sees the host's.
        if let Some(name) = cpuinfo::processor_name() {
            cpu::put_name(&mut supported, &name);
        }
        let msrs = cpu::msrs(&self.kvm.supported_msrs()?);
        let config =
            cpu::CpuConfig { template: spec.cpu, tsc_deadline: capabilities.tsc_deadline, tsc_khz: vm.tsc_khz() };
        let missing = cpu::missing_features(&supported, spec.cpu);
        if !missing.is_empty() {
            self.events.warn(|| Event::Warning {
                from: "--cpu ivybridge",
                message: format!("this host lacks {}; the guest does without", missing.join(", ")),
            });
        }
        let create = |(n, &id): (usize, &u32)| {
            let cpuid = cpu::leaves(&supported, &spec.topology, n as u32, &config);
            let bsp = n == 0;
            let setup = VcpuSetup { cpuid: &cpuid, msrs: &msrs, start: bsp.then_some(start), is_bsp: bsp };
            Ok(vm.create_vcpu(id, &setup)?)
        };
        apic_ids.iter().enumerate().map(create).collect()
    }
}

/// What was put where, for `-v`.
fn describe(start: &linux::LinuxStart) -> String {
    let initrd = start.initrd_at.map(|span| format!(", initrd at {span}")).unwrap_or_default();
    format!("{} at {}, entry {} at {:#x}{initrd}", start.kernel, start.kernel_at, start.entry, start.state.regs.rip)
}
