//! What is measured, in the order of the tables.

use serde::Serialize;

/// One column of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Quantity {
    /// In JSON, and between an experiment and its numbers.
    pub id: &'static str,
    /// In tables.
    pub name: &'static str,
    /// Of the numbers.
    pub unit: &'static str,
    /// A rate, else a cost.
    pub more_is_better: bool,
}

const fn cost(id: &'static str, name: &'static str, unit: &'static str) -> Quantity {
    Quantity { id, name, unit, more_is_better: false }
}

const fn rate(id: &'static str, name: &'static str, unit: &'static str) -> Quantity {
    Quantity { id, name, unit, more_is_better: true }
}

/// All of them.
pub const ALL: [Quantity; 66] = [
    cost("start-128m", "exec to first guest byte, 128 MiB, 1 vCPU", "ms"),
    cost("start-128m-cpu", "its CPU time, user and system", "ms"),
    cost("start-128m-calls", "its system calls", ""),
    cost("start-128m-faults", "its page faults", ""),
    cost("start-2g", "exec to first guest byte, 2 GiB, 1 vCPU", "ms"),
    cost("start-2g-cpu", "its CPU time", "ms"),
    cost("start-20", "exec to first guest byte, 128 MiB, 20 vCPUs", "ms"),
    cost("start-20-cpu", "its CPU time", "ms"),
    cost("private-dirty", "private dirty memory beside guest RAM", "kB"),
    cost("resident", "resident memory beside guest RAM", "kB"),
    cost("off", "guest off to process end", "ms"),
    cost("exit-out", "whole exit, OUT to an unused port", "us"),
    cost("exit-in", "whole exit, IN from COM1", "us"),
    cost("exit-mmio", "whole exit, MMIO read of the disk", "us"),
    cost("outside-out", "outside of KVM_RUN, OUT to an unused port", "ns"),
    cost("outside-in", "outside of KVM_RUN, IN from COM1", "ns"),
    cost("outside-mmio", "outside of KVM_RUN, MMIO read of the disk", "ns"),
    rate("rr1", "4K random read, QD1", "k/s"),
    cost("rr1-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("rr32", "4K random read, QD32", "k/s"),
    cost("rr32-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("rr64", "4K random read, QD64", "k/s"),
    cost("rr64-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("rr128", "4K random read, QD128", "k/s"),
    cost("rr128-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("sp32", "4K random read, 4 queues, 4 vCPUs, QD32 each", "k/s"),
    cost("sp32-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("wr1", "4K random read, QD1, asleep until an interrupt", "k/s"),
    cost("wr1-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("cold32", "4K random read, cold file, QD32", "k/s"),
    cost("cold32-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("rw1", "4K random write, QD1", "k/s"),
    cost("rw1-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("rw32", "4K random write, QD32", "k/s"),
    cost("rw32-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("sr1", "128K sequential read, QD1", "MB/s"),
    cost("sr1-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("sr32", "128K sequential read, QD32", "MB/s"),
    cost("sr32-cpu", "CPU time beside vCPUs, per million", "s"),
    rate("net-out", "1514 byte frames to the host", "MB/s"),
    cost("net-out-cpu", "CPU time beside vCPUs", "ms/GB"),
    rate("net-cut", "64 KiB packets to the host, which cuts them", "MB/s"),
    cost("net-cut-cpu", "CPU time beside vCPUs", "ms/GB"),
    rate("net-in", "1514 byte frames to the guest", "MB/s"),
    cost("net-in-cpu", "CPU time beside vCPUs", "ms/GB"),
    rate("net-echo", "UDP request and answer, asleep until an interrupt", "k/s"),
    cost("net-echo-cpu", "CPU time beside vCPUs, per million", "s"),
    cost("trace-exit-out", "whole exit, OUT to an unused port, recorded", "of one that is not"),
    cost("trace-exit-in", "whole exit, IN from COM1, recorded", "of one that is not"),
    cost("trace-exit-mmio", "whole exit, MMIO read of the disk, recorded", "of one that is not"),
    cost("trace-outside-out", "recording adds outside of KVM_RUN, OUT to an unused port", "ns"),
    cost("trace-outside-in", "recording adds outside of KVM_RUN, IN from COM1", "ns"),
    cost("trace-outside-mmio", "recording adds outside of KVM_RUN, MMIO read of the disk", "ns"),
    cost("trace-rr32", "time of a 4K random read, QD32, recorded", "of one that is not"),
    cost("vmlinux", "stock vmlinux, exec to first KVM_RUN", "ms"),
    cost("vmlinux-cpu", "its CPU time", "ms"),
    cost("vmlinux-peak", "its peak of resident memory, guest RAM too", "kB"),
    cost("bzimage", "stock bzImage, exec to first KVM_RUN", "ms"),
    cost("bzimage-cpu", "its CPU time", "ms"),
    cost("bzimage-peak", "its peak of resident memory, guest RAM too", "kB"),
    cost("lab-6.1-1", "lab: Debian 6.1 to user space, 1 vCPU", "s"),
    cost("lab-6.1-4", "lab: Debian 6.1 to user space, 4 vCPUs", "s"),
    cost("lab-6.1-20", "lab: Debian 6.1 to user space, 20 vCPUs", "s"),
    cost("lab-6.12-1", "lab: Debian 6.12 to user space, 1 vCPU", "s"),
    cost("lab-6.12-4", "lab: Debian 6.12 to user space, 4 vCPUs", "s"),
    cost("lab-6.12-20", "lab: Debian 6.12 to user space, 20 vCPUs", "s"),
];

/// By its id.
pub fn by_id(id: &str) -> Option<Quantity> {
    ALL.into_iter().find(|quantity| quantity.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        for (at, quantity) in ALL.iter().enumerate() {
            assert!(ALL[..at].iter().all(|other| other.id != quantity.id), "{}", quantity.id);
        }
    }
}
