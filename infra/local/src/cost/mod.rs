//! What the deployed pipeline costs under a load, line by line, and the same load through Dataflow.
//!
//! Requests, bytes and held time follow from the load; where they depend on how long something takes, the figure is an
//! assumption of the price table. Not counted: the site's own traffic, queries of analysts, and the free months of a new
//! account.

pub mod prices;
pub mod public;

use serde::Serialize;

use prices::PriceTable;

/// A month of 30 days.
const MONTH_SECONDS: f64 = 30.0 * 24.0 * 3_600.0;
/// Pub/Sub counts at least this of a request.
const PUBSUB_MIN_BYTES: f64 = 1_000.0;
/// API Gateway counts a request once for each of these.
const HTTP_API_BYTES: f64 = 512.0 * 1_024.0;
/// The largest message of rows or of dead letters, in lines and in bytes.
const MAX_PACK_ROWS: f64 = 500.0;
const MAX_PACK_BYTES: f64 = 1_048_576.0;
/// The largest object of the archive, in bytes before it is packed.
const MAX_OBJECT_BYTES: f64 = 8_388_608.0;

/// What comes in.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Events a second.
    pub rps: f64,
    /// Bytes of an event as JSON.
    pub event_bytes: f64,
    /// Events of a request.
    pub batch: f64,
    /// Share of the events that become dead letters, from 0 to 1.
    pub bad: f64,
    /// Regions of AWS that take requests, each the same share.
    pub regions: u32,
    /// Rows of a message of the enriched topic, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<f64>,
}

/// What a load costs.
#[derive(Debug, Serialize)]
pub struct Bill {
    /// Events a month.
    pub events: f64,
    /// One a price.
    pub lines: Vec<Line>,
    /// A Dataflow job in the place of the lines that process.
    pub dataflow: Vec<Line>,
    /// Of all lines.
    pub total: Amount,
    /// Of a million events.
    pub million: Amount,
    /// With Dataflow.
    pub total_with_dataflow: Amount,
}

/// One thing of a month.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Who charges it.
    pub service: String,
    /// What for.
    pub what: String,
    /// In units, of all regions.
    pub quantity: f64,
    /// What the quantity is counted in.
    pub unit: String,
    /// What it costs.
    #[serde(flatten)]
    pub amount: Amount,
    /// Whether it is for work that Dataflow would do instead.
    pub is_processing: bool,
}

/// Money of a month.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Amount {
    /// By the price list.
    pub list: f64,
    /// Where nothing else uses up what is free.
    pub after_free: f64,
}

impl Amount {
    fn sum<'l>(lines: impl Iterator<Item = &'l Line>) -> Self {
        lines.fold(Self::default(), |sum, line| Self {
            list: sum.list + line.amount.list,
            after_free: sum.after_free + line.amount.after_free,
        })
    }

    fn of_million(self, events: f64) -> Self {
        let share = 1e6 / events;
        Self { list: self.list * share, after_free: self.after_free * share }
    }
}

/// What a request and its events weigh on their way, in bytes; and how hard they are.
#[derive(Debug, Clone, Copy)]
struct Weights {
    /// An event on the raw topic.
    raw: f64,
    /// A row on the enriched topic, and of the archive.
    row: f64,
    /// A row in `BigQuery`.
    table_row: f64,
    /// A dead letter, everywhere.
    letter: f64,
    /// What leaves AWS with a request besides its events: headers, and the answer.
    egress: f64,
    /// Messages that the events of a request are sent in, because they are of so many types.
    messages: f64,
    /// Share of the messages that cross between regions.
    between_regions: f64,
    /// Objects that an archive window is written as.
    objects: f64,
    /// Objects that the enricher writes for a request.
    marks: f64,
    /// How long the Lambda takes, in seconds.
    lambda_seconds: f64,
    /// CPU-seconds of the enricher for an event, and of the batcher for a row or dead letter.
    cpu_seconds: [f64; 2],
}

impl Weights {
    /// Those of events as sites send them.
    fn ordinary(load: &Load, prices: &PriceTable) -> Result<Self, String> {
        let assumed = |name: &str| prices.assumed(name);
        let regions = f64::from(load.regions);
        Ok(Self {
            raw: load.event_bytes,
            row: load.event_bytes + assumed("row_bytes")?,
            table_row: load.event_bytes + assumed("bigquery_row_bytes")?,
            letter: load.event_bytes + assumed("dead_letter_bytes")?,
            egress: assumed("egress_bytes")?,
            messages: 1.0,
            between_regions: (regions - 1.0) / regions,
            objects: 1.0,
            marks: 0.0,
            lambda_seconds: assumed("lambda_seconds")?,
            cpu_seconds: [assumed("enricher_cpu_seconds")? / 1e6, assumed("batcher_cpu_seconds")? / 1e6],
        })
    }
}

impl Bill {
    /// The bill of a month under this load. The error names what the price table lacks.
    pub fn of(load: Load, prices: &PriceTable) -> Result<Self, String> {
        Self::with(load, Weights::ordinary(&load, prices)?, prices)
    }

    fn with(load: Load, weights: Weights, prices: &PriceTable) -> Result<Self, String> {
        let assumed = |name: &str| prices.assumed(name);
        let regions = f64::from(load.regions);
        let events = load.rps * MONTH_SECONDS;
        let requests = events / load.batch;
        let (requests_a_second, request_bytes) = (load.rps / load.batch, load.batch * load.event_bytes);
        let raw_messages = requests * weights.messages;
        let raw_bytes = load.batch * weights.raw / weights.messages + assumed("message_bytes")?;

        // What comes within a window of the enricher leaves as one message, as does what came together, if it fits.
        let pack_seconds = assumed("pack_seconds")?;
        let packed = |share: f64, bytes: f64| {
            let gathered = (load.rps * share * pack_seconds).max(load.batch * share / weights.messages);
            gathered.min(MAX_PACK_ROWS).min(MAX_PACK_BYTES / bytes).max(1.0)
        };
        let (good, bad) = (1.0 - load.bad, load.bad);
        let pack = load.pack.unwrap_or(packed(good, weights.row)).max(1.0);
        let (packs, packs_a_second) = (good * events / pack, good * load.rps / pack);
        let pack_bytes = pack * weights.row + assumed("message_bytes")?;
        let letters = packed(bad, weights.letter);
        let (letter_packs, letter_packs_a_second) = (bad * events / letters, bad * load.rps / letters);
        let letter_pack_bytes = letters * weights.letter + assumed("message_bytes")?;

        // An instance is charged while it holds a push: pushes come at random, a window of the archive opens with one.
        let is_held = |a_second: f64, seconds: f64| 1.0 - (-a_second * seconds).exp();
        let is_open = |a_second: f64, window: f64| window / (window + 1.0 / a_second);
        let [window, letter_window] = [assumed("archive_seconds")?, assumed("dead_letter_seconds")?];
        let [archive, letter_archive] =
            [is_open(packs_a_second, window), is_open(letter_packs_a_second, letter_window)];
        let instances = |is_held: f64, cpu_seconds: f64, share: f64| is_held.max(load.rps * cpu_seconds / share);
        let share = assumed("instance_share")?;
        let enricher = is_held(requests_a_second, assumed("enricher_seconds")?);
        let is_idle = (1.0 - is_held(packs_a_second, assumed("batcher_seconds")?)) * (1.0 - archive);
        let batcher = 1.0 - is_idle * (1.0 - letter_archive);
        let [enricher_cpu, batcher_cpu] = weights.cpu_seconds;
        let instance_seconds =
            MONTH_SECONDS * (instances(enricher, enricher_cpu, share) + instances(batcher, batcher_cpu, share));

        let mut lines = Lines { prices, lines: Vec::new() };
        let in_steps = (request_bytes / HTTP_API_BYTES).ceil().max(1.0);
        let lambda_seconds = requests * weights.lambda_seconds * assumed("lambda_gb")?;
        let out = requests * (load.batch * weights.raw + weights.egress);
        lines.each("http_api", requests * in_steps / regions, regions, false)?;
        lines.one("lambda_requests", requests, false)?;
        lines.one("lambda_time", lambda_seconds, false)?;
        lines.one("aws_egress", out, false)?;
        lines.one("pubsub_raw", 2.0 * raw_messages * raw_bytes.max(PUBSUB_MIN_BYTES), false)?;
        if weights.between_regions > 0.0 {
            lines.one("pubsub_between_regions", raw_messages * raw_bytes * weights.between_regions, false)?;
        }
        lines.one("pubsub_enriched", 3.0 * packs * pack_bytes.max(PUBSUB_MIN_BYTES), true)?;
        if bad > 0.0 {
            let bytes = 2.0 * letter_packs * letter_pack_bytes.max(PUBSUB_MIN_BYTES);
            lines.one("pubsub_dead_letters", bytes, false)?;
        }
        lines.one("run_requests", raw_messages + 2.0 * packs + letter_packs, true)?;
        lines.one("run_cpu", instance_seconds, true)?;
        lines.one("run_memory", instance_seconds * assumed("instance_gib")?, true)?;
        let table_bytes = events * (good * weights.table_row + bad * weights.letter);
        lines.one("storage_write", table_bytes, false)?;
        lines.one("bigquery_storage", table_bytes, false)?;
        let objects =
            |is_open: f64, window: f64, bytes: f64| (MONTH_SECONDS * is_open / window).max(bytes / MAX_OBJECT_BYTES);
        let [rows, letters] = [good * events * weights.row, bad * events * weights.letter];
        let archived =
            objects(archive * weights.objects, window, rows) + objects(letter_archive, letter_window, letters);
        lines.one("archive_writes", archived + weights.marks * requests, false)?;
        lines.one("archive_storage", (rows + letters) * assumed("archive_ratio")?, false)?;

        let cpu = load.rps / assumed("dataflow_events_a_cpu_second")? / share;
        let workers = (cpu / assumed("dataflow_worker_cpu")?).ceil().max(1.0);
        let hours = workers * MONTH_SECONDS / 3_600.0;
        let mut dataflow = Lines { prices, lines: Vec::new() };
        dataflow.one("dataflow_cpu", hours * assumed("dataflow_worker_cpu")?, true)?;
        dataflow.one("dataflow_memory", hours * assumed("dataflow_worker_gib")?, true)?;
        dataflow.one("dataflow_data", events * load.event_bytes * assumed("dataflow_passes")?, true)?;

        let (lines, dataflow) = (lines.lines, dataflow.lines);
        let total = Amount::sum(lines.iter());
        let others = lines.iter().filter(|line| !line.is_processing);
        let total_with_dataflow = Amount::sum(others.chain(&dataflow));
        Ok(Self { events, million: total.of_million(events), total, total_with_dataflow, lines, dataflow })
    }
}

struct Lines<'p> {
    prices: &'p PriceTable,
    lines: Vec<Line>,
}

impl Lines<'_> {
    fn one(&mut self, price: &str, quantity: f64, is_processing: bool) -> Result<(), String> {
        self.each(price, quantity, 1.0, is_processing)
    }

    /// A quantity that is charged `times` times, each from the first tier on.
    fn each(&mut self, price: &str, quantity: f64, times: f64, is_processing: bool) -> Result<(), String> {
        let price = self.prices.price(price)?;
        let units = quantity / price.per;
        let amount =
            Amount { list: times * price.of(units), after_free: times * price.of((units - price.free).max(0.0)) };
        let (service, what, unit) = (price.service.clone(), price.what.clone(), price.unit.clone());
        self.lines.push(Line { service, what, quantity: times * units, unit, amount, is_processing });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred million events a day.
    const RPS: f64 = 100e6 / 86_400.0;

    fn bill(rps: f64, batch: f64, regions: u32) -> Bill {
        let load = Load { rps, event_bytes: 250.0, batch, bad: 0.0, regions, pack: None };
        Bill::of(load, &PriceTable::built_in().unwrap()).unwrap()
    }

    fn list(bill: &Bill, service: &str, what: &str) -> f64 {
        let is_meant = |line: &&Line| line.service == service && line.what.starts_with(what);
        bill.lines.iter().find(is_meant).unwrap().amount.list
    }

    #[test]
    fn a_hundred_million_events_a_day_cost_what_the_price_lists_say() {
        let bill = bill(RPS, 1.0, 1);
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 0.01, "{found}, not {expected}");
        close(bill.events, 3e9);
        close(list(&bill, "API Gateway", "HTTP API"), 300.0 + 2_700.0 * 0.9);
        close(list(&bill, "AWS Lambda", "requests"), 600.0);
        // 3,000 M requests of 1,000 bytes at 40 USD/TiB, in and out.
        close(list(&bill, "Pub/Sub", "raw topic"), 2.0 * 3e12 / 1_099_511_627_776.0 * 40.0);
        // Every event is a push of the raw topic, 1,200 USD; packs of 23 come twice.
        let pushes = list(&bill, "Cloud Run", "pushes");
        close(pushes, 1_200.0 * (1.0 + 2.0 / (RPS * 0.02)));
    }

    #[test]
    fn batches_cut_what_is_charged_a_request() {
        let (single, twenty) = (bill(RPS, 1.0, 1), bill(RPS, 20.0, 1));
        let ratio = |service: &str, what: &str| list(&single, service, what) / list(&twenty, service, what);
        assert!((ratio("AWS Lambda", "requests") - 20.0).abs() < 1e-9);
        // All of it is in the first tier then.
        assert!((ratio("API Gateway", "HTTP API") - 18.2).abs() < 1e-9);
        // 20 events have 5,150 bytes, one is counted as 1,000.
        assert!((ratio("Pub/Sub", "raw topic") - 20.0 * 1_000.0 / 5_150.0).abs() < 1e-9);
        assert!(twenty.total.list < single.total.list / 4.0);
    }

    #[test]
    fn packs_and_objects_are_no_larger_than_the_pipeline_makes_them() {
        let load = Load { rps: 1_000.0, event_bytes: 5_000.0, batch: 209.0, bad: 0.0, regions: 1, pack: None };
        let prices = PriceTable::built_in().unwrap();
        let bill = Bill::of(load, &prices).unwrap();
        let quantity = |what: &str| bill.lines.iter().find(|line| line.what.starts_with(what)).unwrap().quantity * 1e6;
        let bytes = bill.events * (5_000.0 + prices.assumed("row_bytes").unwrap());
        // A push a request, and two a pack of 1 MiB; an object each 8 MiB.
        assert!((quantity("pushes") - (bill.events / 209.0 + 2.0 * bytes / 1_048_576.0)).abs() < 1.0);
        assert!((quantity("archive objects written") - bytes / 8_388_608.0).abs() < 1.0);
    }

    #[test]
    fn dead_letters_are_packed_and_kept_like_rows() {
        let prices = PriceTable::built_in().unwrap();
        let with = |bad| {
            let load = Load { rps: 1_000.0, event_bytes: 250.0, batch: 500.0, bad, regions: 1, pack: None };
            Bill::of(load, &prices).unwrap()
        };
        let (good, bad, half) = (with(0.0), with(1.0), with(0.5));
        let quantity = |bill: &Bill, what: &str| {
            let line = bill.lines.iter().find(|line| line.what.starts_with(what));
            line.map(|line| line.quantity)
        };
        assert_eq!(quantity(&good, "dead-letter topic"), None);
        // In and out; 500 letters a message.
        let letter = 250.0 + prices.assumed("dead_letter_bytes").unwrap();
        let topic = 2.0 * bad.events * (letter + prices.assumed("message_bytes").unwrap() / 500.0) / 1_073_741_824.0;
        assert!((quantity(&bad, "dead-letter topic").unwrap() - topic).abs() < 1e-6);
        assert!((quantity(&bad, "pushes").unwrap() - 2.0 * bad.events / 500.0 / 1e6).abs() < 1e-9, "a push each");
        assert!((quantity(&bad, "Storage Write").unwrap() - bad.events * letter / 1_073_741_824.0).abs() < 1e-6);
        assert!(quantity(&bad, "enriched topic") == Some(0.0));
        assert!(good.total.list < half.total.list && half.total.list < good.total.list + bad.total.list);
    }

    #[test]
    fn each_region_begins_with_the_first_tier() {
        let three = bill(RPS, 1.0, 3);
        assert!((list(&three, "API Gateway", "HTTP API") - (900.0 + 2_100.0 * 0.9)).abs() < 0.01);
        assert!(list(&three, "Pub/Sub", "between regions") > 0.0);
    }

    #[test]
    fn what_is_free_is_taken_off_once() {
        let small = bill(0.01, 1.0, 1);
        for line in &small.lines {
            assert!(line.amount.after_free <= line.amount.list, "{line:?}");
        }
        let requests = small.lines.iter().find(|line| line.service == "AWS Lambda").unwrap();
        assert!(requests.amount.list > 0.0 && requests.amount.after_free == 0.0);
        assert!(small.total.after_free < small.total_with_dataflow.after_free, "a worker that runs day and night");
    }

    #[test]
    fn the_bill_is_the_sum_of_its_lines() {
        let bill = bill(1.0, 1.0, 1);
        let sum: f64 = bill.lines.iter().map(|line| line.amount.list).sum();
        assert!((bill.total.list - sum).abs() < 1e-9);
        assert!((bill.million.list - sum / 2.592).abs() < 1e-9);
    }
}
