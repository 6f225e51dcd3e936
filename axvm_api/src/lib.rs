//! The control socket: a running machine over HTTP.
#![forbid(unsafe_code)]
