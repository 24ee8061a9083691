//! Strings that break programs.

use std::path::Path;

/// The big list of naughty strings where it lies beside the project, else a sample of the same kinds.
pub fn naughty_strings() -> Vec<String> {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/corpora/blns.json");
    let Ok(json) = std::fs::read(&list) else {
        eprintln!("{} is not there: a sample stands for it", list.display());
        return SAMPLE.iter().map(ToString::to_string).collect();
    };
    serde_json::from_slice(&json).expect("the list is a JSON array of strings")
}

const SAMPLE: [&str; 16] = [
    "",
    "undefined",
    "1E+02",
    "-9223372036854775808/-1",
    "\0\u{1}\u{7f}\u{85}",
    "\u{feff}\u{200b}\u{202e}txet\u{202c}",
    "Ω≈ç√∫˜µ≤≥÷",
    "田中さんにあげて下さい",
    "😍 👩🏽‍❤️‍👩🏾 🇺🇸",
    "مُنَاقَشَةُ",
    "Z\u{336}\u{318}\u{346}a\u{315}l\u{34f}go",
    "<script>alert(0)</script>",
    "\"><img src=x onerror=alert(1)>",
    "javascript:alert(1);",
    "1;DROP TABLE users",
    "../../../../etc/passwd%00",
];
