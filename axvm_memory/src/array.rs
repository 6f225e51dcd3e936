//! An array in guest RAM, proven once and then accessed element by element without a lookup.
//!
//! ```text
//!   array::<u16>(gpa, n):   | 0 | 1 | 2 | ... | n-1 |     bounds and alignment checked at creation
//!                             ^ get(i): one volatile read; i >= n panics (our bug, not the guest's)
//! ```
//!
//! Ring indices are shared with a driver on another CPU: [`GuestArray::load`] and
//! [`GuestArray::store`] are atomic, with an ordering.
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues", for whose rings this is. Left out: values in the other byte order; guests here
//! are little-endian, as their hosts.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axvm_arch::Gpa;

use crate::{AccessError, GuestRam};

/// Types whose every bit pattern is a value, without padding: safe to read from memory that the
/// guest wrote. (vm-memory's `ByteValued`, under the name that says what it promises.)
pub use vm_memory::ByteValued as Plain;

/// `count` elements of `T` at a proven address. Keeps the RAM alive.
#[derive(Debug)]
pub struct GuestArray<T> {
    ram: Arc<GuestRam>,
    first: *mut T,
    count: usize,
    element: PhantomData<T>,
}

// SAFETY: the pointer goes into `ram`, which is kept alive and may be accessed from any thread;
// all accesses are volatile or atomic.
unsafe impl<T: Plain> Send for GuestArray<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for GuestArray<T> {}

impl GuestRam {
    /// Proves that `count` elements of `T`, aligned as `T` must be, lie at `gpa`.
    pub fn array<T: Plain>(self: &Arc<Self>, gpa: Gpa, count: usize) -> Result<GuestArray<T>, AccessError> {
        let align = align_of::<T>() as u64;
        if !gpa.is_aligned(align) {
            return Err(AccessError::Unaligned { gpa, align });
        }
        let len = (count as u64).saturating_mul(size_of::<T>() as u64);
        let first = self.locate(gpa, len).ok_or(AccessError::NotRam { gpa, len })?.cast::<T>();
        Ok(GuestArray { ram: Arc::clone(self), first, count, element: PhantomData })
    }
}

impl<T: Plain> GuestArray<T> {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The RAM the array lies in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Volatile read of element `index`, which must be below `count`.
    #[inline]
    pub fn get(&self, index: usize) -> T {
        let place = self.place(index);
        // SAFETY: `place` is inside the proven, aligned, live array, and every bit pattern is a `T`.
        unsafe { place.read_volatile() }
    }

    /// Volatile write of element `index`, which must be below `count`.
    #[inline]
    pub fn set(&self, index: usize, value: T) {
        let place = self.place(index);
        // SAFETY: `place` is inside the proven, aligned, live array.
        unsafe { place.write_volatile(value) }
    }

    #[inline]
    fn place(&self, index: usize) -> *mut T {
        assert!(index < self.count, "element {index} of a guest array of {}", self.count);
        // `wrapping_add` needs no proof; the assertion above keeps it inside.
        self.first.wrapping_add(index)
    }
}

impl GuestArray<u16> {
    /// Atomic load of element `index`, which must be below `count`.
    #[inline]
    pub fn load(&self, index: usize, order: Ordering) -> u16 {
        self.atomic(index).load(order)
    }

    /// Atomic store to element `index`, which must be below `count`.
    #[inline]
    pub fn store(&self, index: usize, value: u16, order: Ordering) {
        self.atomic(index).store(value, order);
    }

    #[inline]
    fn atomic(&self, index: usize) -> &AtomicU16 {
        let place = self.place(index);
        // SAFETY: `place` is inside the proven, aligned, live array; the reference is to an atomic,
        // which allows other writers (the guest) at any time.
        unsafe { AtomicU16::from_ptr(place) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamConfig;

    fn ram() -> Arc<GuestRam> {
        GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap()
    }

    #[test]
    fn elements_are_guest_memory() {
        let ram = ram();
        let array = ram.array::<u32>(Gpa(0x100), 4).unwrap();
        array.set(3, 0x0403_0201);
        let mut data = [0; 4];
        ram.read(Gpa(0x10c), &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4]);
        assert_eq!((array.get(3), array.count()), (0x0403_0201, 4));
    }

    #[test]
    fn atomics_see_the_same_memory() {
        let array = ram().array::<u16>(Gpa(0x100), 2).unwrap();
        array.store(1, 0x1234, Ordering::Release);
        assert_eq!((array.load(1, Ordering::Acquire), array.get(1), array.get(0)), (0x1234, 0x1234, 0));
    }

    #[test]
    fn bad_claims_get_no_array() {
        let ram = ram();
        assert!(matches!(ram.array::<u16>(Gpa(1), 1), Err(AccessError::Unaligned { align: 2, .. })));
        assert!(matches!(ram.array::<u16>(Gpa((2 << 20) - 2), 2), Err(AccessError::NotRam { .. })));
        assert!(matches!(ram.array::<u64>(Gpa(0), usize::MAX), Err(AccessError::NotRam { .. })));
        assert!(ram.array::<u16>(Gpa((2 << 20) - 2), 1).is_ok());
    }

    #[test]
    #[should_panic(expected = "element 2 of a guest array of 2")]
    fn an_index_past_the_end_is_our_bug() {
        ram().array::<u16>(Gpa(0), 2).unwrap().get(2);
    }
}
