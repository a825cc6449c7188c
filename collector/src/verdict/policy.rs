//! Which ladder: the first rule whose condition holds.

use super::view::View;
use super::worth::Worths;
use super::{Action, kill};
use crate::cgroup::Glob;
use crate::incident::model::Incident;
use crate::incident::units;
use cel::{Program, Value};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A condition in CEL, the Common Expression Language, over a [`View`].
#[derive(Clone)]
pub struct Condition {
    text: String,
    program: Arc<Program>,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    /// Compiles, and tries it on a sample, so that a name that does not exist is
    /// told now and not in an OOM.
    pub fn parse(text: &str) -> Result<Self, String> {
        let program = Program::compile(text).map_err(|errors| {
            // Its message goes on with the text and an arrow below it.
            let message = errors.to_string();
            let first = message.lines().next().unwrap_or_default().to_owned();
            first.replace("ERROR: <input>:", "at line:column ")
        })?;
        let condition = Condition { text: text.to_owned(), program: Arc::new(program) };
        condition.holds(&View::sample())?;
        Ok(condition)
    }

    /// Whether it holds; the error is a sentence.
    pub fn holds(&self, view: &View) -> Result<bool, String> {
        match self.program.execute(&view.context()?) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("it is {}, not true or false; compare it with something", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether it looks at who owns the heap.
    fn wants_stacks(&self) -> bool {
        let references = self.program.references();
        references.has_variable("stacks") || references.has_function("share")
    }
}

/// When, and what then.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name, for people.
    pub name: String,
    /// The memcgs that it is for; all of them without.
    pub matches: Option<Glob>,
    /// When it is the one.
    pub when: Condition,
    /// What is done, in order.
    pub ladder: Vec<Action>,
}

/// Rules in order, and what is done where none holds.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Rules.
    pub rules: Vec<Rule>,
    /// The ladder where none holds.
    pub otherwise: Vec<Action>,
    /// Which memcgs are worth what, for a kill.
    pub worths: Worths,
}

/// What a policy chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice<'p> {
    /// Name of the rule; `None` where none holds.
    pub rule: Option<&'p str>,
    /// What is to be done, in order.
    pub ladder: &'p [Action],
    /// Rules that could not be told, each a sentence.
    pub problems: Vec<String>,
}

impl Choice<'_> {
    /// Whether its first action is `wanted`: with its value, `grant=64M`, or of any,
    /// `grant`.
    #[must_use]
    pub fn begins_with(&self, wanted: &str) -> bool {
        let first = self.ladder.first().map(ToString::to_string).unwrap_or_default();
        first == wanted || first.split_once('=').is_some_and(|(name, _)| name == wanted)
    }

    /// Whom a kill would have begun with, where the ladder has one: name, PID, and bytes that
    /// it frees. Jobs and reservations below the memcg are not recorded, so they do not
    /// count.
    fn victim(&self, incident: &Incident) -> Option<(String, i32, u64)> {
        let targets = kill::rank(&incident.processes, &kill::Homes::default());
        let first = targets.into_iter().next().filter(|_| self.ladder.contains(&Action::Kill))?.candidate;
        Some((first.comm, first.pid, first.size_bytes))
    }

    fn actions(&self) -> Vec<String> {
        self.ladder.iter().map(ToString::to_string).collect()
    }

    /// For people: the rule, whom a kill begins with, and all actions.
    #[must_use]
    pub fn told(&self, incident: &Incident) -> [String; 3] {
        let victim = self.victim(incident);
        let victim = victim
            .map_or_else(|| "-".to_owned(), |(comm, pid, bytes)| format!("{comm} [{pid}], {}", units::bytes(bytes)));
        [self.rule.unwrap_or("(no rule)").to_owned(), victim, self.actions().join(", ")]
    }

    /// The same for a script.
    #[must_use]
    pub fn json(&self, incident: &Incident) -> String {
        let (id, rule, actions, problems) = (&incident.id, self.rule, self.actions(), &self.problems);
        let victim = self.victim(incident);
        let victim =
            victim.map(|(comm, pid, bytes)| serde_json::json!({ "comm": comm, "pid": pid, "size_bytes": bytes }));
        let json = serde_json::json!({
            "id": id, "rule": rule, "actions": actions, "kill_begins_with": victim, "problems": problems,
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

    /// Whether it may ever wait for a person.
    #[must_use]
    pub fn may_ask(&self) -> bool {
        let ladders = self.rules.iter().map(|rule| &rule.ladder).chain([&self.otherwise]);
        ladders.flatten().any(|action| matches!(action, Action::Ask(_) | Action::Freeze(_)))
    }

    /// The ladder for an incident. A rule that fails is passed over and told.
    #[must_use]
    pub fn choose(&self, incident: &Incident) -> Choice<'_> {
        let mut problems = Vec::new();
        if !self.rules.is_empty() {
            let view = View::of(incident, &self.worths, self.rules.iter().any(|rule| rule.when.wants_stacks()));
            let is_for = |rule: &&Rule| rule.matches.as_ref().is_none_or(|glob| glob.matches(&view.memcg.path));
            for rule in self.rules.iter().filter(is_for) {
                match rule.when.holds(&view) {
                    Ok(true) => return Choice { rule: Some(&rule.name), ladder: &rule.ladder, problems },
                    Ok(false) => {}
                    Err(error) => problems.push(format!("rule {:?} was passed over: {error}", rule.name)),
                }
            }
        }
        Choice { rule: None, ladder: &self.otherwise, problems }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::Stack;
    use super::*;

    fn view() -> View {
        let mut view = View::sample();
        (view.memcg.usage, view.memcg.limit, view.growth) = (96e6, 100e6, 2e6);
        let stack = |name: &str, share: f64| Stack { functions: vec!["main".into(), name.into()], size: share, share };
        view.stacks = vec![stack("Cache::insert", 0.5), stack("Cache::grow", 0.25), stack("parse", 0.25)];
        view
    }

    #[test]
    fn conditions() {
        for (text, holds) in [
            ("memcg.usage / memcg.limit > 0.95", true),
            ("growth > size_of('1M')", true),
            ("memcg.limit < size_of('1M')", false),
            ("share('Cache::') == 0.75", true),
            ("stacks[0].functions.exists(f, f == 'Cache::insert') && age < 60", true),
            ("processes.exists(p, p.name == 'redis-server')", false),
            ("memcg.path.startsWith('/batch') || 'anon' in memcg.stat", true),
            ("memcg.path.matches('^/a$')", true),
            ("priority < 0 && reservation == 0", false),
            ("!('pressure' in known) || pressure.some > 10 && pressure.scope == 'memcg'", false),
        ] {
            assert_eq!(Condition::parse(text).unwrap().holds(&view()), Ok(holds), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_before_they_matter() {
        for (text, part) in [
            ("memcg.usage >", "at line:column 1:14"),
            ("memgc.usage > 1", "memgc"),
            ("memcg.usge > 1", "usge"),
            ("memcg.usage", "not true or false"),
            ("growth > size_of('much')", "not a size"),
            ("'a' > 1", "overload"),
        ] {
            let error = Condition::parse(text).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_that_holds_and_none_that_fails() {
        let rule = |name: &str, when: &str, action: Action| Rule {
            name: name.to_owned(),
            matches: None,
            when: Condition::parse(when).unwrap(),
            ladder: vec![action],
        };
        let incident = include_str!("../../../fixtures/incidents/sort.json");
        let incident: Incident = serde_json::from_str(incident).unwrap();
        let mut policy = Policy::fixed(vec![Action::Kill]);
        assert_eq!(policy.choose(&incident), Choice { rule: None, ladder: &[Action::Kill], problems: Vec::new() });
        policy.rules = vec![
            rule("fails", "stacks[0].share > 0.0 && processes[0].size > 0.0", Action::Kill),
            rule("no", "memcg.limit > size_of('1T')", Action::Kill),
            rule("leak", "memcg.usage > 0", Action::Grant(1 << 20)),
            rule("late", "true", Action::Kill),
        ];
        let choice = policy.choose(&incident);
        assert_eq!((choice.rule, choice.ladder), (Some("leak"), &[Action::Grant(1 << 20)][..]));
        // One that is for other memcgs is not tried.
        let path = incident.memcg.as_ref().unwrap().path.clone();
        policy.rules.insert(
            0,
            Rule { matches: Some(Glob::parse("/elsewhere/*").unwrap()), ..rule("else", "true", Action::Kill) },
        );
        assert_eq!(policy.choose(&incident).rule, Some("leak"));
        policy.rules[0].matches = Some(Glob::parse(&path).unwrap());
        assert_eq!(policy.choose(&incident).rule, Some("else"));
        policy.rules.remove(0);
        let choice = policy.choose(&incident);
        // This incident has no heap, so there is no first stack.
        assert!(choice.problems.len() == 1 && choice.problems[0].contains("\"fails\""), "{:?}", choice.problems);
    }
}
