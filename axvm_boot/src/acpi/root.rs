//! The common table header, and the tables that only point at others: RSDP, RSDT, XSDT.
//!
//! ```text
//!  header, 36 bytes:  signature | length | revision | checksum | OEM id, table id, revision | creator
//!                     all bytes of a table, checksum included, add up to 0 (mod 256)
//!  RSDP (no header):  "RSD PTR " | sum of 20 | OEM id | 2 | RSDT | length | XSDT | sum of 36
//! ```
//!
//! Spec: ACPI 6.5, 5.2.5.3 "Root System Description Pointer (RSDP) Structure", 5.2.6 "System
//! Description Table Header", 5.2.7 "RSDT", 5.2.8 "XSDT". An OS with 64-bit ACPI reads the XSDT; the
//! RSDT serves older ones.

use acpi_tables::sdt::Sdt;
use axvm_arch::Gpa;

/// OEM id of every table.
pub(super) const OEM_ID: [u8; 6] = *b"AXVM  ";
/// OEM table id; the FADT's must be the RSDT's, so all tables have the same.
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"AXVMCORE";
/// OEM revision of every table.
pub(super) const OEM_REVISION: u32 = 1;
/// Length of the RSDP in bytes.
pub(super) const RSDP_LEN: usize = 36;
/// Length of the part of the RSDP that ACPI 1.0 knew, with a checksum of its own.
const RSDP_1_LEN: usize = 20;
/// Length of the header of all other tables.
const HEADER_LEN: u32 = 36;

/// A table with header and checksum around `body`.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut sdt = Sdt::new(signature, HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}

/// Where it all starts.
pub(super) fn rsdp(rsdt: Gpa, xsdt: Gpa) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RSDP_LEN);
    bytes.extend(b"RSD PTR ");
    bytes.push(0);
    bytes.extend(OEM_ID);
    bytes.push(2); // revision: ACPI 2.0 and later
    bytes.extend((rsdt.0 as u32).to_le_bytes());
    bytes.extend((RSDP_LEN as u32).to_le_bytes());
    bytes.extend(xsdt.0.to_le_bytes());
    bytes.extend([0; 4]); // extended checksum, reserved
    bytes[8] = checksum(&bytes[..RSDP_1_LEN]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Pointers of 4 bytes.
pub(super) fn rsdt(tables: &[Gpa]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|gpa| (gpa.0 as u32).to_le_bytes()).collect();
    table(*b"RSDT", 1, &body)
}

/// Pointers of 8 bytes.
pub(super) fn xsdt(tables: &[Gpa]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|gpa| gpa.0.to_le_bytes()).collect();
    table(*b"XSDT", 1, &body)
}

/// The byte that makes the sum zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}
