//! Noise that a seed repeats, and addresses that are wrong.

/// xorshift64 (Marsaglia 2003).
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// An address that is wrong in one of the ways a guest can think of. Neither it nor its lower half alone
    /// leads to RAM where this program lies.
    pub fn bad_address(&mut self) -> u64 {
        match self.below(12) {
            0 => 16 << 20,
            1 => 0xd000_0000 + self.below(0x2000),
            2 => 0xfee0_0000,
            3 => u64::MAX - self.below(0x100),
            4 => 1 << 63,
            5 => 0xc000_0000 - self.below(64),
            6 => (24 << 20) + self.below(16),
            7 => 0xfec0_0000,
            8 => (64 << 20) - self.below(32),
            9 => 0x1_0000_0000 - self.below(32),
            10 => 0xfffb_c000 + self.below(0x4000),
            _ => self.next() | 0x8000_0000,
        }
    }
}

/// Noise comes last: the choices may be made of it.
pub fn one_of<T: Copy, const N: usize>(choices: [T; N], noise: &mut Noise) -> T {
    choices[noise.below(N as u64) as usize]
}
