//! Lists the files of `schemas/` and `schemas/mappings/`, so that an event type or a source is one new file there and
//! nothing else.

use std::path::Path;

#[expect(clippy::disallowed_methods, reason = "where cargo says that generated code goes")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    println!("cargo::rerun-if-changed={}", schemas.display());
    for (folder, code) in [(schemas.join("mappings"), "mappings.rs"), (schemas, "schemas.rs")] {
        std::fs::write(Path::new(&out).join(code), list(&folder)?)?;
    }
    Ok(())
}

/// The code of a list of the folder's JSON files, each with its name and its text.
fn list(folder: &Path) -> std::io::Result<String> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let lines = files.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let path = path.to_string_lossy();
        format!("    ({name:?}, include_str!({path:?})),\n")
    });
    Ok(format!("&[\n{}]", lines.collect::<String>()))
}
