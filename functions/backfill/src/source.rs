//! What is loaded: files of a folder or bucket, named one by one or by a pattern, and their bytes, unpacked on the way.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use flate2::read::MultiGzDecoder;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use glob::{MatchOptions, Pattern};
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use shared::bucket::{self, Location};
use shared::event;
use shared::settings::Settings;
use tokio::runtime::Handle;

use crate::Error;

/// How much of a file is asked for at once.
const READ: usize = 256 * 1024;
/// The endings that a folder's files are picked by.
const LINES: [&str; 2] = ["jsonl", "ndjson"];
const JSON: &str = "json";
const PACKED: [&str; 2] = ["gz", "zst"];

/// A file to be loaded.
#[derive(Clone)]
pub struct SourceFile {
    /// Its address.
    pub uri: String,
    /// Bytes as it lies there.
    pub size: u64,
    /// What changes with its content: the bucket's tag, else when it was written.
    pub tag: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
}

/// What a source names.
pub struct Listing {
    /// In the order of their names.
    pub files: Vec<SourceFile>,
    /// Files that are passed over, each with why.
    pub left_out: Vec<String>,
}

/// Lists the files of a file, folder, pattern (`visits/2024-*.jsonl.gz`), `gs://` or `s3://` address.
///
/// Of a folder come those that end in `.jsonl` or `.ndjson`, in `.json` only where there is none of them, each also with
/// `.gz` or `.zst`. A file or pattern may name any.
pub async fn list(uri: &str, settings: &Settings) -> Result<Listing, Error> {
    let missing = || Error::Usage(format!("{uri}: no such file, folder or object; nothing was changed"));
    let (base, pattern) = split_pattern(uri);
    let base = open(if base.is_empty() { "." } else { base }, settings)?;
    if let Some(pattern) = pattern {
        let pattern = Pattern::new(pattern).map_err(|error| Error::Usage(format!("{uri}: {error}")))?;
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        let mut listing = Listing { files: under(&base).await?, left_out: Vec::new() };
        listing.files.retain(|file| pattern.matches_with(&relative(&file.path, &base.path), options));
        return if listing.files.is_empty() { Err(missing()) } else { Ok(listing) };
    }
    let no_object = match base.store.head(&base.path).await {
        Ok(object) => {
            return Ok(Listing { files: vec![SourceFile::new(&base, object, base.uri.clone())], left_out: Vec::new() });
        }
        Err(error) => error,
    };
    let files = under(&base).await?;
    match no_object {
        _ if !files.is_empty() => Ok(pick(files)),
        object_store::Error::NotFound { .. } => Err(missing()),
        error => Err(Error::Usage(format!("{uri}: {error}; nothing was changed"))),
    }
}

/// A place that is there: of this machine by its real path, as a bucket knows no `..` and no links.
fn open(uri: &str, settings: &Settings) -> Result<Location, Error> {
    let fault = |reason: String| Error::Usage(format!("{uri}: {reason}; nothing was changed"));
    let Some(path) = bucket::local(uri) else { return bucket::open(uri, settings).map_err(fault) };
    let path = std::fs::canonicalize(path).map_err(|error| fault(error.to_string()))?;
    let location = bucket::open(&path.to_string_lossy(), settings).map_err(fault)?;
    Ok(Location { uri: uri.to_string(), ..location })
}

/// Every object below a place, in the order of their names.
pub async fn under(base: &Location) -> Result<Vec<SourceFile>, Error> {
    let listed: Result<Vec<ObjectMeta>, _> = base.store.list(Some(&base.path)).try_collect().await;
    let listed = listed.map_err(|error| Error::Work(format!("{}: failed to list: {error}", base.uri)))?;
    let file = |object: ObjectMeta| {
        let uri = format!("{}/{}", base.uri.trim_end_matches('/'), relative(&object.location, &base.path));
        SourceFile::new(base, object, uri)
    };
    let mut files: Vec<_> = listed.into_iter().map(file).collect();
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

/// The part before the first folder with a wildcard, and the pattern from there on.
fn split_pattern(uri: &str) -> (&str, Option<&str>) {
    let Some(wild) = uri.find(['*', '?', '[']) else { return (uri, None) };
    match uri[..wild].rfind('/') {
        Some(slash) => (&uri[..=slash], Some(&uri[slash + 1..])),
        None => ("", Some(uri)),
    }
}

fn relative(path: &Path, base: &Path) -> String {
    let parts: Vec<_> = path.prefix_match(base).into_iter().flatten().map(|part| part.as_ref().to_string()).collect();
    parts.join("/")
}

fn pick(files: Vec<SourceFile>) -> Listing {
    let of = |file: &SourceFile, endings: &[&str]| endings.contains(&ending(&file.uri));
    let has_lines = files.iter().any(|file| of(file, &LINES));
    let mut listing = Listing { files: Vec::new(), left_out: Vec::new() };
    for file in files {
        if of(&file, &LINES) || (!has_lines && of(&file, &[JSON])) {
            listing.files.push(file);
        } else if of(&file, &[JSON]) {
            listing
                .left_out
                .push(format!("{}: passed over, a .json beside .jsonl files; name it to load it", file.uri));
        } else {
            listing.left_out.push(format!("{}: passed over, none of .jsonl, .ndjson, .json, .gz, .zst", file.uri));
        }
    }
    listing
}

/// The ending below `.gz` and `.zst`.
fn ending(uri: &str) -> &str {
    let (name, last) = uri.rsplit_once('.').unwrap_or((uri, ""));
    if PACKED.contains(&last) { name.rsplit_once('.').map_or("", |(_, ending)| ending) } else { last }
}

impl SourceFile {
    fn new(base: &Location, object: ObjectMeta, uri: String) -> Self {
        let tag = object.e_tag.unwrap_or_else(|| object.last_modified.to_rfc3339());
        Self { uri, size: object.size, tag, store: Arc::clone(&base.store), path: object.location }
    }

    /// The file's name, without its folders.
    pub fn name(&self) -> &str {
        self.uri.rsplit('/').next().unwrap_or_default()
    }

    /// SHA-256 of the file as it lies there, in hex.
    pub fn checksum(&self, runtime: &Handle) -> Result<String, Error> {
        let mut packed = self.open_packed(runtime, Arc::default(), true)?;
        io::copy(&mut packed, &mut io::sink()).map_err(|error| self.unreadable(&error))?;
        Ok(packed.digest.finish())
    }

    /// Opens the text. Bytes of the file as it lies there are added to `progress` as they are read, and to the digest
    /// where one is wanted. To be called, and read, on a thread that may block.
    pub fn open(&self, runtime: &Handle, progress: Arc<AtomicU64>, digest: bool) -> Result<(Text, FileDigest), Error> {
        let packed = self.open_packed(runtime, progress, digest)?;
        let digest = packed.digest.clone();
        let text: Text = match self.uri.rsplit('.').next() {
            Some("gz") => Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(READ, packed))),
            Some("zst") => Box::new(zstd::stream::read::Decoder::new(packed).map_err(|error| self.unreadable(&error))?),
            _ => Box::new(packed),
        };
        Ok((text, digest))
    }

    /// What a failed read says of the file.
    pub fn unreadable(&self, error: &io::Error) -> Error {
        Error::Work(format!("failed to read {}: {error}; the tables stay as they were", self.uri))
    }

    fn open_packed(&self, runtime: &Handle, progress: Arc<AtomicU64>, digest: bool) -> Result<Packed, Error> {
        let found = runtime.block_on(self.store.get(&self.path));
        let found = found.map_err(|error| self.unreadable(&io::Error::from(error)))?;
        let bytes: Text = match found.payload {
            GetResultPayload::File(file, _) => Box::new(file),
            GetResultPayload::Stream(stream) => {
                Box::new(Streamed { runtime: runtime.clone(), stream, chunk: Bytes::new() })
            }
        };
        Ok(Packed { bytes, progress, digest: FileDigest(digest.then(Arc::default)) })
    }
}

/// The bytes of a file.
pub type Text = Box<dyn Read + Send>;

/// SHA-256 of the bytes read so far, where it was asked for.
#[derive(Clone, Default)]
pub struct FileDigest(Option<Arc<Mutex<Sha256>>>);

impl FileDigest {
    fn update(&self, bytes: &[u8]) {
        if let Some(digest) = &self.0 {
            digest.lock().unwrap_or_else(PoisonError::into_inner).update(bytes);
        }
    }

    /// In hex; empty where it was not asked for.
    pub fn finish(&self) -> String {
        let digest = self.0.as_ref().map(|digest| digest.lock().unwrap_or_else(PoisonError::into_inner).clone());
        digest.map(|digest| event::hex(&digest.finalize())).unwrap_or_default()
    }
}

/// A file as it lies there.
struct Packed {
    bytes: Text,
    progress: Arc<AtomicU64>,
    digest: FileDigest,
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // In parts that are still in the processor's cache when they are digested and decoded.
        let most = buffer.len().min(READ);
        let count = self.bytes.read(&mut buffer[..most])?;
        self.digest.update(&buffer[..count]);
        self.progress.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// An object as it comes from its bucket.
struct Streamed {
    runtime: Handle,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for Streamed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
