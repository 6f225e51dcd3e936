//! What a user writes: any text is settings, or is wrong at a place in it; and what was understood can be said again.
//!
//! The text is taken as a settings file, and as the value of each option that has a language of its own.
//!
//! Run: `cargo +nightly fuzz run settings`.
#![no_main]

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use axvm_console::BackEnd;
use axvm_core::config::Config;
use axvm_core::settings::{Amount, Cpus, Name, Pins, Setting, Size, parse};
use axvm_virtio::block::DiskConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(said) => {
            assert_eq!(parse(&said.write().expect("what was read can be written")), Ok(said.clone()));
            let mut elsewhere = said.clone();
            elsewhere.move_to(Path::new("/elsewhere"));
            assert_eq!(elsewhere.clone().over(said), elsewhere);
            if let Err(error) = Config::from_settings(elsewhere) {
                _ = error.to_string();
            }
        }
        Err(fault) => {
            assert!((1..=text.matches('\n').count() + 1).contains(&fault.line), "{fault:?}");
            assert!((1..=text.chars().count() + 1).contains(&fault.column), "{fault:?}");
        }
    }
    same_again::<Size>(text);
    same_again::<Name>(text);
    same_again::<Pins>(text);
    same_again::<BackEnd>(text);
    if let Ok(cpus) = text.parse::<Cpus>() {
        assert_eq!(cpus.topology().map(|topology| topology.count()), Ok(cpus.count));
    }
    _ = text.parse::<Amount>();
    _ = text.parse::<DiskConfig>();
});

fn same_again<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse().ok(), Some(value));
    }
}
