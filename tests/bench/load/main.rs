//! What the functions are measured with: a client that pushes, and servers that acknowledge at once.
//!
//! `load push` sends Pub/Sub pushes over HTTP/1.1, `load warehouse` is a Storage Write server, `load topic` a Pub/Sub
//! server; neither keeps anything.

mod warehouse;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use pipeline_tests::signer::{self, KeyServer, SigningKey};
use pipeline_tests::topic_server::TopicServer;
use serde_json::json;
use shared::clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Push messages to a function on this machine, each until it is taken
    Push(Push),
    /// Be a warehouse that acknowledges appends and keeps nothing, until SIGTERM
    Warehouse(warehouse::Warehouse),
    /// Be a Pub/Sub that takes what is published, until killed; prints its address
    Topic,
    /// Sign for pushes until killed: prints what a function that checks tokens is to be set to
    Signer {
        /// The file that the token of the push account is written to
        token: std::path::PathBuf,
    },
}

#[derive(clap::Args, Clone)]
struct Push {
    /// Port of the function
    #[arg(long)]
    port: u16,
    /// Path of the route
    #[arg(long, default_value = "/")]
    path: String,
    /// Rows of the enriched message in a push; 0 pushes one raw event
    #[arg(long, default_value_t = 500)]
    rows: u64,
    /// How many pushes
    #[arg(long)]
    requests: u64,
    /// Number of the first; every number has event ids of its own
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many at once
    #[arg(long, default_value_t = 16)]
    concurrency: u64,
    /// How many a second come due; without it each is due at once
    #[arg(long)]
    rate: Option<u64>,
    /// A file with the bearer token
    #[arg(long)]
    token: Option<std::path::PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Push(args) => push(args).await,
        Command::Warehouse(args) => warehouse::serve(args).await,
        Command::Topic => {
            println!("{}", TopicServer::start().await.url);
            std::future::pending().await
        }
        Command::Signer { token } => sign(&token).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn sign(token: &std::path::Path) -> Result<(), Failure> {
    let key = SigningKey::generate("load");
    let keys = KeyServer::start(&[&key]);
    std::fs::write(token, key.sign(&signer::claims(Clock::system().now())))?;
    println!("PUSH_AUTH=oidc");
    println!("PUSH_AUDIENCE={}", signer::AUDIENCE);
    println!("PUSH_SERVICE_ACCOUNT={}", signer::ACCOUNT);
    println!("PUSH_KEYS_URL={}", keys.url);
    std::future::pending().await
}

async fn push(args: Push) -> Result<(), Failure> {
    let token = args.token.as_ref().map(std::fs::read_to_string).transpose()?;
    let head = Arc::new(format!(
        "POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{}",
        args.path,
        token.map(|token| format!("authorization: Bearer {}\r\n", token.trim())).unwrap_or_default()
    ));
    let (next, again) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..args.concurrency {
        let (args, head, next, again) = (args.clone(), Arc::clone(&head), Arc::clone(&next), Arc::clone(&again));
        clients.push(tokio::spawn(async move {
            let mut stream = connect(args.port).await?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= args.requests {
                    return Ok::<_, Failure>(());
                }
                let body = body(args.first + number, args.rows);
                if let Some(rate) = args.rate {
                    let due = Duration::from_millis(number * 1_000 / rate.max(1));
                    tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
                }
                let request = [format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
                loop {
                    match post(&mut stream, &request).await {
                        Ok(204) => break,
                        Ok(503) => {}
                        Ok(status) => return Err(format!("answered {status}").into()),
                        // A request that is given back before it was read to its end costs its connection.
                        Err(_) => stream = connect(args.port).await?,
                    }
                    again.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }));
    }
    for client in clients {
        client.await??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let rows = args.requests * args.rows.max(1);
    println!(
        "{}",
        json!({"requests": args.requests, "rows": rows, "pushed_again": again.load(Ordering::Relaxed), "seconds": seconds})
    );
    Ok(())
}

async fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request and reads its answer to the end; only short ones come. The answer's status.
async fn post(stream: &mut TcpStream, request: &[u8]) -> Result<u16, Failure> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("the function closed the connection".into());
        }
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            while answer.len() < end + 4 + length {
                stream.read_buf(&mut answer).await?;
            }
            return Ok(text.get(9..12).unwrap_or_default().parse()?);
        }
    }
}

/// The body of push `number`.
fn body(number: u64, rows: u64) -> Vec<u8> {
    let mut message = message(number, rows);
    let id = number.to_string();
    for (key, value) in
        [("messageId", &id), ("message_id", &id), ("publishTime", &time(number)), ("publish_time", &time(number))]
    {
        message[key] = json!(value);
    }
    json!({"subscription": "projects/p/subscriptions/load", "message": message}).to_string().into_bytes()
}

fn time(number: u64) -> String {
    format!("2026-10-20T00:{:02}:{:02}.{:03}Z", number / 10 % 60, number % 60, number % 1000)
}

/// Message `number`: `rows` rows of the clickstream, or one raw event. Every event has an id of its own.
fn message(number: u64, rows: u64) -> serde_json::Value {
    let time = time(number);
    let octet = 1 + number % 222;
    let data = if rows == 0 {
        format!(
            r#"{{"userId":"u-{}","sessionId":"s-{number}","pageUrl":"https://shop.example.com/products/{}","eventName":"page_view","ipAddress":"{octet}.34.56.78","eventTimestamp":"{time}","eventId":"load-{number}"}}"#,
            number % 10_000,
            number % 500
        )
    } else {
        let row = |row: u64| {
            format!(
                r#"{{"user_id":"u-{}","session_id":"s-{number}","page_url":"https://shop.example.com/products/{row}","event_name":"page_view","ip_address":"{octet}.34.56.78","event_timestamp":"{time}","country":"US","city":"Mountain View","event_id":"load-{number}-{row}","received_at":"{time}","schema_version":"1-0-0"}}"#,
                row % 10_000
            )
        };
        (0..rows).map(row).collect::<Vec<_>>().join("\n")
    };
    let attributes = if rows == 0 {
        json!({"source": "load"})
    } else {
        json!({"event_type": "clickstream", "rows": rows.to_string(), "schema_version": "1-0-0"})
    };
    json!({"data": base64_simd::STANDARD.encode_to_string(data.as_bytes()), "attributes": attributes})
}
