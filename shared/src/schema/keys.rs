//! From a JSON key to a column: an open-addressed table that is built once and probed once a key.

/// The keys of one object, each with the index of its column.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct KeyTable {
    /// Power of two, at most half full; `NONE` where empty, else an index into `entries`.
    slots: Vec<u16>,
    entries: Vec<(Box<str>, u16)>,
}

const NONE: u16 = u16::MAX;

impl KeyTable {
    /// Builds the table; the error is a name that occurs twice with different columns.
    pub fn build(names: impl IntoIterator<Item = (String, usize)>) -> Result<Self, String> {
        let mut entries: Vec<(Box<str>, u16)> = Vec::new();
        for (name, column) in names {
            let column = u16::try_from(column).map_err(|_| name.clone())?;
            match entries.iter().find(|(known, _)| **known == *name) {
                Some((_, same)) if *same == column => {}
                Some(_) => return Err(name),
                None => entries.push((name.into_boxed_str(), column)),
            }
        }
        let size = (entries.len() * 2).next_power_of_two().max(8);
        let mut slots = vec![NONE; size];
        for (index, (name, _)) in entries.iter().enumerate() {
            let mut at = hash(name.as_bytes()) & (size - 1);
            while slots[at] != NONE {
                at = (at + 1) & (size - 1);
            }
            slots[at] = u16::try_from(index).map_err(|_| name.to_string())?;
        }
        Ok(Self { slots, entries })
    }

    /// The column that `key` names. Writers keep to an order: the name after the one before is tried first, `expected`
    /// says which that is.
    #[inline]
    pub fn find(&self, key: &[u8], expected: &mut usize) -> Option<usize> {
        if let Some((name, column)) = self.entries.get(*expected)
            && name.as_bytes() == key
        {
            *expected += 1;
            return Some(usize::from(*column));
        }
        let entry = self.probe(key)?;
        *expected = entry + 1;
        self.entries.get(entry).map(|(_, column)| usize::from(*column))
    }

    #[inline]
    fn probe(&self, key: &[u8]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash(key) & mask;
        loop {
            let slot = *self.slots.get(at)?;
            if slot == NONE {
                return None;
            }
            let (name, _) = self.entries.get(usize::from(slot))?;
            if name.as_bytes() == key {
                return Some(usize::from(slot));
            }
            at = (at + 1) & mask;
        }
    }
}

/// Mixes the first and the last eight bytes and the length: enough to tell the keys of a schema apart, numbered ones
/// (`metric_0001`) as well.
#[inline]
fn hash(key: &[u8]) -> usize {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut word = key.len() as u64;
    if let (Some(head), Some(tail)) = (key.first_chunk::<8>(), key.last_chunk::<8>()) {
        word ^= u64::from_le_bytes(*head).wrapping_mul(ODD).rotate_left(29) ^ u64::from_le_bytes(*tail);
    } else {
        for byte in key {
            word = word << 8 | u64::from(*byte);
        }
    }
    (word.wrapping_mul(ODD) >> 40) as usize
}

/// `snake_case` to `camelCase`: `page_url` becomes `pageUrl`. A leading underscore stays.
pub fn camel_case(snake: &str) -> String {
    let mut camel = String::with_capacity(snake.len());
    let mut upper_next = false;
    for character in snake.chars() {
        if character == '_' && !camel.is_empty() && !camel.ends_with('_') {
            upper_next = true;
        } else if upper_next {
            camel.extend(character.to_uppercase());
            upper_next = false;
        } else {
            camel.push(character);
        }
    }
    camel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camel_case_joins_words() {
        assert_eq!(camel_case("page_url"), "pageUrl");
        assert_eq!(camel_case("url"), "url");
        assert_eq!(camel_case("a_b_c1"), "aBC1");
        assert_eq!(camel_case("_private"), "_private");
    }

    #[test]
    fn every_key_is_found_and_no_other() {
        let names: Vec<_> = (0..300).map(|i| (format!("column_{i}"), i)).collect();
        let table = KeyTable::build(names.clone()).unwrap();
        for (name, column) in names.iter().chain(names.iter().rev()) {
            for mut expected in [0, *column, 299, 300] {
                assert_eq!(table.find(name.as_bytes(), &mut expected), Some(*column));
                assert_eq!(expected, column + 1);
            }
        }
        assert_eq!(table.find(b"column_300", &mut 299), None);
        assert_eq!(table.find(b"", &mut 0), None);
    }

    #[test]
    fn one_name_for_two_columns_is_refused() {
        let twice = [("user_id".to_string(), 0), ("user_id".to_string(), 1)];
        assert_eq!(KeyTable::build(twice), Err("user_id".to_string()));
    }
}
