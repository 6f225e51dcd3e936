//! The machine that the foreign drivers run on: registers as a vCPU reaches them, and pages of guest RAM.
//!
//! The drivers want pointers, so this file, unlike the crate, has unsafe code.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::device::VirtioDevice;
use axvm_virtio::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The driver's functions know no machine, so all tests share one.
pub(crate) static RAM: LazyLock<Arc<GuestRam>> =
    LazyLock::new(|| GuestRam::allocate(&RamConfig::new(256 << 20)).unwrap());
static NEXT_PAGE: AtomicU64 = AtomicU64::new(PAGE_SIZE as u64);

/// Guest RAM is handed out once and never taken back: it stays zeroed and unshared.
pub(crate) struct GuestPages;

fn take_pages(bytes: usize) -> (PhysAddr, NonNull<u8>) {
    let len = bytes.next_multiple_of(PAGE_SIZE) as u64;
    let gpa = NEXT_PAGE.fetch_add(len, Ordering::Relaxed);
    let region = RAM.regions().next().unwrap();
    assert!(gpa + len <= region.len, "more guest RAM is needed for the tests");
    (gpa, NonNull::new((region.hva + gpa) as *mut u8).unwrap())
}

// SAFETY: pages are page-aligned, zeroed, inside RAM that lives as long as the process, and given out once.
unsafe impl Hal for GuestPages {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        take_pages(pages * PAGE_SIZE)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("only PCI asks")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let (gpa, bounce) = take_pages(buffer.len());
        // SAFETY: the bounce buffer is fresh and at least as long; the caller vouches for `buffer`.
        unsafe { bounce.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        gpa
    }

    unsafe fn unshare(gpa: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let bounce = NonNull::new((RAM.regions().next().unwrap().hva + gpa) as *mut u8).unwrap();
            // SAFETY: `gpa` came from `share` with this length; the caller vouches for `buffer`.
            unsafe { buffer.cast().copy_from_nonoverlapping(bounce, buffer.len()) };
        }
    }
}

/// The driver's register accesses, as the vCPU would bring them to the bus.
pub(crate) struct Registers(pub(crate) Arc<MmioTransport>);

impl Registers {
    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.0.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }

    fn set_address(&self, offset: u64, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }
}

impl Transport for Registers {
    fn device_type(&self) -> DeviceType {
        self.get(0x008).try_into().unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |select| {
            self.set(0x014, select);
            u64::from(self.get(0x010))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.set(0x024, select);
            self.set(0x020, half as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.set(0x030, queue.into());
        self.get(0x034)
    }

    fn notify(&mut self, queue: u16) {
        self.set(0x050, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.get(0x070))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.set(0x070, status.bits());
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.set(0x030, queue.into());
        self.set(0x038, size);
        self.set_address(0x080, descriptors);
        self.set_address(0x090, driver);
        self.set_address(0x0a0, device);
        self.set(0x044, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.set(0x030, queue.into());
        self.set(0x044, 0);
        assert_eq!(self.get(0x044), 0, "the queue is off when the register says so");
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.set(0x030, queue.into());
        self.get(0x044) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let pending = self.get(0x060);
        self.set(0x064, pending);
        InterruptStatus::from_bits_retain(pending)
    }

    fn read_config_generation(&self) -> u32 {
        self.get(0x0fc)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        self.0.read(0x100 + offset as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<(), Error> {
        self.0.write(0x100 + offset as u64, value.as_bytes());
        Ok(())
    }
}

/// A device behind registers, its worker alive as soon as a driver is.
pub(crate) fn plug(name: &str, device: impl VirtioDevice + 'static) -> Arc<MmioTransport> {
    let (irq, events) = (Irq::new().unwrap(), Events::default());
    Arc::new(MmioTransport::new(name, Box::new(device), Arc::clone(&RAM), irq, events).unwrap())
}
