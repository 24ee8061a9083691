//! A folder of this machine as a bucket.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::durable::{self, Place};

const NAME: &str = "Folder";

/// A folder, or all folders, as a bucket: [`LocalFileSystem`], except that an object that was put outlives a crash of the
/// machine. A whole object appears at once.
#[derive(Debug, Clone)]
pub struct Folder {
    files: LocalFileSystem,
    root: Option<Arc<Place>>,
}

impl Folder {
    /// All folders of this machine; paths of objects are absolute.
    pub fn any() -> Self {
        Self { files: LocalFileSystem::new(), root: None }
    }

    /// One folder, which is created where it is missing. Once it has been removed nothing is put any more.
    pub fn open(root: &FilePath) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        durable::create_folder(&root)?;
        let root = fs::canonicalize(root)?;
        let files = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self { files, root: Some(Arc::new(Place::of(&root)?)) })
    }

    fn put(&self, path: &FilePath, payload: &PutPayload, mode: &PutMode) -> io::Result<()> {
        if let Some(root) = &self.root {
            root.verify()?;
        }
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(folder)?;
        let staged = staged(path);
        let stored = durable::write_new(&staged, payload.iter().map(Bytes::as_ref)).and_then(|()| match mode {
            PutMode::Create => fs::hard_link(&staged, path),
            _ => fs::rename(&staged, path),
        });
        // Its name goes with a rename already.
        let _ = fs::remove_file(&staged);
        let is_there = stored.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::AlreadyExists, |()| true);
        if is_there {
            // An object that was there already too: whoever put it may not have come so far.
            let root = self.root.as_ref().map_or(FilePath::new("/"), |root| root.path());
            durable::sync_folders(root, folder)?;
        }
        stored
    }
}

/// A name beside `path` that listings leave out, as [`LocalFileSystem`] does of its own.
fn staged(path: &FilePath) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!("#{}", uuid::Uuid::new_v4().as_u128()));
    path.with_file_name(name)
}

fn refused(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.into(), implementer: NAME.into() }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) || !options.attributes.is_empty() {
            return Err(refused("`put_opts` with `PutMode::Update` or attributes"));
        }
        let (path, folder) = (self.files.path_to_filesystem(location)?, self.clone());
        let place = path.display().to_string();
        let stored = tokio::task::spawn_blocking(move || folder.put(&path, &payload, &options.mode)).await?;
        stored.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::AlreadyExists { path: place, source: error.into() },
            _ => Error::Generic { store: NAME, source: error.into() },
        })?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(refused("`put_multipart_opts`"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(refused("`copy_opts`"))
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.root {
            None => f.write_str(NAME),
            Some(root) => write!(f, "{NAME}({})", root.path().display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    use super::*;

    async fn names(store: &Folder) -> Vec<String> {
        let mut names: Vec<_> =
            store.list(None).map_ok(|found| found.location.to_string()).try_collect().await.unwrap();
        names.sort();
        names
    }

    #[tokio::test]
    async fn an_object_is_created_once_and_overwritten_when_asked_to() {
        let root = tempfile::tempdir().unwrap();
        let store = Folder::open(&root.path().join("bucket")).unwrap();
        let path = Path::from("order/2026/a.gz");
        let create = || PutOptions::from(PutMode::Create);
        store.put_opts(&path, "1".into(), create()).await.unwrap();
        let error = store.put_opts(&path, "2".into(), create()).await.unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "1");
        ObjectStoreExt::put(&store, &path, "3".into()).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "3");
        assert_eq!(names(&store).await, ["order/2026/a.gz"]);
    }

    #[tokio::test]
    async fn what_a_crash_left_half_written_is_no_object() {
        let root = tempfile::tempdir().unwrap();
        let store = Folder::open(root.path()).unwrap();
        fs::write(staged(&root.path().join("a.gz")), "half").unwrap();
        assert_eq!(names(&store).await, [""; 0]);
    }

    #[tokio::test]
    async fn a_folder_that_was_removed_takes_nothing_and_is_not_created_anew() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("bucket");
        let store = Folder::open(&folder).unwrap();
        fs::remove_dir(&folder).unwrap();
        let error = ObjectStoreExt::put(&store, &Path::from("a"), "1".into()).await.unwrap_err();
        assert!(error.to_string().contains("was removed while in use"), "{error}");
        assert!(!folder.exists());
    }
}
