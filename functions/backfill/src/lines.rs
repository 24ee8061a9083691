//! A text as pieces of whole lines, read in large chunks. A line over the bound is never held whole.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;

use sha2::{Digest, Sha256};
use shared::dead_letter::RAW_HEAD;

/// How much is read at once.
const CHUNK: usize = 1 << 20;
/// Longest line in bytes, about.
pub const MAX_LINE: usize = 16 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where in a text a line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// From 1.
    pub line: u64,
    /// In bytes, of the text unpacked.
    pub offset: u64,
}

impl Position {
    /// The first line.
    pub const START: Self = Self { line: 1, offset: 0 };
}

/// A part of the text.
pub enum Piece<'b> {
    /// Whole lines with their ends; the last of the text may have none.
    Lines(&'b [u8]),
    /// One line over the bound.
    TooLong(LongLine),
}

/// What is known of a line that was not held.
pub struct LongLine {
    /// Its beginning, [`RAW_HEAD`] bytes.
    pub head: Vec<u8>,
    /// Its size in bytes, without the line's end.
    pub size: u64,
    /// SHA-256.
    pub sha256: [u8; 32],
    /// Whether a line end follows it.
    pub has_end: bool,
}

/// Reads the pieces of a text.
pub struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// What of the buffer is read and not handed out.
    held: Range<usize>,
    max_line: usize,
}

impl<R: Read> Lines<R> {
    /// From `offset` on, which is where a line begins; what stands before is read all the same.
    pub fn new(mut reader: R, offset: u64, max_line: usize) -> io::Result<Self> {
        let passed = io::copy(&mut reader.by_ref().take(offset), &mut io::sink())?;
        if passed < offset {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "it is shorter than it was"));
        }
        Ok(Self { reader, buffer: vec![0; CHUNK], held: 0..0, max_line })
    }

    /// The next piece; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Piece<'_>>> {
        self.buffer.copy_within(self.held.clone(), 0);
        self.held = 0..self.held.len();
        let mut searched = 0;
        loop {
            let filled = self.held.end;
            if let Some(end) = memchr::memrchr(b'\n', &self.buffer[searched..filled]) {
                let end = searched + end + 1;
                self.held.start = end;
                return Ok(Some(Piece::Lines(&self.buffer[..end])));
            }
            searched = filled;
            if filled > self.max_line {
                return self.pass_long_line().map(|line| Some(Piece::TooLong(line)));
            }
            if filled == self.buffer.len() {
                self.buffer.resize((filled * 2).min(self.max_line + CHUNK), 0);
            }
            let count = read(&mut self.reader, &mut self.buffer[filled..])?;
            self.held.end += count;
            if count == 0 {
                self.held.start = filled;
                return Ok((filled > 0).then_some(Piece::Lines(&self.buffer[..filled])));
            }
        }
    }

    /// The buffer holds nothing but the beginning of one line.
    fn pass_long_line(&mut self) -> io::Result<LongLine> {
        let head = self.buffer[..RAW_HEAD.min(self.held.end)].to_vec();
        let mut hasher = Sha256::new();
        let mut size = 0;
        loop {
            let filled = self.held.end;
            let end = memchr::memchr(b'\n', &self.buffer[..filled]);
            hasher.update(&self.buffer[..end.unwrap_or(filled)]);
            size += end.unwrap_or(filled) as u64;
            self.held = end.map_or(0..0, |end| end + 1..filled);
            if end.is_none() {
                self.held.end = read(&mut self.reader, &mut self.buffer)?;
            }
            if end.is_some() || self.held.end == 0 {
                return Ok(LongLine { head, size, sha256: hasher.finalize().into(), has_end: end.is_some() });
            }
        }
    }
}

fn read(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The lines of a piece, each without its end and with its position; `at` moves on to what follows the piece. Lines of
/// white space are passed, and so is a byte order mark at the beginning of the text.
pub fn lines<'b>(mut piece: &'b [u8], at: &mut Position) -> impl Iterator<Item = (Position, &'b [u8])> {
    std::iter::from_fn(move || {
        while !piece.is_empty() {
            let end = memchr::memchr(b'\n', piece).unwrap_or(piece.len());
            let mut start = *at;
            let mut line = &piece[..end];
            let used = piece.len().min(end + 1);
            piece = &piece[used..];
            *at = Position { line: at.line + 1, offset: at.offset + used as u64 };
            if start.offset == 0 && line.starts_with(BYTE_ORDER_MARK) {
                line = &line[BYTE_ORDER_MARK.len()..];
                start.offset = BYTE_ORDER_MARK.len() as u64;
            }
            line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.trim_ascii().is_empty() {
                return Some((start, line));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line number, offset and text of every line; long ones as their size.
    fn read_all(text: &[u8], from: Position, max_line: usize) -> Vec<(u64, u64, String)> {
        let mut lines_read = Vec::new();
        let mut at = from;
        let mut pieces = Lines::new(text, from.offset, max_line).unwrap();
        while let Some(piece) = pieces.next().unwrap() {
            match piece {
                Piece::Lines(piece) => {
                    for (at, line) in lines(piece, &mut at) {
                        lines_read.push((at.line, at.offset, String::from_utf8_lossy(line).into_owned()));
                    }
                }
                Piece::TooLong(long) => {
                    assert_eq!(long.head, &text[usize::try_from(at.offset).unwrap()..][..RAW_HEAD]);
                    lines_read.push((at.line, at.offset, format!("{} long", long.size)));
                    at = Position { line: at.line + 1, offset: at.offset + long.size + u64::from(long.has_end) };
                }
            }
        }
        lines_read
    }

    #[test]
    fn lines_come_with_their_places() {
        let text = b"\xef\xbb\xbf{1}\r\n\n  \r\n{2}\n{3";
        let all = read_all(text, Position::START, MAX_LINE);
        assert_eq!(all, [(1, 3, "{1}".to_string()), (4, 13, "{2}".into()), (5, 17, "{3".into())]);
        let later = read_all(text, Position { line: 4, offset: 13 }, MAX_LINE);
        assert_eq!(later, all[1..]);
        assert_eq!(read_all(b"", Position::START, MAX_LINE), []);
    }

    #[test]
    fn a_line_over_the_bound_costs_itself() {
        let long = "x".repeat(5 * CHUNK);
        let text = format!("a\n{long}\nb\n{long}");
        let expected = [
            (1, 0, "a".to_string()),
            (2, 2, format!("{} long", long.len())),
            (3, long.len() as u64 + 3, "b".into()),
            (4, long.len() as u64 + 5, format!("{} long", long.len())),
        ];
        assert_eq!(read_all(text.as_bytes(), Position::START, 2 * CHUNK), expected);
        let whole = read_all(text.as_bytes(), Position::START, MAX_LINE);
        assert_eq!(whole[1].2.len(), long.len());
    }

    #[test]
    fn a_text_that_got_shorter_is_no_place_to_go_on_from() {
        assert!(Lines::new(&b"abc"[..], 4, MAX_LINE).is_err());
    }
}
