//! The binary as a user runs it: `contextflow dev` in a folder of its own on a free port, and the other commands.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary that `cargo test --workspace` has just built, beside the tests.
pub fn binary() -> PathBuf {
    binary_beside("contextflow")
}

/// A binary of the workspace, beside the tests.
pub fn binary_beside(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a test knows its own path");
    let folder = tests.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    let binary = folder.join(name);
    assert!(binary.exists(), "{} is missing: run `cargo test --workspace`, which builds it", binary.display());
    binary
}

/// The token that pushes to a [`Dev`] carry.
pub const PUSH_TOKEN: &str = "the-token-of-tests";

/// Runs a command to its end.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("the binary starts")
}

/// What a command printed as JSON; it must have succeeded.
pub fn json_of<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the command prints JSON")
}

/// Bytes as text, for messages.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where a program lies that the machine may have.
pub fn program_in_path(program: &str) -> Option<PathBuf> {
    let paths = environment("PATH").unwrap_or_default();
    std::env::split_paths(&paths).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Where a part that a test needs lies. Without it the test is skipped with a line that says how to get it; in CI it
/// fails.
pub fn part(program: &str, package: &str) -> Option<PathBuf> {
    let found = program_in_path(program);
    if found.is_none() {
        skip(&format!("{program} is missing; Debian's package {package} has it (apt-get install {package})"));
    }
    found
}

#[expect(clippy::disallowed_methods, reason = "the tests' own environment: where programs lie, and whether this is CI")]
pub(crate) fn environment(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

/// Says why a test is skipped; in CI it fails.
pub fn skip(reason: &str) {
    assert!(environment("CONTEXTFLOW_CI").is_none(), "not to be skipped in CI: {reason}");
    eprintln!("skipped: {reason}");
}

/// `contextflow dev` on a free port.
pub struct Dev {
    child: Child,
    /// The port on 127.0.0.1.
    pub port: u16,
    folder: TempDir,
    arguments: Vec<String>,
    client: reqwest::blocking::Client,
}

impl Dev {
    /// Starts it in a new folder.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_under(Command::new(binary()), arguments)
    }

    /// Starts it by a command to which the arguments are added (`strace … contextflow`).
    pub fn start_under(command: Command, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        // A connection that is kept may be closed in the moment in which it is used again.
        let client = reqwest::blocking::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(0);
        let client = client.build().expect("a client");
        let mut dev = Self { child: spawn(command, port, folder.path(), &arguments), port, folder, arguments, client };
        dev.wait_until_up();
        dev
    }

    /// Starts it again on the same data after it has ended.
    pub fn start_again(&mut self) {
        self.child = spawn(Command::new(binary()), self.port, self.folder.path(), &self.arguments);
        self.wait_until_up();
    }

    fn wait_until_up(&mut self) {
        let started = Instant::now();
        while self.client.get(self.url("/health")).send().is_err() {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                panic!("contextflow dev ended at once: {status}");
            }
            assert!(started.elapsed() < PATIENCE, "contextflow dev does not come up");
            sleep(Duration::from_millis(50));
        }
    }

    /// An address on it.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The folder of its data.
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// `POST /publish` with a JSON body (`None`: without a body); status and answer.
    pub fn publish(&self, body: Option<&Value>) -> (u16, Value) {
        let request = self.client.post(self.url("/publish"));
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            None => request,
        };
        let answer = request.send().expect("the publisher answers");
        (answer.status().as_u16(), answer.json().expect("the publisher answers JSON"))
    }

    /// A push as the bus makes it; its status.
    pub fn push(&self, path: &str, body: Vec<u8>) -> u16 {
        let request = self.client.post(self.url(path)).header("content-type", "application/json");
        request.bearer_auth(PUSH_TOKEN).body(body).send().expect("the function answers").status().as_u16()
    }

    /// `GET` of JSON.
    pub fn get(&self, path: &str) -> Value {
        self.client.get(self.url(path)).send().and_then(reqwest::blocking::Response::json).expect("JSON")
    }

    /// `contextflow query --json` over its data.
    pub fn query(&self, sql: &str) -> Vec<Value> {
        let mut arguments = vec!["query".to_string(), "--json".into(), "--data-dir".into()];
        arguments.extend([self.data().display().to_string(), sql.into()]);
        if let Some(at) = self.arguments.iter().position(|argument| argument == "--schemas") {
            arguments.extend(self.arguments[at..at + 2].iter().cloned());
        }
        json_of(arguments).as_array().cloned().unwrap_or_default()
    }

    /// Asks again until the answer pleases.
    pub fn wait_for(&self, sql: &str, pleases: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let started = Instant::now();
        loop {
            let rows = self.query(sql);
            if pleases(&rows) {
                return rows;
            }
            assert!(started.elapsed() < PATIENCE, "{sql}: still {rows:?}");
            sleep(Duration::from_millis(100));
        }
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Ends it as Ctrl-C does and waits; how long that took.
    pub fn interrupt(&mut self) -> Duration {
        let started = Instant::now();
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "the signal is sent");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "it ends well: {status}");
        started.elapsed()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(mut command: Command, port: u16, folder: &Path, arguments: &Vec<String>) -> Child {
    command.arg("dev").arg("--port").arg(port.to_string()).arg("--data-dir").arg(folder).args(arguments);
    command.env("PUSH_TOKEN", PUSH_TOKEN);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
}
