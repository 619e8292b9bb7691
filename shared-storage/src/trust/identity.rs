//! A host's own certificate, and the local directory that hands it to processes.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::TrustError;

const AUTHORITY: &str = "authority.pem";
const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";

/// What a process needs to prove that it belongs to the cluster. All parts are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Certificate of the authority that peers must be signed by.
    pub authority_pem: String,
    /// The host's certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

impl Identity {
    /// Write the identity into `dir` (created if missing), readable by its owner only.
    pub fn write(&self, dir: &Path) -> Result<(), TrustError> {
        let write_all = || -> io::Result<()> {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
            for (name, pem) in [
                (AUTHORITY, &self.authority_pem),
                (CERTIFICATE, &self.certificate_pem),
                (KEY, &self.key_pem),
            ] {
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(dir.join(name))?
                    .write_all(pem.as_bytes())?;
            }
            Ok(())
        };
        write_all().map_err(|source| TrustError::File {
            act: "write",
            path: dir.to_owned(),
            source,
        })
    }

    /// Read the identity that [`Identity::write`] left in `dir`.
    pub fn read(dir: &Path) -> Result<Self, TrustError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| TrustError::File {
                act: "read",
                path,
                source,
            })
        };
        Ok(Self {
            authority_pem: read(AUTHORITY)?,
            certificate_pem: read(CERTIFICATE)?,
            key_pem: read(KEY)?,
        })
    }
}
