//! A disk that is small enough to fill.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::geteuid;

use crate::{folder::Folder, guard::Debt, process::run};

/// How long mounting may take.
const MOUNT: Duration = Duration::from_secs(10);

/// Bytes that are written at once to fill a disk.
const BLOCK: usize = 64 * 1024;

/// A file system of a few megabytes in memory, mounted on a folder of its own.
pub struct SmallDisk {
    folder: Folder,
    _debt: Debt,
}

impl SmallDisk {
    /// Mounts one of so many bytes.
    ///
    /// # Errors
    ///
    /// Without root, and where the kernel refuses.
    pub fn new(bytes: u64) -> Result<Self> {
        ensure!(geteuid().is_root(), "mounting a small disk needs root");
        let folder = Folder::new()?;
        // Before the mount, so that a test killed in between leaves nothing; after the folder's
        // own, which is paid later.
        let debt = Debt::mount(folder.path())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "tmpfs"]);
        run("mount", mount.arg(folder.path()), b"", MOUNT)?;
        Ok(Self { folder, _debt: debt })
    }

    /// Returns its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    ///
    /// When it cannot be written for another reason than being full.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.filler()).context("no file to fill the disk with")?;
        let mut block = BLOCK;
        while block > 0 {
            match filler.write(&vec![0; block]) {
                Ok(0) => block /= 2,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => block /= 2,
                Err(error) => return Err(error).context("the disk does not fill"),
            }
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    ///
    /// When it was not filled.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("the disk was not filled")
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: somebody may still have a file open.
        let mut unmount = Command::new("umount");
        let _ = run("umount", unmount.arg("-l").arg(self.folder.path()), b"", MOUNT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_fills_and_has_room_again() {
        let disk = SmallDisk::new(1 << 20).unwrap();
        let path = disk.path().to_owned();
        fs::write(path.join("before"), b"there").unwrap();
        disk.fill().unwrap();
        let error = fs::write(path.join("more"), vec![0; 4096]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.free().unwrap();
        fs::write(path.join("more"), vec![0; 4096]).unwrap();
        assert_eq!(fs::read(path.join("before")).unwrap(), b"there");
        drop(disk);
        assert!(!path.exists(), "nothing stays mounted");
    }
}
