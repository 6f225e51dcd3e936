//! From the command line's words to [`Settings`].

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use super::{Disk, Memory, Settings, read};
use crate::cli::{RunArgs, Switch};
use crate::error::ConfigError;

impl Settings {
    /// What the command line says, over what the file says that it names.
    pub fn gather(args: &RunArgs) -> Result<Settings, ConfigError> {
        let said = Settings::from_args(args)?;
        let Some(path) = &args.config else { return Ok(said) };
        let directory = path.parent().unwrap_or(Path::new(""));
        Ok(said.over(read(path)?.from_directory(directory)))
    }

    /// What the command line says, beside --config.
    pub fn from_args(args: &RunArgs) -> Result<Settings, ConfigError> {
        let on = |switch: Option<Switch>| switch.map(bool::from);
        Ok(Settings {
            name: value("--name", &args.name)?,
            kernel: args.kernel.clone(),
            initrd: args.initrd.clone(),
            append: args.append.clone(),
            console: value("--console", &args.console)?,
            virtio_console: value("--virtio-console", &args.virtio_console)?,
            api_sock: args.api_sock.clone(),
            on_reboot: args.on_reboot,
            grace: args.grace,
            verbose: on(args.verbose),
            entry: args.entry,
            cpu: args.cpu,
            pin: value("--pin", &args.pin)?,
            no_acpi: on(args.no_acpi),
            sandbox: on(args.sandbox),
            cpus: value("--cpus", &args.cpus)?,
            memory: memory(args)?,
            disk: args.disks.iter().map(|text| parse("--disk", text)).collect::<Result<Vec<Disk>, _>>()?,
        })
    }
}

fn memory(args: &RunArgs) -> Result<Memory, ConfigError> {
    let text = args.memory.as_deref();
    let (size, shared) = match text.and_then(|text| text.split_once(',')) {
        Some((size, "shared")) => (Some(size), Some(true)),
        Some((_, part)) => {
            let why = format!("'{part}' is unknown; after the size there can be ,shared");
            return Err(ConfigError::option("--memory", text.unwrap_or_default(), why));
        }
        None => (text, None),
    };
    Ok(Memory {
        size: size.map(|size| parse("--memory", size)).transpose()?,
        shared,
        hugepages: args.hugepages,
        prealloc: args.prealloc.map(bool::from),
        lock: args.lock.map(bool::from),
    })
}

fn value<T: FromStr<Err: Display>>(option: &'static str, text: &Option<String>) -> Result<Option<T>, ConfigError> {
    text.as_deref().map(|text| parse(option, text)).transpose()
}

fn parse<T: FromStr<Err: Display>>(option: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|why| ConfigError::option(option, text, why))
}
