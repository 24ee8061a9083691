//! Lists the files of `schemas/`, `schemas/mappings/` and of the views, so that an event type, a source or a view is one
//! new file there and nothing else.

use std::path::Path;

#[expect(clippy::disallowed_methods, reason = "where cargo says that generated code goes")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let lists = [
        ("schemas", "json", "schemas.rs"),
        ("schemas/mappings", "json", "mappings.rs"),
        ("../infra/sql/views", "sql", "views.rs"),
    ];
    for (folder, extension, code) in lists {
        std::fs::write(Path::new(&out).join(code), names_and_texts(&package.join(folder), extension)?)?;
    }
    Ok(())
}

/// A slice of `(name, text)` in the order of the names.
fn names_and_texts(folder: &Path, extension: &str) -> std::io::Result<String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|known| known == extension));
    files.sort();
    let lines = files.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let path = path.to_string_lossy();
        format!("    ({name:?}, include_str!({path:?})),\n")
    });
    Ok(format!("&[\n{}]", lines.collect::<String>()))
}
