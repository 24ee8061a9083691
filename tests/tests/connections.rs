//! What a listener does with clients that are slow, idle, too large or too many.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread::{sleep, spawn};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use pipeline_tests::binary::{Dev, PATIENCE, binary, binary_beside};
use pipeline_tests::parts::{Process, free_port};
use pipeline_tests::pubsub::PROJECT;
use shared::serve::{Limits, serve};
use tokio::sync::Semaphore;

/// Far longer than a test runs.
const NEVER: Duration = Duration::from_hours(1);
const SHORT: Duration = Duration::from_millis(200);
const LENIENT: Limits = Limits { header: NEVER, body: NEVER, idle: NEVER, connections: 100 };

/// A listener in this process: `GET /` says `hello`, `POST /` the length of its body, `GET /wait` answers once it is
/// told to, `GET /large` is more than sockets hold.
struct Listener {
    address: SocketAddr,
    gate: Arc<Semaphore>,
}

impl Listener {
    fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let gate = Arc::new(Semaphore::new(0));
        let wait = Arc::clone(&gate);
        let router = Router::new()
            .route("/", get(async || "hello").post(async |body: Bytes| body.len().to_string()))
            .route("/wait", post(async move |_: Bytes| wait.acquire().await.unwrap().forget()))
            .route("/large", get(async || vec![b'x'; 32 << 20]))
            .layer(DefaultBodyLimit::disable());
        spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve(listener, router, limits, std::future::pending(), SHORT).await;
            });
        });
        Self { address, gate }
    }

    fn connect(&self) -> TcpStream {
        connect(self.address)
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes until the connection is closed; panics where it is not.
fn until_closed(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection stays open: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `GET /` on a connection that stays open; the body.
fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let mut text = String::new();
    let mut buffer = [0; 1_024];
    while !text.ends_with("hello") {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
        }
    }
    Ok(text)
}

/// Sends `bytes` again and again until the connection is closed; what came meanwhile.
fn trickle(mut stream: TcpStream, bytes: &'static [u8]) -> String {
    let mut writer = stream.try_clone().unwrap();
    let writing = spawn(move || {
        while writer.write_all(bytes).is_ok() {
            sleep(Duration::from_millis(10));
        }
    });
    let answer = until_closed(&mut stream);
    drop(stream);
    writing.join().unwrap();
    answer
}

#[test]
fn a_slow_head_is_answered_408_and_closed() {
    let listener = Listener::start(Limits { header: SHORT, ..LENIENT });
    let mut silent = listener.connect();
    assert!(until_closed(&mut silent).starts_with("HTTP/1.1 408 "), "nothing was sent");
    let mut begun = listener.connect();
    begun.write_all(b"POST / HTTP/1.1\r\nhost: x\r\n").unwrap();
    assert!(until_closed(&mut begun).starts_with("HTTP/1.1 408 "), "half a head was sent");
    let slow = listener.connect();
    (&slow).write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(trickle(slow, b"a: b\r\n").starts_with("HTTP/1.1 408 "), "a line after the other was sent");
    let mut second = listener.connect();
    ask(&mut second).unwrap();
    second.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(until_closed(&mut second).starts_with("HTTP/1.1 408 "), "half a head was sent after a whole request");
}

#[test]
fn a_slow_body_is_answered_408_and_closed() {
    let listener = Listener::start(Limits { body: SHORT, ..LENIENT });
    for head in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let mut none = listener.connect();
        write!(none, "POST / HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n").unwrap();
        assert!(until_closed(&mut none).starts_with("HTTP/1.1 408 "), "{head}: nothing was sent");
        let slow = listener.connect();
        write!(&slow, "POST / HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n").unwrap();
        assert!(trickle(slow, b"1\r\nx\r\n").starts_with("HTTP/1.1 408 "), "{head}: a byte after the other was sent");
    }
}

#[test]
fn a_response_that_is_not_taken_is_given_up() {
    let listener = Listener::start(Limits { body: SHORT, ..LENIENT });
    let mut stream = listener.connect();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    // What the client sends shows that the connection is gone, without taking anything of the response.
    let mut writer = stream.try_clone().unwrap();
    for _ in 0..PATIENCE.as_millis() / 10 {
        if writer.write_all(b"\r\n").is_err() {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("the connection stays open");
}

#[test]
fn an_idle_connection_is_closed_and_a_slow_handler_is_waited_for() {
    let listener = Listener::start(Limits { header: SHORT, body: SHORT, idle: SHORT, ..LENIENT });
    let mut idle = listener.connect();
    for _ in 0..3 {
        ask(&mut idle).unwrap();
    }
    assert_eq!(until_closed(&mut idle), "", "no response without a request");
    let mut waiting = listener.connect();
    waiting.write_all(b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx").unwrap();
    // Others come and go meanwhile, each longer than any limit.
    for _ in 0..2 {
        assert!(until_closed(&mut listener.connect()).starts_with("HTTP/1.1 408 "));
    }
    listener.gate.add_permits(1);
    assert!(until_closed(&mut waiting).starts_with("HTTP/1.1 200 "));
}

/// A request with a header of so many bytes.
fn large(bytes: usize) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\na: {}\r\n\r\n", "x".repeat(bytes)).into()
}

/// The answer to a request that may be refused before it is sent whole.
fn answer(mut stream: TcpStream, request: Vec<u8>) -> String {
    let mut writer = stream.try_clone().unwrap();
    let writing = spawn(move || drop(writer.write_all(&request)));
    let answer = until_closed(&mut stream);
    drop(stream);
    writing.join().unwrap();
    answer
}

#[test]
fn a_head_that_is_too_large_is_answered_431() {
    let listener = Listener::start(LENIENT);
    for (request, status) in
        [(large(15_000), 200), (large(17_000), 431), (large(300_000), 431), (fields(99), 200), (fields(101), 431)]
    {
        let size = request.len();
        let answer = answer(listener.connect(), request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{size} bytes: {answer:?}");
    }
}

/// A request with so many header fields.
fn fields(count: usize) -> Vec<u8> {
    let further = "a: b\r\n".repeat(count - 2);
    format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{further}\r\n").into()
}

#[test]
fn at_the_limit_the_longest_idle_gives_way_and_a_request_in_progress_does_not() {
    let listener = Listener::start(Limits { connections: 3, ..LENIENT });
    let mut working = listener.connect();
    working.write_all(b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx").unwrap();
    let (mut oldest, mut newer) = (listener.connect(), listener.connect());
    ask(&mut oldest).unwrap();
    ask(&mut newer).unwrap();
    ask(&mut listener.connect()).unwrap();
    assert_eq!(until_closed(&mut oldest), "");
    ask(&mut newer).unwrap();

    // Where nothing is idle, the next one waits for its turn.
    let mut busy: Vec<_> = (0..2).map(|_| listener.connect()).collect();
    for stream in &mut busy {
        stream.write_all(b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx").unwrap();
    }
    assert_eq!(until_closed(&mut newer), "");
    let mut next = listener.connect();
    next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    listener.gate.add_permits(3);
    assert!(until_closed(&mut next).ends_with("hello"), "in the place of one that has become idle");
    busy.push(working);
    for mut stream in busy {
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    }
}

#[test]
fn at_the_limit_slow_bodies_give_way() {
    let listener = Listener::start(Limits { connections: 2, ..LENIENT });
    let (mut slowest, mut slow) = (listener.connect(), listener.connect());
    for stream in [&mut slowest, &mut slow] {
        stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nslow").unwrap();
    }
    assert!(ask(&mut listener.connect()).unwrap().ends_with("hello"));
    assert_eq!(until_closed(&mut slowest), "");
}

/// The programs that listen, by their address.
fn programs(settings: &[(&str, &str)]) -> Vec<(&'static str, SocketAddr, Box<dyn std::any::Any>)> {
    let mut programs: Vec<(_, _, Box<dyn std::any::Any>)> = Vec::new();
    for name in ["publisher", "enricher"] {
        let port = free_port();
        let mut command = Command::new(binary_beside(name));
        command.env_clear().env("PORT", port.to_string()).env("PUSH_AUTH", "off").envs(settings.iter().copied());
        command.env("GOOGLE_CLOUD_PROJECT", PROJECT).env("PUBSUB_ENDPOINT", "http://127.0.0.1:1");
        let mut process = Process::start(name, command);
        process.wait_for_port(port);
        programs.push((name, ([127, 0, 0, 1], port).into(), Box::new(process)));
    }
    let mut command = Command::new(binary());
    command.envs(settings.iter().copied());
    let dev = Dev::start_under(command, &[]);
    programs.push(("contextflow dev", ([127, 0, 0, 1], dev.port).into(), Box::new(dev)));
    programs
}

#[test]
fn every_program_holds_its_connections_to_the_settings() {
    let settings = [("HEADER_TIMEOUT_MS", "300"), ("BODY_TIMEOUT_MS", "300"), ("IDLE_TIMEOUT_MS", "300")];
    for (name, address, _program) in programs(&settings) {
        let head = until_closed(&mut connect(address));
        assert!(head.starts_with("HTTP/1.1 408 "), "{name}: {head:?}");
        let path = if name == "enricher" { "/" } else { "/publish" };
        let mut body = connect(address);
        let host = address.to_string();
        write!(
            body,
            "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n["
        )
        .unwrap();
        let body = until_closed(&mut body);
        assert!(body.starts_with("HTTP/1.1 408 "), "{name}: {body:?}");
        let mut idle = connect(address);
        write!(idle, "GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n").unwrap();
        let idle = until_closed(&mut idle);
        assert!(idle.starts_with("HTTP/1.1 200 "), "{name}: {idle:?}");
        let large = answer(connect(address), large(300_000));
        assert!(large.starts_with("HTTP/1.1 431 "), "{name}: {large:?}");
    }
}
