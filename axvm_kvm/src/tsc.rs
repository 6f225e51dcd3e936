//! The processor's time stamp counter: a clock that asks no one.
//!
//! It counts alike on all processors of a host whose kernel takes its time from it; where the kernel does not, no short
//! time that is measured with it means much.
//!
//! Spec: Intel SDM volume 2, "RDTSC"; volume 3, "Time-Stamp Counter".

/// What it says now, in ticks.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: it reads a register, and no kernel keeps programs from it but for those that ask for that (PR_SET_TSC).
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_counts_up() {
        let before = super::tsc();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(super::tsc() > before);
    }
}
