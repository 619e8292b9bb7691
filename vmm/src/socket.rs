//! Unix sockets that are listened on, and what is left of them.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The path of a socket that this process listens on.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Whether it is to be removed: one that was there before stays until there was a guest.
    is_ours: AtomicBool,
}

impl SocketPath {
    /// Listen on `path`. A socket that nobody listens on any more is replaced.
    pub fn listen(path: &Path) -> io::Result<(UnixListener, Self)> {
        let (listener, is_new) = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !is_dead(path)? {
                    return Err(error);
                }
                fs::remove_file(path)?;
                (UnixListener::bind(path)?, false)
            }
            other => (other?, true),
        };
        let path = path.to_owned();
        let is_ours = AtomicBool::new(is_new);
        Ok((listener, Self { path, is_ours }))
    }

    /// There is a guest, and the socket is its.
    pub fn belongs_to_a_guest(&self) {
        self.is_ours.store(true, Ordering::Relaxed);
    }

    /// Leave the path as it was found: without a socket, or with a dead one.
    pub fn leave(&self) {
        if self.is_ours.load(Ordering::Relaxed) {
            // Somebody else may have removed it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_dead(path: &Path) -> io::Result<bool> {
    let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
    let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    Ok(is_socket && UnixStream::connect(path).is_err_and(refuses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let first = SocketPath::listen(&path).unwrap();
        let refused = SocketPath::listen(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        SocketPath::listen(&path).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        SocketPath::listen(&file).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn without_a_guest_the_path_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        SocketPath::listen(&path).unwrap().1.leave();
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        SocketPath::listen(&path).unwrap().1.leave();
        assert!(is_dead(&path).unwrap());
        let (_listener, socket) = SocketPath::listen(&path).unwrap();
        socket.belongs_to_a_guest();
        socket.leave();
        assert!(!path.exists());
    }
}
