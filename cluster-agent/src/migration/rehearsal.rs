//! A dry run: the leader says where the guest would go, and its host's VMM tries everything with
//! a VMM on that host. Nothing is ordered, and nothing moves.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hyper::Method;
use vmm_core::migration::{Forecast, Migrate, Phase, Progress};

use super::departure::{ask_for_berth, control, wish};
use crate::guests::Host;

/// How often the VMM is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A dry run is over long before.
const LIMIT: Duration = Duration::from_secs(20);

/// Try to move `guest`, which runs here, to the host whose agent answers at `address`.
pub async fn rehearse(host: &Host, guest: &str, address: SocketAddr) -> Result<Forecast, String> {
    let vmm = control(host, guest);
    let now: Progress = ask(vmm.call(Method::GET, "/v1/migration", None::<&()>).await)?;
    if now.phase.is_under_way() {
        return Err(format!("{guest} is being moved already"));
    }
    let berth = ask(ask_for_berth(host, guest, address).await)?;
    let wish = Migrate {
        dry_run: true,
        ..wish(host, &berth)
    };
    ask::<(), _>(vmm.call(Method::PUT, "/v1/migration", Some(&wish)).await)?;
    let give_up = Instant::now() + LIMIT;
    while Instant::now() < give_up {
        let now: Progress = ask(vmm.call(Method::GET, "/v1/migration", None::<&()>).await)?;
        match (now.phase, now.forecast, now.error) {
            (Phase::Rehearsed, Some(forecast), _) => return Ok(forecast),
            (Phase::Failed | Phase::Uncertain, _, why) => {
                return Err(why.unwrap_or_else(|| "its VMM does not say why".to_owned()));
            }
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    // The answer is the same whether or not it hears this.
    let _ = vmm
        .call::<()>(Method::DELETE, "/v1/migration", None::<&()>)
        .await;
    Err(format!(
        "the dry run was not over within {} s",
        LIMIT.as_secs()
    ))
}

fn ask<T, E: std::fmt::Display>(answer: Result<T, E>) -> Result<T, String> {
    answer.map_err(|error| error.to_string())
}
