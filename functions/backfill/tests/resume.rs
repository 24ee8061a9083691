//! A run that is killed, and what goes on from there.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use backfill::Request;
use fixture::{Fixture, lines, usage, visit, work};
use shared::load::{Load, Loader, MemoryLoader, Mode};
use shared::row::Value;
use shared::schema::Plan;

/// Panics after so many more steps (checkpoints and publishes), as if the process were killed.
#[derive(Clone)]
struct Deadly {
    loader: MemoryLoader,
    steps: Arc<AtomicUsize>,
}

impl Deadly {
    fn step(&self) {
        let left = self.steps.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.expect("the time to die");
    }
}

struct DeadlyLoad(Box<dyn Load>, Deadly);

#[async_trait]
impl Loader for Deadly {
    async fn begin(
        &self,
        run: &str,
        tables: &[Arc<Plan>],
        mode: Mode,
        checkpoint: Option<&serde_json::Value>,
    ) -> Result<Box<dyn Load>, String> {
        Ok(Box::new(DeadlyLoad(self.loader.begin(run, tables, mode, checkpoint).await?, self.clone())))
    }
}

#[async_trait]
impl Load for DeadlyLoad {
    fn add(&mut self, table: usize, values: &[Value<'_>]) {
        self.0.add(table, values);
    }

    fn held(&self) -> usize {
        self.0.held()
    }

    async fn flush(&mut self) -> Result<(), String> {
        self.0.flush().await
    }

    async fn checkpoint(&mut self) -> Result<serde_json::Value, String> {
        self.1.step();
        self.0.checkpoint().await
    }

    async fn publish(self: Box<Self>) -> Result<(), String> {
        self.1.step();
        self.0.publish().await?;
        self.1.step();
        Ok(())
    }

    async fn abandon(self: Box<Self>) -> Result<(), String> {
        self.0.abandon().await
    }
}

fn source(fixture: &Fixture) {
    for file in 0..3 {
        let broken = format!("{}nonsense {file}\n{}", lines(file * 10..file * 10 + 9), visit(file * 10 + 9));
        fixture.write(&format!("{file}.jsonl"), broken);
    }
}

#[tokio::test]
async fn a_killed_run_goes_on_to_the_same_tables() {
    let undisturbed = Fixture::new();
    source(&undisturbed);
    let expected = undisturbed.run(undisturbed.request()).await.unwrap().tally;
    for steps in 0.. {
        let fixture = Fixture::new();
        source(&fixture);
        let deadly = Deadly { loader: fixture.loader.clone(), steps: Arc::new(AtomicUsize::new(steps)) };
        if fixture.run_into(fixture.request(), Arc::new(deadly)).await.is_ok() {
            assert!(steps > 5, "there are a few points to die at");
            return;
        }
        let is_shown = !fixture.rows("visit").is_empty();
        assert_eq!((is_shown, fixture.letters().len()), (fixture.rows("visit").len() == 30, 0), "{steps}");

        let report = fixture.run(Request { resume: true, ..fixture.request() }).await.unwrap();

        assert_eq!(report.tally.rows, expected.rows, "{steps}");
        for table in ["visit", "session", "pageview_event", "addtocart_event", "purchase_event"] {
            assert_eq!(fixture.rows(table), undisturbed.rows(table), "{steps}");
        }
        let reasons = |fixture: &Fixture| fixture.letters().iter().map(|row| row["raw"].clone()).collect::<Vec<_>>();
        assert_eq!(reasons(&fixture), ["nonsense 0", "nonsense 1", "nonsense 2"], "{steps}");
        assert_eq!(fixture.letter_files().len(), undisturbed.letter_files().len(), "{steps}");
    }
}

#[tokio::test]
async fn a_run_goes_on_only_with_the_same_source_and_arguments() {
    let fixture = Fixture::new();
    source(&fixture);
    let resume = || Request { resume: true, ..fixture.request() };
    assert!(usage(fixture.run(resume()).await).contains("no run that was stopped"));
    let deadly = || Arc::new(Deadly { loader: fixture.loader.clone(), steps: Arc::new(AtomicUsize::new(2)) });
    work(fixture.run_into(fixture.request(), deadly()).await);

    let other = Request { mode: Mode::Append, ..resume() };
    assert!(usage(fixture.run(other).await).contains("was begun with other arguments"));
    fixture.write("0.jsonl", lines(0..1));
    assert!(usage(fixture.run(resume()).await).contains("was begun with other files"));

    // A run from the beginning clears it away.
    fixture.run(fixture.request()).await.unwrap();
    assert_eq!(fixture.rows("visit").len(), 21);
    assert!(usage(fixture.run(resume()).await).contains("no run that was stopped"));
}
