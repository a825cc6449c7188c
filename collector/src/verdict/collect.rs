//! What is collected, decided before the evidence is taken.
//!
//! Stacks and heaps take time, and hold what not everybody wants on a disk. So rules are asked
//! by what is known for next to nothing, and those that ask for the heap are not: what they
//! need is collected as long as they may be the ones that decide
//! ([why](../../../docs/decisions/0028-what-is-collected-is-decided-first.md)).

use super::ladders::LEAST_TIME;
use super::patience::{MOST_TIME, Patience};
use super::policy::{Policy, Rule};
use super::view::View;
use crate::incident::left_out::{LeftOut, Part};
use crate::incident::model::Incident;
use crate::snapshot::{Collect, Parts};
use std::time::Duration;

/// What is collected in an OOM, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// What.
    pub parts: Parts,
    /// Name of the rule; `None` where none that holds says it.
    pub rule: Option<String>,
    /// Rules that could not be told, each a sentence.
    pub problems: Vec<String>,
}

impl Collection {
    /// What it lacks of these.
    #[must_use]
    pub fn left_out(&self, of: Parts) -> Option<LeftOut> {
        let parts: Vec<Part> = of.iter().filter(|part| !self.parts.has(*part)).collect();
        (!parts.is_empty()).then(|| LeftOut { parts, rule: self.rule.clone() })
    }

    /// What was wrong here and later, each once.
    #[must_use]
    pub fn with_problems(&self, later: Vec<String>) -> Vec<String> {
        let is_new = |problem: &String| !self.problems.contains(problem);
        self.problems.iter().cloned().chain(later.into_iter().filter(is_new)).collect()
    }
}

impl Policy {
    /// Whether rules are to be asked what is collected of the memcg at `path`.
    #[must_use]
    pub fn chooses_evidence(&self, path: &str) -> bool {
        let has_heap = self.collect.parts(Parts::NONE).has(Part::Heap) || self.collect == Collect::default();
        self.rules_for(path).any(|rule| rule.collect.is_some() || (rule.when.sees_heap && !has_heap))
    }

    /// What is collected without asking rules, where those are the `usual` parts.
    #[must_use]
    pub fn collection(&self, usual: Parts) -> Collection {
        Collection { parts: self.collect.parts(usual), rule: None, problems: Vec::new() }
    }

    /// What is collected by what is known of an incident `early`; a hold lasts for so much
    /// longer.
    #[must_use]
    pub fn choose(&self, early: &Incident, usual: Parts, left: Duration) -> Collection {
        let mut collection = self.collection(usual);
        let path = early.memcg.as_ref().map_or("", |memcg| memcg.path.as_str());
        let patience = Patience::new((left / 2).clamp(LEAST_TIME, MOST_TIME));
        let seen = match View::of(early, &self.worths, false).context(&patience) {
            Ok(seen) => seen,
            Err(error) => {
                collection.problems.push(format!("no rule was asked what is collected: {error}"));
                return collection;
            }
        };
        let mut chosen: Option<(&Rule, Collect)> = None;
        let (mut is_decided, mut needs_heap) = (false, false);
        for rule in self.rules_for(path) {
            let may_choose = rule.collect.filter(|_| chosen.is_none());
            let may_decide = !is_decided && !rule.ladder.is_empty();
            if rule.when.sees_heap {
                needs_heap |= may_decide;
                continue;
            }
            if may_choose.is_none() && !may_decide {
                continue;
            }
            match rule.when.holds(&seen, &patience) {
                Ok(false) => {}
                Ok(true) => {
                    chosen = chosen.or(may_choose.map(|collect| (rule, collect)));
                    // One that looks at what was tried may be given up for another.
                    is_decided |= may_decide && !rule.when.sees_steps;
                }
                Err(error) => collection.problems.push(super::ladders::passed_over(&rule.name, &error)),
            }
        }
        if let Some((rule, collect)) = chosen {
            (collection.parts, collection.rule) = (collect.parts(usual), Some(rule.name.clone()));
        }
        if needs_heap {
            collection.parts = collection.parts.with(Part::Heap);
        }
        collection
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Condition};
    use super::*;
    use crate::cgroup::Which;

    fn rule(name: &str, when: &str, collect: Option<&[&str]>, ladder: &[Action]) -> Rule {
        let collect = collect.map(|words| Collect::of(words.iter().copied()).unwrap());
        let (name, when, ladder) = (name.to_owned(), Condition::parse(when).unwrap(), ladder.to_vec());
        Rule { name, matches: None, when, collect, ladder }
    }

    /// The rule that says what is collected, and what is not.
    fn told(collect: &[&str], rules: Vec<Rule>) -> (String, Vec<&'static str>) {
        let mut policy = Policy { rules, ..Policy::fixed(vec![Action::Defer]) };
        policy.collect = Collect::of(collect.iter().copied()).unwrap();
        let incident: Incident = serde_json::from_str(include_str!("../../../fixtures/incidents/sort.json")).unwrap();
        let path = incident.memcg.as_ref().unwrap().path.clone();
        let collection = match policy.chooses_evidence(&path) {
            true => policy.choose(&incident, Parts::default(), Duration::from_secs(5)),
            false => policy.collection(Parts::default()),
        };
        let left_out = collection.left_out(Parts::default()).map_or_else(Vec::new, |left_out| left_out.parts);
        (collection.rule.unwrap_or_default(), left_out.into_iter().map(Part::name).collect())
    }

    const KILL: &[Action] = &[Action::Kill];
    const LEAN: &[&str] = &["stacks", "malloc", "mappings", "growth"];

    #[test]
    fn the_first_that_holds_and_says_it_does() {
        let lean = ["heap", "accounting"];
        let sort = "processes.exists(p, p.name == 'sort') && memcg.usage > size_of('1M')";
        assert_eq!(told(&["all"], Vec::new()), (String::new(), vec![]));
        assert_eq!(told(LEAN, Vec::new()), (String::new(), lean.to_vec()));
        let two = |first: &str| {
            vec![
                rule("other", "age < 0", Some(&[]), KILL),
                // It says nothing of it, so the next one may.
                rule("silent", "true", None, KILL),
                rule("sort", first, Some(LEAN), &[]),
                rule("late", "true", Some(&["all"]), KILL),
            ]
        };
        assert_eq!(told(&["all"], two(sort)), ("sort".to_owned(), lean.to_vec()));
        assert_eq!(told(&[], two("age < 0")), ("late".to_owned(), vec![]));
        let elsewhere =
            Rule { matches: Some(Which::at("/elsewhere").unwrap()), ..rule("else", "true", Some(&[]), KILL) };
        assert_eq!(told(&["all"], vec![elsewhere]), (String::new(), vec![]));
    }

    #[test]
    fn what_rules_need_that_may_decide_is_collected_all_the_same() {
        let leak = || rule("leak", "share('Cache') > 0.4 || heap.live > 1", None, KILL);
        let lean = || rule("lean", "true", Some(LEAN), KILL);
        let without_heap = ("lean".to_owned(), vec!["heap", "accounting"]);
        assert_eq!(told(&["all"], vec![lean()]), without_heap);
        assert_eq!(told(&["all"], vec![lean(), leak()]), without_heap);
        assert_eq!(told(&["all"], vec![leak(), lean()]), ("lean".to_owned(), vec!["accounting"]));
        // It has no ladder, so the next may decide.
        assert_eq!(told(&["all"], vec![rule("lean", "true", Some(LEAN), &[]), leak()]).1, ["accounting"]);
        // It may be given up when something was tried.
        let first = rule("lean", "size(steps) == 0", Some(LEAN), KILL);
        assert_eq!(told(&["all"], vec![first, leak()]).1, ["accounting"]);
        // What is configured beside the rules gives way, too.
        assert_eq!(told(LEAN, vec![leak()]), (String::new(), vec!["accounting"]));
        assert_eq!(told(LEAN, vec![rule("a", "true", None, KILL), leak()]).1, ["heap", "accounting"]);
    }

    #[test]
    fn one_that_fails_is_passed_over_and_told() {
        let fails =
            rule("fails", "processes[0].name == 'a' || memcg.stat['anon'] + memcg.stat['rss'] > 0.0", Some(&[]), KILL);
        let policy = Policy { rules: vec![fails], ..Policy::default() };
        let incident: Incident = serde_json::from_str(include_str!("../../../fixtures/incidents/sort.json")).unwrap();
        let collection = policy.choose(&incident, Parts::default(), Duration::from_secs(5));
        assert_eq!((collection.parts, collection.rule), (Parts::default(), None));
        assert!(collection.problems[0].starts_with("rule \"fails\" was passed over: "), "{:?}", collection.problems);
    }
}
