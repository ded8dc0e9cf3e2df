//! Where the name and the password come from: a file or the terminal.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tegata_proto::encoding::Secret;
use tegata_proto::login::PASSWORD_MAX;
use zeroize::{Zeroize as _, Zeroizing};

use crate::words::{Language, Phrase};

/// Longest first line of a password file, in bytes: a password and a line end.
const LINE_MAX: usize = PASSWORD_MAX + 2;

/// Permission bits that let somebody else read a file.
const READABLE_BY_OTHERS: u32 = 0o077;

/// Why there is no password, or no name.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file cannot be read.
    #[error("the password file cannot be read")]
    Unreadable(#[source] io::Error),
    /// The file's first line is longer than a password.
    #[error("the password file's first line is longer than a password")]
    TooLong,
    /// The file's first line is not UTF-8.
    #[error("the password file is not UTF-8")]
    NotText,
    /// Nobody can be asked.
    #[error("there is no terminal to ask on: use --username and --password-file")]
    NoTerminal(#[source] io::Error),
}

/// A password out of a file.
#[derive(Debug)]
pub struct FromFile {
    /// The first line, without its end.
    pub password: Secret,
    /// Whether others can read the file too.
    pub is_exposed: bool,
}

/// Reads a password from the first line of a file.
///
/// # Errors
///
/// Refuses a file that cannot be read, and a line that is too long or is not UTF-8.
pub fn from_file(path: &Path) -> Result<FromFile, PasswordError> {
    let file = File::open(path).map_err(PasswordError::Unreadable)?;
    let mode = file.metadata().map_err(PasswordError::Unreadable)?.mode();
    // One byte more tells whether there is more; the buffer never moves.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LINE_MAX + 1));
    let limit = LINE_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(PasswordError::Unreadable)?;
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]),
        None if bytes.len() > LINE_MAX => return Err(PasswordError::TooLong),
        None => &bytes,
    };
    let line = std::str::from_utf8(line).map_err(|_| PasswordError::NotText)?;
    Ok(FromFile { password: Secret::new(line), is_exposed: mode & READABLE_BY_OTHERS != 0 })
}

/// Asks for the password on the terminal, without showing it.
///
/// # Errors
///
/// Fails where there is no terminal.
pub fn from_terminal(language: Language) -> Result<Secret, PasswordError> {
    let prompt = Phrase::AskPassword.with(language, "");
    let mut typed = rpassword::prompt_password(prompt).map_err(PasswordError::NoTerminal)?;
    let password = Secret::new(typed.as_str());
    typed.zeroize();
    Ok(password)
}

/// Asks for the person's name on the terminal.
///
/// # Errors
///
/// Fails where there is no terminal.
pub fn name_from_terminal(language: Language) -> Result<String, PasswordError> {
    if !io::stdin().is_terminal() {
        return Err(PasswordError::NoTerminal(io::ErrorKind::NotConnected.into()));
    }
    let mut terminal = io::stderr();
    let prompt = Phrase::AskName.with(language, "");
    let _ = write!(terminal, "{prompt}").and_then(|()| terminal.flush());
    let mut name = String::new();
    io::stdin().read_line(&mut name).map_err(PasswordError::NoTerminal)?;
    Ok(name.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(bytes: &[u8], mode: u32) -> Result<FromFile, PasswordError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("room");
        file.as_file().set_permissions(PermissionsExt::from_mode(mode)).expect("our own");
        from_file(file.path())
    }

    #[test]
    fn neither_the_line_end_nor_what_follows_is_part_of_the_password() {
        for (bytes, password) in [
            (&b"hunter2\n"[..], "hunter2"),
            (b"hunter2", "hunter2"),
            (b"hunter2\r\n", "hunter2"),
            (b" hunter2 \n", " hunter2 "),
            (b"\n", ""),
            ("合言葉\n".as_bytes(), "合言葉"),
            (b"hunter2\n\n", "hunter2"),
            (b"hunter2\r\nfor the test desktop\n", "hunter2"),
            (b"hunter2\n\xff", "hunter2"),
        ] {
            let read = read(bytes, 0o600).expect("readable");
            assert_eq!((read.password.expose(), read.is_exposed), (password, false));
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_told_of() {
        assert!(read(b"x", 0o640).expect("readable").is_exposed);
        assert!(read(b"x", 0o604).expect("readable").is_exposed);
    }

    #[test]
    fn a_file_that_holds_no_password_is_refused() {
        let long = vec![b'a'; LINE_MAX + 1];
        assert!(matches!(read(&long, 0o600), Err(PasswordError::TooLong)));
        assert!(matches!(read(b"\xff\n", 0o600), Err(PasswordError::NotText)));
        let missing = from_file(Path::new("/nonexistent"));
        assert!(matches!(missing, Err(PasswordError::Unreadable(_))));
    }
}
