//! The recipe: from a specification and its resources to a machine, in nine steps.
//!
//! ```text
//!   1 /dev/kvm   2 RAM, disks, kernel files                       (resources)
//!   3 VM   4 plan   5 chips and devices, wired as planned   6 buses frozen
//!   7 kernel, zero page, ACPI: the guest's memory at power-on   8 CPUID, MSRs, registers   9 vCPUs
//! ```

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axvm_arch::registers::CpuState;
use axvm_boot::cpu::{CpuModel, Explained};
use axvm_boot::plan::Plan;
use axvm_boot::{cpu, linux};
use axvm_console::Port;
use axvm_devices::{Bus, BusNames, StopSwitch};
use axvm_events::Event;
use axvm_events::tape::{Kind, Names};
use axvm_kvm::{KvmVcpu, VcpuSetup, Vm};
use axvm_sync::EventFd;

use crate::board::Board;
use crate::gate::{Gate, Order};
use crate::halt::Activity;
use crate::image::Asked;
use crate::inventory::Inventory;
use crate::machine::{Built, First};
use crate::power_on::Placed;
use crate::processor::ProcessorModel;
use crate::resources::Steps;
use crate::saved::{MismatchError, SavedMachine};
use crate::stops::Stops;
use crate::unclaimed::Space;
use crate::vcpu::{AddressSpace, VcpuShared};
use crate::{Machine, MachineError, MachineSpec, Resources, crash};

/// The last APIC id without x2APIC: 255 is the broadcast.
const LAST_XAPIC_ID: u32 = 254;

/// A machine after step 6.
struct Wired {
    vm: Arc<Vm>,
    plan: Plan,
    inventory: Inventory,
    stop: Arc<StopSwitch>,
    attention: Arc<EventFd>,
    port_bus: Bus,
    mmio_bus: Bus,
    ports: Ports,
    pins: Vec<usize>,
}

/// The ends of a machine's consoles that are outside of it.
#[derive(Clone)]
pub struct Ports {
    /// The UART's.
    pub com1: Port,
    /// The virtio console's, if the specification has one.
    pub hvc0: Option<Port>,
    /// The debug console's, if the specification has one.
    pub debug: Option<Port>,
}

impl Resources {
    /// Builds a machine and starts its vCPUs. RAM must be as it was opened, or [cleared](Resources::clear).
    pub fn build(&self, spec: &MachineSpec, ports: &Ports) -> Result<Machine, MachineError> {
        self.build_unless(&|| false, &|| {}, spec, ports)
    }

    /// As [`Resources::build`], unless `asked` to end meanwhile: then the error is [`MachineError::Interrupted`]. `ready` is
    /// called when all stands, before the guest's first instruction.
    pub fn build_unless(
        &self,
        asked: &dyn Fn() -> bool,
        ready: &dyn Fn(),
        spec: &MachineSpec,
        ports: &Ports,
    ) -> Result<Machine, MachineError> {
        let apic_ids = spec.apic_ids();
        let wired = self.wire(spec, ports, apic_ids.iter().any(|&id| id > LAST_XAPIC_ID))?;

        // 7  The guest's memory at power-on.
        let mut steps = Steps::start(&self.events);
        let images = (&*self.kernel, self.initrd.as_deref());
        let Placed { mp, start, .. } = Placed::place(spec, &wired.plan, &apic_ids, &self.ram, images)?;
        self.load(&start, asked)?;
        steps.done("boot", || describe(&start));
        steps.done("command line", || start.command_line.clone());

        // 8, 9  vCPUs.
        let vcpus = self.create_vcpus(spec, &wired.vm, &apic_ids, &start.state)?;
        let listed = if wired.plan.acpi().has_tables() { vcpus.len() } else { 0 };
        let last = apic_ids[apic_ids.len() - 1];
        steps.done("vcpus", || {
            let (count, in_mp) = (vcpus.len(), mp.processors());
            format!(
                "{count} created, APIC ids up to {last}; the kernel finds {listed} by ACPI, {in_mp} by the MP table"
            )
        });
        if listed.max(mp.processors()) < vcpus.len() {
            let (count, found) = (vcpus.len(), mp.processors());
            let message =
                format!("without ACPI the kernel finds {found} of {count} vCPUs: an MP table has no room for more");
            self.events.warn(|| Event::Warning { from: "--cpus", message });
        }
        if cfg!(debug_assertions) {
            crash::check_first_entry(&vcpus[0], &self.events);
        }
        ready();
        self.start(wired, vcpus, start.command_line, if spec.stopped { First::Stopped } else { First::Runs })
    }

    /// Builds a machine that goes on where `saved` stood, once it is resumed: it is paused. `spec` and RAM must be those of
    /// the saved machine, `ports` fresh.
    pub fn restore(&self, spec: &MachineSpec, ports: &Ports, saved: &SavedMachine) -> Result<Machine, MachineError> {
        let (here, there) = (spec.topology.count() as usize, saved.vcpus.len());
        if here != there {
            return Err(MismatchError::Vcpus { saved: there, here }.into());
        }
        let wired = self.wire(spec, ports, saved.vm.x2apic_ids)?;

        // 7, 8, 9  RAM is as it was; vCPUs and chips take their state.
        let mut steps = Steps::start(&self.events);
        let vcpus = saved.restore_vm(&wired.vm)?;
        wired.inventory.pause(Instant::now()).map_err(|busy| MachineError::host("a device")(io::Error::other(busy)))?;
        saved.restore_parts(ports, &wired.inventory)?;
        steps.done("restore", || format!("{} vCPUs and {} parts", vcpus.len(), saved.parts.len()));
        self.start(wired, vcpus, saved.command_line.clone(), First::Paused)
    }

    /// Steps 3 to 6: a VM with all its parts, and none of them has done anything yet.
    fn wire(&self, spec: &MachineSpec, ports: &Ports, x2apic_ids: bool) -> Result<Wired, MachineError> {
        let mut steps = Steps::start(&self.events);
        let stop = Arc::new(StopSwitch::new().map_err(MachineError::host("the stop switch"))?);
        let attention = Arc::new(EventFd::new().map_err(MachineError::host("an event for the disks"))?);

        // 3  The VM: memory slots, interrupt controllers, PIT.
        let vm = Arc::new(self.kvm.create_vm(&self.ram)?);
        if x2apic_ids {
            vm.enable_x2apic_api()?;
        }
        if !spec.cpu.pmu && self.kvm.capabilities().pmu_disable {
            vm.disable_pmu()?;
        }
        steps.done("vm", || "memory slots, PIC, IOAPIC, local APICs, PIT".into());

        // 4, 5, 6  Who sits where; then each part in its place; then nothing moves any more.
        let plan = spec.plan()?;
        let mut board = Board::new(&vm, self, &stop, &attention, ports, spec);
        board.wire(&plan)?;
        let (port_bus, mmio_bus, inventory) = board.finish();
        steps.done("board", || plan.parts().iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        let (ports, pins) = (ports.clone(), spec.pins.clone());
        Ok(Wired { vm, plan, inventory, stop, attention, port_bus, mmio_bus, ports, pins })
    }

    /// Lets the vCPUs begin, or wait.
    fn start(
        &self,
        wired: Wired,
        vcpus: Vec<KvmVcpu>,
        command_line: String,
        first: First,
    ) -> Result<Machine, MachineError> {
        let Wired { vm, plan, inventory, stop, attention, port_bus, mmio_bus, ports, pins } = wired;
        let shared = VcpuShared {
            ports: AddressSpace::new(Space::Port, port_bus, &self.events),
            mmio: AddressSpace::new(Space::Mmio, mmio_bus, &self.events),
            stop,
            gate: Arc::new(Gate::new(if first == First::Runs { Order::Run } else { Order::Pause })),
            activity: Activity::new().map_err(MachineError::host("the vCPUs' activity"))?,
            stops: Stops::new().map_err(MachineError::host("an event for a debugger"))?,
            crash: OnceLock::new(),
            events: self.events.clone(),
        };
        self.events.name_registers(|| register_names(shared.ports.names(), shared.mmio.names()));
        let shared = Arc::new(shared);
        let events = self.events.clone();
        Machine::start(
            Built { plan, inventory, command_line, ports, shared, attention, events, vcpus, vm, first },
            &pins,
        )
    }

    /// Step 7, the large part: kernel and initrd from their files into guest RAM.
    fn load(&self, start: &linux::LinuxStart, asked: Asked) -> Result<(), MachineError> {
        for piece in &start.pieces {
            self.kernel.load(&self.ram, piece.offset, piece.to, asked)?;
        }
        let (Some(initrd), Some(at)) = (&self.initrd, start.initrd_at) else { return Ok(()) };
        initrd.load(&self.ram, 0, at, asked)?;
        if start.entry == linux::Entry::Multiboot {
            return Ok(());
        }
        if let Some(doubt) = linux::initrd::doubt(&initrd.head(linux::initrd::HEAD_LEN)?) {
            let message = format!("Linux will find nothing in {}: {doubt}", initrd.name());
            self.events.warn(|| Event::Warning { from: "--initrd", message });
        }
        Ok(())
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
        let processor = ProcessorModel::of(&self.kvm, spec, vm.tsc_khz())?;
        let ProcessorModel { supported, config, msrs } = &processor;
        let missing = cpu::missing_features(supported, spec.cpu.template);
        if !missing.is_empty() {
            self.events.warn(|| Event::Warning {
                from: "--cpu ivybridge",
                message: format!("this host lacks {}; the guest does without", missing.join(", ")),
            });
        }
        for option in cpu::missing_options(supported, spec.cpu) {
            self.events.warn(|| Event::Warning { from: "--cpu", message: option.to_string() });
        }
        let groundless = cpu::groundless(supported, config);
        Steps::start(&self.events).done("cpuid", || {
            let told = if groundless.is_empty() {
                String::new()
            } else {
                format!("; guests are not told of {}", Explained(&groundless))
            };
            let kvm_counts = !spec.cpu.pmu && !capabilities.pmu_disable && cpu::has_pmu(supported);
            let counts = if kvm_counts { " (told of none; KVM before Linux 5.18 counts all the same)" } else { "" };
            let on_off = |on| if on { "on" } else { "off" };
            let CpuModel { template, nested, pmu } = spec.cpu;
            format!("{template}, nested {}, pmu {}{counts}{told}", on_off(nested), on_off(pmu))
        });
        let create = |(n, &id): (usize, &u32)| {
            let cpuid = processor.cpuid(spec, n as u32);
            let bsp = n == 0;
            let setup = VcpuSetup { cpuid: &cpuid, msrs, start: bsp.then_some(start), is_bsp: bsp };
            Ok(vm.create_vcpu(id, &setup)?)
        };
        apic_ids.iter().enumerate().map(create).collect()
    }
}

/// How registers are called, for a recorder.
fn register_names(ports: BusNames, mmio: BusNames) -> Names {
    Arc::new(move |kind, address| match kind {
        Kind::PortRead | Kind::PortWrite => ports.name(address, kind.is_write()),
        Kind::MmioRead | Kind::MmioWrite => mmio.name(address, kind.is_write()),
        _ => None,
    })
}

/// What was put where, for `-v`.
fn describe(start: &linux::LinuxStart) -> String {
    let initrd = start.initrd_at.map(|span| format!(", initrd at {span}")).unwrap_or_default();
    format!("{} at {}, entry {} at {:#x}{initrd}", start.kernel, start.kernel_at, start.entry, start.state.regs.rip)
}
