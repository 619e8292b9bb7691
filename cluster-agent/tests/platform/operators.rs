//! Operators from afar: what a token opens, what it does not, and what is said without one.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use cluster_agent::http::client::{CallError, Client, Endpoint};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use shared_storage::trust::{Authority, tls};

use crate::agent::Agent;

const CALL_LIMIT: Duration = Duration::from_secs(30);
/// A token is taken, or not any more, on every host within this.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn token(agent: &Agent, arguments: &[&str]) -> String {
    let output = agent.godwit(&[&["token", "create"], arguments].concat());
    assert!(output.status.success(), "{}", words(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn operator(agent: &Agent, token: &str) -> Client {
    let ca = agent.dir().join("ca.pem");
    std::fs::write(&ca, agent.godwit(&["ca"]).stdout).unwrap();
    let endpoint = Endpoint::Agent {
        server: format!("127.0.0.1:{}", agent.port),
        tls: tls::operator(&ca).unwrap(),
        token: token.to_owned(),
    };
    Client::new(endpoint, CALL_LIMIT)
}

async fn status(client: &Client, method: Method, path: &str, body: &Value) -> StatusCode {
    match client.call::<Value>(method, path, Some(body)).await {
        Ok(_) => StatusCode::OK,
        Err(CallError::Refused { status, message }) => {
            assert!(!message.is_empty());
            status
        }
        Err(other) => panic!("{path}: {other}"),
    }
}

async fn becomes(client: &Client, wanted: StatusCode) {
    let give_up = Instant::now() + KNOWN_WITHIN;
    while status(client, Method::GET, "/v1/cluster", &Value::Null).await != wanted {
        assert!(Instant::now() < give_up, "it does not become {wanted}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_token_opens_what_people_may_ask_and_nothing_else() {
    let Some(agent) = Agent::start(&[]) else {
        return;
    };
    agent.leads().await;
    let secret = token(&agent, &["ops"]);
    let (reader, steerer) = (
        operator(&agent, &token(&agent, &["eye", "--read-only"])),
        operator(&agent, &secret),
    );
    becomes(&reader, StatusCode::OK).await;
    becomes(&steerer, StatusCode::OK).await;

    let maintain = json!({ "enter": false });
    let (path, post) = ("/v1/hosts/a/maintenance", Method::POST);
    assert_eq!(status(&steerer, post.clone(), path, &maintain).await, 200);
    assert_eq!(status(&reader, post.clone(), path, &maintain).await, 403);
    let console = reader
        .upgrade("/v1/guests/g/console", "godwit-console")
        .await;
    assert!(matches!(console, Err(CallError::Refused { status, .. }) if status == 403));

    let shown = std::fs::read_to_string(agent.dir().join("store/trust/tokens.toml")).unwrap();
    assert!(
        !shown.contains(secret.trim_start_matches("godwit_")),
        "{shown}"
    );
    for closed in ["/v1/tokens", "/member/picture", "/member/drs"] {
        assert_eq!(
            status(&steerer, Method::GET, closed, &Value::Null).await,
            403
        );
    }
    let more = json!({ "name": "more" });
    assert_eq!(status(&steerer, post, "/v1/tokens", &more).await, 403);

    for wrong in ["", "godwit_", &secret[..secret.len() - 1], "x y"] {
        let stranger = operator(&agent, wrong);
        for path in [
            "/v1/cluster",
            "/v1/nothing",
            "/member/picture",
            "/v1/tokens",
        ] {
            assert_eq!(
                status(&stranger, Method::GET, path, &Value::Null).await,
                401
            );
        }
    }
    assert!(agent.godwit(&["token", "revoke", "ops"]).status.success());
    becomes(&steerer, StatusCode::UNAUTHORIZED).await;
    becomes(&reader, StatusCode::OK).await;
    let said = words(&agent.godwit(&["token", "list"]));
    assert!(said.contains("eye") && !said.contains("ops"), "{said}");
}

#[tokio::test]
async fn a_foreign_certificate_gets_no_connection_and_the_command_works_from_afar() {
    let Some(agent) = Agent::start(&[]) else {
        return;
    };
    agent.leads().await;
    let foreign = agent.dir().join("foreign");
    let authority = Authority::open_or_create(&foreign).unwrap();
    authority
        .mint("a")
        .unwrap()
        .write(&foreign.join("a"))
        .unwrap();
    // Its own authority and ours: it trusts us, we must not trust it.
    let ours = agent.dir().join("run/identity/authority.pem");
    std::fs::copy(ours, foreign.join("a/authority.pem")).unwrap();
    let tls = tls::MutualTls::from_dir(&foreign.join("a")).unwrap().client;
    let address = ([127, 0, 0, 1], agent.port).into();
    let client = Client::new(Endpoint::Member { address, tls }, CALL_LIMIT);
    let answer = client
        .call::<Value>(Method::GET, "/v1/cluster", None::<&()>)
        .await;
    assert!(
        matches!(answer, Err(CallError::Unreachable { .. })),
        "{answer:?}"
    );

    let file = agent.dir().join("token");
    std::fs::write(&file, token(&agent, &["ops"]) + "\n").unwrap();
    let operator = operator(&agent, std::fs::read_to_string(&file).unwrap().trim());
    becomes(&operator, StatusCode::OK).await;
    let afar = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .env("GODWIT_SERVER", format!("localhost:{}", agent.port))
        .env("GODWIT_TOKEN_FILE", &file)
        .env("GODWIT_CA_FILE", agent.dir().join("ca.pem"))
        .arg("hosts")
        .output()
        .unwrap();
    assert!(words(&afar).contains("alive"), "{}", words(&afar));
}
