//! The workbench: hands out addresses, interrupt lines and doorbells while a machine is built.
//!
//! ```text
//!   plug_platform -> COM1, RTC, i8042, ACPI PM, reset register
//!   plug_virtio   -> window 0xd000_0000 + n * 4 KiB, GSI 5, 10, 11 ..., irqfd, one ioeventfd per queue
//!   finish        -> two frozen buses, the chips worth keeping, the plan that ACPI describes
//! ```
//!
//! It ends where the machine begins: nothing here lives on.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use axvm_arch::Gpa;
use axvm_arch::layout::{self, gsi, port};
use axvm_boot::acpi::VirtioWindow;
use axvm_console::Port;
use axvm_devices::{AcpiPm, Bus, BusBuilder, I8042, Irq, PciHost, Pvpanic, Rtc, StopSwitch, Uart16550};

use axvm_events::Events;
use axvm_kvm::Vm;
use axvm_memory::GuestRam;
use axvm_virtio::device::VirtioDevice;
use axvm_virtio::mmio::MmioTransport;

/// Offset of the QueueNotify register in a virtio-mmio window (virtio 1.2, 4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;

/// A machine under construction.
pub struct Board<'a> {
    vm: &'a Vm,
    ram: &'a Arc<GuestRam>,
    stop: &'a Arc<StopSwitch>,
    events: &'a Events,
    ports: BusBuilder,
    mmio: BusBuilder,
    windows: Vec<VirtioWindow>,
    transports: Vec<Arc<MmioTransport>>,
}

/// The chips that the main thread talks to.
pub struct Chips {
    pub rtc: Arc<Rtc>,
    pub acpi_pm: Arc<AcpiPm>,
}

/// What is left of the board.
pub struct Built {
    pub ports: Bus,
    pub mmio: Bus,
    pub windows: Vec<VirtioWindow>,
    pub transports: Vec<Arc<MmioTransport>>,
}

impl<'a> Board<'a> {
    pub fn new(vm: &'a Vm, ram: &'a Arc<GuestRam>, stop: &'a Arc<StopSwitch>, events: &'a Events) -> Board<'a> {
        let (ports, mmio) = Default::default();
        Board { vm, ram, stop, events, ports, mmio, windows: Vec::new(), transports: Vec::new() }
    }

    /// The chips every PC has and Linux looks for.
    pub fn plug_platform(&mut self, com1: Port) -> Result<Chips> {
        let uart = Uart16550::new(self.line(gsi::COM1)?, com1);
        let rtc = Arc::new(Rtc::new(self.line(gsi::RTC)?).context("Cannot make the RTC")?);
        let acpi_pm = Arc::new(AcpiPm::new(self.line(gsi::SCI)?, Arc::clone(self.stop)));
        let i8042 = Arc::new(I8042::new(Arc::clone(self.stop)));
        let pci = Arc::new(PciHost::new(Arc::clone(self.stop)));
        self.ports.plug(port::COM1.into(), 8, "COM1", uart)?;
        self.ports.plug(u64::from(port::I8042) + 4, 1, "i8042", i8042)?;
        self.ports.plug(port::RTC.into(), 2, "RTC", rtc.clone())?;
        self.ports.plug(port::PM1A_EVENT.into(), 6, "ACPI PM1a", acpi_pm.clone())?;
        self.ports.plug(port::PVPANIC.into(), 1, "pvpanic", Arc::new(Pvpanic::new(Arc::clone(self.stop))))?;
        self.ports.plug(port::PCI.into(), PciHost::LEN, "PCI host", pci)?;
        Ok(Chips { rtc, acpi_pm })
    }

    /// Gives a virtio device its window, its interrupt line and a doorbell for each queue.
    pub fn plug_virtio(&mut self, name: &str, device: Box<dyn VirtioDevice>) -> Result<()> {
        let n = self.windows.len();
        ensure!(n < gsi::VIRTIO.len(), "No interrupt line is left for {name}: {n} virtio devices have one already");
        let gsi = gsi::VIRTIO[n];
        let base = Gpa(layout::VIRTIO_MMIO.0 + n as u64 * layout::VIRTIO_MMIO_STRIDE);
        let ram = Arc::clone(self.ram);
        let transport = MmioTransport::new(name, device, ram, self.line(gsi)?, self.events.clone());
        let transport = Arc::new(transport.with_context(|| format!("Cannot plug {name}"))?);
        for queue in 0..transport.queue_count() {
            let doorbell = Gpa(base.0 + QUEUE_NOTIFY);
            self.vm.ioeventfd(doorbell, 4, Some(queue.into()), transport.kick(queue))?;
        }
        self.mmio.plug(base.0, layout::VIRTIO_MMIO_LEN, name, transport.clone())?;
        self.windows.push(VirtioWindow { base, len: layout::VIRTIO_MMIO_LEN, gsi });
        self.transports.push(transport);
        Ok(())
    }

    /// Freezes the buses and ends the board.
    pub fn finish(self) -> Built {
        let Board { ports, mmio, windows, transports, .. } = self;
        Built { ports: ports.finish(), mmio: mmio.finish(), windows, transports }
    }

    /// An interrupt line that KVM listens to.
    fn line(&self, gsi: u32) -> Result<Irq> {
        let irq = Irq::new().with_context(|| format!("Cannot make interrupt line {gsi}"))?;
        self.vm.irqfd(gsi, irq.event_fd())?;
        Ok(irq)
    }
}
