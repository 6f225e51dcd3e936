//! What AxVM builds, judged by the tools and the kernels of others: one binary, so that it is linked once.

mod acpi;
mod real_kernels;
