//! What a notice calls for. Nothing here asks or changes anything but its arguments, and no clock is read.
//!
//! There are two limits, of the interval and of a day, and three actions, each at its own share. A notice
//! carries only the interval's sum, so what a day has cost is that sum less the highest one published before the midnight
//! at which the day began: 0 at a new interval, and the sum of the first notice after the installation, which so judges
//! the interval's limit alone. Where no notice came for days, what came to the sum is of all of them: the limit is then that of
//! so many days, which is reached only if one of them has reached its own.
//!
//! *Detach* cannot be undone from here, and notices come hours late: one that jumps over every share calls for *brake* and *stop*
//! alone. *Detach* is called for only where it is enabled, by the interval's limit, and by a notice that was published after *brake*
//! and *stop* had both been in force for a while and tells of more than every notice before it.
//!
//! An action is called for once; after a release it is called for again when its share of a limit is crossed anew: that of a
//! raised limit, or the next day's. A released *brake* comes back with *stop* too. A notice of an older interval is refused. One that was published
//! before the newest calls for nothing; where it is of a day before, its sum still tells what was spent by midnight. A
//! lower sum (a credit) calls for nothing that a higher one has not, and undoes nothing. Sums grow with their times, credits
//! aside; so for the interval's limit the order in which notices come, and how often, does not matter. For the day's, a notice
//! that overtakes the last ones of the day before counts what they tell as its own day's.
//!
//! In a dry run what is called for is noted as rehearsed, which keeps nothing from being done once the switch is armed.

use std::collections::BTreeSet;
use std::mem;

use shared::clock::Micros;

use crate::amount::Amount;
use crate::day::days_after;
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
    /// Where *detach* is due, of the interval's limit alone.
    pub detach_at: u32,
    /// Whether and when *detach* may be due at all.
    pub detach: Detach,
}

/// Whether and when *detach* may be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Not at all.
    Never,
    /// By the interval's limit, once *brake* and *stop* have both been in force for so long and the sum has still risen.
    Monthly {
        /// How long.
        after: Micros,
    },
}

/// What limits are held against: the interval's sum, and what came to it in so many days.
#[derive(Debug, Clone, Copy)]
struct Spent {
    month: Amount,
    recent: Amount,
    days: u32,
}

impl Limits {
    /// Whether an action's share of a limit is reached.
    fn reaches(&self, action: Action, kind: Kind, spent: Spent) -> bool {
        let share = match action {
            Action::Brake => self.brake_at,
            Action::Stop => self.stop_at,
            Action::Detach => self.detach_at,
        };
        match kind {
            Kind::Month => spent.month.reaches(self.month, share),
            Kind::Day if action == Action::Detach => false,
            Kind::Day => spent.recent.reaches(self.day, share.saturating_mul(spent.days)),
        }
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
        Some(_) => Interval::begin(notice, Amount::ZERO, &notice.eve),
        None => Interval::begin(notice, notice.cost, &notice.day),
    };
    let is_older = notice.published_at < interval.newest;
    let highest = interval.highest;
    if notice.day > interval.day {
        interval.baseline = highest;
        interval.baseline_day = mem::replace(&mut interval.day, notice.day.clone());
    } else if notice.day < interval.day {
        interval.baseline = interval.baseline.max(notice.cost);
        if notice.day > interval.baseline_day {
            interval.baseline_day.clone_from(&notice.day);
        }
    }
    interval.highest = highest.max(notice.cost);
    interval.newest = interval.newest.max(notice.published_at);
    let days = days_after(&interval.baseline_day, &interval.day);
    let spent = |month: Amount| Spent { month, recent: month.above(interval.baseline), days };
    let (previous, current) = (spent(highest), spent(notice.cost));
    let may_detach = match limits.detach {
        Detach::Never => false,
        Detach::Monthly { after } => held_since(&interval, &state.active, mode)
            .is_some_and(|since| interval.newest.saturating_sub(since) >= after),
    };
    let mut called_for = Vec::new();
    if !may_detach && interval.actions.get(&Action::Detach).is_some_and(|record| record.status == Status::Due) {
        // By the rules of an earlier version or of other settings, and not done yet.
        interval.actions.remove(&Action::Detach);
    }
    for action in Action::ALL {
        let status = interval.actions.get(&action).map(|record| record.status);
        let is_open = match status {
            None | Some(Status::Released) => true,
            Some(Status::Rehearsed) => mode == Mode::Armed,
            Some(Status::Due | Status::Done) => false,
        };
        let is_allowed = action != Action::Detach || may_detach && notice.cost > highest;
        if is_older || !is_open || !is_allowed {
            continue;
        }
        let is_crossed = |kind: &Kind| {
            let is_crossed_anew =
                |action| limits.reaches(action, *kind, current) && !limits.reaches(action, *kind, previous);
            match (action, status) {
                (Action::Brake, Some(Status::Released)) => {
                    [Action::Brake, Action::Stop].into_iter().any(is_crossed_anew)
                }
                (Action::Stop, Some(Status::Released)) => is_crossed_anew(action),
                _ => limits.reaches(action, *kind, current),
            }
        };
        let Some(limit) = [Kind::Month, Kind::Day].into_iter().find(is_crossed) else { continue };
        let status = if mode == Mode::Armed { Status::Due } else { Status::Rehearsed };
        interval.actions.insert(action, Record { status, limit, since: notice.published_at, done_at: None });
        called_for.push((action, limit));
    }
    state.interval = Some(interval);
    state.mode = Some(mode);
    Ok(Judged { state, called_for })
}

/// Since when *brake* and *stop* have both been in force; in a dry run, would have been.
fn held_since(interval: &Interval, active: &BTreeSet<Action>, mode: Mode) -> Option<Micros> {
    let since = |action: Action| {
        let record = interval.actions.get(&action)?;
        match record.status {
            Status::Done if active.contains(&action) => Some(record.done_at.unwrap_or(record.since)),
            Status::Rehearsed if mode == Mode::DryRun => Some(record.since),
            _ => None,
        }
    };
    Some(since(Action::Brake)?.max(since(Action::Stop)?))
}

#[cfg(test)]
mod tests {
    use shared::clock::SECOND;
    use shared::decode::time::{timestamp, timestamp_text};

    use super::*;
    use crate::day::BillingDays;

    const NOVEMBER: &str = "2026-11-01T07:00:00Z";
    const LIMITS: fn() -> Limits = || Limits {
        month: Amount::try_from(100.0).unwrap(),
        day: Amount::try_from(20.0).unwrap(),
        brake_at: 80,
        stop_at: 100,
        detach_at: 120,
        detach: Detach::Monthly { after: 6 * HOUR },
    };
    const HOUR: Micros = 3_600 * SECOND;

    /// A switch that hears notices; what it is called for is done at once.
    struct Switch {
        state: State,
        mode: Mode,
        limits: Limits,
    }

    impl Switch {
        fn new() -> Self {
            Self { state: State::default(), mode: Mode::Armed, limits: LIMITS() }
        }

        fn hear(&mut self, interval: &str, published_at: &str, cost: f64) -> Result<Vec<(Action, Kind)>, Refused> {
            let (interval, published_at) = (timestamp(interval).unwrap(), timestamp(published_at).unwrap());
            let days = BillingDays::new().unwrap();
            let (day, eve) = (days.of(published_at), days.of(interval - 1));
            let notice = Notice { cost: Amount::try_from(cost).unwrap(), interval, published_at, day, eve };
            let judged = judge(&self.state, &notice, &self.limits, self.mode)?;
            self.state = judged.state;
            for action in self.state.due() {
                self.state.active.insert(action);
                self.state.finish(action, published_at);
            }
            Ok(judged.called_for)
        }

        fn release(&mut self) {
            self.state.active.clear();
            let actions = &mut self.state.interval.as_mut().unwrap().actions;
            for record in actions.values_mut() {
                record.status = Status::Released;
            }
        }

        /// In November's interval.
        fn november(&mut self, published_at: &str, cost: f64) -> Vec<(Action, Kind)> {
            self.hear(NOVEMBER, published_at, cost).unwrap()
        }

        fn baseline(&self) -> f64 {
            self.state.interval.as_ref().unwrap().baseline.into()
        }
    }

    #[test]
    fn the_first_notice_sets_the_days_baseline_and_judges_the_month() {
        for (cost, called_for) in [
            (0.0, vec![]),
            (79.99, vec![]),
            (80.0, vec![(Action::Brake, Kind::Month)]),
            (119.0, vec![(Action::Brake, Kind::Month), (Action::Stop, Kind::Month)]),
            (500.0, vec![(Action::Brake, Kind::Month), (Action::Stop, Kind::Month)]),
        ] {
            let mut switch = Switch::new();
            assert_eq!(switch.november("2026-11-20T12:00:00Z", cost), called_for, "{cost}");
            assert_eq!(switch.baseline().to_string(), cost.to_string());
        }
    }

    #[test]
    fn a_day_is_judged_by_what_was_spent_since_its_midnight() {
        let mut switch = Switch::new();
        assert_eq!(switch.november("2026-11-20T12:00:00Z", 10.0), []);
        assert_eq!(switch.november("2026-11-20T13:00:00Z", 25.99), [], "15.99 of 20");
        assert_eq!(switch.november("2026-11-21T07:59:59Z", 25.99), [], "still the 20th in California");
        assert_eq!(switch.november("2026-11-21T08:00:00Z", 41.98), [], "a new day: 15.99 again");
        assert_eq!(switch.baseline().to_string(), "25.99");
        assert_eq!(switch.november("2026-11-21T09:00:00Z", 41.99), [(Action::Brake, Kind::Day)]);
        assert_eq!(switch.november("2026-11-22T09:00:00Z", 57.99), [], "brake is done once an interval");
        assert_eq!(switch.november("2026-11-22T10:00:00Z", 65.99), [(Action::Stop, Kind::Day)]);
    }

    #[test]
    fn what_came_in_days_without_a_notice_is_of_all_of_them() {
        let mut switch = Switch::new();
        switch.november("2026-11-10T20:00:00Z", 10.0);
        assert_eq!(switch.november("2026-11-13T20:00:00Z", 57.99), [], "15.99 of each of three days");
        assert_eq!(switch.november("2026-11-13T21:00:00Z", 58.0), [(Action::Brake, Kind::Day)]);
        assert_eq!(switch.november("2026-11-14T20:00:00Z", 77.99), [], "one day again");
        assert_eq!(switch.november("2026-11-14T21:00:00Z", 78.0), [(Action::Stop, Kind::Day)]);

        let mut switch = Switch::new();
        switch.november("2026-11-30T20:00:00Z", 5.0);
        let december = "2026-12-01T08:00:00Z";
        assert_eq!(switch.hear(december, "2026-12-04T20:00:00Z", 63.99), Ok(vec![]), "the fourth day of an interval");
        assert_eq!(switch.hear(december, "2026-12-04T21:00:00Z", 64.0), Ok(vec![(Action::Brake, Kind::Day)]));
    }

    /// A notice of the day before that comes late tells also which days what follows is of.
    #[test]
    fn a_late_notice_of_yesterday_makes_it_one_day_again() {
        let mut switch = Switch::new();
        switch.november("2026-11-10T20:00:00Z", 10.0);
        assert_eq!(switch.november("2026-11-13T20:00:00Z", 40.0), [], "30 in three days");
        assert_eq!(switch.november("2026-11-12T20:00:00Z", 20.0), []);
        assert_eq!(
            switch.november("2026-11-13T21:00:00Z", 40.0),
            [(Action::Brake, Kind::Day), (Action::Stop, Kind::Day)]
        );
    }

    /// The day on which the clocks go back has 25 hours, the one on which they go forward 23.
    #[test]
    fn days_of_23_and_of_25_hours_end_at_midnight() {
        for (interval, during, last, next) in [
            ("2026-11-01T07:00:00Z", "2026-11-01T12:00:00Z", "2026-11-02T07:59:59Z", "2026-11-02T08:00:00Z"),
            ("2026-03-01T08:00:00Z", "2026-03-08T12:00:00Z", "2026-03-09T06:59:59Z", "2026-03-09T07:00:00Z"),
        ] {
            let mut switch = Switch::new();
            switch.hear(interval, during, 1.0).unwrap();
            assert_eq!(switch.hear(interval, last, 16.99).unwrap(), [], "15.99 of the same day");
            assert_eq!(switch.hear(interval, next, 32.98).unwrap(), [], "15.99 of the next");
            assert_eq!(switch.hear(interval, next, 32.99).unwrap(), [(Action::Brake, Kind::Day)]);
        }
    }

    #[test]
    fn a_new_interval_begins_at_nothing_and_an_old_one_is_refused() {
        let mut switch = Switch::new();
        assert_eq!(switch.november("2026-11-20T12:00:00Z", 130.0).len(), 2);
        let december = "2026-12-01T08:00:00Z";
        assert_eq!(switch.hear(december, "2026-12-01T09:00:00Z", 15.99), Ok(vec![]));
        assert_eq!(switch.baseline().to_string(), "0");
        assert_eq!(switch.hear(NOVEMBER, "2026-12-01T10:00:00Z", 500.0), Err(Refused::OldInterval));
        assert_eq!(switch.hear(december, "2026-12-01T11:00:00Z", 16.0), Ok(vec![(Action::Brake, Kind::Day)]));
    }

    #[test]
    fn a_repeated_older_or_lower_notice_calls_for_nothing() {
        let mut switch = Switch::new();
        assert_eq!(switch.november("2026-11-20T12:00:00Z", 81.0), [(Action::Brake, Kind::Month)]);
        assert_eq!(switch.november("2026-11-20T12:00:00Z", 81.0), []);
        assert_eq!(switch.november("2026-11-20T11:59:59Z", 150.0), [], "published before the newest");
        assert_eq!(switch.november("2026-11-20T13:00:00Z", 80.5), [], "a credit");
        assert_eq!(switch.november("2026-11-20T14:00:00Z", 10.0), []);
    }

    #[test]
    fn a_notice_of_the_day_before_that_comes_late_tells_what_was_spent_by_midnight() {
        let mut switch = Switch::new();
        switch.november("2026-11-20T12:00:00Z", 10.0);
        switch.november("2026-11-21T08:30:00Z", 25.0);
        assert_eq!(switch.baseline().to_string(), "10");
        assert_eq!(switch.november("2026-11-21T07:30:00Z", 24.0), []);
        assert_eq!(switch.baseline().to_string(), "24");
        assert_eq!(switch.november("2026-11-21T09:00:00Z", 27.0), [], "3 today");
    }

    #[test]
    fn what_was_rehearsed_is_done_once_armed() {
        let mut switch = Switch { mode: Mode::DryRun, ..Switch::new() };
        assert_eq!(switch.november("2026-11-20T12:00:00Z", 101.0).len(), 2);
        assert_eq!(switch.november("2026-11-20T13:00:00Z", 101.0), [], "it is logged once");
        assert_eq!(switch.state.due(), []);
        switch.mode = Mode::Armed;
        let called_for = switch.november("2026-11-20T14:00:00Z", 101.0);
        assert_eq!(called_for, [(Action::Brake, Kind::Month), (Action::Stop, Kind::Month)]);
        switch.mode = Mode::DryRun;
        assert_eq!(switch.november("2026-11-20T15:00:00Z", 101.0), [], "what is done is done");
    }

    /// Every order of notices whose sums grow with their times comes to the same; all are published too early for *detach*.
    #[test]
    fn the_order_of_notices_does_not_matter_for_the_month() {
        let begin = timestamp("2026-11-10T12:00:00Z").unwrap();
        let notices: Vec<(String, f64)> = [20.0, 60.0, 85.0, 101.0, 130.0]
            .iter()
            .zip(0..)
            .map(|(cost, hours)| (timestamp_text(begin + hours * HOUR), *cost))
            .collect();
        for order in orders(notices.len()) {
            let mut switch = Switch::new();
            switch.limits.day = Amount::try_from(1_000.0).unwrap();
            let called_for: Vec<_> =
                order.iter().flat_map(|at| switch.november(&notices[*at].0, notices[*at].1)).collect();
            assert_eq!(called_for, [(Action::Brake, Kind::Month), (Action::Stop, Kind::Month)], "{order:?}");
        }
    }

    #[test]
    fn detach_waits_for_brake_and_stop_and_for_a_sum_that_still_rises() {
        let detach = [(Action::Detach, Kind::Month)];
        let mut switch = Switch::new();
        assert_eq!(switch.november("2026-11-20T12:00:00Z", 500.0).len(), 2, "one late notice");
        assert_eq!(switch.november("2026-11-20T17:59:59Z", 510.0), [], "not for six hours yet");
        assert_eq!(switch.november("2026-11-20T18:00:00Z", 510.0), [], "it did not rise");
        assert_eq!(switch.november("2026-11-20T19:00:00Z", 505.0), [], "a credit");
        assert_eq!(switch.november("2026-11-20T20:00:00Z", 510.01), detach);
        assert_eq!(switch.november("2026-11-20T21:00:00Z", 520.0), [], "once");

        let mut switch = Switch::new();
        switch.november("2026-11-20T12:00:00Z", 101.0);
        assert_eq!(switch.november("2026-11-21T12:00:00Z", 119.99), [], "below its share");
        assert_eq!(switch.november("2026-11-21T13:00:00Z", 120.0), detach);
    }

    #[test]
    fn detach_needs_its_setting_both_actions_and_the_monthly_limit() {
        let mut never = Switch::new();
        never.limits.detach = Detach::Never;
        never.november("2026-11-20T12:00:00Z", 500.0);
        assert_eq!(never.november("2026-11-25T12:00:00Z", 600.0), []);

        let mut by_day = Switch::new();
        by_day.limits.month = Amount::try_from(1_000.0).unwrap();
        by_day.november("2026-11-20T12:00:00Z", 10.0);
        assert_eq!(by_day.november("2026-11-20T13:00:00Z", 300.0).len(), 2);
        assert_eq!(by_day.november("2026-11-20T20:00:00Z", 400.0), [], "380 of a day's 20");

        let mut half = Switch::new();
        half.november("2026-11-20T12:00:00Z", 125.0);
        half.state.active.remove(&Action::Stop);
        assert_eq!(half.november("2026-11-20T20:00:00Z", 126.0), [], "the publisher still publishes");
        half.release();
        assert_eq!(half.november("2026-11-21T07:59:00Z", 127.0), [], "nothing is in force");
    }

    /// As an earlier version left it: called for with everything else, and refused by Google.
    #[test]
    fn a_detach_that_the_rule_does_not_allow_is_withdrawn() {
        for (detach, left) in [(Detach::Never, false), (Detach::Monthly { after: HOUR }, true)] {
            let mut switch = Switch::new();
            switch.limits.detach = detach;
            switch.november("2026-11-20T12:00:00Z", 125.0);
            let since = timestamp("2026-11-20T12:00:00Z").unwrap();
            let due = Record { status: Status::Due, limit: Kind::Month, since, done_at: None };
            switch.state.interval.as_mut().unwrap().actions.insert(Action::Detach, due);
            switch.november("2026-11-20T13:00:00Z", 125.0);
            assert_eq!(switch.state.active.contains(&Action::Detach), left, "{detach:?}");
        }
    }

    #[test]
    fn what_was_released_comes_again_when_its_share_of_a_raised_limit_is_crossed() {
        let mut switch = Switch::new();
        switch.limits.day = Amount::try_from(1_000.0).unwrap();
        assert_eq!(switch.november("2026-11-20T12:00:00Z", 85.0), [(Action::Brake, Kind::Month)]);
        switch.release();
        assert_eq!(switch.november("2026-11-20T13:00:00Z", 90.0), [], "its share was reached before");
        assert_eq!(switch.november("2026-11-20T14:00:00Z", 99.0), []);
        let both = [(Action::Brake, Kind::Month), (Action::Stop, Kind::Month)];
        assert_eq!(switch.november("2026-11-20T14:30:00Z", 100.0), both, "a stop comes with the brake");
        switch.release();
        switch.limits.month = Amount::try_from(200.0).unwrap();
        assert_eq!(switch.november("2026-11-20T15:00:00Z", 159.99), []);
        assert_eq!(switch.november("2026-11-20T16:00:00Z", 160.0), [(Action::Brake, Kind::Month)]);
        assert_eq!(switch.november("2026-11-20T17:00:00Z", 200.0), [(Action::Stop, Kind::Month)]);
        assert_eq!(switch.november("2026-11-21T07:00:00Z", 240.0), [(Action::Detach, Kind::Month)]);
    }

    #[test]
    fn what_was_released_comes_again_on_another_day() {
        let mut switch = Switch::new();
        switch.november("2026-11-20T12:00:00Z", 10.0);
        assert_eq!(switch.november("2026-11-20T13:00:00Z", 26.0), [(Action::Brake, Kind::Day)]);
        switch.release();
        assert_eq!(switch.november("2026-11-20T14:00:00Z", 29.0), [], "the same day");
        assert_eq!(switch.november("2026-11-21T12:00:00Z", 40.0), []);
        assert_eq!(switch.november("2026-11-21T13:00:00Z", 45.0), [(Action::Brake, Kind::Day)]);
    }

    fn orders(count: usize) -> Vec<Vec<usize>> {
        if count == 0 {
            return vec![vec![]];
        }
        let last = count - 1;
        orders(last)
            .into_iter()
            .flat_map(|order| {
                (0..count).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, last);
                    order
                })
            })
            .collect()
    }
}
