//! Options with parts: CPUs and memory. Each is a table in the file. (So is a disk: `axvm_virtio::block::DiskConfig`.)
//!
//! ```text
//!   --cpus 20,sockets=2                    [cpus]    count = 20     sockets = 2
//!   --memory 4G,shared --hugepages 2M      [memory]  size = "4G"    shared = true    hugepages = "2M"
//! ```

use std::str::FromStr;

use axvm_arch::cpuid::Topology;
use axvm_memory::PageSize;
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::HARDWARE;
use super::setting::{Setting, Value, settings};
use super::value::Size;
use super::words::{Switch, words};

/// `--cpus`: vCPUs and how they are grouped. What is left out of the grouping follows from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table: [cpus] with count = 4")]
pub struct Cpus {
    /// Number of vCPUs.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// Sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Cores in a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Threads in a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
}

impl Value for Cpus {}

impl Cpus {
    /// The complete grouping, if there is one.
    pub fn topology(&self) -> Result<Topology, String> {
        let count = self.count;
        if count == 0 {
            return Err("a machine needs at least one vCPU".into());
        }
        for (key, value) in [("sockets", self.sockets), ("cores", self.cores), ("threads", self.threads)] {
            if value.is_some_and(|value| !(1..=1 << 16).contains(&value)) {
                return Err(format!("{key}= needs a number from 1"));
            }
        }
        let (threads, known_sockets) = (self.threads.unwrap_or(1), self.sockets.unwrap_or(1));
        // First cores per socket, then sockets.
        let cores = self.cores.unwrap_or_else(|| (count / threads / known_sockets).max(1));
        let sockets = self.sockets.unwrap_or_else(|| (count / threads / cores).max(1));
        let product = u64::from(sockets) * u64::from(cores) * u64::from(threads);
        if product != u64::from(count) {
            return Err(format!(
                "{sockets} sockets x {cores} cores x {threads} threads make {product} vCPUs, not {count}"
            ));
        }
        Ok(Topology { sockets, cores, threads })
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Cpus, String> {
        let mut parts = text.split(',');
        let count = parts.next().unwrap_or_default();
        let count = count.parse().map_err(|_| format!("'{count}' is not a number of vCPUs; try --cpus 4"))?;
        let mut cpus = Cpus { count, sockets: None, cores: None, threads: None };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let slot = match key {
                "sockets" => &mut cpus.sockets,
                "cores" => &mut cpus.cores,
                "threads" => &mut cpus.threads,
                _ => return Err(format!("'{key}' is unknown; use sockets=, cores=, threads=")),
            };
            *slot = Some(value.parse().map_err(|_| format!("{key}= needs a number from 1"))?);
        }
        cpus.topology().map(|_| cpus)
    }
}

/// Reads `[cpus]`, and refuses an impossible grouping.
pub fn possible_cpus<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cpus>, D::Error> {
    let cpus = Cpus::deserialize(from)?;
    cpus.topology().map_err(|why| D::Error::custom(format_args!("[cpus]: {why}")))?;
    Ok(Some(cpus))
}

/// RAM of a machine that asks for none.
const DEFAULT_SIZE: Size = Size(512 << 20);

settings! {
    /// Guest RAM: `--memory`, `--hugepages`, `--prealloc`, `--lock`.
    #[serde(expecting = "a table: [memory] with size = \"4G\"")]
    pub struct Memory {
        // The command line's own; `RunArgs::settings` turns it into the two keys below.
        /// Guest RAM: a number with K, M, G or T (without: MiB); ,shared makes it a memory file that other processes can
        /// map [default: 512M]
        #[arg(short = 'm', long = "memory", value_name = "SIZE[,shared]", allow_hyphen_values = true)]
        #[serde(skip)]
        pub amount: Option<Amount>,

        /// Size: a number with K, M, G or T (without: MiB) [default: 512M]
        #[arg(skip)]
        pub size: Option<Size> = DEFAULT_SIZE,

        /// A memory file that other processes can map
        #[arg(skip)]
        pub shared: Option<bool> = false,

        /// Pages behind guest RAM [default: thp]
        #[arg(long, value_parser = words::<PageSize>(), help_heading = HARDWARE)]
        pub hugepages: Option<PageSize> = PageSize::Thp,

        /// Take all guest RAM from the host before the guest starts
        #[arg(long, switch(), help_heading = HARDWARE)]
        pub prealloc: Option<bool> = false,

        /// Lock guest RAM: the host never swaps it
        #[arg(long, switch(), help_heading = HARDWARE)]
        pub lock: Option<bool> = false,
    }
}

/// `--memory`: one option that says two keys of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Size.
    pub size: Size,
    /// Whether other processes can map it.
    pub shared: Option<bool>,
}

impl Value for Amount {}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Amount, String> {
        match text.split_once(',') {
            None => Ok(Amount { size: text.parse()?, shared: None }),
            Some((size, "shared")) => Ok(Amount { size: size.parse()?, shared: Some(true) }),
            Some((_, part)) => Err(format!("'{part}' is unknown; after the size there can be ,shared")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topology_is_completed_from_what_is_given() {
        let parse = |text: &str| text.parse::<Cpus>().unwrap().topology().unwrap();
        assert_eq!(parse("20"), Topology::flat(20));
        assert_eq!(parse("20,sockets=2,cores=5,threads=2"), Topology { sockets: 2, cores: 5, threads: 2 });
        assert_eq!(parse("8,threads=2"), Topology { sockets: 1, cores: 4, threads: 2 });
        assert_eq!(parse("8,cores=2"), Topology { sockets: 4, cores: 2, threads: 1 });
        assert_eq!(parse("8,sockets=2"), Topology { sockets: 2, cores: 4, threads: 1 });
    }

    #[test]
    fn impossible_topologies_say_why() {
        for (text, word) in [
            ("0", "at least one"),
            ("x", "not a number"),
            ("20,sockets=3", "make 18"),
            ("4,cores=0", "from 1"),
            ("4,cores=", "from 1"),
            ("4,dies=2", "unknown"),
            ("4,sockets=65536,cores=65536,threads=65536", "vCPUs, not 4"),
        ] {
            let error = text.parse::<Cpus>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_amount_is_a_size_that_may_be_shared() {
        let amount = |shared| Ok(Amount { size: Size(1 << 30), shared });
        assert_eq!(("1G".parse(), "1G,shared".parse()), (amount(None), amount(Some(true))));
        for (text, word) in [("1G,foo", "'foo'"), ("1G,", "''"), ("x,shared", "not a size")] {
            let error = text.parse::<Amount>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
