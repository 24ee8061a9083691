//! The files below `infra`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder itself.
pub fn infra() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace").join("infra")
}

/// The text of a file.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The texts of a folder's files, by their names without the ending.
pub fn files(folder: &str, ending: &str) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(infra().join(folder)).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("a file").path());
    let name = |path: &Path| path.file_stem().and_then(|name| name.to_str()).expect("a name").to_string();
    let wanted = paths.filter(|path| path.extension().is_some_and(|found| found == ending));
    wanted.map(|path| (name(&path), read(&path))).collect()
}
