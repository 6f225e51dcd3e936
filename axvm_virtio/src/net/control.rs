//! The control queue: what the driver asks of the card beside frames.
//!
//! ```text
//!   driver: | class | command | data .. |   --queue 2n--> answer: | OK or ERR |
//!
//!   RX    promiscuous, all multicast                accepted
//!   MAC   table of addresses that it wants          accepted, if it is one
//!         its own address                           shown in the configuration space from then on
//!   MQ    so many queue pairs are in use            the others get no frames
//!   GUEST_OFFLOADS    these of those agreed on      the tap gives no others from then on
//! ```
//!
//! The filter of addresses is best effort by the standard, and AxVM does not filter: what a switch or a bridge sends to
//! the link is for the guest, and what floods it there would have cost its copy before a filter saw it.
//!
//! Spec: virtio 1.2, 5.1.6.5 "Control Virtqueue".
//! Left out: VLAN filters, more receive modes, announcements, RSS.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use axvm_memory::GuestRam;
use axvm_tap::Offloads;

use super::handle::Shared;
use super::{Agreed, guest_offloads};
use crate::queue::Chain;

/// Answers.
const OK: u8 = 0;
const ERR: u8 = 1;

/// Most bytes of a command: a table of some ten thousand addresses.
const MAX_COMMAND: u64 = 64 << 10;

/// What the driver chose through the control queue.
#[derive(Debug)]
pub(super) struct Chosen {
    /// The card's address, as a big-endian number.
    mac: AtomicU64,
    /// Queue pairs in use.
    active: AtomicU16,
    /// What the host may leave to the driver, as feature bits.
    guest: AtomicU64,
}

impl Chosen {
    /// Nothing yet.
    pub(super) fn new(mac: [u8; 6]) -> Chosen {
        Chosen { mac: AtomicU64::new(number(mac)), active: AtomicU16::new(1), guest: AtomicU64::new(0) }
    }

    /// The card's address. Relaxed, as are the others: the driver sees it through the ring.
    pub(super) fn mac(&self) -> [u8; 6] {
        let [_, _, mac @ ..] = self.mac.load(Ordering::Relaxed).to_be_bytes();
        mac
    }

    pub(super) fn active(&self) -> u16 {
        self.active.load(Ordering::Relaxed)
    }

    /// What the host may leave to the driver, as feature bits; with the driver's agreement to them.
    pub(super) fn guest(&self) -> u64 {
        self.guest.load(Ordering::Relaxed)
    }

    /// The same as a value.
    pub(super) fn guest_offloads(&self) -> Offloads {
        guest_offloads(self.guest())
    }

    pub(super) fn set_guest(&self, bits: u64) {
        self.guest.store(bits, Ordering::Relaxed);
    }

    pub(super) fn set(&self, mac: [u8; 6], active: u16) {
        self.mac.store(number(mac), Ordering::Relaxed);
        self.active.store(active, Ordering::Relaxed);
    }
}

/// An address as a number.
pub(super) fn number(mac: [u8; 6]) -> u64 {
    mac.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Carries out the command in a chain and answers; how many bytes of the chain that took. `bytes` is reused.
pub(super) fn serve(
    ram: &GuestRam,
    chain: &Chain<'_>,
    bytes: &mut Vec<u8>,
    (shared, chosen, agreed): (&Shared, &Chosen, Agreed),
) -> Result<u32, String> {
    let answer = chain.writable.iter().find(|range| !range.is_empty());
    let answer = answer.ok_or("A control command has no room for its answer")?;
    bytes.clear();
    if chain.readable_len <= MAX_COMMAND {
        for range in chain.readable {
            let start = bytes.len();
            bytes.resize(start + range.len(), 0);
            ram.copy_from(range, &mut bytes[start..]);
        }
    }
    let done =
        matches!(&bytes[..], [class, command, data @ ..] if carry_out(*class, *command, data, shared, chosen, agreed));
    ram.copy_to(answer, &[if done { OK } else { ERR }]);
    Ok(1)
}

fn carry_out(class: u8, command: u8, data: &[u8], shared: &Shared, chosen: &Chosen, agreed: Agreed) -> bool {
    match (class, command, data) {
        // VIRTIO_NET_CTRL_RX: PROMISC, ALLMULTI
        (0, 0 | 1, [_]) => true,
        // VIRTIO_NET_CTRL_MAC: TABLE_SET, two of them
        (1, 0, tables) => table(tables).and_then(table).is_some_and(<[u8]>::is_empty),
        // VIRTIO_NET_CTRL_MAC: ADDR_SET
        (1, 1, &[a, b, c, d, e, f]) => {
            chosen.mac.store(number([a, b, c, d, e, f]), Ordering::Relaxed);
            true
        }
        // VIRTIO_NET_CTRL_MQ: VQ_PAIRS_SET
        (4, 0, &[low, high]) if agreed.several => {
            let count = u16::from_le_bytes([low, high]);
            let possible = (1..=shared.pairs.len()).contains(&usize::from(count));
            let done = possible && shared.set_active(count).is_ok();
            if done {
                chosen.active.store(count, Ordering::Relaxed);
            }
            done
        }
        // VIRTIO_NET_CTRL_GUEST_OFFLOADS: SET
        (5, 0, data) if agreed.changeable => {
            let bits = data.try_into().map(u64::from_le_bytes);
            bits.is_ok_and(|bits| bits & !agreed.guest == 0 && set_offloads(bits, shared, chosen))
        }
        _ => false,
    }
}

/// Has the host leave this to the driver, and no worker give it more, once this has returned; false if the host refused.
fn set_offloads(bits: u64, shared: &Shared, chosen: &Chosen) -> bool {
    let before = chosen.guest();
    // Before the host does: what it leaves to the driver is then let through.
    chosen.set_guest(bits);
    let done = shared.pairs[0].link.set_offloads(guest_offloads(bits)).is_ok();
    if !done {
        chosen.set_guest(before);
    }
    shared.settle();
    done
}

/// What follows a table of addresses.
fn table(bytes: &[u8]) -> Option<&[u8]> {
    let (count, rest) = bytes.split_first_chunk()?;
    rest.get(usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_as_long_as_they_say() {
        assert_eq!(table(&[0; 4]), Some(&[][..]));
        assert_eq!(table(&[1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]), Some(&[7][..]));
        for bytes in [&[0; 3][..], &[1, 0, 0, 0, 1, 2, 3, 4, 5], &[0xff; 100]] {
            assert_eq!(table(bytes), None);
        }
    }

    #[test]
    fn an_address_comes_back() {
        let chosen = Chosen::new([2, 0, 0, 0xa, 0xb, 0xff]);
        assert_eq!((chosen.mac(), chosen.active()), ([2, 0, 0, 0xa, 0xb, 0xff], 1));
    }
}
