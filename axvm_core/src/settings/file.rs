//! The settings file: read, parsed, and when it is wrong, told where and why.
//!
//! ```text
//!   bytes -> UTF-8 -> TOML tree -> no unknown keys -> Settings
//!                 \         \                \             \
//!                  +---------+----------------+-------------+--> SettingsFault: line, column, why
//! ```
//!
//! Which keys there are is asked of the schema, so that it has the last word.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::LazyLock;

use schemars::Schema;
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::{Settings, peers, schema};
use crate::error::ConfigError;

/// The longest file that is taken for settings.
const LIMIT: u64 = 1 << 20;
/// How alike a known key has to be to be proposed (1: the same).
const ALIKE: f64 = 0.7;

static SCHEMA: LazyLock<Schema> = LazyLock::new(schema);

/// Something wrong in the text of a settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsFault {
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub why: String,
}

/// Reads a settings file. Paths in it are as they are written there.
pub fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = load(path).map_err(|why| ConfigError::File { path: path.to_owned(), why })?;
    let at_path = |SettingsFault { line, column, why }| ConfigError::Text { path: path.to_owned(), line, column, why };
    match std::str::from_utf8(&text) {
        Ok(text) => parse(text).map_err(at_path),
        Err(error) => {
            let before = String::from_utf8_lossy(&text[..error.valid_up_to()]);
            Err(at_path(SettingsFault::at(
                &before,
                before.len(),
                "not UTF-8 here; a settings file is text in TOML".into(),
            )))
        }
    }
}

/// The bytes of the file, or why not.
fn load(path: &Path) -> Result<Vec<u8>, String> {
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "no such file; check the path given to --config".into(),
        io::ErrorKind::IsADirectory => "it is a directory; give --config the file itself".into(),
        io::ErrorKind::PermissionDenied => "permission denied; make it readable: chmod u+r".to_string(),
        _ => format!("{error}; check the path given to --config"),
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(explain)?;
    file.take(LIMIT + 1).read_to_end(&mut text).map_err(explain)?;
    if text.len() as u64 > LIMIT {
        return Err("longer than 1 MiB; a settings file is a page of TOML, see axvm config --from-args".into());
    }
    Ok(text)
}

/// Settings from the text of a file.
pub fn parse(text: &str) -> Result<Settings, SettingsFault> {
    let located = |error: toml::de::Error| {
        let why = error.message().replace('`', "'").replace('\n', ", ");
        SettingsFault::at(text, error.span().map_or(text.len(), |span| span.start), why)
    };
    if let Some(at) = text.find(|letter: char| !letter.is_whitespace()).filter(|&at| text[at..].starts_with('{')) {
        let whose = if text.contains("\"boot-source\"") { "Firecracker's" } else { "another program's" };
        let why = format!("this is JSON, perhaps {whose}; settings are TOML: axvm config --example shows all of them");
        return Err(SettingsFault::at(text, at, why));
    }
    let tree = DeTable::parse(text).map_err(located)?;
    if let Some((at, why)) = unknown_key(tree.get_ref(), SCHEMA.as_value(), "") {
        return Err(SettingsFault::at(text, at, why));
    }
    toml::from_str(text).map_err(located)
}

impl SettingsFault {
    fn at(text: &str, at: usize, why: String) -> SettingsFault {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        SettingsFault { line, column, why }
    }
}

/// The first key that the schema does not have: where it is, and what was probably meant.
fn unknown_key(table: &DeTable<'_>, schema: &Value, place: &str) -> Option<(usize, String)> {
    let properties = &schema["properties"];
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries.into_iter().find_map(|(key, value)| {
        let name = key.get_ref().as_ref();
        let Some(known) = properties.get(name) else {
            return Some((key.span().start, unknown(name, properties, place)));
        };
        match value.get_ref() {
            DeValue::Table(inner) if known.get("properties").is_some() => {
                unknown_key(inner, known, &format!("[{name}]"))
            }
            DeValue::Array(items) if known["items"].get("properties").is_some() => items
                .iter()
                .filter_map(|item| item.get_ref().as_table())
                .find_map(|inner| unknown_key(inner, &known["items"], &format!("[[{name}]]"))),
            DeValue::String(_) if known.get("oneOf").is_some() => None,
            _ => mismatch(name, known).map(|why| (value.span().start, why)),
        }
    })
}

/// What to say about a value of the wrong kind, where serde would speak of sequences and variants.
fn mismatch(name: &str, known: &Value) -> Option<String> {
    let choices = known["oneOf"].as_array().map(|choices| choices.iter().map(|choice| choice["const"].to_string()));
    match choices {
        Some(choices) => Some(format!("expected one of {}", choices.collect::<Vec<_>>().join(", "))),
        None if known["items"].get("properties").is_some() => {
            let key = if name == "net" { "user = true" } else { "path = \"FILE\"" };
            Some(format!("expected tables: [[{name}]] with {key}"))
        }
        None => None,
    }
}

/// What to say about a key that is not in `properties`.
fn unknown(name: &str, properties: &Value, place: &str) -> String {
    let known = || properties.as_object().into_iter().flatten();
    let within = if place.is_empty() { String::new() } else { format!(" in {place}") };
    if let Some(meant) = peers::meant(place, name) {
        return format!("unknown key '{name}'{within}; {meant}");
    }
    let holder = known().find_map(|(table, inner)| match inner.get("items").unwrap_or(inner).get("properties") {
        Some(keys) if keys.get(name).is_some() && inner.get("items").is_some() => Some(format!("[[{table}]]")),
        Some(keys) if keys.get(name).is_some() => Some(format!("[{table}]")),
        _ => None,
    });
    if let Some(holder) = holder {
        return format!("unknown key '{name}'{within}; it belongs to {holder}");
    }
    let alike = |(key, _): (&String, &Value)| (strsim::jaro_winkler(name, key), key.clone());
    let nearest = known().map(alike).filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, key)) => format!("unknown key '{name}'{within}; did you mean '{key}'?"),
        None => {
            let keys: Vec<&str> = known().map(|(key, _)| key.as_str()).collect();
            format!("unknown key '{name}'{within}; known are {}", keys.join(", "))
        }
    }
}
