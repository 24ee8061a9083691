//! What a notice calls for. Nothing here asks or changes anything but its arguments, and no clock is read.
//!
//! There are two limits, of the interval and of a day, and three actions, each at its own share of either. A notice
//! carries only the interval's sum, so what a day has cost is that sum less the highest one published before the midnight
//! at which the day began: 0 at a new interval, and the sum of the first notice after the installation, which so judges
//! the interval's limit alone.
//!
//! An action is called for at most once an interval. A notice of an older interval is refused. One that was published
//! before the newest calls for nothing; where it is of a day before, its sum still tells what was spent by midnight. A
//! lower sum (a credit) calls for nothing that a higher one has not, and undoes nothing. So the order in which notices
//! come, and how often, does not matter.
//!
//! In a dry run what is called for is noted as rehearsed, which keeps nothing from being done once the switch is armed.

use crate::amount::Amount;
use crate::notice::{Notice, Refused};
use crate::state::{Action, Interval, Kind, Mode, Record, State, Status};

/// The limits and each action's share of them, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of an interval of the budget.
    pub month: Amount,
    /// Of a billing day.
    pub day: Amount,
    /// Where *brake* is due.
    pub brake_at: u32,
    /// Where *stop* is due.
    pub stop_at: u32,
    /// Where *detach* is due.
    pub detach_at: u32,
}

impl Limits {
    fn share(&self, action: Action) -> u32 {
        match action {
            Action::Brake => self.brake_at,
            Action::Stop => self.stop_at,
            Action::Detach => self.detach_at,
        }
    }

    /// The limit whose share a sum has reached.
    fn reached(&self, action: Action, cost: Amount, today: Amount) -> Option<Kind> {
        let share = self.share(action);
        let month = cost.reaches(self.month, share).then_some(Kind::Month);
        month.or_else(|| today.reaches(self.day, share).then_some(Kind::Day))
    }
}

/// What a notice comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The state with what the notice told; in it what is called for is due, or rehearsed.
    pub state: State,
    /// What the notice newly calls for, in the order of its doing.
    pub called_for: Vec<(Action, Kind)>,
}

/// Judges a notice.
pub fn judge(before: &State, notice: &Notice, limits: &Limits, mode: Mode) -> Result<Judged, Refused> {
    let mut state = before.clone();
    let mut interval = match state.interval.take() {
        Some(known) if notice.interval < known.start => return Err(Refused::OldInterval),
        Some(known) if notice.interval == known.start => known,
        Some(_) => Interval::begin(notice, Amount::ZERO),
        None => Interval::begin(notice, notice.cost),
    };
    let is_older = notice.published_at < interval.newest;
    if notice.day > interval.day {
        interval.baseline = interval.highest;
        interval.day.clone_from(&notice.day);
    } else if notice.day < interval.day {
        interval.baseline = interval.baseline.max(notice.cost);
    }
    interval.highest = interval.highest.max(notice.cost);
    interval.newest = interval.newest.max(notice.published_at);
    let mut called_for = Vec::new();
    let today = notice.cost.above(interval.baseline);
    for action in Action::ALL {
        let is_open = match interval.actions.get(&action) {
            None => true,
            Some(record) => record.status == Status::Rehearsed && mode == Mode::Armed,
        };
        if is_older || !is_open {
            continue;
        }
        let Some(limit) = limits.reached(action, notice.cost, today) else { continue };
        let status = if mode == Mode::Armed { Status::Due } else { Status::Rehearsed };
        interval.actions.insert(action, Record { status, limit, since: notice.published_at });
        called_for.push((action, limit));
    }
    state.interval = Some(interval);
    state.mode = Some(mode);
    Ok(Judged { state, called_for })
}
