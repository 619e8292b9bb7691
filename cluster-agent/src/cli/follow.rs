//! `godwit events --follow`: events as they happen, until it is interrupted.

use std::io::{self, Write};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::run::{Agent, CliError};
use super::screen::time_of_day;
use crate::api::views::Event;

/// Longest line that is kept while its end is awaited, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// After a lost connection, before the next try.
const PAUSE: Duration = Duration::from_secs(1);
/// Tries in a row that may fail before it is given up.
const TRIES_MAX: u32 = 30;

/// Print the last `count` events and all that follow; go on where it ended when the agent is
/// restarted.
pub async fn run(agent: &Agent, count: u64) -> Result<(), CliError> {
    let mut last_id: Option<String> = None;
    let mut tries = 0;
    loop {
        let path = format!("/v1/events/stream?count={count}");
        match agent.client().stream(&path, last_id.as_deref()).await {
            Ok(body) => {
                tries = 0;
                read(agent, body, &mut last_id).await?;
            }
            // It has answered before: its agent may be restarting.
            Err(_) if last_id.is_some() && tries < TRIES_MAX => tries += 1,
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read(
    agent: &Agent,
    mut body: Incoming,
    last_id: &mut Option<String>,
) -> Result<(), CliError> {
    let mut waiting = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        waiting.extend_from_slice(&bytes);
        while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            take(agent, String::from_utf8_lossy(&line).trim_end(), last_id)?;
        }
        if waiting.len() > LINE_BYTES_MAX {
            let why = "the agent sends a line without end; are both of one release?";
            return Err(CliError::Failed(why.to_owned()));
        }
    }
    Ok(())
}

fn take(agent: &Agent, line: &str, last_id: &mut Option<String>) -> Result<(), CliError> {
    if let Some(id) = line.strip_prefix("id: ") {
        *last_id = Some(id.to_owned());
    }
    let Some(json) = line.strip_prefix("data: ") else {
        return Ok(());
    };
    if agent.json {
        return Ok(writeln!(io::stdout(), "{json}")?);
    }
    let event: Event = serde_json::from_str(json)
        .map_err(|error| CliError::Failed(format!("an event is not understood: {error}")))?;
    let time = time_of_day(event.unix_ms);
    let Event {
        host,
        what,
        about,
        detail,
        ..
    } = event;
    Ok(writeln!(
        io::stdout(),
        "{time}  {host}  {what}  {about}  {detail}"
    )?)
}
