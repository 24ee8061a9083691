//! How each action is done, and undone, by the controls. Each looks first, so that one that was broken off is continued and
//! one that is done changes nothing.

use std::fmt::Display;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::controls::{ControlError, Controls};
use crate::state::{Action, Grant, PushSettings, State};
use crate::store::{StateError, Store};

/// The role that *stop* takes away.
const PUBLISHER: &str = "roles/pubsub.publisher";
/// How often a policy is read again that another changes at the same time.
const ATTEMPTS: usize = 5;

/// What is turned.
#[derive(Debug, Clone)]
pub struct Targets {
    /// Full names of the pipeline's subscriptions.
    pub subscriptions: Vec<String>,
    /// The publisher's right.
    pub publisher: Grant,
    /// The projects to detach; the kill-switch's own is the last.
    pub projects: Vec<String>,
    /// The account that they are detached from, `0X0X0X-0X0X0X-0X0X0X`.
    pub billing_account: String,
}

/// Why an action is not, or not wholly, done.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The state could not be had or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A control.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Several of them.
    #[error("{0}")]
    Several(String),
}

/// Does an action.
pub async fn act(action: Action, targets: &Targets, controls: &dyn Controls, store: &Store) -> Result<(), Fault> {
    match action {
        Action::Brake => brake(targets, controls, store).await,
        Action::Stop => stop(&targets.publisher, controls, store).await,
        Action::Detach => detach(targets, controls, store).await,
    }
}

/// Makes the subscriptions pull, all that can be. What they were is in the state before the first is changed.
async fn brake(targets: &Targets, controls: &dyn Controls, store: &Store) -> Result<(), Fault> {
    let found = join_all(
        targets
            .subscriptions
            .iter()
            .map(|name| async move { controls.push_settings(name).await.map(|settings| (name, settings)) }),
    );
    let (found, mut faults) = apart(found.await);
    let pushing: Vec<_> = found.into_iter().filter(|(_, settings)| pushes(settings)).collect();
    let save = |state: &mut State| {
        state.saved.extend(pushing.iter().map(|(name, settings)| ((*name).clone(), settings.clone())));
        if !state.saved.is_empty() {
            state.active.insert(Action::Brake);
        }
    };
    store.update(save).await?;
    let none = PushSettings::new();
    let changed = join_all(pushing.iter().map(|(name, _)| controls.set_push_settings(name, &none))).await;
    let (changed, refused) = apart(changed);
    faults.extend(refused);
    tracing::error!(
        severity = "CRITICAL",
        subscriptions = changed.len(),
        "brake: subscriptions made pull; Pub/Sub keeps their events for up to 31 days, which costs $0.27 a GiB a month \
         after the first day (list price)"
    );
    all(&faults)
}

/// Takes the publisher's right away. Bindings with a condition are left alone.
async fn stop(publisher: &Grant, controls: &dyn Controls, store: &Store) -> Result<(), Fault> {
    for attempt in 1.. {
        let mut policy = controls.policy(&publisher.topic).await?;
        let has_right = remove(&mut policy, &publisher.member);
        let save = |state: &mut State| {
            if has_right {
                state.active.insert(Action::Stop);
                state.removed = Some(publisher.clone());
            }
            state.removed.is_some()
        };
        let is_ours = store.update(save).await?;
        if !has_right {
            if !is_ours {
                let topic = &publisher.topic;
                tracing::error!(
                    severity = "CRITICAL",
                    topic,
                    "stop: no unconditional right to take away; another may be left"
                );
            }
            break;
        }
        match controls.set_policy(&publisher.topic, &policy).await {
            Err(ControlError::Conflict(_)) if attempt < ATTEMPTS => {}
            other => {
                other?;
                let topic = &publisher.topic;
                tracing::error!(
                    severity = "CRITICAL",
                    topic,
                    "stop: the publisher's right is taken away; it takes minutes"
                );
                break;
            }
        }
    }
    Ok(())
}

/// Takes the billing account away from every project that has it.
async fn detach(targets: &Targets, controls: &dyn Controls, store: &Store) -> Result<(), Fault> {
    let account = format!("billingAccounts/{}", targets.billing_account);
    let mut faults = Vec::new();
    for project in &targets.projects {
        let done = async {
            let found = controls.billing_account(project).await?;
            if found == account {
                let save = |state: &mut State| {
                    state.active.insert(Action::Detach);
                    state.detached.insert(project.clone(), targets.billing_account.clone());
                };
                store.update(save).await?;
                controls.detach(project).await?;
                tracing::error!(severity = "CRITICAL", project, "detach: the project has no billing account any more");
            } else if found.is_empty() {
                tracing::warn!(project, "detach: the project has no billing account");
            } else {
                tracing::error!(
                    severity = "CRITICAL",
                    project,
                    "detach: another account pays for the project; it is left so"
                );
            }
            Ok::<(), Fault>(())
        };
        faults.extend(done.await.err());
    }
    all(&faults)
}

/// Gives a right back that *stop* has taken away.
pub(crate) async fn grant(grant: &Grant, controls: &dyn Controls) -> Result<(), ControlError> {
    for attempt in 1.. {
        let mut policy = controls.policy(&grant.topic).await?;
        if !add(&mut policy, &grant.member) {
            break;
        }
        match controls.set_policy(&grant.topic, &policy).await {
            Err(ControlError::Conflict(_)) if attempt < ATTEMPTS => {}
            other => return other,
        }
    }
    Ok(())
}

/// Whether a subscription with these settings pushes.
pub fn pushes(settings: &PushSettings) -> bool {
    settings.get("pushEndpoint").and_then(Value::as_str).is_some_and(|endpoint| !endpoint.is_empty())
}

fn is_publisher(binding: &Value) -> bool {
    binding["role"] == PUBLISHER && binding.get("condition").is_none_or(Value::is_null)
}

/// Takes a member from the publishers of a policy; whether it was one.
fn remove(policy: &mut Value, member: &str) -> bool {
    let Some(bindings) = policy["bindings"].as_array_mut() else { return false };
    let mut was_there = false;
    for members in bindings.iter_mut().filter(|one| is_publisher(one)).filter_map(|one| one["members"].as_array_mut()) {
        let before = members.len();
        members.retain(|one| one != member);
        was_there |= members.len() < before;
    }
    bindings.retain(|binding| !is_publisher(binding) || binding["members"] != json!([]));
    policy["version"] = 3.into();
    was_there
}

/// Makes a member one of the publishers of a policy; whether it was not.
fn add(policy: &mut Value, member: &str) -> bool {
    if !policy["bindings"].is_array() {
        policy["bindings"] = json!([]);
    }
    policy["version"] = 3.into();
    let Some(bindings) = policy["bindings"].as_array_mut() else { return false };
    let members = bindings.iter_mut().find(|one| is_publisher(one)).and_then(|one| one["members"].as_array_mut());
    match members {
        Some(members) if members.iter().any(|one| one == member) => return false,
        Some(members) => members.push(member.into()),
        None => bindings.push(json!({"role": PUBLISHER, "members": [member]})),
    }
    true
}

fn apart<T>(results: Vec<Result<T, ControlError>>) -> (Vec<T>, Vec<ControlError>) {
    let (mut done, mut faults) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(one) => done.push(one),
            Err(error) => faults.push(error),
        }
    }
    (done, faults)
}

fn all(faults: &[impl Display]) -> Result<(), Fault> {
    if faults.is_empty() {
        return Ok(());
    }
    Err(Fault::Several(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(bindings: &Value) -> Value {
        json!({"version": 1, "etag": "BwX", "bindings": bindings})
    }

    #[test]
    fn only_the_member_loses_only_the_role() {
        let conditional = json!({"role": PUBLISHER, "members": ["m"], "condition": {"expression": "true"}});
        let viewer = json!({"role": "roles/pubsub.viewer", "members": ["m"]});
        let mut changed = policy(&json!([{"role": PUBLISHER, "members": ["m", "other"]}, conditional, viewer]));
        assert!(remove(&mut changed, "m"));
        let left = json!([{"role": PUBLISHER, "members": ["other"]}, conditional, viewer]);
        assert_eq!(changed, json!({"version": 3, "etag": "BwX", "bindings": left}));
        assert!(!remove(&mut changed, "m"), "it was taken away");

        assert!(add(&mut changed, "m"));
        assert_eq!(changed["bindings"][0]["members"], json!(["other", "m"]));
        assert!(!add(&mut changed, "m"), "it has the role again");
    }

    #[test]
    fn a_binding_of_nobody_goes_and_comes_back() {
        let mut alone = policy(&json!([{"role": PUBLISHER, "members": ["m"]}]));
        assert!(remove(&mut alone, "m"));
        assert_eq!(alone["bindings"], json!([]));
        assert!(add(&mut alone, "m"));
        assert_eq!(alone["bindings"], json!([{"role": PUBLISHER, "members": ["m"]}]));
        let mut empty = json!({"etag": "ACAB"});
        assert!(!remove(&mut empty, "m"));
        assert!(add(&mut empty, "m"));
        assert_eq!(empty["bindings"], json!([{"role": PUBLISHER, "members": ["m"]}]));
    }
}
