//! The certificate and key of one role, as files that may be replaced.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tegata_proto::encoding::Sha256;
use tegata_proto::{URI_BROKER, URI_GATEWAY};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::metrics::{EdgeMetrics, RoleLabels};

/// How often the files are looked at.
const RELOAD_EVERY: Duration = Duration::from_mins(1);

/// Longest file that is read, in bytes.
const FILE_LIMIT: u64 = 256 * 1024;

/// File mode bits of anybody but the owner.
const OTHERS: u32 = 0o077;

/// What a certificate says its holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// `tegata:broker/ID`.
    Broker,
    /// `tegata:gateway/ID`.
    Gateway,
}

impl Party {
    fn uri(self) -> &'static str {
        match self {
            Self::Broker => URI_BROKER,
            Self::Gateway => URI_GATEWAY,
        }
    }
}

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read the key.
    #[error("{} is open to others than its owner (mode {mode:o})", path.display())]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is not the PEM of what it should hold.
    #[error("{} holds no usable PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The first certificate cannot be parsed.
    #[error("{} holds no X.509 certificate", path.display())]
    X509 {
        /// The file.
        path: PathBuf,
    },
    /// The certificate names no holder of the wanted kind, or several.
    #[error("{} names not exactly one holder as {}ID", path.display(), wanted.uri())]
    Holder {
        /// The file.
        path: PathBuf,
        /// What its holder should be.
        wanted: Party,
    },
    /// The certificate names another holder than the one it replaces.
    #[error("{} names {found}, not {expected}", path.display())]
    OtherHolder {
        /// The file.
        path: PathBuf,
        /// The id that was there.
        expected: String,
        /// The id that is there now.
        found: String,
    },
    /// Today is not within the certificate's validity.
    #[error("{} is not valid now, only from {from} to {until}", path.display())]
    NotNow {
        /// The file.
        path: PathBuf,
        /// First second of its validity, in Unix time.
        from: i64,
        /// Last second of its validity, in Unix time.
        until: i64,
    },
    /// The key cannot be used, or is not the certificate's.
    #[error("{} is not the key of that certificate", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// The certificate chain and the key of one role.
///
/// INVARIANT: the current pair belongs together, names this role and this id,
/// and was valid when it was read. Reloading changes all of it or nothing.
#[derive(Debug)]
pub struct RoleCertificate {
    party: Party,
    id: String,
    chain: PathBuf,
    key: PathBuf,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    spki_sha256: Sha256,
    until: i64,
}

impl RoleCertificate {
    /// Reads the PEM files of a role.
    ///
    /// # Errors
    ///
    /// Refuses files that cannot be read, a key that others may read, a
    /// certificate of another role or time, and a key that is not its own.
    pub fn load(
        party: Party,
        chain: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, CertificateError> {
        let (chain, key) = (chain.into(), key.into());
        let (id, current) = read(party, &chain, &key)?;
        Ok(Self { party, id, chain, key, current: ArcSwap::from_pointee(current) })
    }

    /// Reads the files again and uses them from the next handshake on; tells
    /// whether they hold another certificate.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), and refuses another holder's certificate. The
    /// present one stays in use.
    pub fn reload(&self) -> Result<bool, CertificateError> {
        let (found, next) = read(self.party, &self.chain, &self.key)?;
        if found != self.id {
            let expected = self.id.clone();
            return Err(CertificateError::OtherHolder {
                path: self.chain.clone(),
                expected,
                found,
            });
        }
        if next.certified.cert == self.current.load().certified.cert {
            return Ok(false);
        }
        self.current.store(Arc::new(next));
        Ok(true)
    }

    /// Returns the id in the certificate's URI. A reload never changes it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the SHA-256 of the current certificate's `SubjectPublicKeyInfo`.
    pub fn spki_sha256(&self) -> Sha256 {
        self.current.load().spki_sha256
    }

    /// Returns the last second of the current certificate's validity, in Unix time.
    pub fn valid_until(&self) -> i64 {
        self.current.load().until
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.load().certified)
    }
}

/// Looks at the certificates' files every minute and takes up what is new.
pub async fn keep_fresh(
    roles: Vec<(&'static [u8], Arc<RoleCertificate>)>,
    metrics: EdgeMetrics,
    cancelled: CancellationToken,
) {
    loop {
        for (alpn, certificate) in &roles {
            let alpn = String::from_utf8_lossy(alpn).into_owned();
            match certificate.reload() {
                Ok(true) => info!(alpn, until = certificate.valid_until(), "Certificate replaced"),
                Ok(false) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(alpn, error, "Certificate not replaced, the old one stays");
                }
            }
            // Seconds of our time are far below 2^52.
            #[allow(clippy::cast_precision_loss)]
            let until = certificate.valid_until() as f64;
            metrics.certificate_ends.get_or_create(&RoleLabels { alpn }).set(until);
        }
        tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            () = tokio::time::sleep(RELOAD_EVERY) => {}
        }
    }
}

fn read(party: Party, chain: &Path, key: &Path) -> Result<(String, Current), CertificateError> {
    let pem = |path: &Path, source| CertificateError::Pem { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_slice_iter(&contents(chain, None)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| pem(chain, source))?;
    let Some(leaf) = certificates.first() else {
        return Err(pem(chain, rustls_pki_types::pem::Error::NoItemsFound));
    };
    let (id, spki_sha256, until) = inspect(party, chain, leaf)?;

    let key_der = PrivateKeyDer::from_pem_slice(&contents(key, Some(OTHERS))?)
        .map_err(|source| pem(key, source))?;
    let certified = CertifiedKey::from_der(certificates, key_der, &super::provider())
        .map_err(|source| CertificateError::Key { path: key.to_owned(), source })?;
    Ok((id, Current { certified: Arc::new(certified), spki_sha256, until }))
}

/// Reads a whole file, unless it has one of the `forbidden` permission bits.
fn contents(path: &Path, forbidden: Option<u32>) -> Result<Vec<u8>, CertificateError> {
    let failed = |source| CertificateError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // Asked of the open file, so that what is judged is what is read.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if forbidden.is_some_and(|forbidden| mode & forbidden != 0) {
        return Err(CertificateError::KeyExposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn inspect(
    party: Party,
    path: &Path,
    leaf: &CertificateDer<'_>,
) -> Result<(String, Sha256, i64), CertificateError> {
    let unparsed = || CertificateError::X509 { path: path.to_owned() };
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| unparsed())?;

    let validity = certificate.validity();
    if !validity.is_valid() {
        let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        return Err(CertificateError::NotNow { path: path.to_owned(), from, until });
    }

    let names = certificate.subject_alternative_name().map_err(|_| unparsed())?;
    let mut holders = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .filter(|uri| uri.starts_with("tegata:"));
    let id = holders.next().and_then(|uri| uri.strip_prefix(party.uri()));
    let id = id.filter(|id| !id.is_empty() && holders.next().is_none());
    let id = id.ok_or_else(|| CertificateError::Holder { path: path.to_owned(), wanted: party })?;

    let mut spki_sha256 = Sha256([0; 32]);
    spki_sha256.0.copy_from_slice(digest(&SHA256, certificate.public_key().raw).as_ref());
    Ok((id.to_owned(), spki_sha256, validity.not_after.timestamp()))
}
