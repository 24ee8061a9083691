//! A table as a folder: files are synced, and so are the folders that name them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use deltalake::logstore::LogStoreRef;
use deltalake::{DeltaTableBuilder, DeltaTableError};
use uuid::Uuid;

use super::super::data_file::PARTITION_DATE;
use super::{Files, LOG, LogEntry, NewFile, STAGING};
use crate::clock::Micros;
use crate::durable::{create_folder, sync_folder, write_new};

/// How many files are written at once.
const STORE_THREADS: usize = 8;

/// The folder of a table.
#[derive(Debug)]
pub(super) struct FolderFiles {
    table: PathBuf,
}

impl FolderFiles {
    pub(super) fn new(table: PathBuf) -> Self {
        Self { table }
    }

    fn store_one(&self, file: &NewFile) -> io::Result<()> {
        let path = self.table.join(&file.path);
        let folder = path.parent().unwrap_or(&self.table);
        create_folder(folder)?;
        write_new(&path, [&*file.bytes])?;
        sync_folder(folder)
    }
}

impl Files for FolderFiles {
    fn prepare(&self) -> io::Result<()> {
        create_folder(&self.table.join(LOG))
    }

    /// Many of them, as of rows of many days, at once, since the time is the disk's.
    fn store(&self, files: Vec<NewFile>) -> io::Result<()> {
        let some = |files: &[NewFile]| files.iter().try_for_each(|file| self.store_one(file));
        if files.len() <= STORE_THREADS {
            return some(&files);
        }
        std::thread::scope(|scope| {
            let shares = files.chunks(files.len().div_ceil(STORE_THREADS));
            let threads: Vec<_> = shares.map(|share| scope.spawn(|| some(share))).collect();
            let panicked = |_| Err(io::Error::other("the thread panicked"));
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked))
        })
    }

    fn create(&self, path: &str, bytes: Bytes) -> io::Result<()> {
        let path = self.table.join(path);
        let folder = path.parent().unwrap_or(&self.table);
        let staged = folder.join(format!("_commit_{}.json.tmp", Uuid::new_v4()));
        write_new(&staged, [&*bytes])?;
        // A link, unlike a rename, never replaces a version that another writer made.
        let linked = fs::hard_link(&staged, &path);
        let _ = fs::remove_file(&staged);
        linked?;
        sync_folder(folder)
    }

    fn replace(&self, path: &str, bytes: Bytes) -> io::Result<()> {
        let path = self.table.join(path);
        let folder = path.parent().unwrap_or(&self.table);
        let written = path.with_extension("tmp");
        // Of a crash; there is one writer.
        let _ = fs::remove_file(&written);
        write_new(&written, [&*bytes])?;
        fs::rename(&written, &path)?;
        sync_folder(folder)
    }

    fn rename(&self, paths: &[(String, String)]) -> io::Result<()> {
        let mut folders = BTreeSet::new();
        for (from, to) in paths {
            let to = self.table.join(to);
            let folder = to.parent().unwrap_or(&self.table);
            if folders.insert(folder.to_path_buf()) {
                create_folder(folder)?;
            }
            match fs::rename(self.table.join(from), &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && to.try_exists()? => {}
                renamed => renamed?,
            }
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))
    }

    fn read(&self, path: &str) -> io::Result<Bytes> {
        fs::read(self.table.join(path)).map(Bytes::from)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.table.join(path).try_exists()
    }

    fn delete(&self, paths: &[String]) -> io::Result<()> {
        paths.iter().try_for_each(|path| match fs::remove_file(self.table.join(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }

    fn data_files(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![(self.table.clone(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.ends_with(".parquet") {
                    found.push(format!("{prefix}{name}"));
                } else if prefix.is_empty() && name.starts_with(PARTITION_DATE) {
                    folders.push((folder.join(&name), format!("{name}/")));
                }
            }
        }
        Ok(found)
    }

    fn staged_files(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(format!("{STAGING}/{}", entry?.file_name().to_string_lossy()));
        match fs::read_dir(self.table.join(STAGING)) {
            Ok(entries) => entries.map(name).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn unstage(&self, paths: &[String]) -> io::Result<()> {
        self.delete(paths)?;
        // Whether it went or holds another load's files is all one.
        let _ = fs::remove_dir(self.table.join(STAGING));
        Ok(())
    }

    fn log_entries(&self) -> io::Result<Vec<LogEntry>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let modified = entry.metadata().and_then(|file| file.modified()).ok();
            let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            Ok(LogEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                modified: modified.and_then(|age| Micros::try_from(age.as_micros()).ok()),
            })
        };
        fs::read_dir(self.table.join(LOG))?.map(entry).collect()
    }

    fn seal_checkpoint(&self, version: u64) -> io::Result<()> {
        let folder = self.table.join(LOG);
        let prefix = format!("{version:020}.checkpoint");
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) || name == "_last_checkpoint" {
                File::open(entry.path())?.sync_all()?;
            }
        }
        sync_folder(&folder)
    }

    fn log_store(&self) -> Result<Option<LogStoreRef>, DeltaTableError> {
        if !self.table.join(LOG).is_dir() {
            return Ok(None);
        }
        let url = deltalake::ensure_table_uri(self.table.to_string_lossy())?;
        DeltaTableBuilder::from_url(url)?.build_storage().map(Some)
    }
}
