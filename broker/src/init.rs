//! `tegata-broker init`: everything one machine needs before its first start.
//!
//! Makes a certificate authority, the certificates of a broker and of its
//! gateway, the signing key, the reset key, the first API key, and sample
//! configuration. Overwrites nothing.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use tegata_proto::{URI_BROKER, URI_GATEWAY};

use crate::api::key::ApiKey;

/// Mode of a file that only the broker may read.
const SECRET: u32 = 0o600;

/// Mode of a file that everybody may read.
const PUBLIC: u32 = 0o644;

/// Life of the authority, in years.
const AUTHORITY_YEARS: i32 = 10;

/// Life of a broker's or gateway's certificate, in days.
const LEAF_DAYS: i64 = 397;

/// Makes the folder and fills it.
///
/// # Errors
///
/// Stops at the first file that exists already or cannot be written.
pub fn init(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("{} cannot be made", dir.display()))?;
    let folder = Folder(dir.to_owned());
    folder.refuse_to_overwrite()?;

    let authority = authority()?;
    folder.write("ca.pem", PUBLIC, authority.pem())?;
    folder.write("ca.key", SECRET, authority.key().serialize_pem())?;
    for (name, uri) in
        [("broker", format!("{URI_BROKER}b1")), ("gateway", format!("{URI_GATEWAY}g1"))]
    {
        let (certificate, key) = leaf(&authority, name, &uri)?;
        folder.write(&format!("{name}.pem"), PUBLIC, &certificate)?;
        folder.write(&format!("{name}.key"), SECRET, &key)?;
    }
    let signing = KeyPair::generate_for(&PKCS_ED25519)?;
    folder.write("signing.key", SECRET, signing.serialize_pem())?;

    let mut reset = [0; 64];
    SystemRandom::new().fill(&mut reset).context("no random bytes")?;
    folder.write("reset.key", SECRET, reset)?;

    let (key, line) = ApiKey::generate("first").context("no random bytes")?;
    folder.write("api.key", SECRET, format!("{}\n", key.expose()))?;
    folder.write("api-keys.toml", SECRET, &line)?;

    folder.write("users.toml", SECRET, SAMPLE_USERS)?;
    folder.write("pools.toml", PUBLIC, SAMPLE_POOLS)?;
    folder.write("broker.toml", PUBLIC, SAMPLE_CONFIG)
}

struct Folder(PathBuf);

impl Folder {
    fn refuse_to_overwrite(&self) -> anyhow::Result<()> {
        let existing = self.0.join("broker.toml");
        anyhow::ensure!(!existing.exists(), "{} exists already", existing.display());
        Ok(())
    }

    fn write(&self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.0.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        file.write_all(content.as_ref())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("{} cannot be written", path.display()))
    }
}

fn authority() -> anyhow::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Tegata authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = jiff::Zoned::now();
    params.not_before = rcgen::date_time_ymd(i32::from(now.year()) - 1, 1, 1);
    params.not_after = rcgen::date_time_ymd(i32::from(now.year()) + AUTHORITY_YEARS, 1, 1);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Returns certificate and key of one role, as PEM.
fn leaf(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    uri: &str,
) -> anyhow::Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Tegata {name}"));
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let now = std::time::SystemTime::now();
    let days = |n: i64| std::time::Duration::from_secs(n.unsigned_abs() * 24 * 3_600);
    // A thin client's clock may be a little behind.
    params.not_before = (now - days(1)).into();
    params.not_after = (now + days(LEAF_DAYS)).into();
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The configuration that `init` writes; also the sample in `deploy/config`.
pub const SAMPLE_CONFIG: &str = include_str!("../../deploy/config/broker.toml");

/// The people that `init` writes: none.
const SAMPLE_USERS: &str = include_str!("../../deploy/config/users.toml");

/// The pools that `init` writes: none.
const SAMPLE_POOLS: &str = include_str!("../../deploy/config/pools.toml");
