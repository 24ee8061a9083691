//! The page in a real browser: headless Chromium, driven through ChromeDriver.

#![expect(clippy::unwrap_used, reason = "a helper of a test may stop it")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator};
use pipeline_tests::binary::{Dev, PATIENCE, part};
use pipeline_tests::{PUBLISHED_AT, forwarded};
use serde_json::{Value, json};

/// A ChromeDriver that ends with the test.
struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    fn start() -> Option<Self> {
        part("chromium", "chromium")?;
        let driver = part("chromedriver", "chromium-driver")?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
        let mut command = Command::new(driver);
        command.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null());
        Some(Self { child: command.spawn().unwrap(), port })
    }

    async fn browser(&self) -> Client {
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
        ];
        let options = json!({"args": arguments});
        let capabilities =
            [("goog:chromeOptions".to_string(), options), ("goog:loggingPrefs".to_string(), json!({"browser": "ALL"}))];
        let started = Instant::now();
        loop {
            let address = format!("http://127.0.0.1:{}", self.port);
            let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            match builder.capabilities(capabilities.clone().into_iter().collect()).connect(&address).await {
                Ok(client) => return client,
                Err(error) => assert!(started.elapsed() < PATIENCE, "no browser: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn body_text(client: &Client) -> String {
    client.execute("return document.body.innerText", vec![]).await.unwrap().as_str().unwrap_or_default().to_string()
}

/// Waits until a script answers `true`.
async fn wait_for(client: &Client, script: &str) {
    let started = Instant::now();
    while client.execute(script, vec![]).await.unwrap() != Value::Bool(true) {
        assert!(started.elapsed() < PATIENCE, "{script} stays false; the page says:\n{}", body_text(client).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Counts errors of scripts, violations of the content security policy, and dialogs.
const WATCH: &str = "window.faults = []; \
    addEventListener('error', e => faults.push(String(e.message))); \
    addEventListener('securitypolicyviolation', e => faults.push(e.violatedDirective + ' ' + e.blockedURI)); \
    window.alert = window.confirm = window.prompt = text => faults.push('dialog ' + text);";

fn on_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(test);
}

#[test]
fn the_button_shows_its_event_arriving() {
    let Some(driver) = Driver::start() else { return };
    let dev = Dev::start(&[]);
    on_runtime(async {
        let client = driver.browser().await;
        client.goto(&dev.url("/")).await.unwrap();
        client.execute(WATCH, vec![]).await.unwrap();
        client.find(Locator::Css("button")).await.unwrap().click().await.unwrap();
        wait_for(
            &client,
            "return /landed/i.test(document.body.innerText) && /event_timestamp/.test(document.body.innerText)",
        )
        .await;
        wait_for(&client, "return document.querySelectorAll('tbody tr').length >= 1").await;
        assert_eq!(client.execute("return faults", vec![]).await.unwrap(), json!([]));
        client.close().await.unwrap();
    });
}

/// A deployed publisher makes no events of its own.
#[test]
fn the_button_of_a_hosted_page_sends_its_own_click() {
    let Some(driver) = Driver::start() else { return };
    let dev = Dev::start(&[]);
    on_runtime(async {
        let client = driver.browser().await;
        client.goto(&dev.url("/")).await.unwrap();
        // A copy of the button hears only the second call.
        let as_hosted = "const button = document.getElementById('publish'); button.replaceWith(button.cloneNode(true)); \
            return import('/publish.js').then(({ startPublish }) => \
            startPublish({ publisher: location.origin, setConnection() {}, onAccepted() {} }))";
        client.execute(as_hosted, vec![]).await.unwrap();
        client.find(Locator::Css("button")).await.unwrap().click().await.unwrap();
        wait_for(&client, "return /landed/i.test(document.getElementById('outcome').innerText)").await;
        let count = format!(
            "SELECT count(*) AS n FROM clickstream_events WHERE event_name = 'click' AND page_url = '{}'",
            dev.url("/")
        );
        tokio::task::block_in_place(|| dev.wait_for(&count, |rows| rows == [json!({"n": 1})]));
        client.close().await.unwrap();
    });
}

#[test]
fn hostile_text_is_shown_as_text() {
    let Some(driver) = Driver::start() else { return };
    let dev = Dev::start(&[]);
    let strings: Vec<String> = pipeline_tests::naughty_strings();
    on_runtime(async {
        let client = driver.browser().await;
        client.goto(&dev.url("/")).await.unwrap();
        client.execute(WATCH, vec![]).await.unwrap();
        let mut sent = 0;
        // The page shows the newest rows: as many at a time as it shows.
        for batch in strings.chunks(20) {
            let event =
                |string: &String| json!({"event_name": "naughty", "user_id": format!("u-{sent}"), "page_url": string});
            let events: Vec<_> = batch.iter().map(event).collect();
            let (status, _) = tokio::task::block_in_place(|| dev.publish(Some(&json!(events))));
            assert_eq!(status, 200);
            wait_for(
                &client,
                &format!(
                    "return [...document.querySelectorAll('tbody td')].some(cell => cell.textContent === 'u-{sent}')"
                ),
            )
            .await;
            let shown = client
                .execute("return [...document.querySelectorAll('td.wide')].map(cell => cell.textContent)", vec![])
                .await;
            let shown = shown.unwrap();
            let shown: Vec<_> =
                shown.as_array().map(|cells| cells.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
            // Control and direction characters are shown by their code, and long text is cut: the rest is compared.
            let plain =
                |string: &&String| !string.is_empty() && string.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            let is_shown = |string: &str| {
                let cut = |cell: &str| cell.strip_suffix('…').is_some_and(|start| string.starts_with(start));
                shown.iter().any(|cell| *cell == string || cut(cell))
            };
            for string in batch.iter().filter(plain) {
                assert!(is_shown(string), "{string:?} is not on the page: {shown:?}");
            }
            sent += batch.len();
        }
        let injected =
            "return document.querySelectorAll('td script, td img, td iframe, td svg, td a, td style').length";
        assert_eq!(client.execute(injected, vec![]).await.unwrap(), json!(0));
        assert_eq!(client.execute("return faults", vec![]).await.unwrap(), json!([]));
        client.close().await.unwrap();
    });
}

#[test]
fn dead_letters_are_listed_and_go_round_again() {
    let Some(driver) = Driver::start() else { return };
    let dev = Dev::start(&[]);
    dev.publish(Some(&json!({"event_name": ["<img src=x onerror=alert(1)>"], "event_id": "hopeless"})));
    let given_up = forwarded("1", &[], format!("{{\"event_id\":\"again\",\"event_timestamp\":\"{PUBLISHED_AT}\"}}"));
    assert_eq!(dev.push("/batcher/dead-letter", given_up), 204);
    dev.wait_for("SELECT count(*) AS n FROM dead_letters", |rows| rows == [json!({"n": 2})]);
    on_runtime(async {
        let client = driver.browser().await;
        client.goto(&dev.url("/")).await.unwrap();
        client.execute(WATCH, vec![]).await.unwrap();
        wait_for(&client, "return document.querySelectorAll('#letters tr').length === 2").await;
        let click = |reason: &str| {
            format!(
                "[...document.querySelectorAll('#letters tr')].find(row => row.innerText.includes('{reason}')).querySelector('button').click()"
            )
        };
        let says =
            |text: &str| format!("return document.getElementById('replay-outcome').textContent.includes('{text}')");
        client.execute(&click("undeliverable"), vec![]).await.unwrap();
        wait_for(&client, &says("1 of 1 went through the pipeline again.")).await;
        wait_for(&client, "return document.querySelectorAll('#letters tr').length === 1").await;
        wait_for(&client, "return document.getElementById('rows').innerText.includes('again')").await;
        client.execute(&click("wrong_type"), vec![]).await.unwrap();
        wait_for(&client, &says("1 stay, wrong_type: event_name: expected STRING")).await;
        assert_eq!(client.execute("return faults", vec![]).await.unwrap(), json!([]));
        client.close().await.unwrap();
    });
}

#[cfg(feature = "delta")]
#[test]
fn the_analysts_questions_are_answered_by_a_page_of_their_own() {
    use shared::sink::delta::DeltaSink;

    let Some(driver) = Driver::start() else { return };
    let mut dev = Dev::start(&[]);
    on_runtime(async {
        let client = driver.browser().await;
        client.goto(&dev.url("/visits")).await.unwrap();
        wait_for(&client, "return document.body.innerText.includes('contextflow backfill --source')").await;
        tokio::task::block_in_place(|| dev.interrupt());
        let sink = DeltaSink::open(&dev.data().join("warehouse"), shared::clock::Clock::system()).unwrap();
        pipeline_tests::visits::fill(&sink, &pipeline_tests::built_in()).await;
        drop(sink);
        tokio::task::block_in_place(|| dev.start_again());

        client.goto(&dev.url("/")).await.unwrap();
        wait_for(&client, "return !document.getElementById('visits-link').hidden").await;
        client.goto(&dev.url("/visits")).await.unwrap();
        client.execute(WATCH, vec![]).await.unwrap();
        wait_for(&client, "return document.querySelectorAll('#funnel li').length === 3").await;
        let text = body_text(&client).await;
        for expected in ["/products", "Keyboard", "hardware", "3,599.97", "tablet", "25%", "66.7% of the step before"] {
            assert!(text.contains(expected), "{expected} is not on the page:\n{text}");
        }
        let readout = "return document.getElementById('minutes-readout').textContent";
        assert_eq!(
            client.execute(readout, vec![]).await.unwrap(),
            json!("2 views, at most 2 a minute"),
            "the last day"
        );
        let choose = "const day = document.getElementById('day'); day.value = '2024-07-01'; day.dispatchEvent(new Event('change'))";
        client.execute(choose, vec![]).await.unwrap();
        wait_for(
            &client,
            "return document.getElementById('minutes-readout').textContent === '3 views, at most 2 a minute'",
        )
        .await;
        assert_eq!(client.execute("return faults", vec![]).await.unwrap(), json!([]));
        client.close().await.unwrap();
    });
}
