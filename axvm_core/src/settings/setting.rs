//! What every setting can do, so that a setting is declared once and listed nowhere.
//!
//! ```text
//!   settings! {                             the struct, with help (clap), file (serde) and schema (schemars) derived
//!       /// Seconds ... [default: 10]       over: the command line goes before the file
//!       pub grace: Option<u32> = 10,   -->  move_to: relative paths start at the file's directory
//!   }                                       grace(): what was given, or the default
//! ```
//!
//! A setting that was not given is absent: `None`, or an empty list.

use std::path::{Path, PathBuf};

use axvm_boot::acpi::Acpi;
use axvm_boot::bus::Bus;
use axvm_boot::cpu::CpuModel;
use axvm_boot::linux::Entry;
use axvm_console::BackEnd;
use axvm_memory::PageSize;
use axvm_virtio::block::DiskConfig;
use axvm_virtio::limiter::RateLimit;

use super::policy::{Lint, OnCrash, OnHalt, OnPanic, OnReboot, VirtioCheck};
use super::value::{IoPort, Name, Pins, Size, Time};

/// A setting, or a struct of them.
pub trait Setting {
    /// Whether it was not given.
    fn is_absent(&self) -> bool;
    /// This if it was given, otherwise `below`.
    #[must_use]
    fn over(self, below: Self) -> Self;
    /// Lets every relative path in it start at `directory`.
    fn move_to(&mut self, directory: &Path);
}

/// The type of a setting's value.
pub trait Value {
    /// Lets a relative path in it start at `directory`. Most values have none.
    fn move_to(&mut self, _directory: &Path) {}
}

impl<T: Value> Setting for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn over(self, below: Option<T>) -> Option<T> {
        self.or(below)
    }

    fn move_to(&mut self, directory: &Path) {
        self.iter_mut().for_each(|value| value.move_to(directory));
    }
}

/// A list is replaced as a whole.
impl<T: Value> Setting for Vec<T> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn over(self, below: Vec<T>) -> Vec<T> {
        if self.is_empty() { below } else { self }
    }

    fn move_to(&mut self, directory: &Path) {
        self.iter_mut().for_each(|value| value.move_to(directory));
    }
}

macro_rules! without_paths {
    ($($type:ty),*) => { $(impl Value for $type {})* };
}

without_paths!(bool, u32, String, IoPort, Name, Pins, Size, Time, Acpi, Bus, Entry, CpuModel, PageSize);
without_paths!(Lint, VirtioCheck, OnReboot, OnCrash, OnPanic, OnHalt, RateLimit);

impl Value for PathBuf {
    fn move_to(&mut self, directory: &Path) {
        *self = directory.join(&*self);
    }
}

impl Value for BackEnd {
    fn move_to(&mut self, directory: &Path) {
        match self {
            BackEnd::File(path, _) | BackEnd::Unix(path) => path.move_to(directory),
            BackEnd::Stdio | BackEnd::Pty | BackEnd::None => {}
        }
    }
}

impl Value for DiskConfig {
    fn move_to(&mut self, directory: &Path) {
        self.path.move_to(directory);
    }
}

/// Declares a struct of settings: arguments of the command line, table of the file, and [`Setting`].
macro_rules! settings {
    ($(#[$about:meta])* pub struct $name:ident {
        $($(#[$attribute:meta])* pub $field:ident: $type:ty $(= $default:expr)?,)*
    }) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
        #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        $(#[$about])*
        pub struct $name {
            $(
                $(#[$attribute])*
                #[serde(skip_serializing_if = "Setting::is_absent")]
                pub $field: $type,
            )*
        }

        impl $name {
            $($(
                #[doc = concat!("`", stringify!($field), "` as it was given, or its default.")]
                pub fn $field(&self) -> <$type as IntoIterator>::Item {
                    self.$field.clone().unwrap_or($default)
                }
            )?)*
        }

        impl Setting for $name {
            fn is_absent(&self) -> bool {
                $(self.$field.is_absent())&&*
            }

            fn over(self, below: $name) -> $name {
                $name { $($field: self.$field.over(below.$field),)* }
            }

            fn move_to(&mut self, directory: &std::path::Path) {
                $(self.$field.move_to(directory);)*
            }
        }
    };
}

pub(super) use settings;
