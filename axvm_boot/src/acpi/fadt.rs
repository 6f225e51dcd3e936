//! FADT and FACS: the registers of ACPI itself, and which parts of a PC are (not) here.
//!
//! ```text
//!  FADT --> PM1a event block (port 0x600), PM1a control block (0x604), SCI = GSI 9
//!       --> PM timer (port 0x608)
//!       --> reset register (port 0xcf9, value 6)
//!       --> DSDT, FACS
//! ```
//!
//! Each register block is named twice, by a 32-bit port and by a generic address (`X_`). Linux
//! compares the two and complains when they differ, so both are given, from one constant. The
//! FACS lies below 4 GiB and is named once: ACPI gives the 64-bit field to a FACS above.
//!
//! Spec: ACPI 6.5, 5.2.9 "Fixed ACPI Description Table (FADT)", 5.2.10 "Firmware ACPI Control
//! Structure (FACS)", 4.8.3 "Fixed Hardware Registers".

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use axvm_arch::{Gpa, layout};
use layout::{gsi, port};

use super::madt::LAST_XAPIC_ID;
use super::root::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Length of the PM1a event block in bytes: status and enable.
const PM1_EVENT_LEN: u8 = 4;
/// Length of the PM1a control block in bytes.
const PM1_CONTROL_LEN: u8 = 2;
/// Length of the PM timer in bytes.
const PM_TIMER_LEN: u8 = 4;

/// IAPC_BOOT_ARCH: there are devices on the ISA bus (COM1, RTC).
const LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH: no VGA. The 8042 bit (1) stays clear, so that no OS probes for a keyboard.
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// C2 and C3 latencies (us) that mean "no such state".
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// CMOS byte that holds the century.
const CENTURY: u8 = 0x32;
/// FACS version of ACPI 4.0 and later.
const FACS_VERSION: u8 = 2;

/// What the machine's fixed hardware is.
///
/// A clear PWR_BUTTON means that the power button *is* fixed hardware, a set SLP_BUTTON that there
/// is no sleep button there, a clear FIX_RTC that the RTC's alarm is told in the fixed registers, TMR_VAL_EXT that the PM
/// timer has 32 bits.
const FLAGS: [Flags; 5] = [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::TmrValExt, Flags::ResetRegSup];

/// The FADT (revision 6.5) of a machine whose highest APIC id is `last_apic_id`.
pub(super) fn fadt(dsdt: Gpa, facs: Gpa, last_apic_id: Option<u32>) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    fadt.firmware_ctrl = (facs.0 as u32).into();
    fadt.dsdt = (dsdt.0 as u32).into();
    fadt.x_dsdt = dsdt.0.into();

    fadt.sci_int = (gsi::SCI as u16).into();
    // SMI_CMD, ACPI_ENABLE and the like stay 0: the machine is always in ACPI mode.
    fadt.pm1a_evt_blk = u32::from(port::PM1A_EVENT).into();
    fadt.pm1_evt_len = PM1_EVENT_LEN;
    fadt.x_pm1a_evt_blk = io(port::PM1A_EVENT, PM1_EVENT_LEN, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(port::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = PM1_CONTROL_LEN;
    fadt.x_pm1a_cnt_blk = io(port::PM1A_CONTROL, PM1_CONTROL_LEN, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(port::PM_TIMER).into();
    fadt.pm_tmr_len = PM_TIMER_LEN;
    fadt.x_pm_tmr_blk = io(port::PM_TIMER, PM_TIMER_LEN, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = io(port::RESET, 1, AccessSize::ByteAccess);
    fadt.reset_value = port::RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"AXVM\0\0\0\0").into();

    let mut fadt = FLAGS.into_iter().fold(fadt, FADTBuilder::flag);
    if last_apic_id > Some(LAST_XAPIC_ID) {
        // Without interrupt remapping a logical destination cannot reach such an id.
        fadt = fadt.flag(Flags::ForceApicPhysicalDestinationMode);
    }
    bytes(&fadt.finalize())
}

/// The FACS: all zero but for its name, length and version. It has no checksum.
pub(super) fn facs() -> Vec<u8> {
    let mut facs = FACS::new();
    facs.version = FACS_VERSION;
    bytes(&facs)
}

/// A register block of `len` bytes in I/O space.
fn io(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, port.into())
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
