//! What a PC looks like at power-on, as data.
//!
//! ```text
//!   kernel's headers, command line --linux::prepare--> pieces to load, tables in guest RAM, CpuState of the first CPU
//!   what is wanted               --Plan::new------> who sits where: every part, its registers, its line
//!   vCPUs, the plan              --acpi::build----> ACPI tables as bytes
//!   vCPUs                        --mp::build------> MP table, for kernels without ACPI
//!   KVM's supported CPUID        --cpu::leaves-----> CPUID of each vCPU
//! ```
//!
//! No system call is made here and nothing runs: the whole power-on state can be built, checked and
//! printed on a machine without KVM.
//!
//! Left out: firmware images (we are the firmware), real-mode entry, EFI handover.
#![forbid(unsafe_code)]

pub mod acpi;
mod acpi_extent;
pub mod bus;
pub mod command_line;
pub mod contradiction;
pub mod cpu;
pub mod e820;
pub mod kernel;
pub mod linux;
pub mod mp;
pub mod plan;
pub mod read_at;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod synthetic;
