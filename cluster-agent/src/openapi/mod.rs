//! The description of the API for programs (OpenAPI 3.1). A test holds it against the router:
//! a route that is not written down here fails it, and so does one that is gone.

mod operations;
mod schemas;

use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};

use self::operations::{Answer, OPERATIONS, Operation};
use crate::api::shared::Api;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new().route("/v1/openapi.json", get(serve))
}

async fn serve() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], document())
}

/// The document, as `godwit openapi` and `GET /v1/openapi.json` print it.
pub fn document() -> String {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = describe(operation);
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Godwit cluster",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every agent of a cluster answers alike. On a host: HTTP/1.1 on the \
                agent's Unix socket. From afar: HTTPS on its port, with a token."
        },
        "servers": [{ "url": "https://{host}:7440",
            "variables": { "host": { "default": "localhost" } } }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer",
                "description": "godwit token create NAME" } },
            "schemas": schemas::all()
        }
    });
    format!("{document:#}\n")
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn content(kind: &str, schema: &Value) -> Value {
    json!({ kind: { "schema": schema } })
}

fn describe(operation: &Operation) -> Value {
    let in_path = operation.path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        Some(json!({ "name": name, "in": "path", "required": true,
            "schema": reference("Name") }))
    });
    let in_query = operation.query.iter().map(|(name, required, schema)| {
        json!({ "name": name, "in": "query", "required": required,
            "schema": reference(schema) })
    });
    let parameters: Vec<_> = in_path.chain(in_query).collect();
    let (status, answer) = match operation.answer {
        Answer::Json(schema) => ("200", content("application/json", &reference(schema))),
        Answer::Text(kind) => ("200", content(kind, &json!({ "type": "string" }))),
        Answer::Upgrade => ("101", json!({})),
    };
    let mut described = json!({
        "operationId": operation.id(),
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            status: { "description": "The answer", "content": answer },
            "default": { "description": "Refused; one line says why and what helps",
                "content": content("application/json", &reference("Refusal")) }
        }
    });
    if let Some(schema) = operation.body {
        described["requestBody"] = json!({ "required": true,
            "content": content("application/json", &reference(schema)) });
    }
    described
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::api::routes::public_routes;

    const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

    /// What the router answers, read from what it says about itself to programmers.
    fn routed() -> BTreeSet<(String, String)> {
        let said = format!("{:?}", public_routes());
        let (routes, paths) = said.split_once("paths: {").unwrap();
        // What follows is about requests that no route fits.
        let (paths, _) = paths.split_once("\"}").unwrap();
        let paths: BTreeMap<&str, &str> = paths
            .split("RouteId(")
            .filter_map(|one| {
                let (id, rest) = one.split_once("): \"")?;
                Some((id, rest.split('"').next()?))
            })
            .collect();
        let mut found = BTreeSet::new();
        for route in routes.split("RouteId(") {
            let Some((id, route)) = route.split_once("): MethodRouter(") else {
                continue;
            };
            for method in METHODS {
                if !route.contains(&format!("{method}: None")) {
                    found.insert((method.to_owned(), paths[id].to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn every_public_route_is_described_and_nothing_else_is() {
        let routed = routed();
        assert!(
            routed.len() > 20,
            "the router is not understood: {routed:?}"
        );
        let described: BTreeSet<_> = OPERATIONS
            .iter()
            .map(|one| (one.method.to_owned(), one.path.to_owned()))
            .collect();
        let missing: Vec<_> = routed.difference(&described).collect();
        assert!(
            missing.is_empty(),
            "write these down in openapi/operations.rs: {missing:?}"
        );
        let gone: Vec<_> = described.difference(&routed).collect();
        assert!(gone.is_empty(), "nothing answers these: {gone:?}");
        assert_eq!(described.len(), OPERATIONS.len(), "described twice");
    }

    #[test]
    fn every_schema_that_is_named_is_there_and_used() {
        let document: Value = serde_json::from_str(&document()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is not described");
        }
        for name in schemas.keys() {
            let reference = format!("#/components/schemas/{name}\"");
            assert!(text.contains(&reference), "{name} is not used");
        }
    }
}
