//! Mutual TLS between members of a cluster: both sides show a certificate of its authority.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientCertVerifierBuilder, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{Identity, TrustError};

/// Both ends of mutual TLS, ready to be shared by connections.
#[derive(Debug, Clone)]
pub struct MutualTls {
    /// For connections we accept.
    pub server: Arc<ServerConfig>,
    /// For connections we accept where operators come too, who have no certificate: whoever
    /// shows one needs one of the cluster's.
    pub open: Arc<ServerConfig>,
    /// For connections we open; ask for the name [`super::MEMBER_NAME`] or the host's own.
    pub client: Arc<ClientConfig>,
}

impl MutualTls {
    /// Read the identity in `dir` and build both ends from it. TLS 1.3 only.
    pub fn from_dir(dir: &Path) -> Result<Self, TrustError> {
        let identity = Identity::read(dir)?;
        let content = |expected| TrustError::Content {
            path: dir.to_owned(),
            expected,
        };
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes());
        let authority = certificate(&identity.authority_pem)
            .map_err(|_| content("a certificate in authority.pem"))?;
        let own = certificate(&identity.certificate_pem)
            .map_err(|_| content("a certificate in certificate.pem"))?;
        let key = || {
            PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
                .map_err(|_| content("a private key in key.pem"))
        };
        let tls_error = |source| TrustError::Tls {
            path: dir.to_owned(),
            source,
        };

        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(tls_error)?;
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let verifier =
            || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let server = |verifier: ClientCertVerifierBuilder| {
            let verifier = verifier
                .build()
                .map_err(|error| tls_error(rustls::Error::General(error.to_string())))?;
            ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(tls_error)?
                .with_client_cert_verifier(verifier)
                .with_single_cert(vec![own.clone()], key()?)
                .map(Arc::new)
                .map_err(tls_error)
        };
        let (strict, open) = (
            server(verifier())?,
            server(verifier().allow_unauthenticated())?,
        );
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(vec![own.clone()], key()?)
            .map_err(tls_error)?;
        Ok(Self {
            server: strict,
            open,
            client: Arc::new(client),
        })
    }
}

/// For operators: knows a cluster's agents by the certificate of its authority, shows none.
pub fn operator(authority_pem: &Path) -> Result<Arc<ClientConfig>, TrustError> {
    let content = |_| TrustError::Content {
        path: authority_pem.to_owned(),
        expected: "a certificate, as `godwit ca` prints it on a host",
    };
    let tls_error = |source| TrustError::Tls {
        path: authority_pem.to_owned(),
        source,
    };
    let pem = std::fs::read(authority_pem).map_err(|source| TrustError::File {
        act: "read",
        path: authority_pem.to_owned(),
        source,
    })?;
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(&pem).map_err(content)?;
    roots.add(authority).map_err(tls_error)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection, Stream};

    use super::*;
    use crate::trust::{Authority, MEMBER_NAME};

    fn member(trust: &Path, home: &Path, name: &str) -> MutualTls {
        let dir = home.join(name);
        let authority = Authority::open_or_create(trust).unwrap();
        authority.mint(name).unwrap().write(&dir).unwrap();
        MutualTls::from_dir(&dir).unwrap()
    }

    /// One byte from client to server and back, or why not.
    fn talk(server: &MutualTls, client: &MutualTls) -> io::Result<u8> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let config = server.server.clone();
        let echo = thread::spawn(move || -> io::Result<()> {
            let (mut socket, _) = listener.accept()?;
            let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
            let mut stream = Stream::new(&mut tls, &mut socket);
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)
        });
        let mut socket = TcpStream::connect(address)?;
        let name = ServerName::try_from(MEMBER_NAME).unwrap();
        let mut tls = ClientConnection::new(client.client.clone(), name).unwrap();
        let mut stream = Stream::new(&mut tls, &mut socket);
        stream.write_all(&[42])?;
        let mut byte = [0];
        let answer = stream.read_exact(&mut byte);
        echo.join().unwrap()?;
        answer.map(|()| byte[0])
    }

    #[test]
    fn members_of_one_cluster_talk() {
        let dir = tempfile::tempdir().unwrap();
        let trust = dir.path().join("trust");
        let a = member(&trust, dir.path(), "host-a");
        let b = member(&trust, dir.path(), "host-b");
        assert_eq!(talk(&a, &b).unwrap(), 42);
    }

    #[test]
    fn a_foreign_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ours = member(&dir.path().join("ours"), dir.path(), "host-a");
        let foreign = member(&dir.path().join("theirs"), dir.path(), "host-b");
        assert!(talk(&ours, &foreign).is_err());
        assert!(talk(&foreign, &ours).is_err());
    }

    #[test]
    fn hosts_that_join_at_once_agree_on_one_authority() {
        let dir = tempfile::tempdir().unwrap();
        let trust = dir.path().join("trust");
        let identities: Vec<_> = thread::scope(|scope| {
            let joining: Vec<_> = (0..8)
                .map(|n| {
                    let trust = &trust;
                    scope.spawn(move || {
                        let authority = Authority::open_or_create(trust).unwrap();
                        authority.mint(&format!("host-{n}")).unwrap()
                    })
                })
                .collect();
            joining.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for identity in &identities {
            assert_eq!(identity.authority_pem, identities[0].authority_pem);
        }
        assert_eq!(std::fs::read_dir(&trust).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_authority_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("authority.pem"), "rubbish").unwrap();
        let error = Authority::open_or_create(dir.path()).err().unwrap();
        assert!(error.to_string().contains("authority.pem"), "{error}");
    }
}
