//! Certificates of a certificate authority that exists for one test.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::folder::Folder;

/// A certificate authority. Two of them trust each other in nothing.
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: Folder,
    issued: AtomicU32,
}

/// A server's certificate and key, as PEM files that live as long as their [`TestCa`].
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// The certificate alone.
    pub certificate: PathBuf,
    /// Its private key in PKCS #8, readable by the owner only.
    pub key: PathBuf,
    /// SHA-256 of the certificate in DER, lower hex: what a pin holds.
    pub sha256: String,
}

impl TestCa {
    /// Makes a new authority; `name` is its common name.
    ///
    /// # Errors
    ///
    /// When its folder cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = params(name, Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let folder = Folder::new()?;
        fs::write(folder.path().join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, folder, issued: AtomicU32::new(0) })
    }

    /// Issues a server certificate with a new key for `names`: DNS names and IP addresses.
    ///
    /// # Errors
    ///
    /// When a name is neither, or the files cannot be written.
    pub fn issue(&self, names: &[&str]) -> Result<IssuedCertificate> {
        let common = names.first().context("a certificate needs a name")?;
        let mut params = params(common, names.iter().map(|name| (*name).to_owned()).collect())?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;

        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| self.folder.path().join(format!("{number}.{kind}.pem"));
        let issued = IssuedCertificate {
            certificate: file("certificate"),
            key: file("key"),
            sha256: sha256_hex(certificate.der()),
        };
        fs::write(&issued.certificate, certificate.pem())?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&issued.key)?
            .write_all(key.serialize_pem().as_bytes())?;
        Ok(issued)
    }

    /// Issues a server certificate for this machine's loopback names and addresses.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn issue_loopback(&self) -> Result<IssuedCertificate> {
        self.issue(&["localhost", "127.0.0.1", "::1"])
    }

    /// Returns the authority's own certificate, a PEM file that lives as long as `self`.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

impl IssuedCertificate {
    /// Puts the certificate and its key where a server reads them.
    pub(crate) fn install(&self, folder: &Path) -> Result<()> {
        for (from, to) in [(&self.certificate, "server.pem"), (&self.key, "server.key")] {
            // The new file takes the old one's place in one step, for servers that read it anew.
            let fresh = folder.join(format!("{to}.new"));
            fs::copy(from, &fresh)?;
            fs::rename(&fresh, folder.join(to))?;
        }
        Ok(())
    }
}

fn params(common_name: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn sha256_hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
