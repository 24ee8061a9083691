//! Lists the files of `schemas/`, so that an event type is one new file there and nothing else.

use std::path::Path;

#[expect(clippy::disallowed_methods, reason = "where cargo says that generated code goes")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<_> =
        std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let lines = files.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let path = path.to_string_lossy();
        format!("    ({name:?}, include_str!({path:?})),\n")
    });
    let code = format!("&[\n{}]", lines.collect::<String>());
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(Path::new(&out).join("schemas.rs"), code)?;
    Ok(())
}
