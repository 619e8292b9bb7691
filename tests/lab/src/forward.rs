//! `lab forward`: a local port that leads into the private network, by netcat in a host.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use lab::supervisor::{Request, ask};

/// Listens until it is interrupted.
pub fn serve(name: &str, host: &str, to: SocketAddr, listen: SocketAddr) -> lab::Result<i32> {
    if !listen.ip().is_loopback() {
        return Err(
            format!("{listen} is not a loopback address; the lab listens on no other").into(),
        );
    }
    let failed = |error: io::Error| format!("cannot listen on {listen}: {error}");
    let listener = TcpListener::bind(listen).map_err(failed)?;
    println!(
        "http://{} leads to {to} as host {host} sees it; Ctrl-C ends this",
        listener.local_addr().map_err(failed)?
    );
    for connection in listener.incoming().flatten() {
        let command = vec!["nc".into(), to.ip().to_string(), to.port().to_string()];
        let request = Request::Exec {
            host: host.into(),
            command,
        };
        let name = name.to_owned();
        thread::spawn(move || {
            if let Err(error) = carry(&name, &request, connection) {
                eprintln!("lab: {error}");
            }
        });
    }
    Ok(0)
}

fn carry(name: &str, request: &Request, mut connection: TcpStream) -> lab::Result<()> {
    let from = connection.try_clone().map_err(|error| error.to_string())?;
    ask(
        name,
        request,
        Some(Box::new(from)),
        &mut connection,
        &mut io::stderr(),
    )?;
    let _ = connection.shutdown(std::net::Shutdown::Both);
    Ok(())
}
