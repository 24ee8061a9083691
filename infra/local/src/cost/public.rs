//! What an anonymous sender can cost, and the bounds of a public publisher that keep it within a limit a day.
//!
//! The dearest request of a size is the [`Bill`] of requests that come so seldom that nothing is shared between them: each is
//! pushed, packed, written and archived alone. Where they come often they share the batcher's instance, which is held by all
//! at once, and the objects of an archive window; both cost no more than if they were in use all day. So a day costs at most
//!
//! `86400 s × (rate × usd + min(rate × shared_usd, shared_usd_a_second))`.

use std::fmt::Write as _;

use serde::Serialize;

use super::prices::PriceTable;
use super::{Bill, Load, MAX_OBJECT_BYTES, Weights};

/// A request of 500 events has up to 1 MiB; one of fewer has as much less.
const MAX_EVENTS: u32 = 500;
const MAX_BODY: u32 = 1 << 20;
/// The events of a request that are tried as a bound.
const BOUNDS: [u32; 9] = [MAX_EVENTS, 250, 100, 50, 25, 10, 5, 2, 1];
/// The largest event that is decoded; of a larger one the bucket takes the text, which costs less than the topics.
const MAX_EVENT_BYTES: f64 = 262_144.0;
/// Requests a second at which nothing is shared.
const SELDOM: f64 = 1e-6;
/// A day, and the ten seconds' worth of requests that may come at once.
const DAY_SECONDS: f64 = 86_400.0 + 10.0;

/// The dearest request within a bound.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Request {
    /// The most events.
    pub events: u32,
    /// The most bytes of the body.
    pub body_bytes: u32,
    /// What it costs on both clouds, in USD, without what requests share.
    pub usd: f64,
    /// What it costs alone of what requests share, in USD.
    pub shared_usd: f64,
    /// What that costs a second at most, in USD.
    pub shared_usd_a_second: f64,
    /// Requests a second that a region takes at least, if a smaller bound makes it so.
    pub least_rate: f64,
}

impl Request {
    /// Requests a second of which a day costs no more than `limit`.
    pub fn rate(&self, limit: f64) -> f64 {
        let second = limit / DAY_SECONDS;
        let all_shared = (second - self.shared_usd_a_second) / self.usd;
        all_shared.max(second / (self.usd + self.shared_usd))
    }
}

/// The bounds that a daily limit pays for.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Throttle {
    /// Of a request.
    pub request: Request,
    /// Requests a second in each region.
    pub rate: f64,
}

impl Throttle {
    /// The largest requests that a limit in USD a day pays for at a useful rate; the smallest where it pays for none.
    pub fn of(limit: f64, regions: u32, prices: &PriceTable) -> Result<Self, String> {
        let requests = requests(prices)?.into_iter();
        let rated: Vec<_> =
            requests.map(|request| Self { request, rate: request.rate(limit) / f64::from(regions) }).collect();
        let useful = rated.iter().find(|throttle| throttle.rate >= throttle.request.least_rate);
        useful.or(rated.last()).copied().ok_or_else(|| "no bound of a request".into())
    }
}

/// The dearest request within each bound, the largest bound first.
pub fn requests(prices: &PriceTable) -> Result<Vec<Request>, String> {
    BOUNDS.into_iter().map(|events| dearest(events, prices)).collect()
}

/// The table that `infra/aws/throttle.sh` reads.
pub fn table(prices: &PriceTable) -> Result<String, String> {
    let mut text = String::from(
        "# The dearest anonymous request within a bound: written by `contextflow cost --public`, read by throttle.sh.\n\
         # events\tbody_bytes\tusd\tshared_usd\tshared_usd_a_second\tleast_rate\n",
    );
    for Request { events, body_bytes, usd, shared_usd, shared_usd_a_second, least_rate } in requests(prices)? {
        let _ = writeln!(
            text,
            "{events}\t{body_bytes}\t{usd:.6e}\t{shared_usd:.6e}\t{shared_usd_a_second:.6e}\t{least_rate}"
        );
    }
    Ok(text)
}

fn dearest(events: u32, prices: &PriceTable) -> Result<Request, String> {
    let assumed = |name: &str| prices.assumed(name);
    let body_bytes = u32::try_from(u64::from(MAX_BODY) * u64::from(events) / u64::from(MAX_EVENTS)).unwrap_or(MAX_BODY);
    let instance = prices.price("run_cpu")?.of(1.0) + assumed("instance_gib")? * prices.price("run_memory")?.of(1.0);
    let object = prices.price("archive_writes")?;
    let objects = |count: f64| object.of(count / object.per);
    let windows = assumed("public_minutes")? / assumed("archive_seconds")? + 1.0 / assumed("dead_letter_seconds")?;
    let shared_usd_a_second = instance + objects(windows);
    let least_rate = assumed("public_requests")?;
    let mut dearest = Request { events, body_bytes, usd: 0.0, shared_usd: 0.0, shared_usd_a_second, least_rate };
    for load in loads(events, body_bytes) {
        let weights = weights(&load, prices)?;
        let bill = Bill::with(load, weights, prices)?;
        let requests = bill.events / load.batch;
        let quantity = |unit: &str, what: &str| -> f64 {
            let lines = bill.lines.iter().filter(|line| line.unit == unit && line.what.starts_with(what));
            lines.map(|line| line.quantity).sum()
        };
        // Of each request: instance seconds and objects, and those of them that are not shared.
        let held = quantity("vCPU-s", "") / requests;
        let written = quantity("M", "archive objects") * object.per / requests;
        let enricher = weights.messages * assumed("enricher_seconds")?;
        let cpu = load.batch * weights.cpu_seconds.iter().sum::<f64>() / assumed("instance_share")?;
        let full = load.batch * ((1.0 - load.bad) * weights.row + load.bad * weights.letter) / MAX_OBJECT_BYTES;
        let rest = bill.total.list / requests - held * instance - objects(written);
        dearest.usd = dearest.usd.max(rest + (enricher + cpu) * instance + objects(weights.marks + full));
        dearest.shared_usd =
            dearest.shared_usd.max((held - enricher).max(0.0) * instance + objects(written - weights.marks));
    }
    Ok(dearest)
}

/// Requests that fill a bound: one large event or many small ones, all good, all bad, or half of each.
fn loads(events: u32, body_bytes: u32) -> impl Iterator<Item = Load> {
    let body = f64::from(body_bytes);
    let counts = BOUNDS.into_iter().filter(move |count| *count <= events).map(f64::from);
    let sized = counts.map(move |batch| (batch, (body / batch).min(MAX_EVENT_BYTES)));
    sized.flat_map(|(batch, event_bytes)| {
        [0.0, 0.5, 1.0].map(|bad| Load { rps: SELDOM * batch, event_bytes, batch, bad, regions: 1, pack: None })
    })
}

/// The heaviest that events of this size can be.
fn weights(load: &Load, prices: &PriceTable) -> Result<Weights, String> {
    let assumed = |name: &str| prices.assumed(name);
    let ordinary = Weights::ordinary(load, prices)?;
    let messages = assumed("public_messages")?.min(load.batch);
    let raw = load.event_bytes + assumed("public_added_bytes")?;
    let row = raw * assumed("public_growth")? + assumed("row_bytes")?;
    // CPU was measured with events of 250 bytes.
    let cpu = assumed("public_cpu")? * (load.event_bytes / 250.0).max(1.0);
    let problems = (load.batch * assumed("public_problems")?).min(assumed("public_listed_problems")?);
    let answer = load.batch * assumed("public_answer_bytes")? + problems * assumed("public_problem_bytes")?;
    Ok(Weights {
        raw,
        row,
        table_row: row,
        letter: raw * assumed("public_growth")? + assumed("dead_letter_bytes")? + assumed("public_detail_bytes")?,
        egress: assumed("public_egress_bytes")? + answer,
        messages,
        between_regions: 1.0,
        objects: assumed("public_minutes")?.min(load.batch),
        marks: (assumed("public_marks")? * messages).min(load.batch),
        lambda_seconds: assumed("public_lambda_seconds")?,
        cpu_seconds: ordinary.cpu_seconds.map(|seconds| seconds * cpu),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::MONTH_SECONDS;

    fn prices() -> PriceTable {
        PriceTable::built_in().unwrap()
    }

    /// What a day of one request costs at a rate, by the whole bill.
    fn day(request: &Request, rate: f64, load: Load) -> f64 {
        let load = Load { rps: rate * load.batch, ..load };
        let weights = weights(&load, &prices()).unwrap();
        assert!(load.batch * load.event_bytes <= f64::from(request.body_bytes) + 1e-6);
        Bill::with(load, weights, &prices()).unwrap().total.list / MONTH_SECONDS * 86_400.0
    }

    #[test]
    fn a_day_of_the_dearest_requests_costs_no_more_than_the_limit() {
        for limit in [0.5, 1.0, 5.0, 20.0, 100.0, 1_000.0] {
            for regions in [1, 2, 5] {
                let throttle = Throttle::of(limit, regions, &prices()).unwrap();
                let rate = throttle.rate * f64::from(regions);
                let Request { events, body_bytes, .. } = throttle.request;
                let days = loads(events, body_bytes).map(|load| day(&throttle.request, rate, load));
                let dearest = days.fold(0.0, f64::max);
                assert!(dearest <= limit, "{dearest} of {limit} USD in {regions} regions by {throttle:?}");
                assert!(dearest > limit / 4.0, "{dearest} of {limit} USD leave much unused: {throttle:?}");
            }
        }
    }

    #[test]
    fn a_higher_limit_pays_for_larger_or_more_requests() {
        let bounds = |limit| {
            let Throttle { request, rate } = Throttle::of(limit, 1, &prices()).unwrap();
            (request.events, rate)
        };
        assert!(bounds(1_000.0).0 == MAX_EVENTS && bounds(1_000.0).1 > 1.0);
        assert!(bounds(20.0).0 > bounds(5.0).0);
        assert_eq!(bounds(0.1).0, 1, "the smallest requests, at whatever rate");
        assert!(bounds(0.1).1 > 0.0);
    }

    #[test]
    fn the_table_of_the_scripts_is_what_is_computed() {
        let kept = include_str!("../../../aws/requests.tsv");
        let computed = table(&prices()).unwrap();
        assert_eq!(kept, computed, "run `contextflow cost --public >infra/aws/requests.tsv`");
    }
}
