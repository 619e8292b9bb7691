//! The description of the API for programs (OpenAPI 3.1).

use serde_json::{Value, json};

/// The document, as `vmm openapi` and `GET /v1/openapi.json` print it.
pub fn document() -> String {
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Godwit VMM control",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Controls one guest, over HTTP/1.1 on a Unix socket."
        },
        "paths": {
            "/v1/info": get("What the guest is and does", "Info"),
            "/v1/counters": get("What it has done since its VMM started", "Counters"),
            "/v1/events": { "get": {
                "summary": "How things stand and what happens from now on, a line of JSON each",
                "responses": { "200": { "description": "A stream that ends with the guest",
                    "content": { "application/x-ndjson": { "schema": reference("Event") } } } }
            } },
            "/v1/openapi.json": { "get": {
                "summary": "This document",
                "responses": { "200": { "description": "OpenAPI 3.1" } }
            } },
            "/v1/pause": put("Stop the processors and finish all device I/O"),
            "/v1/resume": put("Go on after a pause"),
            "/v1/power-button": put("Press the power button; the guest decides what it does"),
            "/v1/power-off": put("Cut its power: the VMM ends with code 0"),
            "/v1/reset": put("Reset it: the same VMM boots it again"),
            "/v1/migration": {
                "get": get("How the latest migration goes", "Progress")["get"],
                "put": { "summary": "Begin to move the guest to another host's VMM",
                    "requestBody": { "content": { "application/json": {
                        "schema": reference("Migrate") } } },
                    "responses": put("")["put"]["responses"] },
                "delete": { "summary": "Cancel; the guest goes on here",
                    "responses": put("")["put"]["responses"] }
            },
        },
        "components": { "schemas": schemas() }
    });
    format!("{document:#}\n")
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn refusal() -> Value {
    json!({ "description": "Refused; one line says why",
        "content": { "application/json": { "schema": reference("Refusal") } } })
}

fn get(summary: &str, schema: &str) -> Value {
    json!({ "get": { "summary": summary, "responses": {
        "200": { "description": "The answer",
            "content": { "application/json": { "schema": reference(schema) } } },
        "default": refusal()
    } } })
}

fn put(summary: &str) -> Value {
    json!({ "put": { "summary": summary, "responses": {
        "204": { "description": "Done" }, "default": refusal()
    } } })
}

fn object(properties: &Value) -> Value {
    let required: Vec<_> = properties
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys)
        .cloned()
        .collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn schemas() -> Value {
    let count = json!({ "type": "integer", "minimum": 0 });
    let text = json!({ "type": "string" });
    json!({
        "Migrate": { "type": "object", "required": ["to"], "properties": {
            "to": text, "connections": count, "bandwidth_max": count, "verify": { "type": "boolean" },
            "tls_dir": { "type": ["string", "null"] }, "dry_run": { "type": "boolean" },
            "goal": { "type": "object", "properties": {
                "blackout_max_us": count, "accept_longer": { "type": "boolean" } } } } },
        "Progress": object(&json!({
            "phase": { "enum": ["handshake", "copying", "switch-over", "commit", "done", "failed",
                "rehearsed", "uncertain"] },
            "round": count, "sent_bytes": count, "left_bytes": count, "rate": count,
            "dirty_bytes": count, "predicted_blackout_us": count,
            "summary": { "oneOf": [reference("Summary"), { "type": "null" }] },
            "forecast": { "oneOf": [reference("Forecast"), { "type": "null" }] },
            "error": { "type": ["string", "null"] }
        })),
        "Summary": object(&json!({
            "total_us": count, "blackout_us": count, "guest_blackout_us": count,
            "predicted_blackout_us": count, "sent_bytes": count, "skipped_bytes": count,
            "rounds": count, "verified": { "type": "boolean" }, "steps": object(&json!({
                "stop_us": count, "memory_us": count, "save_us": count, "pour_us": count,
                "commit_us": count, "start_us": count
            }))
        })),
        "Forecast": object(&json!({
            "total_us": count, "blackout_us": count, "fixed_us": count, "sent_bytes": count,
            "rounds": count, "link_rate": count, "dirty_rate": count,
            "held_back_percent": count, "gives_up": { "type": "boolean" }
        })),
        "State": { "enum": ["built", "running", "paused", "migrating", "moved"] },
        "Info": object(&json!({
            "name": text, "state": reference("State"), "version": text, "pid": count,
            "cpus": count, "memory_mib": count,
            "epoch": { "type": ["integer", "null"] }, "reboots": count
        })),
        "Counters": object(&json!({
            "exits": { "type": "object", "additionalProperties": count },
            "cpu_us": count, "run_delay_us": count, "resident_mib": count,
            "memory": { "oneOf": [reference("MemorySample"), { "type": "null" }] },
            "disks": { "type": "array", "items": reference("DiskCounters") },
            "nets": { "type": "array", "items": reference("NetCounters") }
        })),
        "MemorySample": object(&json!({
            "watched_pages": count, "touched_mib": count, "cost_us": count,
            "dirtied": { "type": "array", "minItems": 3, "maxItems": 3, "items": object(&json!({
                "after_us": count, "bytes": count
            })) },
            "accessed": { "oneOf": [reference("Accessed"), { "type": "null" }] }
        })),
        "Accessed": object(&json!({
            "taken_pages": count, "missed_pages": count, "within_us": count
        })),
        "NetCounters": object(&json!({
            "received": count, "received_bytes": count, "sent": count, "sent_bytes": count,
            "dropped": count
        })),
        "DiskCounters": object(&json!({
            "reads": count, "read_bytes": count, "writes": count, "written_bytes": count,
            "flushes": count, "discards": count, "errors": count
        })),
        "Event": { "type": "object", "required": ["boottime_us", "event"], "properties": {
            "boottime_us": count,
            "event": { "enum": ["state", "rebooted", "panicked", "lease-suspended",
                "lease-resumed", "migration"] },
            "detail": { "description": "of `state` and `migration`",
                "oneOf": [reference("State"), reference("Progress")] }
        } },
        "Refusal": object(&json!({ "error": text })),
    })
}
