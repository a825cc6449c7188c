//! What is next: the rules are asked again before each action.

use super::Action;
use super::condition::Condition;
use super::patience::{MOST_TIME, Patience};
use super::policy::Policy;
use super::view::{View, see_steps};
use crate::incident::model::{Incident, Step};
use cel::Context;
use std::fmt;
use std::time::Duration;

/// Time that rules have in any case: a short deadline is no reason not to ask them.
pub(super) const LEAST_TIME: Duration = Duration::from_millis(20);

/// An action whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rung<'p> {
    /// Name of the rule; `None` where none holds.
    pub rule: Option<&'p str>,
    /// What is to be done.
    pub action: &'p Action,
    /// What follows on the same ladder.
    pub rest: &'p [Action],
    /// Whether what comes of it may have another rule take over.
    pub is_watched: bool,
}

/// The ladders of a policy in one hold.
///
/// The first rule that holds is on. As long as that is the same its ladder goes on; when it
/// is another, that one's begins. None begins twice, so that there is an end. What is done
/// where no rule holds is like a last rule that always does.
pub struct Ladders<'p> {
    places: Vec<Place<'p>>,
    /// Which of them is on.
    at: Option<usize>,
    /// What rules see; `None` where there are none.
    seen: Option<Context<'static, 'static>>,
    patience: Patience,
    /// What the first asking may take.
    first_time: Duration,
    problems: Vec<String>,
}

/// What is said of a rule that fails.
pub(super) fn passed_over(rule: &str, error: &str) -> String {
    format!("rule {rule:?} was passed over: {error}")
}

/// A ladder, and when it is on.
struct Place<'p> {
    rule: Option<&'p str>,
    when: Option<&'p Condition>,
    left: &'p [Action],
    has_begun: bool,
    /// Whether it holds, where that stays as it is.
    holds: Option<bool>,
}

impl fmt::Debug for Ladders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ladders").field("at", &self.at).field("problems", &self.problems).finish_non_exhaustive()
    }
}

impl<'p> Ladders<'p> {
    /// Those for an incident. Who owns the heap is looked at only if a rule wants to know.
    #[must_use]
    pub fn of(policy: &'p Policy, incident: &Incident) -> Self {
        let path = incident.memcg.as_ref().map_or("", |memcg| memcg.path.as_str());
        let rules = policy.rules_for(path).filter(|rule| !rule.ladder.is_empty());
        let mut places: Vec<Place<'p>> =
            rules.map(|rule| Place::new(Some(&rule.name), Some(&rule.when), &rule.ladder)).collect();
        let (mut problems, patience) = (Vec::new(), Patience::new(MOST_TIME));
        let seen = if places.is_empty() {
            None
        } else {
            let sees_stacks = places.iter().any(|place| place.when.is_some_and(|when| when.sees_stacks));
            let context = View::of(incident, &policy.worths, sees_stacks).context(&patience);
            context.map_err(|error| problems.push(format!("all rules were passed over: {error}"))).ok()
        };
        places.push(Place::new(None, None, &policy.otherwise));
        Ladders { places, at: None, seen, patience, first_time: MOST_TIME, problems }
    }

    /// The same where a hold lasts so much longer at most: half of it is for the rules.
    #[must_use]
    pub fn within(mut self, left: Duration) -> Self {
        self.first_time = (left / 2).clamp(LEAST_TIME, MOST_TIME);
        self
    }

    /// What is to be done after these steps; `None` where nothing is left.
    pub fn next(&mut self, steps: &[Step]) -> Option<Rung<'p>> {
        if let Some(context) = &mut self.seen
            && let Err(error) = see_steps(context, steps)
        {
            self.problems.push(format!("rules do not see what was tried: {error}"));
        }
        self.patience.renew(if steps.is_empty() { self.first_time } else { MOST_TIME });
        let at = (0..self.places.len()).find(|&at| self.may_be_on(at) && self.holds(at))?;
        self.at = Some(at);
        let is_watched = (0..=at).any(|at| self.may_be_on(at) && self.places[at].sees_steps());
        let place = &mut self.places[at];
        place.has_begun = true;
        let (action, rest) = place.left.split_first()?;
        place.left = rest;
        Some(Rung { rule: place.rule, action, rest, is_watched })
    }

    fn may_be_on(&self, at: usize) -> bool {
        !self.places[at].has_begun || self.at == Some(at)
    }

    /// Whether its rule holds. One that fails is not asked again.
    fn holds(&mut self, at: usize) -> bool {
        let (place, seen, patience) = (&mut self.places[at], &self.seen, &self.patience);
        let Some(when) = place.when else { return true };
        if let Some(holds) = place.holds {
            return holds;
        }
        let answer = seen.as_ref().map_or(Ok(false), |context| when.holds(context, patience));
        // The incident stays as it is; only what was tried grows.
        place.holds = (answer.is_err() || !when.sees_steps).then_some(answer == Ok(true));
        answer.unwrap_or_else(|error| {
            let name = place.rule.unwrap_or_default();
            self.problems.push(passed_over(name, &error));
            false
        })
    }

    /// Rules that failed, each a sentence.
    #[must_use]
    pub fn into_problems(self) -> Vec<String> {
        self.problems
    }
}

impl<'p> Place<'p> {
    fn new(rule: Option<&'p str>, when: Option<&'p Condition>, left: &'p [Action]) -> Self {
        Place { rule, when, left, has_begun: false, holds: None }
    }

    /// Whether it may hold, or not hold any more, after the next action.
    fn sees_steps(&self) -> bool {
        self.holds.is_none() && self.when.is_some_and(|when| when.sees_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::Rule;
    use super::*;
    use crate::cgroup::Which;
    use crate::incident::model::StepOutcome;

    fn incident() -> Incident {
        serde_json::from_str(include_str!("../../../fixtures/incidents/sort.json")).unwrap()
    }

    fn rule(name: &str, when: &str, ladder: &[&str]) -> Rule {
        let ladder = ladder.iter().map(|action| action.parse().unwrap()).collect();
        Rule { name: name.to_owned(), matches: None, when: Condition::parse(when).unwrap(), collect: None, ladder }
    }

    /// Climbs to the end, where nothing helps: `RULE: ACTION` each, and what failed.
    fn climbed(policy: &Policy) -> (Vec<String>, Vec<String>) {
        let mut ladders = Ladders::of(policy, &incident());
        let (mut steps, mut told): (Vec<Step>, Vec<String>) = (Vec::new(), Vec::new());
        while let Some(rung) = ladders.next(&steps) {
            assert!(steps.len() < 100, "it has no end: {told:?}");
            told.push(format!("{}: {}", rung.rule.unwrap_or("-"), rung.action));
            steps.push(Step { rule: rung.rule.map(str::to_owned), ..in_vain(rung.action) });
        }
        (told, ladders.into_problems())
    }

    fn in_vain(action: &Action) -> Step {
        Step {
            action: action.to_string(),
            reason: String::new(),
            outcome: StepOutcome::NotEnough,
            effect: String::new(),
            usage_before_bytes: 7,
            usage_after_bytes: 5,
            limit_us: 1,
            took_us: 1,
            candidates: Vec::new(),
            rule: None,
        }
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy { rules, ..Policy::fixed(vec![Action::Reclaim, Action::Defer]) }
    }

    #[test]
    fn without_rules_and_where_none_holds_it_is_the_last_ladder() {
        let last = ["-: reclaim", "-: defer"];
        assert_eq!(climbed(&policy(Vec::new())), (last.map(str::to_owned).to_vec(), Vec::new()));
        assert_eq!(climbed(&policy(vec![rule("no", "age < 0", &["kill"])])).0, last);
        let elsewhere = Rule { matches: Some(Which::at("/elsewhere/*").unwrap()), ..rule("else", "true", &["kill"]) };
        assert_eq!(climbed(&policy(vec![elsewhere])).0, last);
    }

    #[test]
    fn the_first_that_holds_is_climbed_to_its_end_and_no_other() {
        let rules = vec![rule("a", "true", &["grant=1M", "kill"]), rule("late", "true", &["freeze"])];
        assert_eq!(climbed(&policy(rules)).0, ["a: grant=1M", "a: kill"]);
    }

    #[test]
    fn another_that_holds_by_what_was_tried_takes_over() {
        let in_vain = "steps.exists(s, s.action.startsWith('throttle') && s.outcome != 'relieved')";
        let rules = |ladder: &[&str]| vec![rule("b", in_vain, &["kill"]), rule("a", "true", ladder)];
        // At the end of the other's ladder, and in the middle of it.
        assert_eq!(climbed(&policy(rules(&["throttle=1s"]))).0, ["a: throttle=1s", "b: kill"]);
        assert_eq!(climbed(&policy(rules(&["throttle=1s", "freeze"]))).0, ["a: throttle=1s", "b: kill"]);
        // After the last ladder, too.
        let last =
            Policy { rules: vec![rule("b", in_vain, &["kill"])], ..Policy::fixed(vec!["throttle".parse().unwrap()]) };
        assert_eq!(climbed(&last).0, ["-: throttle=3s", "b: kill"]);
    }

    #[test]
    fn who_may_take_over_is_known() {
        let watched = |rules: Vec<Rule>| {
            let policy = policy(rules);
            let mut ladders = Ladders::of(&policy, &incident());
            let (first, step) = (ladders.next(&[]).unwrap().is_watched, in_vain(&Action::Kill));
            (first, ladders.next(&[step]).is_some_and(|rung| rung.is_watched))
        };
        let steps = || rule("steps", "size(steps) == 1", &["freeze", "kill"]);
        let always = || rule("always", "true", &["grant=1M", "kill"]);
        assert_eq!(watched(vec![always(), steps()]), (false, false));
        // When it has taken over, it may be given up again.
        assert_eq!(watched(vec![steps(), always()]), (true, true));
        assert_eq!(watched(vec![steps()]), (true, true));
        // One that failed is not asked any more.
        let fails = rule("fails", "size(steps) < 9 && stacks[0].share > 0.0", &["kill"]);
        assert_eq!(watched(vec![fails, always()]), (false, false));
    }

    #[test]
    fn none_begins_twice() {
        let even = "size(steps) == 0 || size(steps) == 2 || size(steps) == 4";
        let rules =
            vec![rule("even", even, &["grant=1M", "grant=2M"]), rule("odd", "true", &["kill", "freeze", "ask"])];
        // What took over goes on where it was; who was left is not asked any more.
        assert_eq!(climbed(&policy(rules)).0, ["even: grant=1M", "odd: kill", "odd: freeze=300s", "odd: ask=30s"]);
        let first = vec![rule("first", "size(steps) == 0", &["grant=1M", "kill"])];
        assert_eq!(climbed(&policy(first)).0, ["first: grant=1M", "-: reclaim", "-: defer"]);
    }

    #[test]
    fn one_that_panics_is_passed_over_and_told() {
        let panics = Rule { when: Condition::panicking(), ..rule("bad", "true", &["kill"]) };
        let (told, problems) = climbed(&policy(vec![panics, rule("good", "true", &["grant=1M"])]));
        assert_eq!(told, ["good: grant=1M"]);
        assert!(
            problems.len() == 1 && problems[0].starts_with("rule \"bad\" was passed over: it panicked: "),
            "{problems:?}"
        );
    }

    #[test]
    fn one_that_would_take_minutes_is_left_soon_and_the_next_is_asked() {
        // The incident's counters in each other, which the sample has few of. What || absorbs
        // does not hide it.
        let slow = ["a", "b", "c", "d"]
            .iter()
            .rev()
            .fold("a + b + c + d != ''".to_owned(), |inner, name| format!("memcg.stat.all({name}, {inner})"));
        let counters = incident().memcg.unwrap().stat.len();
        assert!(counters > 30, "{counters}");
        let rules = vec![rule("slow", &format!("{slow} || true"), &["kill"]), rule("good", "true", &["grant=1M"])];
        let begun = std::time::Instant::now();
        let (told, problems) = climbed(&policy(rules));
        let took = begun.elapsed();
        assert_eq!(told, ["good: grant=1M"]);
        assert!(problems.len() == 1 && problems[0].starts_with("rule \"slow\" was passed over: it "), "{problems:?}");
        // A hundred times as long without a limit.
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn rules_have_time_again_before_each_action() {
        let policy = policy(vec![rule("b", "size(steps) > 0", &["kill"])]);
        let mut ladders = Ladders::of(&policy, &incident());
        let first = ladders.next(&[]).unwrap();
        std::thread::sleep(MOST_TIME + Duration::from_millis(50));
        let second = ladders.next(&[in_vain(first.action)]).unwrap();
        assert_eq!((first.rule, second.rule), (None, Some("b")), "{:?}", ladders.into_problems());
    }

    #[test]
    fn a_short_deadline_leaves_little_time_but_some() {
        for (left_ms, first_ms) in [(0, 20), (100, 50), (60_000, 200)] {
            let policy = policy(Vec::new());
            let ladders = Ladders::of(&policy, &incident()).within(Duration::from_millis(left_ms));
            assert_eq!(ladders.first_time, Duration::from_millis(first_ms));
        }
    }

    #[test]
    fn one_that_fails_is_passed_over_and_told_once() {
        let rules = vec![
            // This incident has no heap, so there is no first stack.
            rule("fails", "size(steps) < 9 && stacks[0].share > 0.0", &["kill"]),
            rule("leak", "memcg.usage > 0", &["grant=1M", "kill"]),
        ];
        let (told, problems) = climbed(&policy(rules));
        assert_eq!(told, ["leak: grant=1M", "leak: kill"]);
        assert!(problems.len() == 1 && problems[0].contains("\"fails\""), "{problems:?}");
    }
}
