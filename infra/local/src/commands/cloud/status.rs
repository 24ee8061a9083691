//! `contextflow status --warehouse bigquery`: the deployed pipeline, asked of BigQuery, Pub/Sub, Cloud Monitoring and the
//! kill-switch's state.

use kill_switch::config::{BUDGET_SUBSCRIPTION, SUBSCRIPTIONS};
use kill_switch::controls::Controls as _;
use kill_switch::controls::rest::Rest;
use kill_switch::state::{self, Interval, Mode, State};
use kill_switch::turn::pushes;
use shared::clock::{Clock, Micros, SECOND};
use shared::decode::time::timestamp_text;
use shared::settings::Settings;

use super::release::state;
use super::{Letters, open, project};
use crate::commands::status::Args;
use crate::error::Failure;
use crate::status::{Backlog, Status};

/// All that can be asked; what cannot is named.
pub async fn status(args: &Args, clock: &Clock) -> Result<Status, Failure> {
    let registry = crate::commands::registry(args.schemas.as_deref())?;
    let (project, settings, now) = (project(&args.place)?, Settings::from_env(), clock.now());
    let google = Rest::new(&settings).map_err(Failure::usage)?;
    let store = state(args.state.as_deref(), project, &settings)?;
    let mut status = Status::of(&Letters(open(&args.place).await?), &registry, now).await;
    status.pipeline = format!("the pipeline of project {project}");
    subscriptions(&mut status, &google, project, now).await;
    match google.server_errors(project, now).await {
        Ok(errors) => status.server_errors = Some(errors),
        Err(error) => status.unknown.push(format!("answers with 5xx: {error}")),
    }
    status.kill_switch = match store.read().await {
        Ok(state) => words(&state, now),
        Err(error) => {
            status.unknown.push(format!("the kill-switch: {error}"));
            "not known".into()
        }
    };
    Ok(status)
}

async fn subscriptions(status: &mut Status, google: &Rest, project: &str, now: Micros) {
    let backlogs = google.backlogs(project, now).await;
    if let Err(error) = &backlogs {
        status.unknown.push(format!("what waits: {error}"));
    }
    for name in SUBSCRIPTIONS.split(',').chain([BUDGET_SUBSCRIPTION]) {
        let settings = google.push_settings(&format!("projects/{project}/subscriptions/{name}")).await;
        if let Err(error) = &settings {
            status.unknown.push(format!("{name}: {error}"));
        }
        let backlog = backlogs.as_ref().ok().and_then(|backlogs| backlogs.get(name));
        let oldest = backlog.filter(|backlog| backlog.messages > 0).map(|backlog| {
            let seconds = i64::try_from(backlog.oldest_seconds).unwrap_or_default();
            timestamp_text(now - seconds * SECOND)
        });
        status.subscriptions.push(Backlog {
            name: name.to_string(),
            waiting: backlog.map(|backlog| backlog.messages),
            oldest_published_at: oldest,
            is_pushed: settings.ok().map(|settings| pushes(&settings)),
        });
    }
}

/// What the switch would do, what it has done, and what it last heard.
fn words(state: &State, now: Micros) -> String {
    let mode = match state.mode {
        Some(Mode::Armed) => "armed",
        Some(Mode::DryRun) => "dry-run: it will stop nothing",
        None => "never started: it will stop nothing",
    };
    let active: Vec<_> = state.active.iter().map(ToString::to_string).collect();
    let in_force = if active.is_empty() {
        "nothing in force".to_string()
    } else {
        format!("IN FORCE: {}; `contextflow release` undoes brake and stop", active.join(", "))
    };
    let heard = state.interval.as_ref().map_or("no notice yet".to_string(), |interval| heard(interval, now));
    let due = called_for(state, state::Status::Due, "DUE and not wholly done");
    let rehearsed = called_for(state, state::Status::Rehearsed, "armed, it would have acted");
    let released =
        called_for(state, state::Status::Released, "released, done again when its share of a limit is crossed anew");
    format!("{mode}; {in_force}{due}{rehearsed}{released}; {heard}")
}

/// `; <what>: stop since 2026-11-27T07:30:00Z`, or nothing.
fn called_for(state: &State, status: state::Status, what: &str) -> String {
    let actions = state.interval.iter().flat_map(|interval| &interval.actions);
    let of_status = actions.filter(|(_, record)| record.status == status);
    let told: Vec<_> =
        of_status.map(|(action, record)| format!("{action} since {}", timestamp_text(record.since))).collect();
    if told.is_empty() { String::new() } else { format!("; {what}: {}", told.join(", ")) }
}

fn heard(interval: &Interval, now: Micros) -> String {
    let Interval { highest, day, newest, start, .. } = interval;
    let today = highest.above(interval.baseline);
    let hours = (now - newest).max(0) / (3_600 * SECOND);
    let since = timestamp_text(*start);
    format!("{highest} spent since {}, of it {today} on {day}, by a notice {hours} h old", &since[..10])
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::decode::time::timestamp;

    use super::*;

    #[test]
    fn the_words_say_whether_anything_will_be_stopped() {
        let now = timestamp("2026-11-27T12:00:00Z").unwrap();
        let mut state = State::default();
        assert_eq!(words(&state, now), "never started: it will stop nothing; nothing in force; no notice yet");
        state.mode = Some(Mode::DryRun);
        assert!(words(&state, now).starts_with("dry-run: it will stop nothing; "));
        state.mode = Some(Mode::Armed);
        state.active = serde_json::from_value(json!(["brake", "stop"])).unwrap();
        state.interval = serde_json::from_value(json!({
            "start": "2026-11-01T08:00:00Z", "highest": 81.5, "newest": "2026-11-27T07:30:00Z", "day": "2026-11-26",
            "baseline": 71.25, "actions": {},
        }))
        .unwrap();
        assert_eq!(
            words(&state, now),
            "armed; IN FORCE: brake, stop; `contextflow release` undoes brake and stop; 81.50 spent since 2026-11-01, of it \
             10.25 on 2026-11-26, by a notice 4 h old"
        );
        let since = |status| json!({"status": status, "limit": "day", "since": "2026-11-27T07:30:00Z"});
        let interval = state.interval.as_mut().unwrap();
        interval.actions = serde_json::from_value(json!({"brake": since("done"), "stop": since("due")})).unwrap();
        let told = words(&state, now);
        assert!(
            told.contains("undoes brake and stop; DUE and not wholly done: stop since 2026-11-27T07:30:00Z; 81.50"),
            "{told}"
        );
        let interval = state.interval.as_mut().unwrap();
        interval.actions = serde_json::from_value(json!({"brake": since("rehearsed")})).unwrap();
        let told = words(&state, now);
        assert!(told.contains("; armed, it would have acted: brake since 2026-11-27T07:30:00Z; "), "{told}");
        let interval = state.interval.as_mut().unwrap();
        interval.actions = serde_json::from_value(json!({"brake": since("released")})).unwrap();
        let told = words(&state, now);
        assert!(
            told.contains("; released, done again when its share of a limit is crossed anew: brake since"),
            "{told}"
        );
    }
}
