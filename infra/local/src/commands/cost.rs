//! `contextflow cost`: what a month costs.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cost::prices::PriceTable;
use crate::cost::public::{self, Throttle};
use crate::cost::{Amount, Bill, Line, Load};
use crate::error::Failure;

/// Arguments of `contextflow cost`.
#[derive(clap::Args)]
pub struct Args {
    /// Events a second, on the average of a month
    #[arg(long, value_name = "N", value_parser = positive, required_unless_present_any = ["public", "throttle"])]
    rps: Option<f64>,
    /// Bytes of an event
    #[arg(long, value_name = "B", default_value = "250", value_parser = positive)]
    event_bytes: f64,
    /// Events of a request
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=500))]
    batch: u16,
    /// Share of the events that become dead letters, `1%`
    #[arg(long, value_name = "P%", default_value = "0%", value_parser = percent)]
    bad: f64,
    /// Print the bounds of a public publisher with which no sender costs more than so many USD a day, on both clouds
    #[arg(long, value_name = "USD", value_parser = positive, conflicts_with = "rps")]
    throttle: Option<f64>,
    /// Print the dearest anonymous requests, as `infra/aws/throttle.sh` reads them
    #[arg(long, conflicts_with_all = ["rps", "throttle"])]
    public: bool,
    /// Regions of AWS that take requests
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=40))]
    regions: u32,
    /// A price table in place of the built-in one (`infra/prices.json`)
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Print also what is assumed of the pipeline
    #[arg(long)]
    assumptions: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "give a number")?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("give a number above 0".into()) }
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match number {
        Some(number) if (0.0..=100.0).contains(&number) => Ok(number / 100.0),
        _ => Err("give a percentage from 0% to 100%".into()),
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let prices = table(args.prices.as_deref())?;
    let of_table = |reason: String| Failure::usage(format!("price table: {reason}"));
    if args.public {
        print!("{}", public::table(&prices).map_err(of_table)?);
        return Ok(());
    }
    let Some(rps) = args.rps else {
        let throttle = Throttle::of(args.throttle.unwrap_or_default(), args.regions, &prices).map_err(of_table)?;
        return print_throttle(&throttle, args);
    };
    let batch = f64::from(args.batch);
    let request = batch * args.event_bytes;
    let most = u32::try_from(publisher::MAX_BODY).unwrap_or(u32::MAX);
    if request > f64::from(most) {
        return Err(Failure::usage(format!(
            "--batch {} --event-bytes {}: a request of {request} bytes; the publisher takes {most} at most",
            args.batch, args.event_bytes
        )));
    }
    let Args { event_bytes, bad, regions, .. } = *args;
    let load = Load { rps, event_bytes, batch, bad, regions, pack: None };
    let bill = Bill::of(load, &prices).map_err(of_table)?;
    if args.json {
        let PriceTable { as_of, currency, source, assumptions, .. } = &prices;
        let answer = json!({"load": load, "as_of": as_of, "currency": currency, "source": source, "bill": bill, "assumptions": assumptions});
        println!("{answer}");
        return Ok(());
    }
    println!(
        "{} events a second of {} bytes{}, {} a request, {}: {} million a month of 30 days\n{} by the price lists of {}\n",
        grouped(load.rps, usize::from(load.rps.fract() != 0.0)),
        grouped(load.event_bytes, 0),
        if bad > 0.0 { format!(", {:.1} % of them dead letters", bad * 100.0) } else { String::new() },
        args.batch,
        in_regions(args.regions),
        grouped(bill.events / 1e6, 1),
        prices.currency,
        prices.as_of,
    );
    println!("{:14} {:34} {:>17} {:>12} {:>16}", "service", "what", "quantity", "a month", "after free tier");
    print_lines(&bill.lines);
    print_total("total", bill.total);
    print_total("a million events", bill.million);
    println!("\nDataflow in the place of enricher, enriched topic and batcher:");
    print_lines(&bill.dataflow);
    print_total("total with Dataflow", bill.total_with_dataflow);
    if args.assumptions {
        println!("\nassumed:");
        for (name, assumption) in &prices.assumptions {
            println!("{name:28} {:>8}  {}", assumption.value, assumption.why);
        }
    }
    Ok(())
}

fn in_regions(regions: u32) -> String {
    if regions == 1 { "1 region".to_string() } else { format!("{regions} regions") }
}

fn print_throttle(throttle: &Throttle, args: &Args) -> Result<(), Failure> {
    if args.json {
        println!("{}", serde_json::to_string(throttle).map_err(Failure::work)?);
        return Ok(());
    }
    let Throttle { request, rate } = throttle;
    println!(
        "{} USD a day, {}: {rate:.2} requests a second in each, of {} events and {} bytes at most; the dearest costs {:.6} USD on \
         both clouds, besides what all requests share",
        money(args.throttle.unwrap_or_default()),
        in_regions(args.regions),
        request.events,
        grouped(request.body_bytes.into(), 0),
        request.usd,
    );
    Ok(())
}

fn table(path: Option<&Path>) -> Result<PriceTable, Failure> {
    let Some(path) = path else { return PriceTable::built_in().map_err(Failure::work) };
    let fault = |reason: String| Failure::usage(format!("--prices {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
    PriceTable::read(&text).map_err(fault)
}

fn print_lines(lines: &[Line]) {
    for Line { service, what, quantity, unit, amount, .. } in lines {
        let quantity = format!("{} {unit}", grouped(*quantity, usize::from(*quantity < 10_000.0)));
        println!("{service:14} {what:34} {quantity:>17} {:>12} {:>16}", money(amount.list), money(amount.after_free));
    }
}

fn print_total(name: &str, amount: Amount) {
    println!("{name:67} {:>12} {:>16}", money(amount.list), money(amount.after_free));
}

/// With its cents.
fn money(amount: f64) -> String {
    grouped(amount, 2)
}

/// A number with commas between its thousands.
fn grouped(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_have_commas() {
        for (number, decimals, expected) in
            [(0.0, 2, "0.00"), (999.0, 0, "999"), (1_000.0, 0, "1,000"), (1_234_567.891, 2, "1,234,567.89")]
        {
            assert_eq!(grouped(number, decimals), expected);
        }
    }
}
