//! Synthetic events of the clickstream schema: what a shop's visitors do, in visits that make sense.

use std::collections::VecDeque;

use fastrand::Rng;
use shared::clock::Micros;
use shared::decode::time::timestamp_text;
use shared::{encode, event};

/// Paths and how often they are seen in 100 page views.
const PAGES: [(&str, u32); 8] = [
    ("/", 22),
    ("/products", 20),
    ("/products/item-", 28),
    ("/category/outdoor", 10),
    ("/search?q=tent", 8),
    ("/cart", 7),
    ("/checkout", 3),
    ("/account", 2),
];
/// What happens on a page and how often in 100 events.
const EVENTS: [(&str, u32); 6] =
    [("page_view", 60), ("click", 20), ("scroll", 10), ("search", 4), ("add_to_cart", 5), ("purchase", 1)];
/// How many visits are under way at once.
const OPEN_VISITS: usize = 200;
const EVENTS_OF_A_VISIT: std::ops::RangeInclusive<u32> = 1..=24;

/// Makes events; the same seed makes the same events but for their ids and times.
pub struct Generator {
    rng: Rng,
    visits: VecDeque<Visit>,
    visitors: u32,
}

struct Visit {
    user: String,
    session: String,
    address: String,
    events_left: u32,
    camel_case: bool,
}

impl Generator {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), visits: VecDeque::new(), visitors: 50_000 }
    }

    /// The next event as a JSON object, with its `event_id` set.
    pub fn next_event(&mut self, now: Micros) -> String {
        if self.visits.len() < OPEN_VISITS && (self.visits.is_empty() || self.rng.u8(..) < 40) {
            let visit = self.visit();
            self.visits.push_back(visit);
        }
        let at = self.rng.usize(..self.visits.len());
        let page = self.page();
        let name = pick(&mut self.rng, &EVENTS);
        let mut random = [0; 10];
        self.rng.fill(&mut random);
        let Some(visit) = self.visits.get_mut(at) else { return String::new() };
        visit.events_left = visit.events_left.saturating_sub(1);
        let keys = if visit.camel_case {
            ["eventId", "userId", "sessionId", "pageUrl", "eventName", "ipAddress", "eventTimestamp"]
        } else {
            ["event_id", "user_id", "session_id", "page_url", "event_name", "ip_address", "event_timestamp"]
        };
        let id = event::mint_event_id(now, &random);
        let time = timestamp_text(now);
        let values = [&id, &visit.user, &visit.session, &page, name, &visit.address, &time];
        let json = object(keys.into_iter().zip(values));
        if visit.events_left == 0 {
            self.visits.swap_remove_back(at);
        }
        json
    }

    fn visit(&mut self) -> Visit {
        let octet = loop {
            // Private, loopback and multicast networks send no visitors.
            let octet = self.rng.u8(1..=223);
            if !matches!(octet, 10 | 127) {
                break octet;
            }
        };
        let address = format!("{octet}.{}.{}.{}", self.rng.u8(..), self.rng.u8(..), self.rng.u8(1..=254));
        Visit {
            user: format!("u-{}", self.rng.u32(..self.visitors)),
            session: format!("s-{:012x}", self.rng.u64(..1 << 48)),
            address,
            events_left: self.rng.u32(EVENTS_OF_A_VISIT),
            camel_case: self.rng.u8(..100) < 45,
        }
    }

    fn page(&mut self) -> String {
        let path = pick(&mut self.rng, &PAGES);
        let item = if path.ends_with('-') { format!("{:04}", self.rng.u32(..5_000)) } else { String::new() };
        format!("https://shop.example.com{path}{item}")
    }
}

/// One event of a new visitor, for a request without a body.
pub fn one(now: Micros) -> String {
    let seed = event::random_bytes().iter().fold(0_u64, |seed, &byte| seed << 8 ^ u64::from(byte));
    Generator::new(seed).next_event(now)
}

fn pick<'a>(rng: &mut Rng, weighted: &[(&'a str, u32)]) -> &'a str {
    let total: u32 = weighted.iter().map(|(_, weight)| weight).sum();
    let mut left = rng.u32(..total);
    for (name, weight) in weighted {
        if left < *weight {
            return name;
        }
        left -= weight;
    }
    ""
}

fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut json = Vec::with_capacity(320);
    for (index, (key, value)) in members.enumerate() {
        json.push(if index == 0 { b'{' } else { b',' });
        encode::string(key, &mut json);
        json.push(b':');
        encode::string(value, &mut json);
    }
    json.push(b'}');
    String::from_utf8(json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use shared::decode;
    use shared::row::Row;
    use shared::schema::Registry;

    use super::*;

    const NOW: Micros = 1_792_455_302_920_000;

    #[test]
    fn every_event_keeps_to_the_schema() {
        let registry = Registry::built_in().unwrap();
        let plan = registry.get("clickstream").unwrap();
        let mut generator = Generator::new(7);
        let events: Vec<_> = (0..2_000).map(|_| generator.next_event(NOW)).collect();
        let mut row = Row::default();
        for event in &events {
            decode::event(plan, event.as_bytes(), NOW, &mut row).unwrap();
            assert_eq!((&*row.problems, row.unknown_keys), (&[][..], 0), "{event}");
        }
        let camel = events.iter().filter(|event| event.contains("pageUrl")).count();
        assert!((400..1_400).contains(&camel), "both key styles: {camel} of 2000");
    }

    #[test]
    fn the_same_seed_makes_the_same_events() {
        let make = |seed| Generator::new(seed).next_event(NOW);
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }
}
