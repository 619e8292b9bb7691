//! Which agent is asked, and how: over its socket, or from afar with a token.

use std::fs;
use std::io;
use std::path::PathBuf;

use shared_storage::trust::{TrustError, tls};

use super::arguments::Arguments;
use crate::config::PORT;
use crate::http::client::Endpoint;

/// Why an agent cannot be asked from afar.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// An argument is missing.
    #[error("--server needs {0}")]
    Missing(&'static str),
    /// The token cannot be read.
    #[error("cannot read the token in {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} does not hold {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The certificate cannot be used.
    #[error("{0}")]
    Trust(TrustError),
}

impl From<TrustError> for RemoteError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Content { path, expected } => Self::Content { path, expected },
            other => Self::Trust(other),
        }
    }
}

/// The agent that the command line means.
pub fn endpoint(arguments: &Arguments) -> Result<Endpoint, RemoteError> {
    let Some(server) = &arguments.server else {
        return Ok(Endpoint::Unix(arguments.socket.clone()));
    };
    let token_file = arguments.token_file.as_ref().ok_or(RemoteError::Missing(
        "--token-file FILE (make a token on a host: godwit token create NAME)",
    ))?;
    let ca_file = arguments.ca_file.as_ref().ok_or(RemoteError::Missing(
        "--ca-file FILE (print it on a host: godwit ca)",
    ))?;
    let token = fs::read_to_string(token_file).map_err(|source| RemoteError::Token {
        path: token_file.clone(),
        source,
    })?;
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RemoteError::Content {
            path: token_file.clone(),
            expected: "a token, as `godwit token create NAME` prints it on a host",
        });
    }
    Ok(Endpoint::Agent {
        server: with_port(server),
        tls: tls::operator(ca_file)?,
        token: token.to_owned(),
    })
}

/// The default port where none is named; IPv6 addresses with one need brackets.
fn with_port(server: &str) -> String {
    let named = match server.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            port.parse::<u16>().is_ok()
        }
        _ => false,
    };
    match server {
        _ if named => server.to_owned(),
        _ if server.contains(':') && !server.starts_with('[') => format!("[{server}]:{PORT}"),
        _ => format!("{server}:{PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        assert_eq!(with_port("hosta"), "hosta:7440");
        assert_eq!(with_port("hosta:1"), "hosta:1");
        assert_eq!(with_port("192.0.2.1"), "192.0.2.1:7440");
        assert_eq!(with_port("2001:db8::1"), "[2001:db8::1]:7440");
        assert_eq!(with_port("[2001:db8::1]"), "[2001:db8::1]:7440");
        assert_eq!(with_port("[2001:db8::1]:1"), "[2001:db8::1]:1");
    }
}
