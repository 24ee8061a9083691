//! `infra/deploy.sh` and `infra/destroy.sh` with the unmodified gcloud, bq and aws, before local servers that record what
//! is asked (`tests/parts/cloud_apis.py`).

mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::blocking::Client;
use serde::Deserialize;
use serde_json::{Value, json};

pub use table::Table;

use crate::binary::{binary_beside, environment, part, program_in_path, skip, text};
use crate::infra::infra;
use crate::parts::{self, BigQuery, Process, Server, free_port};
use crate::pubsub::PROJECT;

/// The number of the project [`PROJECT`].
pub const PROJECT_NUMBER: &str = "987654321098";
/// Where Cloud Run and the subscriptions are.
pub const REGION: &str = "europe-west1";
/// The account that moto takes every caller for.
pub const AWS_ACCOUNT: &str = "123456789012";
/// The functions on Cloud Run that serve.
pub const SERVICES: [&str; 3] = ["enricher", "batcher", "kill-switch"];
/// What `--binaries` names.
pub const BINARIES: [&str; 6] = ["enricher", "batcher", "kill-switch", "backfill", "publisher", "contextflow"];

const BILLING_ACCOUNT: &str = "01AB23-CD45EF-67890A";

/// A call of an API, as the server has recorded it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Call {
    /// Method.
    pub method: String,
    /// `pubsub.googleapis.com`; of AWS the service, `lambda.amazonaws.com`.
    pub host: String,
    /// Region, on AWS.
    #[serde(default)]
    pub region: String,
    /// Action, of those AWS services that have one.
    #[serde(default)]
    pub action: String,
    /// Path, decoded.
    pub path: String,
    /// Parameters of the address.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// JSON, a form as an object, or text.
    #[serde(default)]
    pub body: Value,
    /// Whether it is no mere question.
    #[serde(default)]
    pub changes: bool,
    /// Status of the answer.
    #[serde(default)]
    pub status: u16,
    /// Whether the server knows no such call.
    #[serde(default)]
    pub unknown: bool,
}

impl Call {
    /// Whether something was changed by it.
    pub fn has_changed(&self) -> bool {
        self.changes && self.status < 400
    }

    /// The call in one line.
    pub fn line(&self) -> String {
        format!("{} {} {}{} {} {}", self.status, self.method, self.host, self.path, self.action, self.region)
    }
}

/// What a script did.
pub struct Ran {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed, standard error after standard output.
    pub printed: String,
    /// What was asked of the clouds.
    pub calls: Vec<Call>,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// The calls that changed something.
    pub fn changes(&self) -> Vec<&Call> {
        self.calls.iter().filter(|call| call.has_changed()).collect()
    }

    /// Fails unless the script ended with 0 and every call was one that the server knows.
    #[must_use]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.printed);
        let unknown: Vec<_> = self.calls.iter().filter(|call| call.unknown).map(Call::line).collect();
        assert!(unknown.is_empty(), "calls that tests/parts/cloud_apis.py does not know: {unknown:#?}");
        self
    }
}

/// Both clouds on this machine.
pub struct Clouds {
    /// The Pub/Sub emulator.
    pub pubsub: Server,
    /// bqemulator.
    pub bigquery: BigQuery,
    /// The port of each of [`SERVICES`]: what Cloud Run says its address is.
    pub ports: [u16; 3],
    /// Where the AWS CLI is.
    tools: PathBuf,
    _moto: Server,
    _apis: Process,
    url: String,
    folder: tempfile::TempDir,
    client: Client,
}

impl Clouds {
    /// Starts them, logs gcloud in, and gathers the binaries that are to be deployed.
    pub fn start() -> Option<Self> {
        for program in ["gcloud", "bq"] {
            if program_in_path(program).is_none() {
                let how = "https://cloud.google.com/sdk/docs/install";
                skip(&format!("{program} is missing; install the gcloud CLI with its component alpha: {how}"));
                return None;
            }
        }
        let tools = parts::program("aws")?.parent()?.to_path_buf();
        let (strip, _) = (part("strip", "binutils")?, part("zip", "zip")?);
        let (pubsub, bigquery, moto) = (parts::pubsub_emulator()?, parts::bqemulator()?, parts::moto(false)?);
        let (port, ports) = (free_port(), [free_port(), free_port(), free_port()]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(parts::program("python")?);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("parts/cloud_apis.py"));
        command.arg("--port").arg(port.to_string()).arg("--folder").arg(folder.path());
        command.args(["--project", PROJECT, "--number", PROJECT_NUMBER, "--billing-account", BILLING_ACCOUNT]);
        command.args(["--pubsub", &pubsub.url, "--bigquery", &bigquery.rest, "--aws", &moto.url]);
        for (service, port) in SERVICES.iter().zip(ports) {
            command.args(["--run-url", &format!("{service}=http://127.0.0.1:{port}")]);
        }
        let mut apis = Process::start("cloud_apis.py", command);
        apis.wait_for_port(port);
        let client = Client::builder().timeout(Duration::from_secs(30)).build().expect("a client");
        let url = format!("http://127.0.0.1:{port}");
        let clouds = Self { pubsub, bigquery, ports, tools, _moto: moto, _apis: apis, url, folder, client };
        clouds.prepare(&strip);
        Some(clouds)
    }

    fn prepare(&self, strip: &Path) {
        std::fs::create_dir(self.binaries()).expect("a folder");
        for name in BINARIES {
            // Without what only a debugger reads, as `--profile deploy` builds them.
            let status =
                Command::new(strip).arg("-o").arg(self.binaries().join(name)).arg(binary_beside(name)).status();
            assert!(status.is_ok_and(|status| status.success()), "{name} can be stripped");
        }
        std::fs::write(self.settings(), settings(&[])).expect("the settings can be written");
        let key = format!("--key-file={}", self.folder.path().join("key.json").display());
        let output = self.command("gcloud").args(["auth", "activate-service-account", &key]).output();
        let output = output.expect("gcloud starts");
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// The address of all APIs.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the binaries are that get deployed.
    pub fn binaries(&self) -> PathBuf {
        self.folder.path().join("binaries")
    }

    /// The settings file.
    pub fn settings(&self) -> PathBuf {
        self.folder.path().join("settings.env")
    }

    /// A folder for what a test takes apart.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A program that reaches these clouds and nothing else.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null());
        let paths = environment("PATH").unwrap_or_default();
        let paths = std::iter::once(self.tools.clone()).chain(std::env::split_paths(&paths));
        command.env("PATH", std::env::join_paths(paths).expect("folders without a colon"));
        let folder = self.folder.path();
        let port = self.url.rsplit(':').next().unwrap_or_default();
        command.env("HOME", folder).env("TMPDIR", folder).env("CLOUDSDK_CONFIG", folder.join("gcloud"));
        command.envs([
            ("CLOUDSDK_PROXY_TYPE", "http"),
            ("CLOUDSDK_PROXY_ADDRESS", "127.0.0.1"),
            ("CLOUDSDK_PROXY_PORT", port),
            ("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false"),
            ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "true"),
            ("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_ENDPOINT_URL", &self.url),
            ("BIGQUERY_REST_ENDPOINT", &self.url),
            ("BIGQUERY_GRPC_ENDPOINT", &self.bigquery.grpc),
        ]);
        command.env("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", folder.join("ca.pem")).env("FILES", folder.join("files"));
        command
    }

    /// `infra/deploy.sh` with the binaries and the settings.
    pub fn deploy(&self, arguments: &[&str]) -> Ran {
        let binaries = self.binaries().display().to_string();
        self.run("deploy.sh", &[&["--binaries", &binaries], arguments].concat())
    }

    /// A script of `infra` with the settings.
    pub fn run(&self, script: &str, arguments: &[&str]) -> Ran {
        let mut command = self.command(infra().join(script));
        command.arg("--settings").arg(self.settings()).args(arguments);
        self.recorded(command)
    }

    /// One step of the deployment alone: `gcp/topics`.
    pub fn step(&self, step: &str) -> Ran {
        self.step_to(step, "up")
    }

    /// The same, `up` or `down`.
    pub fn step_to(&self, step: &str, direction: &str) -> Ran {
        let mut command = self.command(infra().join(format!("{step}.sh")));
        command.arg(direction).env("SETTINGS", self.settings()).env("BINARIES", self.binaries());
        self.recorded(command)
    }

    fn recorded(&self, mut command: Command) -> Ran {
        let (started, seen) = (Instant::now(), self.record(0).len());
        let output = command.output().expect("the script starts");
        Ran {
            code: output.status.code(),
            printed: text(&output.stdout) + &text(&output.stderr),
            calls: self.record(seen),
            took: started.elapsed(),
        }
    }

    /// What was asked, but for the first calls.
    pub fn record(&self, from: usize) -> Vec<Call> {
        self.control(&format!("record?from={from}"))
    }

    /// All that stands on both clouds, without what every run changes.
    pub fn state(&self) -> BTreeMap<String, Value> {
        self.control("state")
    }

    fn control<T: for<'a> Deserialize<'a>>(&self, name: &str) -> T {
        let answer = self.client.get(format!("{}/_/{name}", self.url)).send();
        answer.and_then(reqwest::blocking::Response::json).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Lets so many changes pass, and then nothing any more; `None`: all is well again.
    pub fn cut_after(&self, changes: Option<usize>) {
        self.tell("cut", &json!({"after": changes}));
    }

    /// Refuses calls whose path ends so; `None`: no more.
    pub fn refuse(&self, path_end: Option<&str>) {
        self.tell("refuse", &json!({"path_end": path_end}));
    }

    /// The next revisions of a service do not start; `None`: all do.
    pub fn let_not_start(&self, service: Option<&str>) {
        self.tell("not_starting", &json!({"service": service}));
    }

    fn tell(&self, control: &str, what: &Value) {
        let sent = self.client.post(format!("{}/_/{control}", self.url)).json(what).send();
        assert!(sent.is_ok_and(|answer| answer.status().is_success()), "the server can be told");
    }

    /// Calls an API of Google's as somebody else of the project would. Panics where it is refused.
    pub fn google(&self, method: &Method, host: &str, path: &str, body: &Value) -> Value {
        let request = self.client.request(method.clone(), format!("{}{path}", self.url)).header("host", host);
        let request = if body.is_null() { request } else { request.json(body) };
        let answer = request.send().expect("the server answers");
        assert!(answer.status().is_success(), "{method} {host}{path}: {}", answer.text().unwrap_or_default());
        answer.json().unwrap_or_default()
    }
}

/// The steps of a deployment in their order.
pub fn steps() -> Vec<String> {
    let script = r#". ./parts.sh && printf '%s\n' "${GCP[@]}" "${AWS[@]}" "${SITE[@]}""#;
    let output = Command::new("bash").args(["-c", script]).current_dir(infra()).output().expect("bash starts");
    text(&output.stdout).lines().map(str::to_string).collect()
}

/// A settings file for these clouds; `changed` takes the place of what is usual, and an empty value takes a line out.
pub fn settings(changed: &[(&str, &str)]) -> String {
    let mut values = BTreeMap::from([
        ("GCP_PROJECT", PROJECT),
        ("GCP_REGION", REGION),
        ("BIGQUERY_LOCATION", "EU"),
        ("BILLING_ACCOUNT", BILLING_ACCOUNT),
        ("AWS_ACCOUNT", AWS_ACCOUNT),
        ("PUBLISHER_REGIONS", "eu-west-1 us-east-1"),
        ("SITE_ORIGIN", ""),
        ("ALERT_EMAIL", "alerts@example.com"),
        ("MONTHLY_LIMIT", "100 USD"),
        ("DAILY_LIMIT", "20 USD"),
        ("AWS_DAILY_LIMIT", "20 USD"),
        ("BRAKE_AT", "80"),
        ("STOP_AT", "100"),
        ("DETACH_AT", "120"),
        ("MODE", "dry-run"),
        ("NO_EVENTS_MINUTES", "30"),
        ("FLOOD_PER_MINUTE", "60000"),
        ("LOOKER_REPORT_URL", ""),
    ]);
    values.extend(changed.iter().copied());
    values.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect::<Vec<_>>().join("\n")
}

/// A folder, made within the given one, of links to every program of this machine but one.
pub fn path_without(within: &Path, program: Option<&str>) -> PathBuf {
    let folder = within.join(format!("programs-without-{}", program.unwrap_or("nothing")));
    if std::fs::create_dir(&folder).is_ok() {
        let paths = environment("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&paths).filter_map(|path| std::fs::read_dir(path).ok());
        for found in folders.flatten().flatten() {
            if Some(found.file_name()) != program.map(Into::into) {
                // The first of a name is the one that counts.
                let _ = std::os::unix::fs::symlink(found.path(), folder.join(found.file_name()));
            }
        }
    }
    folder
}
