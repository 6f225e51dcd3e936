//! The JSON Schema of settings files, made from the types.
//!
//! ```text
//!   Option<u32>    { "type": ["integer", "null"] }                 -->  { "type": "integer" }
//!   Option<Entry>  { "anyOf": [{ "oneOf": [..] }, { "type": "null" }] }  -->  { "oneOf": [..] }
//! ```
//!
//! TOML has no null: what may be left out is left out, so the schema speaks of present values only.
//!
//! Source: JSON Schema 2020-12.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Settings;

/// The JSON Schema of settings files.
pub fn schema() -> Schema {
    let with_parts_in_place = |settings: &mut SchemaSettings| settings.inline_subschemas = true;
    let generator = SchemaSettings::draft2020_12().with(with_parts_in_place).into_generator();
    let mut schema = generator.into_root_schema_for::<Settings>();
    if let Some(root) = schema.as_object_mut() {
        present(root);
    }
    schema
}

/// Takes nulls, defaults that stand for absence, and line ends in sentences out of a schema and all below it.
fn present(schema: &mut Map<String, Value>) {
    schema.remove("default");
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            schema.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(choices)) = schema.remove("anyOf") {
        let present = choices.into_iter().find_map(|choice| match choice {
            Value::Object(choice) if choice.get("type").is_none_or(|name| name != "null") => Some(choice),
            _ => None,
        });
        for (key, value) in present.into_iter().flatten() {
            schema.entry(key).or_insert(value);
        }
    }
    let below = |(key, value): (&String, &mut Value)| match (key.as_str(), value) {
        ("properties", Value::Object(properties)) => {
            properties.values_mut().filter_map(Value::as_object_mut).for_each(present);
        }
        ("items", Value::Object(items)) => present(items),
        _ => {}
    };
    schema.iter_mut().for_each(below);
}
