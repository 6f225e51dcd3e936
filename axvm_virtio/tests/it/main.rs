//! Devices, their transport and their queues, under drivers good and bad: one binary, so that it is linked once.
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod balloon;
mod balloon_statistics;
mod block;
mod block_ephemeral;
mod block_faults;
mod block_full;
mod block_host;
mod block_hostile;
mod block_resize;
mod common;
mod console;
mod console_hostile;
mod mmio;
mod net;
mod net_control;
mod net_flow;
mod net_hostile;
mod net_offloads;
mod net_pairs;
mod net_tap;
mod order;
mod pause;
mod pci;
mod queue;
mod queue_hostile;
mod queue_oracle;
mod queue_threads;
mod restore;
mod restore_hostile;
mod rng;
mod virtio_drivers;
mod vsock;
mod vsock_hostile;
mod vsock_pause;
