//! A look at the logs of a folder's tables before it is written: what a crash of the disk or a hand has damaged is named
//! here, where the engine would say it in its own terms, or read an empty entry as one without rows.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::IgnoredAny;

use super::DeltaError;
use super::files::LOG;

/// Checks every table below `root`: its log entries from the newest checkpoint on are all there and whole.
pub(super) fn check(root: &Path) -> Result<(), DeltaError> {
    for dataset in folders(root).map_err(|source| unreadable(root, source))? {
        let of_dataset = root.join(&dataset);
        for table in folders(&of_dataset).map_err(|source| unreadable(&of_dataset, source))? {
            let log = of_dataset.join(&table).join(LOG);
            if !log.is_dir() {
                continue;
            }
            if let Some(fault) = fault_of(&log).map_err(|source| unreadable(&log, source))? {
                let folder = of_dataset.join(&table).display().to_string();
                return Err(DeltaError::Damaged { table: format!("{dataset}.{table}"), fault, folder });
            }
        }
    }
    Ok(())
}

fn unreadable(place: &Path, source: io::Error) -> DeltaError {
    DeltaError::Io { place: place.display().to_string(), doing: "checking the logs of the tables", source }
}

fn folders(of: &Path) -> io::Result<Vec<String>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    folders.sort();
    Ok(folders)
}

/// What is wrong with a log.
fn fault_of(log: &Path) -> io::Result<Option<String>> {
    let (mut entries, mut checkpoint) = (BTreeSet::new(), None);
    for entry in fs::read_dir(log)? {
        let entry = entry?;
        let name = entry.file_name();
        if !entry.file_type()?.is_file() {
            continue;
        }
        let Some((version, rest)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        let Ok(version) = version.parse::<u64>() else { continue };
        if rest == "json" {
            entries.insert(version);
        } else if rest.starts_with("checkpoint") {
            checkpoint = checkpoint.max(Some(version));
        }
    }
    let first = checkpoint.map_or(0, |version| version + 1);
    let Some(&last) = entries.last() else { return Ok(None) };
    for version in first..=last {
        let name = format!("{version:020}.json");
        if !entries.contains(&version) {
            return Ok(Some(format!("the log entry {name} is missing, and later ones are there")));
        }
        let entry = fs::read(log.join(&name))?;
        let is_whole = |line: &[u8]| serde_json::from_slice::<IgnoredAny>(line).is_ok();
        if entry.is_empty() || !entry.trim_ascii_end().split(|byte| *byte == b'\n').all(is_whole) {
            return Ok(Some(format!("the log entry {name} is not whole ({} bytes)", entry.len())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of these files; what is wrong with it.
    fn fault(files: &[(&str, &str)]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        fault_of(folder.path()).unwrap()
    }

    #[test]
    fn a_damaged_log_is_told_from_a_whole_one() {
        let (zero, one, two) = ("00000000000000000000.json", "00000000000000000001.json", "00000000000000000002.json");
        let whole = "{\"commitInfo\":{}}\n{\"add\":{}}\n";
        let checkpoint = ("00000000000000000001.checkpoint.parquet", "");
        assert_eq!(fault(&[]), None);
        assert_eq!(fault(&[(zero, whole), (one, "{}")]), None);
        assert_eq!(fault(&[checkpoint, (two, whole)]), None, "entries that a checkpoint covers may be gone");
        assert_eq!(fault(&[(zero, whole), ("_commit_1.json.tmp", "{"), ("_last_checkpoint", "{")]), None);
        for (content, bytes) in [("", 0), ("{\"commitInfo\":{}}\n{\"ad", 22), ("{", 1)] {
            let found = fault(&[(zero, whole), (one, content)]);
            assert_eq!(found, Some(format!("the log entry {one} is not whole ({bytes} bytes)")));
        }
        let missing = Some(format!("the log entry {one} is missing, and later ones are there"));
        assert_eq!(fault(&[(zero, whole), (two, whole)]), missing);
    }
}
