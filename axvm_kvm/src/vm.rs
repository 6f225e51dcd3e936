//! A virtual machine as KVM knows it: memory slots, interrupt controllers, timer, eventfds.
//!
//! ```text
//!   device --eventfd--> irqfd --GSI--> PIC (pins 0-15)  \
//!                                  \-> IOAPIC (24 pins) --> local APICs
//!   guest writes a doorbell --> ioeventfd --eventfd--> device worker     (no exit to user space)
//! ```
//!
//! Routing is that of a PC: GSI n is pin n of both controllers, except that the PIT (GSI 0) arrives
//! at IOAPIC pin 2, and GSI 2, the cascade of the two PICs, is no device's.
//!
//! Spec: KVM API 4.24 `KVM_CREATE_IRQCHIP`, 4.35 `KVM_SET_USER_MEMORY_REGION`, 4.52
//! `KVM_SET_GSI_ROUTING`, 4.59 `KVM_IOEVENTFD`, 4.71 `KVM_CREATE_PIT2`, 4.75 `KVM_IRQFD`.
//! Messages (MSI) have their routes in `routes`. Left out: memory slots that come or go.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use axvm_arch::{Gpa, layout};
use axvm_memory::GuestRam;
use axvm_sync::{EventFd, lock};
use kvm_bindings::{self as kvm, KvmIrqRouting};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};

use crate::{Capabilities, KvmError};

/// Pins of the two cascaded PICs.
const PIC_PINS: u32 = 16;
/// The GSI that the second PIC takes on the first.
const CASCADE: u32 = 2;

vmm_sys_util::ioctl_iow_nr!(kvm_irqfd, kvm::KVMIO, 0x76, kvm::kvm_irqfd);
vmm_sys_util::ioctl_iow_nr!(kvm_irq_line, kvm::KVMIO, 0x61, kvm::kvm_irq_level);
vmm_sys_util::ioctl_iow_nr!(kvm_ioeventfd, kvm::KVMIO, 0x79, kvm::kvm_ioeventfd);
vmm_sys_util::ioctl_io_nr!(kvm_get_tsc_khz, kvm::KVMIO, 0xa3);

/// One VM.
#[derive(Debug)]
pub struct Vm {
    pub(crate) fd: VmFd,
    pub(crate) capabilities: Capabilities,
    /// The memory behind the slots: stays mapped as long as anything can run in it.
    pub(crate) ram: Arc<GuestRam>,
    /// The MSRs of a vCPU's state.
    pub(crate) msrs: Arc<[u32]>,
    /// The lines that are connected, to wait for what is on its way.
    irqfds: Mutex<Vec<ConnectedLine>>,
    /// vCPUs are handed over with their APIC in x2APIC mode.
    x2apic: AtomicBool,
}

/// A connected line.
#[derive(Debug)]
pub(crate) struct ConnectedLine {
    pub(crate) gsi: u32,
    /// The number of the descriptor that the caller gave; to tell two on one line apart.
    given: RawFd,
    /// A second handle to it: KVM knows an eventfd, not a descriptor.
    pub(crate) fd: EventFd,
}

impl Vm {
    /// Builds a VM. All memory slots come before the irqchip: a slot added later waits for
    /// milliseconds until every user of the irqchip's locks has passed (SRCU).
    pub(crate) fn create(
        kvm: &kvm_ioctls::Kvm,
        capabilities: Capabilities,
        msrs: Arc<[u32]>,
        ram: &Arc<GuestRam>,
    ) -> Result<Vm, KvmError> {
        let fd = create_fd(kvm)?;
        fd.set_tss_address(layout::KVM_TSS.0 as usize).map_err(step("place the TSS (KVM_SET_TSS_ADDR)"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP.0)
            .map_err(step("place the identity map (KVM_SET_IDENTITY_MAP_ADDR)"))?;
        add_ram(&fd, ram)?;
        fd.create_irq_chip().map_err(step("create the interrupt controllers (KVM_CREATE_IRQCHIP)"))?;
        let routing =
            KvmIrqRouting::from_entries(&pc_routing()).expect("a few dozen entries are below the limit of 4096");
        fd.set_gsi_routing(&routing).map_err(step("route the interrupt lines (KVM_SET_GSI_ROUTING)"))?;
        let pit = kvm::kvm_pit_config { flags: kvm::KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(step("create the timer (KVM_CREATE_PIT2)"))?;
        Ok(Vm { fd, capabilities, ram: ram.clone(), msrs, irqfds: Mutex::default(), x2apic: AtomicBool::new(false) })
    }

    /// From now on each write to `fd` is an edge on interrupt line `gsi`.
    pub fn irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), KvmError> {
        let kept = fd.try_clone().map_err(|source| KvmError::IrqFd { gsi, source })?;
        self.connect(gsi, fd)?;
        self.irqfds().push(ConnectedLine { gsi, given: fd.as_raw_fd(), fd: kept });
        Ok(())
    }

    /// Interrupt line `gsi` as a level, for a device that has it alone.
    pub fn level_line(&self, gsi: u32) -> Result<LevelLine, KvmError> {
        let vm = self.descriptor().map_err(|source| KvmError::LevelLine { gsi, source })?;
        Ok(LevelLine { vm, gsi })
    }

    /// A second handle to this VM, for what has the VM's calls to make by itself.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor is this VM's and open while it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        fd.try_clone_to_owned()
    }

    /// Disconnects `fd` from line `gsi`; edges that it had raised are in the interrupt controllers when this returns.
    pub fn unregister_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), KvmError> {
        self.disconnect(gsi, fd)?;
        self.irqfds().retain(|line| (line.gsi, line.given) != (gsi, fd.as_raw_fd()));
        Ok(())
    }

    /// `KVM_IRQFD`.
    pub(crate) fn connect(&self, gsi: u32, fd: &EventFd) -> Result<(), KvmError> {
        self.set_irqfd(gsi, fd, 0)
    }

    /// `KVM_IRQFD` with the flag to disconnect: waits for the kernel's work queue.
    pub(crate) fn disconnect(&self, gsi: u32, fd: &EventFd) -> Result<(), KvmError> {
        self.set_irqfd(gsi, fd, kvm::KVM_IRQFD_FLAG_DEASSIGN)
    }

    fn set_irqfd(&self, gsi: u32, fd: &EventFd, flags: u32) -> Result<(), KvmError> {
        let line = kvm::kvm_irqfd { fd: fd.as_raw_fd().cast_unsigned(), gsi, flags, ..Default::default() };
        // SAFETY: the ioctl reads the structure, which lives through the call, and nothing else of ours.
        match unsafe { ioctl_with_ref(&self.fd, kvm_irqfd(), &line) } {
            0 => Ok(()),
            _ => Err(KvmError::IrqFd { gsi, source: io::Error::last_os_error() }),
        }
    }

    /// The lines that are connected.
    pub(crate) fn irqfds(&self) -> MutexGuard<'_, Vec<ConnectedLine>> {
        lock(&self.irqfds)
    }

    /// From now on a guest write of `len` bytes to `gpa` signals `fd` and does not exit.
    ///
    /// `len` is 1, 2 or 4, or 0 for any width. With `value`, only writes of that value count
    /// (and `len` must not be 0); others exit as before.
    pub fn ioeventfd(&self, gpa: Gpa, len: u32, value: Option<u32>, fd: &EventFd) -> Result<(), KvmError> {
        let flags = if value.is_some() { 1 << kvm::kvm_ioeventfd_flag_nr_datamatch } else { 0 };
        let datamatch = value.unwrap_or(0).into();
        set_ioeventfd(&self.fd, kvm::kvm_ioeventfd { datamatch, len, flags, ..doorbell(gpa, fd) })
    }

    /// Doorbells that come and go while the machine runs.
    pub fn doorbells(&self) -> Result<Doorbells, KvmError> {
        self.descriptor().map(Doorbells).map_err(step_io("get a second handle"))
    }

    /// Makes APIC ids above 254 possible: 32-bit ids, no broadcast at 0xff, and every vCPU created
    /// from now on starts in x2APIC mode, as firmware of such a machine leaves it
    /// (Intel SDM volume 3, "Extended XAPIC (x2APIC)": "Initialization by System Software").
    ///
    /// Call it before the first vCPU; `Capabilities::x2apic_api` says whether it can work.
    pub fn enable_x2apic_api(&self) -> Result<(), KvmError> {
        let flags = kvm::KVM_X2APIC_API_USE_32BIT_IDS | kvm::KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        let mut cap = kvm::kvm_enable_cap { cap: kvm::KVM_CAP_X2APIC_API, ..Default::default() };
        cap.args[0] = flags.into();
        self.fd.enable_cap(&cap).map_err(step("allow APIC ids above 254 (KVM_CAP_X2APIC_API)"))?;
        // Relaxed: one thread builds the machine, and a thread that it starts sees what it wrote.
        self.x2apic.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes KVM's performance counters from this VM: RDPMC faults, and nothing on the host counts for it. A guest that
    /// is told of none could use them otherwise: AMD's oldest have no bit in CPUID at all.
    ///
    /// Call it before the first vCPU; `Capabilities::pmu_disable` says whether it can work.
    pub fn disable_pmu(&self) -> Result<(), KvmError> {
        let mut cap = kvm::kvm_enable_cap { cap: kvm::KVM_CAP_PMU_CAPABILITY, ..Default::default() };
        cap.args[0] = kvm::KVM_PMU_CAP_DISABLE.into();
        self.fd.enable_cap(&cap).map_err(step("take the performance counters away (KVM_CAP_PMU_CAPABILITY)"))
    }

    /// Whether vCPUs start in x2APIC mode.
    pub(crate) fn x2apic(&self) -> bool {
        self.x2apic.load(Ordering::Relaxed)
    }

    /// Frequency of the guest's TSC in kHz, or `None` on Linux before 5.18, which knows it per vCPU only.
    pub fn tsc_khz(&self) -> Option<u32> {
        // SAFETY: the ioctl takes no argument.
        let khz = unsafe { ioctl(&self.fd, kvm_get_tsc_khz()) };
        u32::try_from(khz).ok().filter(|&khz| khz > 0)
    }
}

/// An interrupt line that stays as it is set: `KVM_IRQ_LINE`.
///
/// An edge that is not taken in time is gone; a level waits for a PIC or an IOAPIC that is told to look at levels.
#[derive(Debug)]
pub struct LevelLine {
    vm: OwnedFd,
    gsi: u32,
}

impl LevelLine {
    /// Raises or lowers the line.
    pub fn set(&self, level: bool) {
        let mut line = kvm::kvm_irq_level { level: level.into(), ..Default::default() };
        line.__bindgen_anon_1.irq = self.gsi;
        // SAFETY: the ioctl reads the structure, which lives through the call, and nothing else of ours. It fails for a VM
        // without interrupt controllers, and each of ours has them.
        let _ = unsafe { ioctl_with_ref(&self.vm, kvm_irq_line(), &line) };
    }
}

/// Doorbells for writes of any width and value, which a guest may move: `KVM_IOEVENTFD`.
#[derive(Debug)]
pub struct Doorbells(OwnedFd);

impl Doorbells {
    /// From now on a guest write to `gpa` signals `fd` and does not exit.
    pub fn connect(&self, gpa: Gpa, fd: &EventFd) -> Result<(), KvmError> {
        set_ioeventfd(&self.0, doorbell(gpa, fd))
    }

    /// From now on it exits again.
    pub fn disconnect(&self, gpa: Gpa, fd: &EventFd) -> Result<(), KvmError> {
        let flags = 1 << kvm::kvm_ioeventfd_flag_nr_deassign;
        set_ioeventfd(&self.0, kvm::kvm_ioeventfd { flags, ..doorbell(gpa, fd) })
    }
}

/// Any write to `gpa`.
fn doorbell(gpa: Gpa, fd: &EventFd) -> kvm::kvm_ioeventfd {
    kvm::kvm_ioeventfd { addr: gpa.0, fd: fd.as_raw_fd(), ..Default::default() }
}

fn set_ioeventfd(vm: &impl AsRawFd, doorbell: kvm::kvm_ioeventfd) -> Result<(), KvmError> {
    // SAFETY: the ioctl reads the structure, which lives through the call, and nothing else of ours.
    match unsafe { ioctl_with_ref(vm, kvm_ioeventfd(), &doorbell) } {
        0 => Ok(()),
        _ => {
            let (gpa, len) = (Gpa(doorbell.addr), doorbell.len);
            Err(KvmError::IoEventFd { gpa, len, source: io::Error::last_os_error() })
        }
    }
}

/// `KVM_CREATE_VM`, again when a signal came in between.
pub(crate) fn create_fd(kvm: &kvm_ioctls::Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm().map_err(io::Error::from) {
            Ok(fd) => return Ok(fd),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(KvmError::Busy(error)),
            Err(source) => return Err(KvmError::CreateVm { step: "get a file descriptor (KVM_CREATE_VM)", source }),
        }
    }
}

/// One memory slot for each region of RAM.
fn add_ram(fd: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.regions()) {
        let slot = kvm::kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.gpa.0,
            memory_size: region.len,
            userspace_addr: region.hva,
        };
        // SAFETY: the region is a live mapping made for the guest, and `Vm` and every `KvmVcpu` keep it
        // mapped by holding the `Arc<GuestRam>`; no Rust code forms references into it.
        unsafe { fd.set_user_memory_region(slot) }.map_err(|errno| KvmError::MemorySlot {
            gpa: region.gpa,
            len: region.len,
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// The routing of a PC (see the picture above).
pub(crate) fn pc_routing() -> Vec<kvm::kvm_irq_routing_entry> {
    let pin = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry = kvm::kvm_irq_routing_entry { gsi, type_: kvm::KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm::kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let pic = |gsi: u32| match gsi {
        0..8 => pin(gsi, kvm::KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => pin(gsi, kvm::KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
    };
    let ioapic = |gsi: u32| pin(gsi, kvm::KVM_IRQCHIP_IOAPIC, layout::gsi::pin(gsi));
    let lines = |end| (0..end).filter(|&gsi| gsi != CASCADE);
    lines(PIC_PINS).map(pic).chain(lines(layout::gsi::COUNT).map(ioapic)).collect()
}

fn step(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |errno| KvmError::CreateVm { step, source: errno.into() }
}

fn step_io(step: &'static str) -> impl FnOnce(io::Error) -> KvmError {
    move |source| KvmError::CreateVm { step, source }
}
