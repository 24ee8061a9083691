//! `contextflow generate`: synthetic events, or the events of visits, to a publisher, to a topic or into a file.

pub mod target;
mod visits;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use publisher::synthetic::Generator;
use serde::Serialize;
use shared::clock::{Clock, Micros};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::target::{Request, Target};
use self::visits::Visits;
use crate::error::Failure;

/// Requests under way at once.
const IN_FLIGHT: usize = 64;
/// How often the rate is caught up with.
const TICK: Duration = Duration::from_millis(20);

/// Arguments of `contextflow generate`.
#[derive(clap::Args)]
pub struct Args {
    /// Publisher address (`http://…`, `https://…`), topic (`pubsub://PROJECT/TOPIC`) or file
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL|TOPIC|FILE")]
    to: String,
    /// Send the events of visits in place of synthetic ones: a file of JSON lines, or a folder of *.jsonl
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
    /// Events a second; as fast as possible unless given
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// How long to go on, for example 60s, 5m, 1h
    #[arg(long, value_parser = duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// How many events to make
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    count: Option<u64>,
    /// Events in one request or message
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=500), value_name = "N")]
    batch: u32,
    /// The same seed makes the same visits
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long a request is tried again before its events count as failed
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    retry_for: Duration,
    /// Write the ids of accepted events here, one a line
    #[arg(long, value_name = "PATH")]
    accepted_ids: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            to: String::new(),
            from: None,
            rate: None,
            duration: None,
            count: None,
            batch: 10,
            seed: 1,
            retry_for: Duration::from_mins(1),
            accepted_ids: None,
            json: false,
        }
    }
}

/// Reads `500ms`, `60s`, `5m`, `1h`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("`{unit}` is no unit of time; use ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no length of time; try 60s"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

/// What is said at the end.
#[derive(Serialize)]
struct Summary {
    sent: u64,
    accepted: u64,
    rejected: u64,
    failed: u64,
    seconds: f64,
    rate: f64,
}

#[derive(Default)]
struct Totals {
    sent: AtomicU64,
    accepted: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
}

/// Runs the command.
pub async fn run(args: Args) -> Result<(), Failure> {
    let started = Instant::now();
    let totals = Arc::new(Totals::default());
    if ["http://", "https://", "pubsub://"].iter().any(|scheme| args.to.starts_with(scheme)) {
        let stop = async { drop(tokio::signal::ctrl_c().await) };
        send(&args, Arc::clone(&totals), stop).await?;
    } else {
        write_file(&args, &totals)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let sent = count(&totals.sent);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = sent as f64 / seconds.max(1e-9);
    let summary = Summary {
        sent,
        accepted: count(&totals.accepted),
        rejected: count(&totals.rejected),
        failed: count(&totals.failed),
        seconds,
        rate,
    };
    if args.json {
        println!("{}", serde_json::to_string(&summary).map_err(Failure::work)?);
    } else {
        let Summary { sent, accepted, rejected, failed, .. } = summary;
        eprintln!(
            "{sent} events sent, {accepted} accepted, {rejected} rejected, {failed} failed; {seconds:.1} s, {rate:.0} events/s"
        );
    }
    if summary.failed > 0 {
        return Err(Failure::work(format!(
            "{} events were not accepted; are they taken at {}?",
            summary.failed, args.to
        )));
    }
    Ok(())
}

/// Sends events at `rate` until `stop`.
pub async fn endless(to: String, rate: u32, stop: CancellationToken) -> Result<(), Failure> {
    let args = Args { to, rate: Some(rate), ..Args::default() };
    send(&args, Arc::default(), stop.cancelled_owned()).await
}

/// Where events come from.
enum Events {
    Synthetic(Box<Generator>),
    Visits(Visits),
}

impl Events {
    fn open(args: &Args) -> Result<Self, Failure> {
        match &args.from {
            Some(path) => Visits::open(path).map(Self::Visits),
            None => Ok(Self::Synthetic(Box::new(Generator::new(args.seed)))),
        }
    }

    /// The next event as one line of JSON; none at the end.
    fn next(&mut self, now: Micros) -> Result<Option<String>, Failure> {
        match self {
            Self::Synthetic(generator) => Ok(Some(generator.next_event(now))),
            Self::Visits(visits) => visits.next(now),
        }
    }
}

/// How many events there are in all, if there is an end.
fn total(args: &Args) -> Option<u64> {
    let by_time = || Some((f64::from(args.rate?) * args.duration?.as_secs_f64()).round());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count far below 2^53")]
    args.count.or_else(|| by_time().map(|events| events as u64))
}

fn bar(args: &Args) -> indicatif::ProgressBar {
    let template = match total(args) {
        Some(_) => "{bar:30} {human_pos} of {human_len} events, {per_sec}, {eta}",
        None => "{spinner} {human_pos} events, {per_sec}",
    };
    super::progress(total(args), template)
}

fn write_file(args: &Args, totals: &Totals) -> Result<(), Failure> {
    if total(args).is_none() && args.from.is_none() {
        return Err(Failure::usage("a file needs an end: give --count N, or --rate N with --duration TIME"));
    }
    let fault = |error: std::io::Error| Failure::usage(format!("failed to write {}: {error}", args.to));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&args.to).map_err(fault)?);
    let mut events = Events::open(args)?;
    let clock = Clock::system();
    let bar = bar(args);
    let mut written = 0;
    while total(args).is_none_or(|total| written < total) {
        let Some(event) = events.next(clock.now())? else { break };
        writeln!(file, "{event}").map_err(fault)?;
        written += 1;
        bar.inc(1);
    }
    file.flush().map_err(fault)?;
    bar.finish_and_clear();
    totals.sent.store(written, Ordering::Relaxed);
    totals.accepted.store(written, Ordering::Relaxed);
    Ok(())
}

/// Sends events until their number or time is reached, or `stop` is ready.
async fn send(args: &Args, totals: Arc<Totals>, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let target = Target::open(&args.to, args.retry_for).await?;
    let (ids, accepted_ids) = mpsc::unbounded_channel::<Vec<String>>();
    let writer =
        args.accepted_ids.clone().map(|path| tokio::task::spawn_blocking(move || write_ids(&path, accepted_ids)));
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut requests = JoinSet::new();
    let mut source = Events::open(args)?;
    let clock = Clock::system();
    let total = total(args).unwrap_or(u64::MAX);
    let bar = bar(args);
    let started = Instant::now();
    let mut made = 0_u64;
    tokio::pin!(stop);
    while made < total && args.duration.is_none_or(|limit| args.rate.is_some() || started.elapsed() < limit) {
        let due = due(args.rate, started.elapsed(), total);
        // A request waits for its full number of events, except for the last one.
        let ready = (due - made).min(u64::from(args.batch));
        if ready == 0 || (ready < u64::from(args.batch) && due < total && args.rate.is_some_and(|rate| rate > 50)) {
            tokio::select! {
                () = tokio::time::sleep(TICK) => continue,
                () = &mut stop => break,
            }
        }
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit,
            () = &mut stop => break,
        };
        let mut events = Vec::new();
        while (events.len() as u64) < ready
            && let Some(event) = source.next(clock.now())?
        {
            events.push(event);
        }
        let ready = events.len() as u64;
        if ready == 0 {
            break;
        }
        made += ready;
        let request = Request { target: target.clone(), body: events.join("\n"), events: ready };
        let (totals, bar, ids, retry_for) = (Arc::clone(&totals), bar.clone(), ids.clone(), args.retry_for);
        requests.spawn(async move {
            let (accepted, rejected) = request.until_answered(retry_for).await;
            totals.sent.fetch_add(ready, Ordering::Relaxed);
            totals.rejected.fetch_add(rejected, Ordering::Relaxed);
            totals.accepted.fetch_add(accepted.len() as u64, Ordering::Relaxed);
            totals.failed.fetch_add(ready.saturating_sub(rejected + accepted.len() as u64), Ordering::Relaxed);
            bar.inc(ready);
            drop((ids.send(accepted), permit));
        });
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    bar.finish_and_clear();
    drop(ids);
    match writer {
        Some(writer) => writer.await.map_err(Failure::work)?,
        None => Ok(()),
    }
}

/// How many events should have been made by now.
fn due(rate: Option<u32>, elapsed: Duration, total: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count far below 2^53")]
    rate.map_or(total, |rate| total.min((elapsed.as_secs_f64() * f64::from(rate)) as u64))
}

fn write_ids(path: &std::path::Path, mut ids: mpsc::UnboundedReceiver<Vec<String>>) -> Result<(), Failure> {
    let fault = |error: std::io::Error| Failure::work(format!("failed to write {}: {error}", path.display()));
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(fault)?);
    while let Some(ids) = ids.blocking_recv() {
        for id in ids {
            writeln!(file, "{id}").map_err(fault)?;
        }
        file.flush().map_err(fault)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(duration("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "5 weeks", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
