//! Placeholder head; see below.
