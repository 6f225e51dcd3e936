pub fn attack(_seed: u64) {}
