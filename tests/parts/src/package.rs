//! Which Debian package brings which program.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Programs and other files that parts need, and the package of each.
const PACKAGES: &[(&str, &str)] = &[
    ("Xvfb", "xvfb"),
    ("Xvnc", "tigervnc-standalone-server"),
    ("cc", "gcc"),
    ("freerdp-shadow-cli", "freerdp2-shadow-x11"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("ldapmodify", "ldap-utils"),
    ("ldapsearch", "ldap-utils"),
    ("nft", "nftables"),
    ("openbox", "openbox"),
    ("openssl", "openssl"),
    ("slapadd", "slapd"),
    ("slapd", "slapd"),
    ("stunnel4", "stunnel4"),
    ("tigervncpasswd", "tigervnc-tools"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("winpr-hash", "winpr-utils"),
    ("xdotool", "xdotool"),
    ("xfreerdp", "freerdp2-x11"),
    ("xrdp", "xrdp"),
    ("xrdp-sesman", "xrdp"),
    ("xsetroot", "x11-xserver-utils"),
    ("xterm", "xterm"),
    ("/usr/lib/xorg/modules/libxorgxrdp.so", "xorgxrdp"),
    ("/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf", "fonts-dejavu-core"),
];

/// Where daemons live, which the search path of an ordinary user lacks.
const DAEMONS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Returns the full path of `program`.
///
/// # Errors
///
/// Names the package to install when the machine has no such program.
pub(crate) fn program(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(DAEMONS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| missing(program))
}

/// Refuses a machine that lacks one of `needed`, programs or absolute paths of files.
///
/// # Errors
///
/// Names the package to install for the first one missing.
pub(crate) fn require(needed: &[&str]) -> Result<()> {
    for name in needed {
        if name.starts_with('/') {
            ensure!(Path::new(name).is_file(), missing(name));
        } else {
            program(name)?;
        }
    }
    Ok(())
}

fn missing(name: &str) -> String {
    match PACKAGES.iter().find(|(file, _)| *file == name) {
        Some((_, package)) => {
            format!("{name} is missing: apt-get install --no-install-recommends {package}")
        }
        None => format!("{name} is missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_an_error_that_names_its_package() {
        let error = require(&["/usr/lib/xorg/modules/libxorgxrdp.so.none"]).unwrap_err();
        assert!(error.to_string().contains("is missing"));
        assert_eq!(
            missing("slapd"),
            "slapd is missing: apt-get install --no-install-recommends slapd"
        );
        assert!(program("no-such-program-anywhere").is_err());
    }
}
