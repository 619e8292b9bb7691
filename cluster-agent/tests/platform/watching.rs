//! What those see who watch an agent: its metrics, and events as they happen.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster_agent::api::views::Event;
use cluster_agent::http::client::{CallError, Client};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};

use crate::agent::Agent;

const HEARD_WITHIN: Duration = Duration::from_mins(1);

async fn metrics(client: &Client) -> String {
    let page = client.call_raw(Method::GET, "/metrics", None::<&()>).await;
    String::from_utf8(page.unwrap().to_vec()).unwrap()
}

/// Samples by name and labels; every line has to be one, or a comment of a known kind, and
/// every sample belongs to the family that was announced last.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').unwrap();
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            name.clone_into(&mut family);
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap();
        let name = key.split('{').next().unwrap();
        assert_eq!(name, family, "{line}");
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        let value: f64 = value.parse().unwrap();
        assert!(value.is_finite() && value >= 0.0, "{line}");
        assert_eq!(samples.insert(key.to_owned(), value), None, "{line}");
    }
    samples
}

#[tokio::test]
async fn metrics_tell_how_it_stands() {
    let Some(agent) = Agent::start(&[]) else {
        return;
    };
    agent.leads().await;
    let client = agent.local();
    let before = parse(&metrics(&client).await);
    let after = parse(&metrics(&client).await);
    let count = |page: &BTreeMap<String, f64>, key: &str| page[key] as u64;
    assert_eq!(count(&after, "godwit_leader"), 1);
    assert_eq!(count(&after, "godwit_hosts{health=\"alive\"}"), 1);
    assert_eq!(count(&after, "godwit_failovers_total"), 0);
    assert!(after["process_resident_memory_bytes"] > 1e6);
    assert!(after["godwit_lease_left_seconds"] > 0.0);
    let asked = "godwit_api_requests_total{from=\"local\",status=\"200\"}";
    assert_eq!(count(&after, asked), count(&before, asked) + 1);
}

/// The next event and the id it came with.
async fn next(body: &mut Incoming) -> (String, Event) {
    let mut text = String::new();
    while !text.ends_with("\n\n") || !text.contains("data: ") {
        let frame = tokio::time::timeout(HEARD_WITHIN, body.frame()).await;
        let frame = frame.expect("no event comes").unwrap().unwrap();
        text += &String::from_utf8_lossy(&frame.into_data().unwrap());
    }
    let line = |begin: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(begin)).unwrap()
    };
    let event = serde_json::from_str(line("data: ")).unwrap();
    (line("id: ").to_owned(), event)
}

#[tokio::test]
async fn events_come_as_they_happen_and_a_reader_goes_on_where_it_was() {
    let Some(mut agent) = Agent::start(&[]) else {
        return;
    };
    agent.leads().await;
    let client = agent.local();
    let path = "/v1/events/stream?count=1000";
    let (first, event) = next(&mut client.stream(path, None).await.unwrap()).await;
    assert_eq!((event.number, event.host.as_str()), (1, "a"));
    let refused = client.stream(path, Some("rubbish")).await;
    assert!(matches!(refused, Err(CallError::Refused { status, .. })
        if status == StatusCode::BAD_REQUEST));

    // A new agent of the same host has something to tell about itself.
    agent.restart();
    agent.leads().await;
    let client = agent.local();
    let mut body = client.stream(path, Some(&first)).await.unwrap();
    let (id, event) = next(&mut body).await;
    assert_eq!((id.as_str(), event.number), ("a=2", 2));
}
