//! What AxVM builds, judged by the tools and the kernels of others: one binary, so that it is linked once.
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod acpi;
mod real_kernels;
