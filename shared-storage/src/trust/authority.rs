//! The cluster's certificate authority, kept on the datastore.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use super::{Identity, MEMBER_NAME, TrustError};

const AUTHORITY_FILE: &str = "authority.pem";

/// The authority that signs the certificates of a cluster's hosts.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// Open the authority in `trust_dir`, or create it there when there is none.
    ///
    /// Several hosts may do this at once: the file appears whole and under its name at once
    /// (`link`), so all of them end up with the one that was first.
    pub fn open_or_create(trust_dir: &Path) -> Result<Self, TrustError> {
        let path = trust_dir.join(AUTHORITY_FILE);
        match fs::read_to_string(&path) {
            Ok(pem) => return Self::parse(&path, &pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(file_error("read", &path, source)),
        }
        fs::create_dir_all(trust_dir).map_err(|e| file_error("create", trust_dir, e))?;
        publish(&path, &generate()?).map_err(|e| file_error("write", &path, e))?;
        let pem = fs::read_to_string(&path).map_err(|e| file_error("read", &path, e))?;
        Self::parse(&path, &pem)
    }

    fn parse(path: &Path, pem: &str) -> Result<Self, TrustError> {
        let damaged = || TrustError::Content {
            path: path.to_owned(),
            expected: "a private key and its certificate",
        };
        let certificate_at = pem
            .find("-----BEGIN CERTIFICATE-----")
            .ok_or_else(damaged)?;
        let (key_pem, certificate_pem) = pem.split_at(certificate_at);
        let key = KeyPair::from_pem(key_pem).map_err(|_| damaged())?;
        Ok(Self {
            issuer: Issuer::new(parameters(), key),
            certificate_pem: certificate_pem.to_owned(),
        })
    }

    /// Mint a certificate for `host`, valid for connections it opens and accepts.
    pub fn mint(&self, host: &str) -> Result<Identity, TrustError> {
        self.mint_at(host, &[])
    }

    /// The same for a host that programs of operators call at `addresses` (names or IP).
    pub fn mint_at(&self, host: &str, addresses: &[String]) -> Result<Identity, TrustError> {
        let mint_error = |source| TrustError::Mint {
            name: host.to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(mint_error)?;
        let mut names = vec![host.to_owned(), MEMBER_NAME.to_owned()];
        names.extend_from_slice(addresses);
        let mut params = CertificateParams::new(names).map_err(mint_error)?;
        params.distinguished_name = common_name(host);
        // Strict verifiers (Python's since 3.13) want to know who signed it.
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).map_err(mint_error)?;
        Ok(Identity {
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn file_error(act: &'static str, path: &Path, source: io::Error) -> TrustError {
    TrustError::File {
        act,
        path: path.to_owned(),
        source,
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The same for every authority, so that an issuer can be rebuilt from its key alone.
fn parameters() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Godwit cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn generate() -> Result<String, TrustError> {
    let mint_error = |source| TrustError::Mint {
        name: "the cluster authority".to_owned(),
        source,
    };
    let key = KeyPair::generate().map_err(mint_error)?;
    let certificate = parameters().self_signed(&key).map_err(mint_error)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

/// Write `content` and let it appear under `path` at once, unless somebody else was first.
fn publish(path: &Path, content: &str) -> io::Result<()> {
    let temporary = temporary_beside(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file
        .write_all(content.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    fs::remove_file(&temporary)?;
    written?;
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut random = [0u8; 8];
    // A clash only makes `create_new` fail, and the caller tries again.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    path.with_extension(format!("tmp-{:016x}", u64::from_ne_bytes(random)))
}
