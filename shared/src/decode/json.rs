//! A pull scanner for one JSON text (RFC 8259): no tree, no copy of a string without escapes.
//!
//! The caller says what it wants next; what it does not want is skipped, checked all the same.

use std::borrow::Cow;

/// How deep arrays and objects may nest.
pub const MAX_DEPTH: u32 = 128;

/// Where a text stops being JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonError {
    /// Byte offset.
    pub at: usize,
    /// What was expected there, or what is wrong.
    pub what: &'static str,
}

impl JsonError {
    /// The reason for a text that nests deeper than [`MAX_DEPTH`].
    pub(crate) const TOO_DEEP: &'static str = "arrays and objects nest at most 128 deep";
}

/// The kind of the next value, told by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A digit or `-`
    Number,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
}

impl Next {
    /// With its article, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "a boolean",
            Self::Null => "null",
        }
    }
}

/// A string between its quotes, escapes checked but not yet undone.
#[derive(Debug, Clone, Copy)]
pub struct RawString<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> RawString<'a> {
    /// The string itself; `None` where an escape is half of a surrogate pair.
    #[inline]
    pub fn text(self) -> Option<Cow<'a, str>> {
        if self.escaped { unescape(self.raw).map(Cow::Owned) } else { Some(Cow::Borrowed(self.raw)) }
    }
}

/// A position in a JSON text.
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Scanner<'a> {
    /// Starts at the first byte.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0 }
    }

    /// Byte offset of what comes next.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The source between two offsets that this scanner has reported.
    pub fn source(&self, from: usize, to: usize) -> &'a str {
        self.text.get(from..to).unwrap_or_default()
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, JsonError> {
        Err(JsonError { at: self.at, what })
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Passes white space.
    #[inline]
    pub fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), JsonError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            self.fail(what)
        }
    }

    /// Passes white space and tells the kind of the value that begins there.
    #[inline]
    pub fn next_kind(&mut self) -> Result<Next, JsonError> {
        self.skip_space();
        match self.peek() {
            Some(b'"') => Ok(Next::String),
            Some(b'{') => Ok(Next::Object),
            Some(b'[') => Ok(Next::Array),
            Some(b'-' | b'0'..=b'9') => Ok(Next::Number),
            Some(b't' | b'f') => Ok(Next::Bool),
            Some(b'n') => Ok(Next::Null),
            Some(_) => self.fail("expected a JSON value"),
            None => self.fail("the text ends where a JSON value is expected"),
        }
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), JsonError> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { self.fail("the value ends before, nothing may follow it") }
    }

    #[inline]
    fn enter(&mut self) -> Result<(), JsonError> {
        if self.depth == MAX_DEPTH {
            return self.fail(JsonError::TOO_DEEP);
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// Enters an object or array; the first member or element, or its end, comes next.
    #[inline]
    pub fn open(&mut self) -> Result<(), JsonError> {
        self.enter()
    }

    /// The next key of an object, or `None` at its end (which is passed). `first` before the first key.
    #[inline]
    pub fn key(&mut self, first: bool) -> Result<Option<RawString<'a>>, JsonError> {
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            self.depth -= 1;
            return Ok(None);
        }
        if !first {
            self.expect(b',', "expected `,` or `}`")?;
            self.skip_space();
        }
        if self.peek() != Some(b'"') {
            return self.fail("expected a key in double quotes");
        }
        // The end may not follow a comma: a key was seen to begin.
        let key = self.string()?;
        self.skip_space();
        self.expect(b':', "expected `:` after the key")?;
        Ok(Some(key))
    }

    /// Whether another element of an array follows; its end is passed. `first` before the first element.
    #[inline]
    pub fn element(&mut self, first: bool) -> Result<bool, JsonError> {
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            self.depth -= 1;
            return Ok(false);
        }
        if !first {
            self.expect(b',', "expected `,` or `]`")?;
            self.skip_space();
            if self.peek() == Some(b']') {
                return self.fail("expected a value after `,`");
            }
        }
        Ok(true)
    }

    /// A string; the scanner stands at its opening quote.
    #[inline]
    pub fn string(&mut self) -> Result<RawString<'a>, JsonError> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut escaped = false;
        let mut at = start;
        loop {
            at = plain_end(bytes, at);
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at = at;
                    at += escape_length(bytes.get(at + 1..).unwrap_or_default())
                        .map_or_else(|| self.fail("expected an escape of JSON (\\n, \\\", \\u00e9, …)"), Ok)?;
                }
                Some(_) => {
                    self.at = at;
                    return self.fail("a control character in a string must be escaped");
                }
                None => {
                    self.at = at;
                    return self.fail("the text ends inside a string");
                }
            }
        }
        self.at = at + 1;
        Ok(RawString { raw: self.text.get(start..at).unwrap_or_default(), escaped })
    }

    /// A number as its text.
    #[inline]
    pub fn number(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.fail("expected a digit"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(self.source(start, self.at))
    }

    #[inline]
    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        self.digits();
        if self.at == start { self.fail("expected a digit") } else { Ok(()) }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self) -> Result<bool, JsonError> {
        if self.peek() == Some(b't') {
            self.literal("true").map(|()| true)
        } else {
            self.literal("false").map(|()| false)
        }
    }

    /// `null`.
    pub fn null(&mut self) -> Result<(), JsonError> {
        self.literal("null")
    }

    fn literal(&mut self, word: &'static str) -> Result<(), JsonError> {
        if self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            self.at += word.len();
            Ok(())
        } else {
            self.fail("expected true, false or null")
        }
    }

    /// Passes any value and returns its text.
    #[inline]
    pub fn skip(&mut self) -> Result<&'a str, JsonError> {
        let kind = self.next_kind()?;
        let start = self.at;
        self.skip_kind(kind)?;
        Ok(self.source(start, self.at))
    }

    /// Recursion is bounded by [`MAX_DEPTH`].
    fn skip_kind(&mut self, kind: Next) -> Result<(), JsonError> {
        match kind {
            Next::String => self.string().map(drop),
            Next::Number => self.number().map(drop),
            Next::Bool => self.boolean().map(drop),
            Next::Null => self.null(),
            Next::Object => {
                self.open()?;
                let mut first = true;
                while self.key(first)?.is_some() {
                    first = false;
                    let kind = self.next_kind()?;
                    self.skip_kind(kind)?;
                }
                Ok(())
            }
            Next::Array => {
                self.open()?;
                let mut first = true;
                while self.element(first)? {
                    first = false;
                    let kind = self.next_kind()?;
                    self.skip_kind(kind)?;
                }
                Ok(())
            }
        }
    }
}

/// Offset of the first byte at or after `at` that a string cannot hold as it is: a quote, a backslash or a control
/// character. Eight bytes a step.
#[inline]
pub(crate) fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let special = special_bytes(u64::from_le_bytes(*chunk));
        if special != 0 {
            return at + (special.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|&byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        at += 1;
    }
    at
}

/// The high bit of every byte that is `"`, `\` or below 0x20. Bytes above the lowest hit may be marked by mistake
/// (a borrow runs upwards), the lowest never.
#[inline]
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let quote = word ^ (ONES * u64::from(b'"'));
    let backslash = word ^ (ONES * u64::from(b'\\'));
    let is_quote = quote.wrapping_sub(ONES) & !quote;
    let is_backslash = backslash.wrapping_sub(ONES) & !backslash;
    let is_control = word.wrapping_sub(ONES * 0x20) & !word;
    (is_quote | is_backslash | is_control) & HIGHS
}

/// Length of the escape whose backslash stands before `rest`, backslash included.
fn escape_length(rest: &[u8]) -> Option<usize> {
    match rest.first()? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(2),
        b'u' => rest.get(1..5)?.iter().all(u8::is_ascii_hexdigit).then_some(6),
        _ => None,
    }
}

/// Undoes escapes whose form was checked before; `None` for half of a surrogate pair.
fn unescape(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        text.push_str(rest.get(..at)?);
        let escape = rest.as_bytes().get(at + 1)?;
        let mut length = 2;
        match escape {
            b'b' => text.push('\u{8}'),
            b'f' => text.push('\u{c}'),
            b'n' => text.push('\n'),
            b'r' => text.push('\r'),
            b't' => text.push('\t'),
            b'u' => {
                let (character, used) = unicode_escape(rest.get(at..)?)?;
                text.push(character);
                length = used;
            }
            other => text.push(char::from(*other)),
        }
        rest = rest.get(at + length..)?;
    }
    text.push_str(rest);
    Some(text)
}

/// The character of `\u` with four digits, or of two of them that are a surrogate pair, and the length of its escape.
fn unicode_escape(escape: &str) -> Option<(char, usize)> {
    let unit = |from: usize| u32::from_str_radix(escape.get(from + 2..from + 6)?, 16).ok();
    let high = unit(0)?;
    if !(0xD800..0xE000).contains(&high) {
        return char::from_u32(high).map(|character| (character, 6));
    }
    let is_pair = high < 0xDC00 && escape.get(6..8) == Some("\\u");
    let low = if is_pair { unit(6)? } else { return None };
    if !(0xDC00..0xE000).contains(&low) {
        return None;
    }
    char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)).map(|character| (character, 12))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parses(text: &str) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.skip().and_then(|_| scanner.end()).is_ok()
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "[1 2]",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "-",
            "nul",
            "tru",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"a",
            "\"\n\"",
            "{a:1}",
            "{\"a\" 1}",
            "[1]]",
            "{}x",
            "NaN",
            "'a'",
        ] {
            assert!(!parses(text), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parses(&nested(MAX_DEPTH as usize)));
        let deep = nested(100_000);
        let error = Scanner::new(&deep).skip().unwrap_err();
        assert_eq!(error, JsonError { at: MAX_DEPTH as usize, what: JsonError::TOO_DEEP });
    }

    #[test]
    fn surrogates_pair_or_are_no_text() {
        let text = |json: &str| Scanner::new(json).string().unwrap().text().map(Cow::into_owned);
        assert_eq!(text(r#""\ud834\udd1e""#).as_deref(), Some("\u{1d11e}"));
        assert_eq!(text(r#""a\u0000\/b""#).as_deref(), Some("a\0/b"));
        for lone in [r#""\ud834""#, r#""\udd1e""#, r#""\ud834\u0041""#, r#""\ud834x""#] {
            assert_eq!(text(lone), None, "{lone}");
        }
    }

    proptest! {
        #[test]
        fn any_string_comes_back(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let read = Scanner::new(&json).string().unwrap().text().unwrap();
            prop_assert_eq!(read, text);
        }

        #[test]
        fn agrees_with_serde_json_on_any_text(text in "[\\[\\]{}:,\"\\\\a-c0-2eE+.\\- \\n]{0,12}") {
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(parses(&text), theirs, "{}", text);
        }

        #[test]
        fn the_first_special_byte_is_found(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let expected = bytes.iter().position(|&b| b < 0x20 || b == b'"' || b == b'\\').unwrap_or(bytes.len());
            prop_assert_eq!(plain_end(&bytes, 0), expected);
        }
    }
}
