//! The power-on states that AxVM makes, by every entry, pass the VM-entry lint without a word, on any processor.

use axvm_arch::Gpa;
use axvm_arch::cpuid::Vendor;
use axvm_arch::paging::Scheme;
use axvm_boot::kernel::field::{self, Field};
use axvm_boot::linux::{self, Entry, LinuxConfig};
use axvm_inspect::lint::{EntryState, check};
use axvm_inspect::snapshot::{Processor, Snapshot};
use axvm_memory::{GuestRam, RamConfig};

/// The least that is a bzImage: a header, and some bytes of code. It can be entered in 32 and in 64 bits.
pub fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 3 * 512 + 0x1000];
    let mut put = |field: Field, value: u64| {
        image[field.offset..field.end()].copy_from_slice(&value.to_le_bytes()[..field.size]);
    };
    put(field::SETUP_SECTS, 2);
    put(field::SYSSIZE, 0x100);
    put(field::BOOT_FLAG, 0xaa55);
    put(field::JUMP, 0x6aeb);
    put(field::HEADER, 0x5372_6448);
    put(field::VERSION, 0x20f);
    put(field::LOADFLAGS, 1);
    put(field::CODE32_START, 0x10_0000);
    put(field::INITRD_ADDR_MAX, 0x7fff_ffff);
    put(field::KERNEL_ALIGNMENT, 0x20_0000);
    put(field::RELOCATABLE_KERNEL, 1);
    put(field::XLOADFLAGS, 1);
    put(field::CMDLINE_SIZE, 2047);
    put(field::PREF_ADDRESS, 16 << 20);
    put(field::INIT_SIZE, 16 << 20);
    image
}

#[test]
fn what_axvm_starts_is_clean() {
    let (bzimage, selftest, multiboot) = (bzimage(), axvm_guest::selftest(), axvm_guest::multiboot());
    for (entry, kernel, scheme) in [
        (Entry::Bits32, &bzimage[..], Scheme::Off),
        (Entry::Bits64, &bzimage[..], Scheme::FourLevel),
        (Entry::Pvh, selftest, Scheme::Off),
        (Entry::Multiboot, multiboot, Scheme::Off),
    ] {
        let ram = GuestRam::allocate(&RamConfig::new(64 << 20)).unwrap();
        let config = LinuxConfig { entry: Some(entry), ..LinuxConfig::default() };
        let start = linux::prepare(&ram, &kernel, &config, None).unwrap();
        assert_eq!(Scheme::of(&start.state.system), scheme, "{entry}");
        let read = |gpa: Gpa, data: &mut [u8]| ram.read(gpa, data).is_ok();
        let mut snapshot = Snapshot::from(start.state);
        for vendor in [Vendor::Intel, Vendor::Amd, Vendor::Unknown] {
            let processor = Processor { vendor, physical_bits: 36, linear_bits: 48, ..Processor::default() };
            let state = EntryState { snapshot: &snapshot, processor: &processor, read: Some(&read) };
            assert_eq!(check(&state), [], "{entry}");
        }
        // And the check does look.
        snapshot.cpu.regs.rip = 1 << 30;
        let processor = Processor::default();
        let state = EntryState { snapshot: &snapshot, processor: &processor, read: Some(&read) };
        assert_eq!(check(&state).len(), 1, "{entry}");
    }
}
