//! A file of the guest's, open before the sandbox closes, as a thread reads it that may not ask how long it is.

use std::io;
use std::sync::Arc;

use axvm_boot::read_at::ReadAt;
use axvm_machine::Image;

/// A file as long as it was when it was opened.
pub struct Opened(Arc<Image>, u64);

impl Opened {
    /// This file, as long as it is now.
    pub fn of(image: Arc<Image>) -> Opened {
        let len = image.len();
        Opened(image, len)
    }
}

impl ReadAt for Opened {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, bytes)
    }
}
