//! How a virtio device comes onto the bus of PCI: its vectors, its function, its doorbells.
//!
//! ```text
//!   MSI-X --routes--> Routes (KVM_SET_GSI_ROUTING)        vectors: an irqfd each, before the first vCPU runs
//!   BAR moves ------> Doorbells (KVM_IOEVENTFD)           whatever the guest's width and value
//! ```
//!
//! Both calls are made by the thread of the vCPU whose guest writes.

use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_arch::msi::MsiRoute;
use axvm_boot::plan::{Part, Place};
use axvm_devices::pci::{MsiRouter, Msix, MsixVector};
use axvm_devices::{Irq, PciHost};
use axvm_events::{Event, Events};
use axvm_kvm::{Doorbells, Routes, Vm};
use axvm_memory::GuestRam;
use axvm_virtio::device::VirtioDevice;
use axvm_virtio::{Transport, pci};

use crate::MachineError;

/// What all functions of a machine share.
#[derive(Clone)]
pub(crate) struct PciWiring {
    host: Arc<PciHost>,
    router: Arc<KvmRouter>,
    /// None where kicks are to be exits.
    doorbells: Option<Arc<Doorbells>>,
}

/// A device on the bus.
pub(crate) struct Wired {
    pub(crate) transport: Arc<Transport>,
    msix: Arc<Msix>,
}

/// The VM's routing table, as MSI-X sees it.
struct KvmRouter {
    routes: Routes,
    events: Events,
}

impl MsiRouter for KvmRouter {
    fn route(&self, routes: &[MsiRoute]) {
        if let Err(error) = self.routes.set(routes) {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let message = format!("{error}{cause}; the guest waits for interrupts that do not come");
            self.events.warn(|| Event::Warning { from: "PCI", message });
        }
    }
}

impl PciWiring {
    pub(crate) fn new(
        vm: &Vm,
        host: &Arc<PciHost>,
        events: &Events,
        kicks_exit: bool,
    ) -> Result<PciWiring, MachineError> {
        let router = KvmRouter { routes: Routes::new(vm)?, events: events.clone() };
        let doorbells = if kicks_exit { None } else { Some(Arc::new(vm.doorbells()?)) };
        Ok(PciWiring { host: Arc::clone(host), router: Arc::new(router), doorbells })
    }

    pub(crate) fn host(&self) -> &Arc<PciHost> {
        &self.host
    }

    /// Puts a device behind the function that the plan has for it.
    pub(crate) fn plug(
        &self,
        vm: &Vm,
        part: &Part,
        device: Box<dyn VirtioDevice>,
        ram: &Arc<GuestRam>,
        events: &Events,
    ) -> Result<Wired, MachineError> {
        let mut vectors = Vec::new();
        for _ in 0..pci::vector_count(device.queue_sizes().len()) {
            match self.vector(vm, part) {
                Ok(vector) => vectors.push(vector),
                Err(error) => {
                    self.disconnect(vm, vectors.iter());
                    return Err(error);
                }
            }
        }
        let msix = Arc::new(Msix::new(vectors, self.router.clone()));
        let transport = pci::transport(&part.name, device, Arc::clone(ram), &msix, events.clone());
        let placed = transport.map_err(MachineError::host(&*part.name)).and_then(|transport| {
            let transport = Arc::new(transport);
            self.place(part, &transport, &msix)?;
            Ok(transport)
        });
        match placed {
            Ok(transport) => Ok(Wired { transport, msix }),
            Err(error) => {
                self.disconnect(vm, msix.vectors());
                Err(error)
            }
        }
    }

    /// Gives back what a device had that is off the bus and at rest.
    pub(crate) fn release(&self, vm: &Vm, Wired { msix, .. }: Wired) {
        self.disconnect(vm, msix.vectors());
    }

    /// Disconnects irqfds, then frees their numbers. What KVM refuses is of no more use, and is closed anyway.
    fn disconnect<'a>(&self, vm: &Vm, vectors: impl Iterator<Item = &'a MsixVector>) {
        let disconnect = |vector: &MsixVector| {
            let _ = vm.unregister_irqfd(vector.gsi, vector.irq.event_fd());
            vector.gsi
        };
        let gsis: Vec<_> = vectors.map(disconnect).collect();
        let _ = self.router.routes.free(&gsis);
    }

    /// Puts the function of a device into its place.
    fn place(&self, part: &Part, transport: &Arc<Transport>, msix: &Arc<Msix>) -> Result<(), MachineError> {
        for place in &part.places {
            if let Place::Pci { devfn, bar } = *place {
                let function = pci::function(transport, Arc::clone(msix), bar.0, self.on_move(transport));
                self.host.add(devfn, &part.name, function)?;
            }
        }
        Ok(())
    }

    /// One interrupt, connected; it has no message yet.
    fn vector(&self, vm: &Vm, part: &Part) -> Result<MsixVector, MachineError> {
        let irq = Irq::new().map_err(MachineError::host(format!("the interrupts of {}", part.name)))?;
        let gsi = self.router.routes.allocate()?;
        vm.irqfd(gsi, irq.event_fd())?;
        Ok(MsixVector { irq, gsi })
    }

    /// Doorbells go where the BAR goes. One that the host refuses is answered by an exit.
    fn on_move(&self, transport: &Arc<Transport>) -> impl Fn(Option<u64>, Option<u64>) + Send + Sync + 'static {
        let (doorbells, transport) = (self.doorbells.clone(), Arc::clone(transport));
        move |from, to| {
            let Some(doorbells) = &doorbells else { return };
            for queue in 0..transport.queue_count() {
                let (at, kick) = (|base: u64| Gpa(base + pci::doorbell(queue)), transport.kick(queue));
                from.into_iter().for_each(|base| _ = doorbells.disconnect(at(base), kick));
                to.into_iter().for_each(|base| _ = doorbells.connect(at(base), kick));
            }
        }
    }
}
