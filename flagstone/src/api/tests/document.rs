//! What the OpenAPI document says.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::api::errors::ErrorCode;
use crate::api::routes;

fn document() -> Value {
    serde_json::to_value(routes::document()).unwrap()
}

#[test]
fn it_describes_every_path() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{document}");
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "/healthz",
        "/metrics",
        "/v1/clones",
        "/v1/diff",
        "/v1/nbd",
        "/v1/nbd/{name}",
        "/v1/openapi.json",
        "/v1/pools",
        "/v1/pools/{pool}",
        "/v1/pools/{pool}/devices",
        "/v1/pools/{pool}/devices/{device}",
        "/v1/pools/{pool}/devices/{device}/keep",
        "/v1/pools/{pool}/grow",
        "/v1/pools/{pool}/scrub",
        "/v1/snapshots",
        "/v1/snapshots/{name}",
        "/v1/snapshots/{name}/rollback",
        "/v1/status",
        "/v1/ublk",
        "/v1/ublk/{name}",
        "/v1/usage/{name}",
        "/v1/volumes",
        "/v1/volumes/{name}",
    ];
    assert_eq!(paths, expected);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for name in ["CreateVolume", "UpdateVolume", "Volume", "VolumeList", "PoolList", "ErrorBody"] {
        assert!(schemas.contains_key(name), "{name}");
    }
}

/// The codes that the description of an answer names: `one, two: why; three`.
fn codes(description: &str) -> Vec<ErrorCode> {
    let names = description.split(';').flat_map(|part| part.split(':').next().unwrap().split(','));
    names.map(|name| serde_json::from_value(json!(name.trim())).unwrap()).collect()
}

#[test]
fn errors_are_told_with_the_status_that_they_have() {
    let document = document();
    let mut told = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let mut of_operation = Vec::new();
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let body = &answer["content"]["application/json"]["schema"]["$ref"];
                if body != "#/components/schemas/ErrorBody" {
                    continue;
                }
                let description = answer["description"].as_str().unwrap();
                for code in codes(description) {
                    assert_ne!(code, ErrorCode::Unknown, "{method} {path}: {description}");
                    let stated: StatusCode = status.parse().unwrap();
                    assert_eq!(code.status(), stated, "{method} {path}: {code:?}");
                    of_operation.push(code);
                }
            }
            // What any body may be answered, whatever is asked with it.
            let of_body = [
                ErrorCode::MalformedJson,
                ErrorCode::RequestTimeout,
                ErrorCode::BodyTooLarge,
                ErrorCode::UnsupportedMediaType,
                ErrorCode::InvalidBody,
            ];
            for code in of_body {
                let takes_one = operation.get("requestBody").is_some();
                assert_eq!(of_operation.contains(&code), takes_one, "{method} {path}: {code:?}");
            }
            told += of_operation.len();
        }
    }
    assert!(told > 100, "only {told}");
}
