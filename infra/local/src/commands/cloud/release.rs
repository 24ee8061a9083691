//! `contextflow release`, and where the kill-switch has its state.

use std::collections::BTreeMap;

use kill_switch::controls::rest::Rest;
use kill_switch::release::{self as releasing, ReleaseError, Released};
use kill_switch::state::Status;
use kill_switch::store::{StateError, Store};
use shared::bucket;
use shared::clock::Clock;
use shared::settings::Settings;

use crate::commands::release;
use crate::error::Failure;

/// `contextflow release`.
pub async fn release(args: &release::Args) -> Result<release::Report, Failure> {
    let settings = Settings::from_env();
    let (store, now) = (state(args.state.as_deref(), &args.project, &settings)?, Clock::system().now());
    let controls = Rest::new(&settings).map_err(Failure::usage)?;
    let released =
        if args.dry_run { releasing::look(&store).await } else { releasing::release(&store, &controls, now).await };
    let Released { before, subscriptions, left } = released.map_err(|error| failure(&error))?;
    let (backlogs, backlog_unknown) = match controls.backlogs(&args.project, now).await {
        Ok(backlogs) => (backlogs, None),
        Err(error) => (BTreeMap::new(), Some(error.to_string())),
    };
    let subscription = |(name, became): (String, releasing::Subscription)| {
        let backlog = backlogs.get(name.rsplit('/').next().unwrap_or_default());
        let (messages, bytes) = (backlog.map(|backlog| backlog.messages), backlog.map(|backlog| backlog.bytes));
        release::Subscription { name, became: became.to_string(), messages, bytes }
    };
    let actions = before.interval.iter().flat_map(|interval| &interval.actions);
    let due = actions.filter(|(_, record)| record.status == Status::Due);
    let link = |(project, account)| format!("gcloud billing projects link {project} --billing-account={account}");
    Ok(release::Report {
        state: store.name().to_string(),
        dry_run: args.dry_run,
        in_force: before.active.iter().map(ToString::to_string).collect(),
        given_up: due.map(|(action, _)| action.to_string()).collect(),
        subscriptions: subscriptions.into_iter().map(subscription).collect(),
        backlog_unknown,
        publisher: before.removed.map(|right| [right.member, right.topic]),
        to_link: before.detached.into_iter().map(link).collect(),
        left,
    })
}

fn failure(error: &ReleaseError) -> Failure {
    let is_bucket = matches!(error, ReleaseError::State(StateError::Store(..)));
    let hint = "; after a detach the bucket answers again once its project is linked to a billing account";
    Failure::work(format!("{error}{}", if is_bucket { hint } else { "" }))
}

/// The state at `uri`, or where `infra/deploy.sh` has it put.
pub(super) fn state(uri: Option<&str>, project: &str, settings: &Settings) -> Result<Store, Failure> {
    let default = format!("gs://{project}-contextflow/kill-switch");
    let place = bucket::open(uri.unwrap_or(&default), settings).map_err(Failure::usage)?;
    Ok(Store::new(&place))
}
