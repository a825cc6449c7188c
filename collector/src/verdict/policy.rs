//! Rules, and what they would have done about an incident.

use super::collect::Collection;
use super::ladders::Ladders;
use super::patience::MOST_TIME;
use super::worth::Worths;
use super::{Action, Condition, kill};
use crate::cgroup::Which;
use crate::incident::left_out::{self, Part};
use crate::incident::model::{Candidate, Incident, Step, StepOutcome};
use crate::incident::units;
use crate::snapshot::{Collect, Parts};
use std::borrow::Cow;
use std::str::FromStr;

/// When, and what then.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name, for people.
    pub name: String,
    /// The memcgs that it is for; all of them without.
    pub matches: Option<Which>,
    /// When it is the one.
    pub when: Condition,
    /// What is collected, where it says so.
    pub collect: Option<Collect>,
    /// What is done, in order; empty where it says only what is collected.
    pub ladder: Vec<Action>,
}

/// Rules in order, and what is done where none holds.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Rules.
    pub rules: Vec<Rule>,
    /// The ladder where none holds.
    pub otherwise: Vec<Action>,
    /// What is collected where no rule that holds says so.
    pub collect: Collect,
    /// Which memcgs are worth what, for a kill.
    pub worths: Worths,
}

/// What stands for no rule where one has a name.
pub const NO_RULE: &str = "(no rule)";

/// What a policy would have done.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice<'p> {
    /// Names of the rules, the first in front; `None` where none holds.
    pub rules: Vec<Option<&'p str>>,
    /// What is to be done, in order.
    pub actions: Vec<&'p Action>,
    /// Rules that could not be told, each a sentence.
    pub problems: Vec<String>,
    /// Which memcgs are worth what.
    pub worths: &'p Worths,
    /// What is collected before.
    pub collection: Collection,
    /// What would be, by default.
    pub usual: Parts,
}

impl Choice<'_> {
    /// Whether its first action is `wanted`: with its value, `grant=64M`, or of any,
    /// `grant`.
    #[must_use]
    pub fn begins_with(&self, wanted: &str) -> bool {
        let first = self.actions.first().map(ToString::to_string).unwrap_or_default();
        first == wanted || first.split_once('=').is_some_and(|(name, _)| name == wanted)
    }

    /// Whom a kill would have begun with, where there is one.
    fn victim(&self, incident: &Incident) -> Option<Candidate> {
        let candidates = kill::ranked_again(incident, self.worths);
        candidates.into_iter().next().filter(|_| self.actions.contains(&&Action::Kill))
    }

    /// Whether the first rule has this name, [`NO_RULE`] where none holds.
    #[must_use]
    pub fn is_begun_by(&self, rule: &str) -> bool {
        self.rules.first().is_some_and(|first| first.unwrap_or(NO_RULE) == rule)
    }

    /// What would not have been collected, in words; `None` where all would.
    #[must_use]
    pub fn left_out(&self) -> Option<String> {
        self.collection.left_out(self.usual).map(|left_out| left_out::words(&left_out))
    }

    fn actions(&self) -> Vec<String> {
        self.actions.iter().map(ToString::to_string).collect()
    }

    /// For people: the rules, whom a kill begins with, and all actions.
    #[must_use]
    pub fn told(&self, incident: &Incident) -> [String; 3] {
        let victim = self.victim(incident);
        let victim = victim.map_or_else(
            || "-".to_owned(),
            |Candidate { pid, comm, size_bytes, .. }| match pid {
                0 => format!("job {comm}, {}", units::bytes(size_bytes)),
                _ => format!("{comm} [{pid}], {}", units::bytes(size_bytes)),
            },
        );
        let rules: Vec<&str> = self.rules.iter().map(|rule| rule.unwrap_or(NO_RULE)).collect();
        [rules.join(", then "), victim, self.actions().join(", ")]
    }

    /// The same for a script.
    #[must_use]
    pub fn json(&self, incident: &Incident) -> String {
        let (id, actions, problems) = (&incident.id, self.actions(), &self.problems);
        let collected: Vec<&str> = self.collection.parts.iter().map(Part::name).collect();
        let (rule, then) = (self.rules.first().copied().flatten(), self.rules.get(1..).unwrap_or_default());
        let victim = self.victim(incident);
        // As incidents have candidates: the PID of a job is 0, and its name its cgroup's.
        let victim = victim.map(|c| serde_json::json!({ "comm": c.comm, "pid": c.pid, "size_bytes": c.size_bytes }));
        let json = serde_json::json!({
            "id": id, "rule": rule, "then": then, "actions": actions, "kill_begins_with": victim,
            "problems": problems, "collected": collected, "collected_by": self.collection.rule,
        });
        format!("{json}\n")
    }
}

/// Whether this is an action, with its value or without.
#[must_use]
pub fn is_action(text: &str) -> bool {
    let with = |value: &str| Action::from_str(&format!("{text}={value}")).is_ok();
    Action::from_str(text).is_ok() || ["1M", "1s", "USR1", "/a"].into_iter().any(with)
}

impl Policy {
    /// One that always does the same.
    #[must_use]
    pub fn fixed(ladder: Vec<Action>) -> Self {
        Policy { otherwise: ladder, ..Policy::default() }
    }

    /// The same, but that it always does this; rules only say what is collected.
    #[must_use]
    pub fn always(mut self, ladder: Vec<Action>) -> Self {
        self.rules.retain(|rule| rule.collect.is_some());
        self.rules.iter_mut().for_each(|rule| rule.ladder.clear());
        Policy { otherwise: ladder, ..self }
    }

    /// The rules that are for the memcg at `path`.
    pub(super) fn rules_for<'p>(&'p self, path: &str) -> impl Iterator<Item = &'p Rule> {
        self.rules.iter().filter(move |rule| rule.matches.as_ref().is_none_or(|which| which.matches(path)))
    }

    /// Whether it may ever wait for a person.
    #[must_use]
    pub fn may_ask(&self) -> bool {
        let ladders = self.rules.iter().map(|rule| &rule.ladder).chain([&self.otherwise]);
        ladders.flatten().any(|action| matches!(action, Action::Ask(_) | Action::Freeze(_)))
    }

    /// Bytes of the biggest grant on any of its ladders; 0 where there is none.
    #[must_use]
    pub fn biggest_grant(&self) -> u64 {
        let ladders = self.rules.iter().map(|rule| &rule.ladder).chain([&self.otherwise]);
        let bytes = |action: &Action| if let Action::Grant(bytes) = action { *bytes } else { 0 };
        ladders.flatten().map(bytes).max().unwrap_or(0)
    }

    /// What it would have done about a recorded incident. As long as the same was done then,
    /// rules see what came of it; what is not known is taken to go on in order. Of what is `usual`
    /// they see no more than would have been collected.
    #[must_use]
    pub fn replay(&self, incident: &Incident, usual: Parts) -> Choice<'_> {
        let path = incident.memcg.as_ref().map_or("", |memcg| memcg.path.as_str());
        let collection = match self.chooses_evidence(path) {
            true => self.choose(incident, usual, MOST_TIME),
            false => self.collection(usual),
        };
        let mut seen = Cow::Borrowed(incident);
        if !collection.parts.has(Part::Heap) {
            seen.to_mut().processes.iter_mut().for_each(|process| process.heaps.clear());
        }
        let mut ladders = Ladders::of(self, &seen);
        let recorded = incident.verdict.as_ref().map_or(&[][..], |verdict| &verdict.steps);
        let (mut rules, mut actions) = (Vec::new(), Vec::new());
        while let Some(rung) = ladders.next(&recorded[..actions.len()]) {
            if rules.last() != Some(&rung.rule) {
                rules.push(rung.rule);
            }
            let was_in_vain =
                |step: &&Step| step.action == rung.action.to_string() && step.outcome != StepOutcome::Relieved;
            let is_known = recorded.get(actions.len()).filter(was_in_vain).is_some();
            actions.push(rung.action);
            if !is_known {
                actions.extend(rung.rest);
                break;
            }
        }
        let problems = collection.with_problems(ladders.into_problems());
        Choice { rules, actions, problems, worths: &self.worths, collection, usual }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, when: &str, ladder: &[&str]) -> Rule {
        let ladder = ladder.iter().map(|action| action.parse().unwrap()).collect();
        Rule { name: name.to_owned(), matches: None, when: Condition::parse(when).unwrap(), collect: None, ladder }
    }

    fn incident(steps: &[(&str, StepOutcome)]) -> Incident {
        let incident = include_str!("../../../fixtures/incidents/sort.json");
        let mut incident: Incident = serde_json::from_str(incident).unwrap();
        let verdict = incident.verdict.as_mut().unwrap();
        let one = verdict.steps[0].clone();
        let step = |(action, outcome): &(&str, StepOutcome)| {
            let (action, outcome) = ((*action).to_owned(), *outcome);
            Step { action, outcome, ..one.clone() }
        };
        verdict.steps = steps.iter().map(step).collect();
        incident
    }

    #[test]
    fn a_replay_is_what_the_first_rule_would_do() {
        let mut policy = Policy::fixed(vec![Action::Kill]);
        let recorded = incident(&[("kill", StepOutcome::Relieved)]);
        let none = Choice {
            rules: vec![None],
            actions: vec![&Action::Kill],
            problems: Vec::new(),
            worths: &Worths::default(),
            collection: policy.collection(Parts::default()),
            usual: Parts::default(),
        };
        assert_eq!(policy.replay(&recorded, Parts::default()), none);
        policy.rules = vec![
            rule("no", "memcg.limit > size_of('1T')", &["kill"]),
            rule("leak", "memcg.usage > 0", &["grant=1M", "kill"]),
            rule("late", "true", &["kill"]),
        ];
        let choice = policy.replay(&recorded, Parts::default());
        assert_eq!((choice.rules.as_slice(), choice.actions.len()), (&[Some("leak")][..], 2));
        assert!(choice.begins_with("grant") && choice.begins_with("grant=1M") && !choice.begins_with("kill"));
        assert!(choice.is_begun_by("leak") && !choice.is_begun_by("late") && !choice.is_begun_by(NO_RULE));
        assert!(Policy::fixed(vec![Action::Kill]).replay(&recorded, Parts::default()).is_begun_by(NO_RULE));
    }

    #[test]
    fn a_replay_goes_by_what_came_of_the_same_actions() {
        let in_vain = "steps.exists(s, s.action.startsWith('throttle') && s.outcome != 'relieved')";
        let rules = vec![rule("b", in_vain, &["kill"]), rule("a", "true", &["throttle=1s", "freeze"])];
        let policy = Policy { rules, ..Policy::fixed(vec![Action::Defer]) };
        let told = |steps: &[(&str, StepOutcome)]| {
            let incident = incident(steps);
            let [rules, _, actions] = policy.replay(&incident, Parts::default()).told(&incident);
            (rules, actions)
        };
        let both = ("a, then b".to_owned(), "throttle=1s, kill".to_owned());
        assert_eq!(told(&[("throttle=1s", StepOutcome::NotEnough), ("kill", StepOutcome::Relieved)]), both);
        assert_eq!(told(&[("throttle=1s", StepOutcome::Failed)]), both);
        // It helped, or something else was done: what would have come of it is not known.
        let first = ("a".to_owned(), "throttle=1s, freeze=300s".to_owned());
        assert_eq!(told(&[("throttle=1s", StepOutcome::Relieved)]), first);
        assert_eq!(told(&[("throttle=2s", StepOutcome::NotEnough)]), first);
        assert_eq!(told(&[]), first);
        // Nobody is asked after what helped.
        let rules = vec![rule("b", "size(steps) == 1", &["kill"]), rule("a", "true", &["throttle=1s", "freeze"])];
        let policy = Policy { rules, ..Policy::fixed(vec![Action::Defer]) };
        for (outcome, rules) in [(StepOutcome::NotEnough, "a, then b"), (StepOutcome::Relieved, "a")] {
            let incident = incident(&[("throttle=1s", outcome)]);
            assert_eq!(policy.replay(&incident, Parts::default()).told(&incident)[0], rules, "{outcome:?}");
        }
    }
}
