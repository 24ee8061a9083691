//! `geo`: country and city of a client's address, by its first octet.
//!
//! The table is `first_octet,country,city`, one line an octet. What it cannot tell is `Unknown`: octets without a line,
//! IPv6, text that is no address, and addresses that lie nowhere (private, loopback, link-local, multicast,
//! documentation and reserved ranges of the IANA special-purpose registry).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde::Deserialize;

use super::{Enrichment, Lookup, address};

const UNKNOWN: [&str; 2] = ["Unknown", "Unknown"];
const HEADER: [&str; 3] = ["first_octet", "country", "city"];

/// The enrichment's line in the list.
pub const GEO: Enrichment = Enrichment {
    name: "geo",
    outputs: &["country", "city"],
    reads_address: true,
    built_in: include_str!("../../lookups/geo_lookup.csv"),
    load: |bytes| GeoTable::parse(bytes).map(|table| Arc::new(table) as Arc<dyn Lookup>),
};

/// Country and city for each first octet.
#[derive(Debug)]
pub struct GeoTable {
    places: Vec<Option<[Box<str>; 2]>>,
}

#[derive(Deserialize)]
struct Line {
    first_octet: u8,
    country: String,
    city: String,
}

impl GeoTable {
    /// Reads the CSV. The error names the line and what is wrong with it.
    pub fn parse(csv: &[u8]) -> Result<Self, String> {
        let mut reader = csv::ReaderBuilder::new().from_reader(csv.strip_prefix(b"\xef\xbb\xbf").unwrap_or(csv));
        let header = reader.headers().map_err(|error| format!("line 1: {error}"))?;
        if header != HEADER.as_slice() {
            return Err(format!("line 1: expected the header `{}`", HEADER.join(",")));
        }
        let mut places: Vec<Option<[Box<str>; 2]>> = vec![None; 256];
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(|error| csv_fault(&error))? {
            let number = record.position().map_or(0, csv::Position::line);
            let line: Line = record.deserialize(None).map_err(|error| csv_fault(&error))?;
            if line.country.is_empty() || line.city.is_empty() {
                return Err(format!("line {number}: country and city may not be empty"));
            }
            let place = &mut places[usize::from(line.first_octet)];
            if place.is_some() {
                return Err(format!("line {number}: octet {} stands twice", line.first_octet));
            }
            *place = Some([line.country.into_boxed_str(), line.city.into_boxed_str()]);
        }
        if places.iter().all(Option::is_none) {
            return Err("line 2: the table has no row".into());
        }
        Ok(Self { places })
    }
}

fn csv_fault(error: &csv::Error) -> String {
    match (error.position(), error.kind()) {
        (Some(position), csv::ErrorKind::Deserialize { err, .. }) => format!("line {}: {err}", position.line()),
        (Some(position), _) => format!("line {}: {error}", position.line()),
        _ => error.to_string(),
    }
}

impl Lookup for GeoTable {
    #[inline]
    fn find<'t>(&'t self, key: Option<&str>) -> (bool, [&'t str; 2]) {
        let place = match key.and_then(address::parse) {
            Some(IpAddr::V4(address)) if is_somewhere(address) => &self.places[usize::from(address.octets()[0])],
            _ => &None,
        };
        match place {
            Some([country, city]) => (true, [country, city]),
            None => (false, UNKNOWN),
        }
    }
}

/// Whether an address belongs to a place. The shared (100.64.0.0/10) and benchmark (198.18.0.0/15) ranges are left to
/// the table.
#[inline]
fn is_somewhere(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    !(first == 0
        || first >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "first_octet,country,city\n8,US,Monroe\n192,US,Newark\n203,AU,\"St. Kilda, Melbourne\"\n";

    fn country(address: &str) -> String {
        GeoTable::parse(CSV.as_bytes()).unwrap().find(Some(address)).1[0].to_string()
    }

    #[test]
    fn the_first_octet_decides() {
        assert_eq!(country("8.8.8.8"), "US");
        assert_eq!(country("::ffff:8.8.8.8"), "US");
        assert_eq!(country("203.1.1.1"), "AU");
    }

    #[test]
    fn what_lies_nowhere_is_unknown() {
        for address in [
            "9.9.9.9",
            "2001:db8::1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "203.0.113.9",
            "8.8.8",
            "",
            "unknown",
        ] {
            assert_eq!(country(address), "Unknown", "{address}");
        }
        assert_eq!(GeoTable::parse(CSV.as_bytes()).unwrap().find(None), (false, UNKNOWN));
    }

    #[test]
    fn a_broken_table_names_its_line() {
        for (csv, expected) in [
            ("", "line 1"),
            ("octet,country,city\n", "line 1: expected the header `first_octet,country,city`"),
            ("first_octet,country,city\n", "line 2"),
            ("first_octet,country,city\n8,US,Monroe\n256,US,X\n", "line 3"),
            ("first_octet,country,city\n8,US,Monroe\n9,US\n", "line 3"),
            ("first_octet,country,city\n8,US,Monroe\n8,US,Y\n", "line 3: octet 8 stands twice"),
            ("first_octet,country,city\n8,US,\n", "line 2: country and city may not be empty"),
        ] {
            let error = GeoTable::parse(csv.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{csv:?}: {error}");
        }
        assert!(GeoTable::parse(b"first_octet,country,city\n8,\xff,X\n").unwrap_err().starts_with("line 2"));
    }

    #[test]
    fn the_built_in_table_is_sound() {
        GeoTable::parse(GEO.built_in.as_bytes()).unwrap();
    }
}
