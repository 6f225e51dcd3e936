//! How the command line takes values that are one of a few words.
//!
//! ```text
//!   enum Entry { /// help  Bits32 ("32"), ... } --schema--> "32", "64", "pvh" ..., each with its help --> clap
//!                                               <--serde---                              the word typed
//! ```
//!
//! A value may also begin with one of the words and have parts after it: `host,pmu=on`. Then the type's `FromStr` reads it.
//!
//! Words and help come from the schema of the type, which is that of the settings file: there is one list of them.

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::marker::PhantomData;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::{Arg, Command};
use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::de::value::{Error, StrDeserializer};
use serde_json::Value;

/// Takes the words of an enumeration.
pub fn words<T>() -> impl TypedValueParser<Value = T>
where
    T: JsonSchema + DeserializeOwned + Clone + Send + Sync + 'static,
{
    Words(PhantomData::<fn() -> T>)
}

/// The schema is looked into when words are told, or one is wrong: not at each start.
#[derive(Clone)]
struct Words<T>(PhantomData<fn() -> T>);

impl<T> TypedValueParser for Words<T>
where
    T: JsonSchema + DeserializeOwned + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        if let Some(one) = value.to_str().and_then(|word| T::deserialize(StrDeserializer::<Error>::new(word)).ok()) {
            return Ok(one);
        }
        let words = PossibleValuesParser::new(of_schema::<T>());
        words.try_map(|word| T::deserialize(StrDeserializer::<Error>::new(&word))).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(of_schema::<T>().into_iter()))
    }
}

/// Takes what begins with a word of an enumeration; help and completion tell these words.
pub fn words_and_parts<T>() -> impl TypedValueParser<Value = T>
where
    T: JsonSchema + FromStr<Err: StdError + Send + Sync> + Clone + Send + Sync + 'static,
{
    WithParts(PhantomData::<fn() -> T>)
}

#[derive(Clone)]
struct WithParts<T>(PhantomData<fn() -> T>);

impl<T> TypedValueParser for WithParts<T>
where
    T: JsonSchema + FromStr<Err: StdError + Send + Sync> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        StringValueParser::new().try_map(|text| text.parse::<T>()).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(of_schema::<T>().into_iter()))
    }
}

/// The words of a type's schema.
fn of_schema<T: JsonSchema>() -> Vec<PossibleValue> {
    let choices = T::json_schema(&mut SchemaGenerator::default());
    choices.get("oneOf").and_then(Value::as_array).into_iter().flatten().filter_map(word).collect()
}

/// One choice of a schema: its word, and the first paragraph of what is said about it.
fn word(choice: &Value) -> Option<PossibleValue> {
    let about = choice["description"].as_str().unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let value = PossibleValue::new(choice["const"].as_str()?.to_owned()).help(about.replace('\n', " "));
    Some(value.aliases(choice["x-formerly"].as_str().map(str::to_owned)))
}

/// Takes `on` and `off`.
pub fn on_off() -> impl TypedValueParser<Value = bool> {
    let words = [("on", "Yes"), ("off", "No")].map(|(word, about)| PossibleValue::new(word).help(about));
    PossibleValuesParser::new(words).map(|word| word == "on")
}

/// Options that are switches.
pub trait Switch {
    /// `--verbose` or `--verbose=on`; and `--verbose=off`, which takes back what a file says.
    #[must_use]
    fn switch(self) -> Self;
}

impl Switch for Arg {
    fn switch(self) -> Arg {
        let named = self.value_name("on|off").value_parser(on_off()).hide_possible_values(true);
        named.num_args(0..=1).require_equals(true).default_missing_value("on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_boot::cpu::{CpuModel, CpuTemplate};
    use axvm_boot::linux::Entry;
    use axvm_memory::PageSize;
    use std::fmt::Debug;

    /// Every word of a type that is typed as `values` show themselves.
    fn are_the_words<
        T: JsonSchema + DeserializeOwned + ToString + Debug + PartialEq + Clone + Send + Sync + 'static,
    >(
        values: &[T],
    ) {
        let parser = words::<T>();
        let known: Vec<_> = parser.possible_values().unwrap().map(|word| word.get_name().to_owned()).collect();
        assert_eq!(known, values.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(parser.possible_values().unwrap().all(|word| word.get_help().is_some()), "{known:?}");
        for (value, word) in values.iter().zip(known) {
            assert_eq!(&parser.parse_ref(&Command::new("x"), None, word.as_ref()).unwrap(), value);
        }
        assert!(parser.parse_ref(&Command::new("x"), None, "none of them".as_ref()).is_err());
    }

    #[test]
    fn the_command_line_takes_what_a_type_is_shown_as() {
        are_the_words(&Entry::ALL);
        are_the_words(&PageSize::ALL);
    }

    #[test]
    fn a_word_may_have_parts_that_its_type_reads() {
        let parser = words_and_parts::<CpuModel>();
        let known: Vec<_> = parser.possible_values().unwrap().map(|word| word.get_name().to_owned()).collect();
        assert_eq!(known, CpuTemplate::ALL.map(|template| template.to_string()));
        let read = |text: &str| parser.parse_ref(&Command::new("x"), None, text.as_ref());
        assert_eq!(read("host,nested=on,pmu=on").unwrap(), CpuModel::ALL_OF_HOST);
        assert!(read("host,none=on").is_err() && read("none").is_err());
    }
}
