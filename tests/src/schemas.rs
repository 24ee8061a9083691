//! Registries for tests.

use std::sync::Arc;

use shared::schema::Registry;

/// The built-in schemas.
pub fn built_in() -> Arc<Registry> {
    registry_with(&[])
}

/// The built-in schemas and further files, added at run time.
pub fn registry_with(files: &[&str]) -> Arc<Registry> {
    let mut registry = Registry::built_in().expect("the built-in schemas compile");
    for file in files {
        registry.add("further.json", file).expect("the further schema compiles");
    }
    Arc::new(registry)
}
