//! How the command line takes values that are one of a few words.
//!
//! ```text
//!   enum Entry { /// help  Bits32 ("32"), ... } --schema--> "32", "64", "pvh" ..., each with its help --> clap
//!                                               <--serde---                              the word typed
//! ```
//!
//! Words and help come from the schema of the type, which is that of the settings file: there is one list of them.

use clap::Arg;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::de::value::{Error, StrDeserializer};
use serde_json::Value;

/// Takes the words of an enumeration.
pub fn words<T>() -> impl TypedValueParser<Value = T>
where
    T: JsonSchema + DeserializeOwned + Clone + Send + Sync + 'static,
{
    let choices = T::json_schema(&mut SchemaGenerator::default());
    let words: Vec<PossibleValue> =
        choices.get("oneOf").and_then(Value::as_array).into_iter().flatten().filter_map(word).collect();
    PossibleValuesParser::new(words).try_map(|word| T::deserialize(StrDeserializer::<Error>::new(&word)))
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
    use axvm_boot::cpu::CpuTemplate;
    use axvm_boot::linux::Entry;
    use axvm_memory::PageSize;
    use clap::Command;
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
        are_the_words(&CpuTemplate::ALL);
        are_the_words(&PageSize::ALL);
    }
}
