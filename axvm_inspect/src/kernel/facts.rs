//! What a kernel has: drivers, file systems, abilities; and what shows it.
//!
//! ```text
//!   the image: IKCONFIG      ---.
//!   beside it: config-6.1.0     |--> the first that tells --> Answer: built in | module | absent | unknown
//!              modules.builtin  |                                     and from where
//!   the image: drivers' names --'
//! ```
//!
//! Nothing is guessed: what nothing proves is unknown, and no rule speaks of it.
//!
//! Source: Linux Documentation/kbuild/kbuild.rst (modules.builtin), `kernel/configs.c` (IKCONFIG). Left out: whether a
//! driver that is there was told on the command line not to work.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use axvm_boot::kernel::{BzImage, KernelError, KernelImage};
use axvm_boot::read_at::ReadAt;

use super::config::{self, BuildConfig};
use super::feature::{ALL, Feature};
use super::payload;
use super::scan::Scan;
use super::unpack::Format;

/// Whether a kernel has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// In the kernel itself.
    BuiltIn,
    /// A file that has to be loaded.
    Module,
    /// Not in the kernel itself; whether there is such a module is not known.
    NotBuiltIn,
    /// It was not built.
    Absent,
    /// Nothing tells.
    Unknown,
}

/// Where an answer is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The configuration that the image carries (CONFIG_IKCONFIG).
    Image,
    /// A configuration beside the image.
    Config(String),
    /// A list of what is built in, beside the image.
    BuiltinList(String),
    /// Names of drivers in the image.
    Names,
    /// There is none, for this reason.
    Nothing(String),
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Evidence::Image => f.write_str("the configuration in the kernel image"),
            Evidence::Config(file) | Evidence::BuiltinList(file) => f.write_str(file),
            Evidence::Names => f.write_str("the names in the kernel image"),
            Evidence::Nothing(why) => write!(f, "nothing: {why}"),
        }
    }
}

/// What is known about one feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it is there.
    pub presence: Presence,
    /// What shows it.
    pub evidence: Evidence,
}

/// What is beside a kernel's file, and may tell about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// A build configuration: its file's name, and its text.
    pub config: Option<(String, String)>,
    /// A list of what is built in: the same.
    pub builtin: Option<(String, String)>,
}

impl Beside {
    /// Looks beside `kernel`, of this release, and among the installed modules.
    pub fn of(kernel: &Path, release: Option<&str>) -> Beside {
        let of_name = || kernel.file_name()?.to_str()?.split_once('-').map(|(_, release)| release);
        let Some(release) = release.or_else(of_name).filter(|release| !release.contains('/')) else {
            return Beside::default();
        };
        let first = |paths: [PathBuf; 2]| paths.iter().find_map(|path| text(path).ok());
        let (config, builtin) = (format!("config-{release}"), format!("lib/modules/{release}/modules.builtin"));
        let directory = kernel.parent().unwrap_or(Path::new(""));
        Beside {
            config: first([kernel.with_file_name(&config), directory.join("boot").join(&config)]),
            builtin: first([kernel.with_file_name("modules.builtin"), directory.join(builtin)]),
        }
    }
}

/// A text file of reasonable length, with its path.
fn text(path: &Path) -> io::Result<(String, String)> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    fs::File::open(path)?.take(config::LIMIT as u64).read_to_string(&mut text)?;
    Ok((path.display().to_string(), text))
}

/// Everything that is known about a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    /// What it calls itself, as `uname -r` would say.
    pub release: Option<String>,
    /// What its payload is packed by; none if it is not packed.
    pub packed: Option<Format>,
    known: Known,
    evidence: Evidence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Config(BuildConfig),
    Builtin(BTreeSet<String>),
    Names(BTreeSet<&'static str>),
    Nothing,
}

impl KernelFacts {
    /// What a configuration says, whatever the kernel.
    pub fn of_config(config: BuildConfig, evidence: Evidence) -> KernelFacts {
        KernelFacts { release: None, packed: None, known: Known::Config(config), evidence }
    }

    /// What the files beside a kernel tell, without a look into the kernel; none if they tell nothing.
    pub fn beside(beside: &Beside) -> Option<KernelFacts> {
        let (known, evidence) = known_beside(beside)?;
        Some(KernelFacts { release: None, packed: None, known, evidence })
    }

    /// What nothing is known about.
    pub fn unknown(why: impl Into<String>) -> KernelFacts {
        KernelFacts { release: None, packed: None, known: Known::Nothing, evidence: Evidence::Nothing(why.into()) }
    }

    /// Whether anything is known.
    pub fn is_known(&self) -> bool {
        self.known != Known::Nothing
    }

    /// Whether the kernel has a feature, and what shows it.
    pub fn has(&self, feature: &Feature) -> Answer {
        let presence = match &self.known {
            Known::Config(config) => match config.value(feature.option) {
                Some("y") => Presence::BuiltIn,
                Some("m") => Presence::Module,
                Some(_) => Presence::Unknown,
                None => Presence::Absent,
            },
            Known::Builtin(modules) => match feature.module {
                Some(module) if modules.contains(module) => Presence::BuiltIn,
                Some(_) => Presence::NotBuiltIn,
                None => Presence::Unknown,
            },
            Known::Names(names) => match feature.name {
                Some(name) if names.contains(name) => Presence::BuiltIn,
                // What cannot be a module is not there at all.
                Some(_) if feature.module.is_none() => Presence::Absent,
                Some(_) => Presence::NotBuiltIn,
                None => Presence::Unknown,
            },
            Known::Nothing => Presence::Unknown,
        };
        let why = || Evidence::Nothing(format!("{} do not tell of CONFIG_{}", self.evidence, feature.option));
        let evidence = match (presence, &self.evidence) {
            (Presence::Unknown, Evidence::Names | Evidence::BuiltinList(_)) => why(),
            (_, evidence) => evidence.clone(),
        };
        Answer { presence, evidence }
    }

    /// A number of the configuration, if that is known.
    pub fn number(&self, option: &str) -> Option<u32> {
        match &self.known {
            Known::Config(config) => config.number(option),
            _ => None,
        }
    }

    /// What all answers are from.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }
}

/// What a kernel's header calls it; none if it has no such words, or is no kernel.
pub fn release(file: &dyn ReadAt) -> Option<String> {
    match KernelImage::parse(file) {
        Ok(KernelImage::BzImage(image)) => first_word(&image),
        _ => None,
    }
}

fn first_word(image: &BzImage) -> Option<String> {
    image.release.as_ref()?.split_ascii_whitespace().next().map(str::to_owned)
}

/// Opens a kernel and finds out what it has. Whatever the bytes, no more than a window of what is unpacked is in memory.
pub fn examine(file: &dyn ReadAt, beside: &Beside) -> Result<KernelFacts, KernelError> {
    let image = KernelImage::parse(file)?;
    let mut scan = Scan::new(ALL.iter().filter_map(|feature| feature.name));
    let (packed, looked) = payload::pieces(file, &image, &mut |piece| scan.piece(piece));
    let release = match &image {
        KernelImage::BzImage(image) => first_word(image),
        KernelImage::Vmlinux(_) | KernelImage::Flat(_) => None,
    };
    let (known, evidence) = conclude(scan, looked, beside);
    Ok(KernelFacts { release, packed, known, evidence })
}

/// What is known, from the best that there is.
fn conclude(scan: Scan, looked: Result<(), String>, beside: &Beside) -> (Known, Evidence) {
    if let Some(config) = scan.config {
        return (Known::Config(config), Evidence::Image);
    }
    // An image that was seen as a whole, and is something else.
    if looked.is_ok() && !scan.is_linux {
        return (Known::Nothing, Evidence::Nothing("this is no Linux".into()));
    }
    match (known_beside(beside), looked) {
        (Some(known), _) => known,
        (None, Ok(())) => (Known::Names(scan.found), Evidence::Names),
        (None, Err(why)) => (Known::Nothing, Evidence::Nothing(why)),
    }
}

/// What the files beside the image tell.
fn known_beside(beside: &Beside) -> Option<(Known, Evidence)> {
    let config = beside.config.as_ref().and_then(|(file, text)| Some((file, BuildConfig::parse(text)?)));
    if let Some((file, config)) = config {
        return Some((Known::Config(config), Evidence::Config(file.clone())));
    }
    let (file, text) = beside.builtin.as_ref()?;
    let modules: BTreeSet<_> = text.lines().filter_map(module_name).collect();
    (!modules.is_empty()).then(|| (Known::Builtin(modules), Evidence::BuiltinList(file.clone())))
}
/// The name by which the kernel knows the module in this file; none if it is no module.
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let packed = [".xz", ".zst", ".gz"].into_iter().find_map(|ending| file.strip_suffix(ending));
    Some(packed.unwrap_or(file).strip_suffix(".ko")?.replace('-', "_"))
}
