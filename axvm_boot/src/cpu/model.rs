//! What `--cpu` says: a template, and two parts of a processor that a guest has to ask for.
//!
//! ```text
//!   --cpu host,nested=on           --FromStr-->              nested   VMX or SVM: a guest with guests of its own
//!   cpu = "host,nested=on"         --serde---->  CpuModel    pmu      counters, branch records, trace, sampling
//!
//!   off: the guest is told of none of it, and KVM's own counters are off as well where KVM can do that
//! ```
//!
//! Both are off unless asked for. They are much code of the host's kernel that a guest can reach, and few guests use it;
//! a PMU also watches the host's processor, with all that others leave there; and what a guest of the guest is doing
//! cannot be carried to another machine.
//!
//! Spec: Intel SDM volume 2A, CPUID; volume 3, chapters "Introduction to Virtual Machine Extensions" and "Performance
//! Monitoring"; AMD APM volume 3, appendix E. Left out: MONITOR, RDT and other parts that KVM shows no guest.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::leaves::{Leaves, Vendor};
use super::word::{L1_ECX, L1_EDX, L7_1_EAX, L7_EBX, L7_EDX, Word, X1_ECX};

/// Which processor the guest sees, without its options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum CpuTemplate {
    /// Everything KVM supports on this host
    #[default]
    Host,
    /// What a Xeon E5 v2 (2013) has: no AVX2, BMI, FMA, MOVBE, RDSEED ...
    IvyBridge,
}

impl CpuTemplate {
    /// Every template.
    pub const ALL: [CpuTemplate; 2] = [CpuTemplate::Host, CpuTemplate::IvyBridge];
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CpuTemplate::Host => "host",
            CpuTemplate::IvyBridge => "ivybridge",
        })
    }
}

/// Which processor the guest sees. Its text is what command line, settings file and schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuModel {
    /// The processor.
    pub template: CpuTemplate,
    /// With VMX or SVM, for guests that start guests.
    pub nested: bool,
    /// With what measures programs: performance counters and their like.
    pub pmu: bool,
}

/// A processor that AxVM cannot show.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CpuModelError {
    /// No template has this name.
    #[error("'{0}' is not one of host, ivybridge")]
    Template(String),
    /// No option, or one with another value.
    #[error("'{0}' is unknown; there are nested=on|off, pmu=on|off")]
    Option(String),
    /// An option was given before.
    #[error("{0}= is given twice; say it once")]
    Twice(&'static str),
}

impl CpuModel {
    /// As the host, with all that KVM supports.
    pub const ALL_OF_HOST: CpuModel = CpuModel { template: CpuTemplate::Host, nested: true, pmu: true };
}

impl FromStr for CpuModel {
    type Err = CpuModelError;

    fn from_str(text: &str) -> Result<CpuModel, CpuModelError> {
        let mut parts = text.split(',');
        let word = parts.next().unwrap_or_default();
        let known = CpuTemplate::ALL.into_iter().find(|template| template.to_string() == word);
        let template = known.ok_or_else(|| CpuModelError::Template(word.to_owned()))?;
        let (mut nested, mut pmu) = (None, None);
        for part in parts {
            let (slot, name, value) = match part.split_once('=') {
                Some(("nested", value)) => (&mut nested, "nested", value),
                Some(("pmu", value)) => (&mut pmu, "pmu", value),
                _ => return Err(CpuModelError::Option(part.to_owned())),
            };
            let on = match value {
                "on" => true,
                "off" => false,
                _ => return Err(CpuModelError::Option(part.to_owned())),
            };
            if slot.replace(on).is_some() {
                return Err(CpuModelError::Twice(name));
            }
        }
        Ok(CpuModel { template, nested: nested.unwrap_or_default(), pmu: pmu.unwrap_or_default() })
    }
}

/// As on the command line, with what differs from the usual.
impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.template.fmt(f)?;
        f.write_str(if self.nested { ",nested=on" } else { "" })?;
        f.write_str(if self.pmu { ",pmu=on" } else { "" })
    }
}

impl Serialize for CpuModel {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuModel {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<CpuModel, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// The templates' words, or one of them with options.
impl JsonSchema for CpuModel {
    fn schema_name() -> Cow<'static, str> {
        "CpuModel".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = CpuTemplate::json_schema(generator);
        let with_options = json_schema!({
            "type": "string",
            "description": "With VMX or SVM (nested=on), with performance counters (pmu=on)",
            "pattern": "^(host|ivybridge)(,(nested|pmu)=(on|off))+$"
        });
        if let Some(choices) = schema.get_mut("oneOf").and_then(|choices| choices.as_array_mut()) {
            choices.push(with_options.to_value());
        }
        schema
    }
}

/// An option of `--cpu` that this host cannot give.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionLacking {
    /// No VMX, no SVM; what to do depends on the host's module.
    #[error(
        "KVM gives guests here no virtualization (VMX or SVM); the guest does without. On the host, with all machines \
         ended: sudo modprobe -r {module}; sudo modprobe {module} nested=1"
    )]
    Nested {
        /// The part of KVM for this processor.
        module: &'static str,
    },
    /// No performance counters.
    #[error(
        "KVM gives guests here no performance counters; the guest does without. On the host, kvm's parameter enable_pmu \
         has to be Y (cat /sys/module/kvm/parameters/enable_pmu), and a host that is itself a virtual machine needs them \
         from its own"
    )]
    Pmu,
}

/// Options of `model` that KVM, which supports this, cannot give.
pub(super) fn lacking(leaves: &Leaves, model: CpuModel) -> Vec<OptionLacking> {
    let nested = model.nested && !has_any(leaves, VIRTUALIZATION);
    let pmu = model.pmu && !has_pmu(leaves);
    let module = if leaves.vendor() == Vendor::Amd { "kvm_amd" } else { "kvm_intel" };
    let nested = nested.then_some(OptionLacking::Nested { module });
    nested.into_iter().chain(pmu.then_some(OptionLacking::Pmu)).collect()
}

/// Whether there are counters: Intel's leaf 0xA tells of some, or AMD's bit.
pub(super) fn has_pmu(leaves: &Leaves) -> bool {
    leaves.get(COUNTERS, 0).is_some_and(|leaf| leaf.eax & 0xff != 0) || has_any(leaves, &[PERFCTR_CORE])
}

fn has_any(leaves: &Leaves, bits: &[(Word, u32)]) -> bool {
    bits.iter().any(|&(word, bit)| word.find(leaves) >> bit & 1 != 0)
}

/// Takes out what `model` does not ask for.
pub(super) fn apply(leaves: &mut Leaves, model: CpuModel) {
    if !model.nested {
        take_out(leaves, VIRTUALIZATION);
    }
    if !model.pmu {
        take_out(leaves, MEASURING);
        if let Some(leaf) = leaves.get_mut(COUNTERS, 0) {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
    }
}

fn take_out(leaves: &mut Leaves, bits: &[(Word, u32)]) {
    for &(word, bit) in bits {
        if let Some(value) = word.find_mut(leaves) {
            *value &= !(1 << bit);
        }
    }
}

/// Leaf 0xA: how many counters, how wide, for which events.
const COUNTERS: u32 = 0xa;
/// AMD: six counters instead of the four that always were.
const PERFCTR_CORE: (Word, u32) = (X1_ECX, 23);

/// VMX, SMX, which enters it, and SVM. Their leaves follow by themselves.
const VIRTUALIZATION: &[(Word, u32)] = &[(L1_ECX, 5), (L1_ECX, 6), (X1_ECX, 2)];

/// What measures, with leaves that follow by themselves.
#[rustfmt::skip]
const MEASURING: &[(Word, u32)] = &[
    // Intel: debug store (DTES64, DS_CPL, DS), the capabilities' MSR, trace, branch records, leaf 0x23.
    (L1_ECX, 2), (L1_ECX, 4), (L1_EDX, 21), (L1_ECX, 15), (L7_EBX, 25), (L7_EDX, 19), (L7_1_EAX, 8),
    // AMD: sampling, counters of core, northbridge, data cache and last level cache, time stamps for them.
    (X1_ECX, 10), PERFCTR_CORE, (X1_ECX, 24), (X1_ECX, 27), (X1_ECX, 28),
];

#[cfg(test)]
mod tests {
    use super::*;

    const MODELS: [(&str, CpuModel); 5] = [
        ("host", CpuModel { template: CpuTemplate::Host, nested: false, pmu: false }),
        ("host,nested=on", CpuModel { template: CpuTemplate::Host, nested: true, pmu: false }),
        ("host,nested=on,pmu=on", CpuModel::ALL_OF_HOST),
        ("ivybridge", CpuModel { template: CpuTemplate::IvyBridge, nested: false, pmu: false }),
        ("ivybridge,pmu=on", CpuModel { template: CpuTemplate::IvyBridge, nested: false, pmu: true }),
    ];

    #[test]
    fn a_model_is_the_same_text_everywhere() {
        assert_eq!(CpuModel::default(), MODELS[0].1);
        for (text, model) in MODELS {
            assert_eq!((text.parse(), model.to_string()), (Ok(model), text.to_owned()));
            assert_eq!(serde_json::to_value(model).unwrap(), text);
            assert_eq!(serde_json::from_value::<CpuModel>(text.into()).unwrap(), model);
        }
        assert_eq!("host,pmu=off,nested=on".parse(), Ok(MODELS[1].1), "in any order, and what is off anyway");
    }

    #[test]
    fn the_schema_has_each_word_once_and_one_choice_for_options() {
        let schema = schemars::schema_for!(CpuModel);
        let choices = schema.get("oneOf").unwrap().as_array().unwrap();
        let words: Vec<_> = choices.iter().filter_map(|choice| choice["const"].as_str()).collect();
        assert_eq!(words, CpuTemplate::ALL.map(|template| template.to_string()));
        assert!(choices[2]["pattern"].as_str().unwrap().contains("(nested|pmu)=(on|off)"));
    }

    #[test]
    fn wrong_words_are_named_with_what_would_be_right() {
        for (text, why) in [
            ("haswell", "'haswell' is not one of host, ivybridge"),
            ("", "'' is not one of host, ivybridge"),
            ("nested=on", "'nested=on' is not one of host, ivybridge"),
            ("host,", "'' is unknown; there are nested=on|off, pmu=on|off"),
            ("host,vmx=on", "'vmx=on' is unknown; there are nested=on|off, pmu=on|off"),
            ("host,nested", "'nested' is unknown; there are nested=on|off, pmu=on|off"),
            ("host,pmu=yes", "'pmu=yes' is unknown; there are nested=on|off, pmu=on|off"),
            ("host,pmu=on,pmu=off", "pmu= is given twice; say it once"),
        ] {
            assert_eq!(text.parse::<CpuModel>().unwrap_err().to_string(), why, "{text}");
        }
    }
}
