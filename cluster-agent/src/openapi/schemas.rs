//! What goes over the wire. Views say what they always have; more may come with a release.

use serde_json::{Map, Value, json};
use vmm_core::spec::{CPUS_MAX, MEMORY_MIB_MAX, MEMORY_MIB_MIN};

use super::reference;
use crate::guest_file::GRACE_MAX_S;
use crate::settings::{COUNT_MAX, TOLERATED_MAX, WAIT_MS_MAX};

fn object(properties: &Value) -> Value {
    let required: Vec<_> = properties
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .cloned()
        .collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

/// A request: what is `required`, and nothing besides `properties`.
fn request(required: &[&str], properties: &Value) -> Value {
    json!({ "type": "object", "properties": properties, "required": required,
        "additionalProperties": false })
}

fn list(of: &str) -> Value {
    json!({ "type": "array", "items": reference(of) })
}

fn or_null(schema: &Value) -> Value {
    json!({ "anyOf": [schema, { "type": "null" }] })
}

/// All that the document names.
pub(super) fn all() -> Value {
    let mut schemas = Map::new();
    for part in [
        words(),
        cluster(),
        settings(),
        guests(),
        balance(),
        operators(),
    ] {
        if let Value::Object(part) = part {
            schemas.extend(part);
        }
    }
    Value::Object(schemas)
}

fn words() -> Value {
    let name = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$";
    json!({
        "Name": { "type": "string", "pattern": name, "maxLength": 63 },
        "Names": list("Name"),
        "Text": { "type": "string" },
        "Count": { "type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32 },
        "Number": { "type": "integer", "minimum": 0, "maximum": u64::MAX },
        "Numbers": list("Number"),
        "Said": object(&json!({ "said": { "type": "string",
            "description": "What came of it, for a person" } })),
        "Refusal": object(&json!({ "error": { "type": "string" } })),
        "Document": { "type": "object" },
        "Resources": object(&json!({ "mcpu": reference("Number"), "memory_mib": reference("Number") })),
    })
}

fn cluster() -> Value {
    let (text, number) = (reference("Text"), reference("Number"));
    json!({
        "Cluster": object(&json!({
            "cluster_id": text, "leader": or_null(&text), "hosts": list("Host"),
            "guests": list("Guest"), "reserve": text,
            "balance": or_null(&json!({ "type": "object" })), "problems": list("Problem")
        })),
        "Problem": object(&json!({ "what": text, "remedy": text })),
        "Host": object(&json!({
            "name": text, "address": text, "health": text, "capacity": reference("Resources"),
            "reserved": reference("Resources"), "demand": reference("Resources"),
            "load_permille": number, "disk_kib_s": number, "net_kib_s": number, "used": or_null(&reference("Resources")),
            "guests": number, "version": text,
            "cpu_lacks": { "type": "array", "items": text }
        })),
        "Guest": object(&json!({
            "name": text, "host": or_null(&text), "state": text,
            "desired": { "enum": ["running", "stopped"] }, "cpus": number, "memory_mib": number,
            "demand_mcpu": number, "score_permille": or_null(&number),
            "rates": or_null(&json!({ "type": "object" })), "priority": reference("Priority"),
            "protected": { "type": "boolean" }, "epoch": number, "failed_starts": number, "reason": or_null(&text),
            "after": reference("After")
        })),
        "Priority": { "enum": ["highest", "high", "medium", "low", "lowest"] },
        "Event": object(&json!({
            "number": number, "unix_ms": number, "host": text, "about": text, "what": text,
            "detail": text
        })),
        "Events": list("Event"),
        "UpgradePlan": { "type": "array", "items": object(&json!({
            "host": text, "moves": { "type": "array" }, "memory-mib": number,
            "migration-ms": number, "against": { "type": "array", "items": text }
        })) },
        "Leave": request(&[], &json!({
            "cancel": { "type": "boolean" }, "force": { "type": "boolean" } })),
        "Maintain": request(&["enter"], &json!({
            "enter": { "type": "boolean" }, "force": { "type": "boolean" } })),
    })
}

fn settings() -> Value {
    let wait = or_null(&json!({ "type": "integer", "minimum": 1, "maximum": WAIT_MS_MAX }));
    let count = or_null(&json!({ "type": "integer", "minimum": 1, "maximum": COUNT_MAX }));
    let most = |most: u32| json!({ "type": "integer", "minimum": 0, "maximum": most });
    let admission = json!({ "oneOf": [
        { "const": "off" },
        request(&["tolerate-host-failures"],
            &json!({ "tolerate-host-failures": most(TOLERATED_MAX) })),
        request(&["reserve-percent"], &json!({ "reserve-percent": most(99) })),
    ] });
    json!({
        "Config": object(&json!({
            "settings": { "type": "object" }, "lease": { "type": "object" } })),
        "ChangeConfig": request(&[], &json!({
            "admission": or_null(&admission),
            "enforcement": or_null(&json!({ "enum": ["refuse", "warn"] })),
            "isolation-response": or_null(&json!({ "enum": ["leave", "shut-down", "power-off"] })),
            "starts-per-host": count, "start-attempts": count,
            "suspect-after-ms": wait, "isolated-after-ms": wait,
            "dependency-patience-ms": wait, "retry-after-ms": wait
        })),
    })
}

fn guests() -> Value {
    let (text, number) = (reference("Text"), reference("Number"));
    let flag = json!({ "type": "boolean" });
    json!({
        "CreateGuest": request(
            &["name", "image", "cpus", "memory_mib", "protected", "start"],
            &json!({
                "name": reference("Name"), "image": reference("Name"),
                "cpus": reference("Cpus"), "memory_mib": reference("MemoryMib"),
                "disk_from": { "enum": ["overlay", "copy"] },
                "cpu": reference("CpuModel"), "cmdline": or_null(&text),
                "priority": reference("Priority"), "protected": flag,
                "reserve_mcpu": reference("Count"), "start": flag, "after": reference("After")
            })
        ),
        "Cpus": { "type": "integer", "minimum": 1, "maximum": CPUS_MAX },
        "MemoryMib": { "type": "integer", "minimum": MEMORY_MIB_MIN, "maximum": MEMORY_MIB_MAX },
        "CpuModel": { "enum": ["cluster", "host"] },
        "After": { "type": "object", "propertyNames": reference("Name"),
            "additionalProperties": { "oneOf": [
                { "enum": ["running", "heartbeat"] },
                request(&["delay-ms"], &json!({ "delay-ms": reference("Count") })),
            ] } },
        "EditGuest": request(&[], &json!({
            "revision": or_null(&number), "cpus": or_null(&reference("Cpus")),
            "memory_mib": or_null(&reference("MemoryMib")),
            "cpu": or_null(&reference("CpuModel")), "cmdline": or_null(&text), "priority": or_null(&reference("Priority")),
            "protected": or_null(&flag), "reserve_mcpu": or_null(&reference("Count")),
            "grace_s": or_null(&reference("Grace")),
            "after": or_null(&reference("After"))
        })),
        "GuestSettings": object(&json!({ "revision": number, "settings": { "type": "object" } })),
        "CloneGuest": request(&["name"], &json!({ "name": reference("Name") })),
        "StopGuest": request(&[], &json!({ "grace_s": or_null(&reference("Grace")) })),
        "Grace": { "type": "integer", "minimum": 0, "maximum": GRACE_MAX_S },
        "MigrateGuest": request(&[], &json!({ "to": or_null(&reference("Name")) })),
        "Ordered": object(&json!({ "from": text, "to": text, "number": number })),
        "Rehearsed": object(&json!({ "from": text, "to": text, "forecast": { "type": "object" } })),
        "Migration": or_null(&object(&json!({
            "to": text, "number": number, "progress": { "type": "object" }, "over": flag }))),
        "Reserve": request(&["mcpu"], &json!({ "mcpu": reference("Count") })),
    })
}

fn balance() -> Value {
    let guests = json!({ "type": "array", "items": reference("Name"), "uniqueItems": true });
    let flag = json!({ "type": "boolean" });
    let level = json!({ "enum": ["manual", "partial", "full"] });
    let count = or_null(&reference("Count"));
    let rule = |kind: &str, mut more: Value| {
        more["kind"] = json!({ "const": kind });
        more["guests"] = guests.clone();
        let all: Vec<String> = more
            .as_object()
            .into_iter()
            .flat_map(Map::keys)
            .cloned()
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        request(&all, &more)
    };
    json!({
        "Drs": object(&json!({
            "settings": { "type": "object" }, "settled": flag, "round": { "type": "object" },
            "under-way": { "type": "array" }, "left-alone": { "type": "array" }, "broken": { "type": "array" },
            "guests": { "type": "object", "additionalProperties": level }
        })),
        "ChangeDrs": request(&[], &json!({
            "automation": or_null(&level),
            "threshold": or_null(&json!({ "type": "integer", "minimum": 1, "maximum": 5 })),
            "round-ms": count, "at-once": count, "at-once-per-host": count, "at-once-per-link": count,
            "hold-ms": count,
            "rise-ms": count, "fall-ms": count
        })),
        "ChangeGuestDrs": request(&["movable"], &json!({
            "movable": flag, "automation": or_null(&level) })),
        "Rule": { "oneOf": [
            rule("keep-together", json!({})),
            rule("keep-apart", json!({})),
            rule("guests-to-hosts", json!({ "group": reference("Name"),
                "affinity": { "enum": ["on", "off"] }, "hard": flag })),
        ] },
        "Rules": object(&json!({
            "rules": { "type": "object", "additionalProperties": reference("Rule") },
            "groups": { "type": "object", "additionalProperties": reference("Names") }
        })),
    })
}

fn operators() -> Value {
    let (text, number) = (reference("Text"), reference("Number"));
    let flag = json!({ "type": "boolean" });
    json!({
        "CreateToken": request(&["name"], &json!({
            "name": reference("Name"), "read_only": flag })),
        "NewToken": object(&json!({ "name": text, "token": text })),
        "Tokens": { "type": "array", "items": object(&json!({
            "name": text, "read_only": flag, "created_unix_s": number })) },
        "Authority": object(&json!({ "certificate_pem": text })),
    })
}
