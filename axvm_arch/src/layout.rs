//! Where things lie in guest-physical memory, and which interrupt line is whose.
//!
//! ```text
//!  0x0000_0400  BIOS data area (Multiboot)   \
//!  0x0000_0500  GDT                           |
//!  0x0000_6000  PVH start info                |  low RAM, used by the entry state;
//!  0x0000_7000  zero page (boot_params)       |  the kernel reclaims it
//!  0x0000_8ff0  boot stack, growing down      |
//!  0x0000_9000  page tables (--entry 64)      |
//!  0x0002_0000  command line                  |
//!  0x0003_0000  Multiboot information        /
//!  0x0009_fc00  end of low RAM (EBDA, reserved)
//!  0x000e_0000  RSDP and ACPI tables (e820: ACPI data)
//!  0x000f_d000  MP table (in the same range of e820)
//!  0x000f_f000  FACS (e820: ACPI NVS)
//!  0x000f_fff0    a jump here resets
//!  0x0010_0000  high RAM: kernel, initrd
//!  0xc000_0000  hole: 3 GiB .. 4 GiB, no RAM; PCI's window of 32 bits
//!  0xd000_0000    virtio-mmio windows, 4 KiB each
//!  0xe000_0000    PCI's ECAM
//!  0xfec0_0000    IOAPIC
//!  0xfee0_0000    local APIC
//!  0xfffb_c000    KVM's identity map and TSS (4 pages)
//!  1 << 32      the rest of RAM, then PCI's window of 64 bits
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15); ACPI 6.5, 5.2.5.1 "Finding the
//! RSDP on IA-PC Systems"; Intel SDM volume 3, 11.4.1 (local APIC base); KVM API 4.35, 4.42.

use crate::Gpa;

/// What a PC's BIOS leaves for those who come after it.
pub const BIOS_DATA: Gpa = Gpa(0x400);
/// The boot GDT: null, code, data, TSS descriptors.
pub const GDT: Gpa = Gpa(0x500);
/// PVH `hvm_start_info`, its module list and its memory map (one page).
pub const PVH_START_INFO: Gpa = Gpa(0x6000);
/// The zero page: `struct boot_params`, 4096 bytes.
pub const ZERO_PAGE: Gpa = Gpa(0x7000);
/// Initial stack pointer for the 64-bit entry.
pub const BOOT_STACK: Gpa = Gpa(0x8ff0);
/// PML4, PDPT and four page directories (six pages) for the 64-bit entry.
pub const PAGE_TABLES: Gpa = Gpa(0x9000);
/// The kernel command line, NUL-terminated.
pub const COMMAND_LINE: Gpa = Gpa(0x2_0000);
/// Room for the command line with its NUL, in bytes.
pub const COMMAND_LINE_ROOM: u64 = 0x1_0000;
/// Multiboot information, with the command line once more.
pub const MULTIBOOT_INFO: Gpa = Gpa(0x3_0000);
/// Where usable low RAM ends (the EBDA of a PC starts here).
pub const LOW_RAM_END: Gpa = Gpa(0x9_fc00);
/// RSDP, followed by the other ACPI tables. On a 16-byte boundary in 0xe0000..0xfffff, so scanning finds it.
pub const ACPI_TABLES: Gpa = Gpa(0xe_0000);
/// The MP table's pointer, then the table: on a 16-byte boundary in 0xf0000..0xfffff, so scanning finds it. The room for
/// ACPI tables ends here.
pub const MP_TABLE: Gpa = Gpa(0xf_d000);
/// The FACS, behind the room for the MP table.
pub const FACS: Gpa = Gpa(0xf_f000);
/// FFFF:0000, where a processor of a PC starts in real mode, 16 bytes.
pub const RESET_VECTOR: Gpa = Gpa(0xf_fff0);
/// Start of high RAM.
pub const HIGH_RAM: Gpa = Gpa(0x10_0000);
/// Start of the hole below 4 GiB; RAM continues at [`RAM_ABOVE_4G`].
pub const HOLE: Gpa = Gpa(0xc000_0000);
/// First address above the hole.
pub const RAM_ABOVE_4G: Gpa = Gpa(1 << 32);

/// First virtio-mmio window.
pub const VIRTIO_MMIO: Gpa = Gpa(0xd000_0000);
/// Distance between two virtio-mmio windows, in bytes.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// Length of the registers in one virtio-mmio window, in bytes (0x100 of registers, the rest is device configuration).
pub const VIRTIO_MMIO_LEN: u64 = 0x200;
/// Where BARs of PCI functions may be that a guest of 32 bits can reach; at power-on they are here.
pub const PCI_WINDOW: Gpa = HOLE;
/// Length of that window in bytes.
pub const PCI_WINDOW_LEN: u64 = VIRTIO_MMIO.0 - HOLE.0;
/// The configuration spaces of PCI, 4 KiB for each function.
pub const PCI_ECAM: Gpa = Gpa(0xe000_0000);
/// Length of those of one bus, in bytes.
pub const PCI_ECAM_LEN: u64 = 1 << 20;
/// Length of the window above RAM in bytes, and what its beginning is a multiple of.
pub const PCI_HIGH_WINDOW_LEN: u64 = 1 << 30;
/// IOAPIC registers (in KVM).
pub const IOAPIC: Gpa = Gpa(0xfec0_0000);
/// Local APIC registers (in KVM).
pub const LAPIC: Gpa = Gpa(0xfee0_0000);
/// One page for KVM's identity map of a real-mode guest (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: Gpa = Gpa(0xfffb_c000);
/// Three pages for KVM's real-mode TSS (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: Gpa = Gpa(0xfffb_d000);

/// Where BARs of 64 bits may be, above `ram_len` bytes of RAM and the hole in it.
pub fn pci_high_window(ram_len: u64) -> Gpa {
    let above = ram_len.saturating_sub(HOLE.0).saturating_add(RAM_ABOVE_4G.0);
    Gpa(above.next_multiple_of(PCI_HIGH_WINDOW_LEN))
}

/// I/O ports.
pub mod port {
    /// The first 8259: command and data.
    pub const PIC_MASTER: u16 = 0x20;
    /// i8254: three counters and the mode register.
    pub const PIT: u16 = 0x40;
    /// Gate and output of the i8254's counter 2 (the PC speaker).
    pub const SPEAKER: u16 = 0x61;
    /// The second 8259: command and data.
    pub const PIC_SLAVE: u16 = 0xa0;
    /// Edge or level for each input of the two 8259s.
    pub const ELCR: u16 = 0x4d0;
    /// COM1, 8 registers.
    pub const COM1: u16 = 0x3f8;
    /// The debug console, 1 byte.
    pub const DEBUG_CONSOLE: u16 = 0xe9;
    /// Ports of the debug-exit device, wherever it is.
    pub const DEBUG_EXIT_COUNT: u16 = 4;
    /// i8042 data register; the command/status register is at 0x64.
    pub const I8042: u16 = 0x60;
    /// CMOS/RTC index register; data follows at 0x71.
    pub const RTC: u16 = 0x70;
    /// pvpanic, 1 byte.
    pub const PVPANIC: u16 = 0x505;
    /// ACPI PM1a event block: status (2 bytes), enable (2 bytes).
    pub const PM1A_EVENT: u16 = 0x600;
    /// ACPI PM1a control block, 2 bytes.
    pub const PM1A_CONTROL: u16 = 0x604;
    /// ACPI power management timer, 4 bytes.
    pub const PM_TIMER: u16 = 0x608;
    /// The hotplug controller of PCI, 12 bytes.
    pub const PCI_HOTPLUG: u16 = 0x610;
    /// PCI configuration address; data follows at 0xcfc.
    pub const PCI: u16 = 0xcf8;
    /// Reset control register, named by the FADT; writing [`RESET_VALUE`] resets the machine.
    pub const RESET: u16 = 0xcf9;
    /// Value that the FADT tells the guest to write to [`RESET`].
    pub const RESET_VALUE: u8 = 0x06;
}

/// Numbers that the ACPI tables tell the guest and a chip must understand.
pub mod acpi {
    /// SLP_TYP of S5 (soft off): in the `_S5` package, and in the PM1a control register.
    pub const SLEEP_TYPE_S5: u8 = 5;
}

/// Global system interrupts (GSI). 0 to 15 are the ISA lines, 16 to 23 the rest of the IOAPIC.
pub mod gsi {
    /// PIT channel 0; on the IOAPIC it arrives at pin 2 (MADT source override).
    pub const TIMER: u32 = 0;
    /// IOAPIC pin of the PIT.
    pub const TIMER_PIN: u32 = 2;
    /// COM1.
    pub const COM1: u32 = 4;
    /// Real-time clock.
    pub const RTC: u32 = 8;
    /// ACPI system control interrupt (SCI). Level, active high (MADT source override).
    pub const SCI: u32 = 9;
    /// Lines for virtio devices, in the order they are handed out: the first block device is on 5.
    /// 0-15 work without an IOAPIC; 16-23 need one.
    pub const VIRTIO: [u32; 14] = [5, 10, 11, 12, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
    /// The hotplug controller of PCI, on machines whose virtio devices need no lines.
    pub const HOTPLUG: u32 = 16;
    /// The lines of the two 8259s: the only ones that a guest without ACPI knows.
    pub const ISA_COUNT: u32 = 16;
    /// Number of IOAPIC pins.
    pub const COUNT: u32 = 24;

    /// The pin of the IOAPIC at which a line arrives.
    pub const fn pin(line: u32) -> u32 {
        match line {
            TIMER => TIMER_PIN,
            _ => line,
        }
    }
}
