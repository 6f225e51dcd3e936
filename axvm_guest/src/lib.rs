//! Tiny guests of our own.
