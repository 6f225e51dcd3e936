//! The program, tried as a user tries it: one binary, so that it is linked once.
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod clock;
mod common;
mod completions;
mod console;
mod control;
mod crashes;
mod disks;
mod endings;
mod errors;
mod errors_host;
mod exec;
mod exec_machine;
mod faults;
mod guests;
mod hang;
mod hotplug;
mod images;
mod life;
mod messages;
mod network;
mod network_errors;
mod network_qemu;
mod network_tap;
mod network_user;
mod own_kernels;
mod pause;
mod pci;
mod processors;
mod sandbox;
mod settings;
mod shown;
mod terminal;
mod trace;
mod version;
mod vsock;
