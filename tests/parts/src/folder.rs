//! The temporary folder of a part.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::guard::Debt;

/// A folder that goes when it is dropped, or when the test is killed.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: TempDir,
    _debt: Debt,
}

impl Folder {
    /// Makes a folder that only its owner can enter.
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tegata-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let debt = Debt::folder(folder.path())?;
        Ok(Self { folder, _debt: debt })
    }

    /// Lets every account of the machine look into the folder.
    pub(crate) fn open_to_all(&self) -> Result<()> {
        Ok(fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755))?)
    }

    /// Returns where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}
