//! A driver that lies: to every queue of every virtio device, then to the chips. After each storm the device must
//! still work.
//!
//! ```text
//!   storm: reset, half a set-up, one lie --> kick --> noise        (as often as ROUNDS says)
//!   proof: reset, the honest driver of virtio.rs, verified data
//!
//!   rings   one processor lies in rings and registers      crowd   all processors at one device at once
//!   chips   ports, string I/O, edges of windows, interrupts                   pci     configuration, BARs, MSI-X
//! ```
//!
//! What would end the machine (S5, the reset registers, pvpanic) is only ever written with wrong values, and no
//! address is given to a device for writing where this program lies: then each attack ends with a proof. The
//! noise comes from a xorshift generator: the same seed gives the same attack.

mod chips;
pub mod crowd;
mod noise;
mod pci;
mod rings;

use crate::card;
use crate::clock;
use crate::devices;
use crate::disk;
use crate::processors;
use crate::report::{Line, Verdict, prove};
use crate::start_info;
use crate::virtio::{self, Buffer, Device, kind};
use crate::vsock;
use noise::Noise;

/// How often each storm of a kind blows.
const ROUNDS: u32 = 4;

/// Every storm on every device, then the chips; every device is proved afterwards. With `suicide` on the command line
/// this program is what it attacks.
pub fn attack(seed: u64) {
    let mut noise = Noise::new(seed);
    if start_info::option("suicide").is_some() {
        overwrite_this_program();
    }
    prove("smp", processors::start_all);
    for device in virtio::devices() {
        for (name, storm) in rings::STORMS {
            prove(name, |line| {
                line.text(" device type ").decimal(device.kind.into());
                for _ in 0..ROUNDS {
                    storm(device, &mut noise);
                }
                works(device, line)
            });
        }
        prove("crowd", |line| {
            line.text(" device type ").decimal(device.kind.into());
            crowd::attack(device, &mut noise, line)?;
            works(device, line)
        });
    }
    for (name, storm) in chips::STORMS {
        prove(name, |line| {
            storm(&mut noise);
            chips::set_to_rights();
            virtio::devices().try_for_each(|device| works(device, line))
        });
    }
}

/// The honest driver's proof.
fn works(device: Device, line: &mut Line) -> Verdict {
    match device.kind {
        kind::BLOCK => {
            disk::block(device, line)?;
            disk::behind_the_end(device, line)
        }
        kind::RNG => devices::rng(device, line),
        kind::BALLOON => devices::balloon(device, line),
        kind::CONSOLE => devices::console(device, line),
        kind::NET => card::prove(device, false, line),
        kind::VSOCK => vsock::prove(device, false, line),
        _ => Ok(()),
    }
}

/// Randomness over all of this program and its stacks: what happens then is up to the processor.
fn overwrite_this_program() {
    let Some(device) = virtio::devices().find(|device| device.kind == kind::RNG) else { return };
    let queue = rings::live(device, &mut Noise::new(1));
    for (number, mib) in (0..).zip(1..7) {
        queue.describe(number, Buffer { address: mib << 20, len: 1 << 20, device_writes: true }, None);
        queue.offer(number);
    }
    clock::sleep(1_000_000);
}
