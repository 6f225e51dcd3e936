//! Explanations of whole things: a host, a machine at power-on.

mod doctor;
mod power_on;
mod real_kernels;
mod xray;
