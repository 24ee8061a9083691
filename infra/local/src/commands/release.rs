//! `contextflow release`: what the kill-switch has done is undone, as far as it can be.

use serde::Serialize;

use crate::error::Failure;

/// Arguments of `contextflow release`.
#[derive(clap::Args)]
pub struct Args {
    /// Project of Google Cloud
    #[arg(long, env = "GOOGLE_CLOUD_PROJECT", value_name = "ID")]
    pub project: String,
    /// Where the kill-switch has its state (by default `gs://PROJECT-contextflow/kill-switch`)
    #[arg(long, env = "STATE_URI", value_name = "URI")]
    pub state: Option<String>,
    /// Print what would be undone and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was undone; in a dry run, what would be.
#[derive(Serialize)]
pub struct Report {
    /// Address of the state.
    pub state: String,
    /// Nothing was changed.
    pub dry_run: bool,
    /// `brake`, `stop`, `detach`: what was in force.
    pub in_force: Vec<String>,
    /// What was called for and not wholly done; it is not tried again.
    pub given_up: Vec<String>,
    /// The subscriptions that were braked.
    pub subscriptions: Vec<Subscription>,
    /// Why their backlogs are not known.
    pub backlog_unknown: Option<String>,
    /// Who may publish again, and on which topic.
    pub publisher: Option<[String; 2]>,
    /// Commands that link billing again, one a detached project.
    pub to_link: Vec<String>,
    /// What could not be undone, and why.
    pub left: Vec<String>,
}

/// A subscription that was braked.
#[derive(Serialize)]
pub struct Subscription {
    /// Full name.
    pub name: String,
    /// `restored`, `pushing` (it pushed already and is left alone), `gone`; `braked` in a dry run.
    pub became: String,
    /// Messages that wait in it.
    pub messages: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
}

/// Runs the command.
pub async fn run(args: Args) -> Result<(), Failure> {
    let report = super::cloud::release(&args).await?;
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(Failure::work)?);
    } else {
        print(&report);
    }
    if report.left.is_empty() {
        return Ok(());
    }
    Err(Failure::work(format!(
        "not undone: {}; what was undone stands, and what is left is kept in the state: run this again",
        report.left.join("; ")
    )))
}

fn print(report: &Report) {
    for subscription in &report.subscriptions {
        let became = match subscription.became.as_str() {
            "restored" => "pushes again",
            "pushing" => "pushed already, left as it is",
            "gone" => "is there no more",
            _ => "would push again",
        };
        let waits = subscription.messages.map(|messages| format!("; {messages} messages wait")).unwrap_or_default();
        let bytes = subscription.bytes.map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default();
        println!("{} {became}{waits}{bytes}", subscription.name);
    }
    if let Some(reason) = report.backlog_unknown.as_ref().filter(|_| !report.subscriptions.is_empty()) {
        println!("how much waits in them cannot be read: {reason}");
    }
    let may = if report.dry_run { "would be allowed to publish" } else { "may publish again, within minutes" };
    if let Some([member, topic]) = &report.publisher {
        println!("{member} {may} on {topic}");
    }
    for command in &report.to_link {
        println!("a detached project is not linked from here; to link it: {command}");
    }
    if !report.given_up.is_empty() {
        let given_up = report.given_up.join(", ");
        println!("{given_up} {} given up before it was wholly done", if report.dry_run { "would be" } else { "is" });
    }
    if !report.left.is_empty() {
        return;
    }
    match (report.in_force.join(", ").as_str(), report.dry_run) {
        ("", _) => println!("nothing is in force ({})", report.state),
        (actions, true) => println!("in force: {actions}; nothing was changed"),
        (actions, false) => println!(
            "no longer in force: {actions}; it is done again once its share of a limit is crossed anew: raise the limits in \
             infra/settings.env and run infra/deploy.sh"
        ),
    }
}
