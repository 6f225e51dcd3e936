//! The API described for programs: an OpenAPI document out of the route table and the Rust types.
//!
//! Spec: OpenAPI 3.1.1, 4.8 "Schema"; its schemas are JSON Schema 2020-12.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::routes::{Route, Work};
use crate::types::FaultMessage;

/// The document that describes `routes`.
pub fn document(routes: &[Route]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for route in routes {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.method.to_ascii_lowercase()] = operation(route, &mut schemas);
    }
    let schemas = schemas.take_definitions(true);
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "AxVM",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A running machine over its Unix socket. Every refusal is a 400 with a fault_message.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "http://localhost", "description": "over the Unix socket" }],
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "responses": responses(route, schemas),
    });
    if let Some(body) = &route.body {
        let example: Value = serde_json::from_str(body.example).unwrap_or_default();
        let content = json!({ "schema": (body.schema)(schemas), "example": example });
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": content } });
    }
    let named = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let named: Vec<Value> = named
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if !named.is_empty() {
        operation["parameters"] = named.into();
    }
    operation
}

fn responses(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let fault = schemas.subschema_for::<FaultMessage>();
    let fault = json!({ "description": "Refused, and why", "content": { "application/json": { "schema": fault } } });
    let mut responses = json!({ "400": fault });
    let content =
        |kind: &str, schema: Value| json!({ "description": "Granted", "content": { kind: { "schema": schema } } });
    match (&route.work, route.answer) {
        (Work::Call(_), Some(answer)) => {
            responses["200"] = content("application/json", answer(schemas).to_value());
        }
        (Work::Call(_), None) => responses["204"] = json!({ "description": "Done" }),
        (Work::Events, _) => responses["200"] = content("application/x-ndjson", json!({ "type": "object" })),
        (Work::Document, _) => responses["200"] = content("application/json", json!({ "type": "object" })),
        (Work::Console, _) => responses["101"] = json!({ "description": "From here on the console's bytes" }),
        (Work::Refuse(_), _) => {}
    }
    responses
}

/// `PATCH /balloon/statistics` is `patch_balloon_statistics`.
fn operation_id(route: &Route) -> String {
    let path: String = route.path.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let id = format!("{}_{path}", route.method.to_ascii_lowercase());
    id.split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;
    use crate::routes::table;
    use crate::testing::FakeMachine;

    #[test]
    fn every_route_is_described() {
        let routes = table();
        let document = document(&routes);
        for Route { method, path, .. } in &routes {
            let operation = &document["paths"][path][method.to_ascii_lowercase()];
            assert!(operation["responses"]["400"].is_object() && operation["summary"].is_string(), "{method} {path}");
        }
        let mut ids: Vec<String> = routes.iter().map(operation_id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), routes.len());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(object) => {
                    found.extend(object.get("$ref").and_then(Value::as_str));
                    object.values().for_each(|value| references(value, found));
                }
                Value::Array(array) => array.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document(&table());
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.contains(&"#/components/schemas/Balloon"));
        for reference in found {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_example_is_accepted_and_a_wrong_body_is_not() {
        for route in table() {
            let (Some(body), Work::Call(call)) = (&route.body, &route.work) else { continue };
            let machine = FakeMachine::default();
            let example: Value = serde_json::from_str(body.example).unwrap();
            let name = |key: &str, or: &str| example[key].as_str().unwrap_or(or).to_owned();
            let at = route.path.replace("{drive_id}", &name("drive_id", "vda"));
            let at = &*at.replace("{iface_id}", &name("iface_id", "net0"));
            let status = call(&machine, at, body.example.as_bytes(), Vec::new()).unwrap().status;
            let expected = if route.answer.is_some() { 200 } else { 204 };
            assert_eq!(status, expected, "{} {}", route.method, route.path);
            let misspelt = body.example.replacen('{', "{\"misspelt\": 1, ", 1);
            let fault = call(&machine, at, misspelt.as_bytes(), Vec::new()).unwrap_err();
            assert!(fault.0.contains("unknown field `misspelt`"), "{fault}");
        }
    }

    #[test]
    fn answers_have_the_keys_that_are_described() {
        let document = document(&table());
        let machine = FakeMachine::default();
        let config = serde_json::to_value(machine.config().unwrap()).unwrap();
        let described = |name: &str| {
            let schema = &document["components"]["schemas"][name]["properties"];
            schema.as_object().unwrap_or_else(|| panic!("{name}")).keys().cloned().collect::<Vec<_>>()
        };
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&config), described("VmConfig"));
        assert_eq!(keys(&config["machine-config"]), described("MachineConfig"));
        assert_eq!(keys(&serde_json::to_value(machine.status().unwrap()).unwrap()), described("Status"));
    }
}
