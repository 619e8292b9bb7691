//! What an agent refuses: nonsense, strangers, what is not there, what is there already, what
//! cannot be now. Each time it says why, and goes on as if nothing had been asked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::Duration;

use cluster_agent::http::client::{CallError, Client};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::agent::Agent;

/// An agent answers nonsense, or hangs up, within this.
const HEARD_WITHIN: Duration = Duration::from_mins(1);

/// What it says no with, and why.
async fn refused(client: &Client, method: Method, path: &str, body: &Value) -> (u16, String) {
    let asked = format!("{method} {path} {body}");
    match client.call::<Value>(method, path, Some(body)).await {
        Err(CallError::Refused { status, message }) => (status.as_u16(), message),
        other => panic!("{asked}: {other:?}"),
    }
}

async fn done(client: &Client, method: Method, path: &str, body: &Value) {
    let answer = client.call::<Value>(method, path, Some(body)).await;
    answer.unwrap();
}

/// A guest of the image that every test here has.
fn guest(name: &str) -> Value {
    json!({ "name": name, "image": "tiny", "cpus": 1, "memory_mib": 64, "protected": true,
        "start": false })
}

async fn make(agent: &Agent, name: &str) {
    let image = agent.dir().join("store/images/tiny");
    std::fs::create_dir_all(&image).unwrap();
    std::fs::write(image.join("image.toml"), "kernel = \"k\"\n").unwrap();
    done(&agent.local(), Method::POST, "/v1/guests", &guest(name)).await;
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn what_is_not_there_or_cannot_be_now_is_said() {
    let Some(agent) = Agent::start(&[]) else {
        return;
    };
    agent.leads().await;
    make(&agent, "web1").await;
    let client = agent.local();
    let (post, delete, put) = (Method::POST, Method::DELETE, Method::PUT);
    let none = json!({});
    for (method, path, body, status, why) in [
        (
            &post,
            "/v1/guests",
            guest("web1"),
            409,
            "choose another name",
        ),
        (&post, "/v1/guests", guest("../x"), 400, "letters, digits"),
        (
            &post,
            "/v1/guests",
            json!({ "name": "x" }),
            422,
            "missing field",
        ),
        (
            &post,
            "/v1/guests/nobody/start",
            none.clone(),
            404,
            "godwit guests",
        ),
        (
            &post,
            "/v1/guests/nobody/stop",
            json!({ "grace_s": 0 }),
            404,
            "godwit guests",
        ),
        (
            &delete,
            "/v1/guests/nobody",
            none.clone(),
            404,
            "godwit guests",
        ),
        (
            &post,
            "/v1/guests/web1/pause",
            none.clone(),
            409,
            "does not run",
        ),
        (
            &post,
            "/v1/guests/web1/migrate",
            json!({ "to": "a" }),
            409,
            "web1",
        ),
        (
            &post,
            "/v1/guests/web1/clone",
            json!({ "name": "web1" }),
            409,
            "choose another",
        ),
        (
            &post,
            "/v1/hosts/nowhere/maintenance",
            json!({ "enter": true }),
            409,
            "nowhere",
        ),
        (
            &delete,
            "/v1/hosts/a",
            none.clone(),
            409,
            "only a dead host",
        ),
        (
            &delete,
            "/v1/rules/none",
            none.clone(),
            404,
            "godwit rules list",
        ),
        (&put, "/v1/groups/%C2%B5", json!([]), 400, "group"),
        (&put, "/v1/groups/%C2%B5", json!(["a"]), 400, "group"),
        (
            &put,
            "/v1/groups/rack",
            json!(["nowhere"]),
            404,
            "godwit hosts",
        ),
        (
            &Method::PATCH,
            "/v1/config",
            json!({ "starts-per-host": 0 }),
            400,
            "goes from 1",
        ),
        (
            &Method::PATCH,
            "/v1/config",
            json!({ "start": 1 }),
            422,
            "unknown field",
        ),
        (&post, "/v1/nothing", none, 404, "openapi.json"),
    ] {
        let (found, message) = refused(&client, method.clone(), path, &body).await;
        assert_eq!(found, status, "{method} {path} {body}: {message}");
        assert!(message.contains(why), "{method} {path} {body}: {message}");
    }
    done(&client, Method::DELETE, "/v1/guests/web1", &Value::Null).await;
    assert!(!agent.dir().join("store/guests/web1").exists());
}

#[tokio::test]
async fn nonsense_on_its_sockets_stops_nothing() {
    let Some(agent) = Agent::start(&[]) else {
        return;
    };
    agent.leads().await;
    let endless = vec![b'a'; 1 << 16];
    let nonsense: [&[u8]; 4] = [
        b"\x00\xff\xfe\r\n\r\n",
        b"GET /v1/cluster HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/guests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
          Content-Length: 5\r\n\r\n{{{{{",
        &endless,
    ];
    for bytes in nonsense {
        let mut local = UnixStream::connect(agent.socket()).unwrap();
        local.set_read_timeout(Some(HEARD_WITHIN)).unwrap();
        // It may hang up before it has taken all.
        let _ = local.write_all(bytes);
        local.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = local.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );

        let mut afar = TcpStream::connect(("127.0.0.1", agent.port)).unwrap();
        afar.set_read_timeout(Some(HEARD_WITHIN)).unwrap();
        let _ = afar.write_all(bytes);
        let _ = afar.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = afar.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "it answers without TLS");
    }
    agent.leads().await;
}

#[tokio::test]
async fn a_full_datastore_is_said_and_costs_nothing() {
    let Some(agent) = Agent::start_on_a_small_datastore() else {
        return;
    };
    agent.leads().await;
    make(&agent, "web1").await;
    let ballast = agent.dir().join("store/ballast");
    let mut bytes = vec![0; 8 << 20];
    while !bytes.is_empty() && std::fs::write(&ballast, &bytes).is_err() {
        bytes.truncate(bytes.len() - 4096);
    }
    let client = agent.local();
    for (method, path, body) in [
        (Method::POST, "/v1/guests", guest("web2")),
        (Method::PATCH, "/v1/guests/web1", json!({ "cpus": 2 })),
        (Method::PATCH, "/v1/config", json!({ "starts-per-host": 2 })),
    ] {
        let (status, message) = refused(&client, method, path, &body).await;
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{message}");
        assert!(message.contains("free space on the datastore"), "{message}");
    }
    std::fs::remove_file(ballast).unwrap();
    agent.leads().await;
    let guests = std::fs::read_dir(agent.dir().join("store/guests")).unwrap();
    assert_eq!(guests.count(), 1, "something was left behind");
    let cpus = json!({ "cpus": 2 });
    done(&client, Method::PATCH, "/v1/guests/web1", &cpus).await;
}

#[tokio::test]
async fn a_second_host_of_the_same_name_does_not_join() {
    let Some(agent) = Agent::start(&[]) else {
        return;
    };
    agent.leads().await;
    let other = |name: &str, run_dir: &str| {
        Command::new(env!("CARGO_BIN_EXE_cluster-agent"))
            .args(["--name", name, "--address", "127.0.0.1", "--port", "0"])
            .args(["--bridge", agent.bridge()])
            .arg("--datastore")
            .arg(agent.dir().join("store"))
            .arg("--run-dir")
            .arg(agent.dir().join(run_dir))
            .output()
            .unwrap()
    };
    let before = std::fs::read(agent.dir().join("store/hosts/a/host.toml")).unwrap();
    let namesake = other("a", "run-b");
    assert!(!namesake.status.success());
    assert!(
        said(&namesake).contains("GODWIT_NAME"),
        "{}",
        said(&namesake)
    );
    let after = std::fs::read(agent.dir().join("store/hosts/a/host.toml")).unwrap();
    assert_eq!(before, after, "it speaks for the other");
    let twin = other("b", "run");
    assert!(!twin.status.success());
    assert!(
        said(&twin).contains("another agent answers"),
        "{}",
        said(&twin)
    );
    agent.leads().await;
}
