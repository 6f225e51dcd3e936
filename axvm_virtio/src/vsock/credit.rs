//! Credit: how much each side may send before the other has passed on what came before.
//!
//! ```text
//!   guest --> host   | forwarded (fwd_cnt) <= received |  held here: at most BUFFER
//!                      told: the fwd_cnt that the guest knows
//!   host --> guest   | peer_forwarded <= sent (tx_cnt) |  held there: at most peer_alloc, if the guest says the truth
//! ```
//!
//! All counts run on modulo 2^32. A guest that lies about its own space stalls its connection, or gets what it has no
//! space for; one that sends more than fits here loses the connection.
//!
//! Spec: virtio 1.2, 5.10.6.3 "Buffer Space Management".

/// Bytes of a connection that AxVM holds for the host.
pub(super) const BUFFER: u32 = 64 << 10;
/// Under this much space that the guest knows of, it is told of more.
const LOW: u32 = 4 << 10;

/// The counts of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credit {
    received: u32,
    forwarded: u32,
    told: u32,
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
}

impl Credit {
    /// A packet of the guest says this.
    pub(super) fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        (self.peer_alloc, self.peer_forwarded) = (buf_alloc, fwd_cnt);
    }

    /// Bytes that the guest has space for.
    pub(super) fn room(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// So many bytes went to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// The guest sends so many bytes. False if there is no space for them: nothing is counted then.
    #[must_use]
    pub(super) fn receive(&mut self, len: u32) -> bool {
        let fits = len <= BUFFER.saturating_sub(self.received.wrapping_sub(self.forwarded));
        if fits {
            self.received = self.received.wrapping_add(len);
        }
        fits
    }

    /// The host took so many bytes.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest must be told of new space. Small news wait until there is more, or nothing left to wait for.
    pub(super) fn owes_update(&self) -> bool {
        let known = BUFFER.saturating_sub(self.received.wrapping_sub(self.told));
        let news = self.forwarded.wrapping_sub(self.told);
        known < LOW && news > 0 && (news >= LOW || self.received == self.forwarded)
    }

    /// What the next packet to the guest says: `buf_alloc` and `fwd_cnt`.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUFFER, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As if so many bytes had passed each way.
    fn starting_at(count: u32) -> Credit {
        Credit {
            received: count,
            forwarded: count,
            told: count,
            sent: count,
            peer_alloc: BUFFER,
            peer_forwarded: count,
        }
    }

    proptest! {
        #[test]
        fn counts_that_wrap_change_nothing(
            steps in proptest::collection::vec((0_u32..70_000, 0_u32..70_000, any::<bool>()), 1..60),
            before in 0_u32..200_000,
        ) {
            let (mut low, mut high) = (starting_at(0), starting_at(before.wrapping_neg()));
            let mut held = 0;
            for (take, give, tell) in steps {
                prop_assert_eq!(low.receive(take), high.receive(take));
                held = if take <= BUFFER - held { held + take } else { held };
                let give = give.min(held);
                held -= give;
                for credit in [&mut low, &mut high] {
                    credit.forward(give);
                    let room = credit.room().min(take);
                    credit.send(room);
                    if tell {
                        credit.tell();
                        credit.learn(BUFFER, credit.sent.wrapping_sub(give.min(room)));
                    }
                }
                prop_assert_eq!((low.room(), low.owes_update()), (high.room(), high.owes_update()));
                prop_assert!(low.room() <= BUFFER);
            }
        }

        #[test]
        fn a_guest_that_obeys_is_never_left_without_credit(packets in proptest::collection::vec(1_u32..70_000, 1..40)) {
            let mut credit = starting_at(u32::MAX - 100_000);
            let (mut sent, mut known) = (credit.received, credit.told);
            for len in packets {
                let len = len.min(BUFFER - sent.wrapping_sub(known));
                prop_assert!(len > 0);
                prop_assert!(credit.receive(len));
                sent = sent.wrapping_add(len);
                credit.forward(len);
                if credit.owes_update() {
                    known = credit.tell().1;
                }
            }
        }
    }

    #[test]
    fn lies_stall_and_do_not_wrap() {
        let mut credit = starting_at(5);
        credit.learn(BUFFER, 6);
        assert_eq!(credit.room(), 0, "more passed on than was sent");
        credit.learn(0, 5);
        assert_eq!(credit.room(), 0);
        credit.learn(u32::MAX, 5);
        assert_eq!(credit.room(), u32::MAX);
        credit.send(u32::MAX);
        assert_eq!(credit.room(), 0);
        assert!(
            !credit.receive(BUFFER + 1) && !credit.receive(u32::MAX) && credit.receive(BUFFER) && !credit.receive(1)
        );
    }
}
