//! `vmm receive`: the target of a live migration.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::Args;
use vmm_core::lifecycle::Ending;

use super::options::address;
use super::run::Doors;
use crate::api::Door;
use crate::console::{Console, restore_terminal};
use crate::drive::drive;
use crate::error::one_line;
use crate::lease::LeaseFlags;
use crate::migration::arrival::Arrival;
use crate::migration::joining::Listening;
use crate::migration::stream::{STRANGER_MAX, Security};
use crate::migration::target::{self, Received};
use crate::migration::usher::Usher;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Wait here for the source: HOST:PORT; port 0 takes a free one and prints it.
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    listen: String,
    /// Directory with the certificates for mutual TLS; plain TCP without one.
    #[arg(long)]
    tls_dir: Option<PathBuf>,
    /// Give up when no guest came within so many seconds.
    #[arg(long, value_name = "SECONDS")]
    wait_max_s: Option<u64>,
    /// End after a dry run, too, instead of waiting for the guest itself.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    doors: Doors,
    #[command(flatten)]
    lease: LeaseFlags,
}

pub fn main(arguments: &Arguments) -> Result<Ending, String> {
    let security = Security::from_dir(arguments.tls_dir.as_deref());
    let security = security.map_err(|error| one_line(&error))?;
    let listener = TcpListener::bind(&arguments.listen).map_err(|error| {
        let listen = &arguments.listen;
        format!("cannot listen on {listen}: {error}; choose another --listen")
    })?;
    let address = listener.local_addr().map_err(|error| one_line(&error))?;
    let api_socket = arguments.doors.api_socket.clone();
    let door = api_socket.as_deref().map(Door::open).transpose();
    let mut door = door.map_err(|error| one_line(&error))?;
    let (notices, inbox) = mpsc::channel();
    let (ask, asked) = mpsc::channel();
    let console = Console::new(&arguments.doors.console, ask);
    let console = Arc::new(console.map_err(|error| one_line(&error))?);
    // The console has blocked the signals that it reads, in this and all later threads.
    let usher = Usher::default();
    let standing = usher.stand(asked, notices.clone(), move || leave(api_socket.as_deref()));
    standing.map_err(|error| format!("cannot start a thread: {error}"))?;
    let citizen = arguments
        .lease
        .citizen()
        .map_err(|error| one_line(&error))?;
    eprintln!("vmm: waiting for a guest on {address}");
    let mut arrival = Arrival::new(console, notices, citizen).ushered_by(usher);
    let wait_max = arguments.wait_max_s.map(Duration::from_secs);
    let listening = Listening {
        listener: &listener,
        security: &security,
        until: wait_max.map(|limit| Instant::now() + limit),
        patience: STRANGER_MAX,
    };
    loop {
        let came = target::receive(&listening, &mut arrival).map_err(|error| one_line(&error))?;
        let Received::Rehearsal(went) = came else {
            break;
        };
        let went = went.map_err(|error| format!("cannot take the guest: {}", one_line(&error)));
        if arguments.once {
            return went.map(|()| Ending::PoweredOff);
        }
        match went {
            Ok(()) => eprintln!("vmm: a dry run: the guest fits here"),
            Err(why) => eprintln!("vmm: a dry run: {why}"),
        }
    }
    let guest = arrival.into_guest().ok_or("no guest arrived")?;
    if let Some(door) = &mut door {
        door.serve(guest.clone())
            .map_err(|error| format!("cannot serve the API: {error}"))?;
    }
    Ok(drive(&guest, &inbox))
}

/// End without a guest: it is, or stays, with its source.
fn leave(api_socket: Option<&Path>) {
    if let Some(path) = api_socket {
        // As whoever ends orderly does.
        let _ = std::fs::remove_file(path);
    }
    restore_terminal();
    eprintln!("vmm: told to end before a guest was here");
    exit(1);
}
