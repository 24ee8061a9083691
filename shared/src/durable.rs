//! Files and folders of this machine that outlive a crash of it: a file counts as written once its bytes and the names
//! that lead to it are on disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// What a probe writes: more than an inode holds, so that a full disk refuses it.
const PROBE: &[u8] = &[0; 4 << 10];

/// Creates a file with its bytes on disk. Its name is there for good once its folder is synced as well.
pub fn write_new<'b>(path: &Path, parts: impl IntoIterator<Item = &'b [u8]>) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    parts.into_iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()
}

/// Makes the names in a folder outlive a crash.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the names that lead from `root` to the folder `path` outlive a crash, whoever created them. Those above a
/// folder that this process may not read are taken to be on disk.
pub fn sync_folders(root: &Path, path: &Path) -> io::Result<()> {
    for folder in path.ancestors().take_while(|folder| folder.starts_with(root)) {
        match sync_folder(folder) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && folder != path => break,
            synced => synced?,
        }
    }
    Ok(())
}

/// Creates a folder and its missing parents.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_folder(parent)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder(parent)?,
        }
    }
    Ok(())
}

/// Whether a folder can be written: a file is written into it and removed.
pub fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".probe-{}", Uuid::new_v4()));
    let written = fs::write(&path, PROBE);
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// A file or folder that must stay where it is for as long as it is in use: what is written to one that was removed is
/// lost without an error of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    /// The file or folder that is at `path` now.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { path: path.to_path_buf(), device: found.dev(), inode: found.ino() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails where it has been removed or replaced.
    pub fn verify(&self) -> io::Result<()> {
        match Self::of(&self.path) {
            Ok(now) if now == *self => Ok(()),
            Ok(_) => Err(self.gone("was replaced")),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(self.gone("was removed"))
            }
            Err(error) => Err(error),
        }
    }

    fn gone(&self, how: &str) -> io::Error {
        let path = self.path.display();
        io::Error::new(io::ErrorKind::NotFound, format!("{path} {how} while in use; put it back or restart"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_or_replaced_is_noticed_and_what_is_put_back_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&path, "1").unwrap();
        let place = Place::of(&path).unwrap();
        fs::rename(&path, &aside).unwrap();
        assert!(place.verify().unwrap_err().to_string().contains("was removed while in use"));
        fs::write(&path, "2").unwrap();
        assert!(place.verify().unwrap_err().to_string().contains("was replaced while in use"));
        fs::rename(&aside, &path).unwrap();
        place.verify().unwrap();
    }

    #[test]
    fn a_probe_leaves_nothing_and_names_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        probe(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(probe(&folder.path().join("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
