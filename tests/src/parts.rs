//! Foreign parts that tests run against, each started on a free port by the test that needs it: Google's Pub/Sub
//! emulator, bqemulator, moto, cargo-lambda. `tests/parts/install.sh` installs them.
//!
//! Where a part is missing the test is skipped with a line that says how to get it; in CI it fails.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary::{environment, part, program_in_path, skip, text};

/// How long a part may take to start; a Java or Python process on a busy machine is slow.
const PATIENCE: Duration = Duration::from_mins(2);

/// A process that a test has started; it ends with the test.
pub struct Process {
    child: Child,
    name: String,
    log: tempfile::NamedTempFile,
}

impl Process {
    /// Starts a process; what it prints goes into a log of its own.
    pub fn start(name: &str, mut command: Command) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let out = || Stdio::from(log.reopen().expect("the log can be written"));
        let child = command.stdin(Stdio::null()).stdout(out()).stderr(out()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { child, name: name.to_string(), log }
    }

    /// Waits until something listens on a port of this machine.
    pub fn wait_for_port(&mut self, port: u16) {
        self.wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Waits until it is as the test needs it; a process that ends before that has failed.
    pub fn wait_until(&mut self, is_ready: impl Fn() -> bool) {
        let started = Instant::now();
        while !is_ready() {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                panic!("{} ended at once ({status}):\n{}", self.name, self.log());
            }
            assert!(started.elapsed() < PATIENCE, "{} does not come up:\n{}", self.name, self.log());
            sleep(Duration::from_millis(50));
        }
    }

    /// What it has printed until now.
    pub fn log(&self) -> String {
        text(&std::fs::read(self.log.path()).unwrap_or_default())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal (`TERM`, `STOP`, `CONT`).
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "{} gets SIG{signal}", self.name);
    }

    /// Waits for its end: the exit code, none after a signal.
    pub fn wait(&mut self, patience: Duration) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return status.code();
            }
            assert!(started.elapsed() < patience, "{} does not end:\n{}", self.name, self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}", self.name, self.log());
        }
    }
}

/// A part that listens on one port of 127.0.0.1.
pub struct Server {
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    /// Its process.
    pub process: Process,
}

/// `BigQuery` on this machine.
pub struct BigQuery {
    /// Address of the REST API.
    pub rest: String,
    /// Address of the gRPC API (Storage Write).
    pub grpc: String,
    /// Its process.
    pub process: Process,
}

impl BigQuery {
    /// What Google's own `bq` answers, as JSON, where the machine has it: `show NAME`, `query SQL`, …
    pub fn bq(&self, project: &str, arguments: &[&str]) -> Option<Value> {
        let bq = program_in_path("bq").and_then(|bq| std::fs::canonicalize(bq).ok());
        let discovery = |sdk: &Path| sdk.join("platform/bq/discovery_next/bigquery.json");
        let found = bq.as_deref().and_then(|bq| Some((bq, discovery(bq.ancestors().nth(2)?))));
        let Some((bq, discovery)) = found.filter(|(_, discovery): &(_, PathBuf)| discovery.is_file()) else {
            eprintln!("not read back by bq: the gcloud CLI is not on this machine");
            return None;
        };
        let mut command = Command::new(bq);
        command.arg(format!("--api={}", self.rest)).arg(format!("--discovery_file={}", discovery.display()));
        command.args(["--oauth_access_token=fake", "--format=json", &format!("--project_id={project}")]);
        let output = command.args(arguments).output().expect("bq starts");
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        Some(serde_json::from_slice(&output.stdout).expect("bq prints JSON"))
    }
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

/// A program of the folder of parts.
pub fn program(name: &str) -> Option<PathBuf> {
    let found = installed(&Path::new("bin").join(name));
    if found.is_none() {
        skip(&format!("{name} is missing; tests/parts/install.sh installs it"));
    }
    found
}

/// Google's Pub/Sub emulator, empty.
pub fn pubsub_emulator() -> Option<Server> {
    let java = part("java", "default-jre-headless")?;
    let Some(jar) = installed(Path::new("pubsub-emulator.jar")) else {
        skip("Google's Pub/Sub emulator is missing; tests/parts/install.sh links it from the gcloud CLI");
        return None;
    };
    let port = free_port();
    let mut command = Command::new(java);
    command.arg("-Xmx512m").arg("-jar").arg(jar).arg("--host=127.0.0.1").arg(format!("--port={port}"));
    let mut process = Process::start("the Pub/Sub emulator", command);
    process.wait_for_port(port);
    Some(Server { url: format!("http://127.0.0.1:{port}"), process })
}

/// bqemulator, empty, with the two patches of `tests/parts/bqemulator.py`.
pub fn bqemulator() -> Option<BigQuery> {
    let python = program("python")?;
    let (rest, grpc) = (free_port(), free_port());
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("parts/bqemulator.py"));
    command.args(["--rest-port", &rest.to_string(), "--grpc-port", &grpc.to_string()]);
    let mut process = Process::start("bqemulator", command);
    process.wait_for_port(rest);
    process.wait_for_port(grpc);
    let url = |port| format!("http://127.0.0.1:{port}");
    Some(BigQuery { rest: url(rest), grpc: url(grpc), process })
}

/// AWS (S3, STS, IAM) by moto, empty, with the patch of `tests/parts/moto.py`. With `authenticated` it checks signatures
/// from the first request on.
pub fn moto(authenticated: bool) -> Option<Server> {
    let python = program("python")?;
    let port = free_port();
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("parts/moto.py"));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    if authenticated {
        command.env("INITIAL_NO_AUTH_ACTION_COUNT", "0");
    }
    let mut process = Process::start("moto", command);
    process.wait_for_port(port);
    Some(Server { url: format!("http://127.0.0.1:{port}"), process })
}

/// The Lambda runtime of cargo-lambda, without a function. A process with `AWS_LAMBDA_RUNTIME_API` set to
/// `<url>/.rt/<function>` answers the events posted to `<url>/2015-03-31/functions/<function>/invocations`.
pub fn lambda_runtime() -> Option<Server> {
    let cargo_lambda = program("cargo-lambda")?;
    let port = free_port();
    let mut command = Command::new(cargo_lambda);
    command.args([
        "lambda",
        "watch",
        "--only-lambda-apis",
        "--timeout",
        "30",
        "-A",
        "127.0.0.1",
        "-P",
        &port.to_string(),
    ]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    let mut process = Process::start("cargo lambda watch", command);
    process.wait_for_port(port);
    Some(Server { url: format!("http://127.0.0.1:{port}"), process })
}

/// A file of the folder of parts: `CONTEXTFLOW_PARTS`, by default `target/parts`.
fn installed(path: &Path) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace");
    let parts = environment("CONTEXTFLOW_PARTS").map_or_else(|| "target/parts".into(), PathBuf::from);
    Some(workspace.join(parts).join(path)).filter(|path| path.exists())
}
