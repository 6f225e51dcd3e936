//! The program, tried as a user tries it: one binary, so that it is linked once.
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod common;
mod completions;
mod console;
mod control;
mod errors;
mod faults;
mod guests;
mod hang;
mod images;
mod life;
mod pause;
mod sandbox;
mod settings;
mod shown;
mod terminal;
mod version;
