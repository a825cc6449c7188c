//! What the ladder does, with a brake that only tells.

use super::policy::{Policy, Rule};
use super::*;
use crate::cgroup::Hierarchy;
use crate::hold::watchdog::Debt;
use crate::hold::{HandBack, Look};
use crate::signals::Signals;
use std::fs::File;
use std::os::fd::AsFd;

/// A brake whose hold may have ended, and which tells what it was asked for.
#[derive(Debug)]
struct Told {
    bell: File,
    is_over: bool,
    grants: u32,
    given_up: bool,
    resumed: bool,
}

impl Brake for Told {
    fn name(&self) -> &'static str {
        "told"
    }
    fn bells(&self) -> Vec<PollFd<'_>> {
        vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)]
    }
    fn look_again(&self) -> Duration {
        Duration::ZERO
    }
    fn look(&mut self) -> Result<Look, CgroupError> {
        Ok(Look::Well)
    }
    fn exposed(&self) -> Duration {
        Duration::ZERO
    }
    fn stop(&mut self, _: Instant) -> Result<StoppedThreads, CgroupError> {
        Ok(StoppedThreads::default())
    }
    fn resume(&mut self, _: StoppedThreads) -> Result<(), CgroupError> {
        self.resumed = true;
        Ok(())
    }
    fn is_well(&self) -> Result<bool, CgroupError> {
        Ok(self.is_over)
    }
    fn ended_by_itself(&mut self) -> bool {
        self.is_over
    }
    fn grant(&mut self, _: u64) -> Result<(), CgroupError> {
        self.grants += 1;
        Ok(())
    }
    fn granted(&self) -> u64 {
        u64::from(self.grants) << 20
    }
    fn give_up(&mut self) -> Result<(), CgroupError> {
        self.given_up = true;
        Ok(())
    }
    fn rearm(&mut self) -> Result<(), CgroupError> {
        Ok(())
    }
    fn debts(&self) -> Vec<Debt> {
        Vec::new()
    }
    fn hand_back(&self) -> HandBack {
        HandBack::default()
    }
    fn release_late(&mut self) -> bool {
        true
    }
    fn limit(&self) -> u64 {
        64 << 20
    }
    fn level(&self) -> u64 {
        64 << 20
    }
}

/// The verdict on a hold of nobody, in a memcg that is full.
fn decided(is_over: bool, ladder: &[Action]) -> (Verdict, Told) {
    decided_by(None, &Policy::fixed(ladder.to_vec()), is_over)
}

/// The same by a policy, and where it may be granted so much.
fn decided_by(allowance: Option<&Allowance>, policy: &Policy, is_over: bool) -> (Verdict, Told) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("memory.current"), (60 << 20).to_string()).unwrap();
    std::fs::write(dir.path().join("memory.max"), (64 << 20).to_string()).unwrap();
    std::fs::write(dir.path().join("memory.events"), "oom_kill 0\n").unwrap();
    let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().into(), own: "/".to_owned() };
    let memcg = Memcg::at(&hierarchy, "/");
    let mut brake =
        Told { bell: File::open("/dev/null").unwrap(), is_over, grants: 0, given_up: false, resumed: false };
    let mut scene = Scene {
        brake: &mut brake,
        memcg: &memcg,
        cpu: None,
        processes: &[],
        threads: Some(StoppedThreads::default()),
        watchdog: None,
        interrupt: &mut Signals::block().unwrap(),
        asking: Asking::default(),
        next: Vec::new(),
        is_watched: false,
        is_deferred: false,
        released: None,
        kernel_kills: Some(0),
        other_victims: Vec::new(),
        was_helped: false,
        worths: &worth::Worths::default(),
        allowance,
        by: By::Ladder,
        throttle: None,
    };
    let incident = serde_json::from_str(include_str!("../../../fixtures/incidents/sort.json")).unwrap();
    let verdict = decide(&mut scene, Ladders::of(policy, &incident));
    assert!(scene.released.is_some(), "nobody was let go");
    (verdict, brake)
}

#[test]
fn nothing_is_done_where_memory_is_free_already() {
    let (verdict, brake) = decided(true, &[Action::Kill, Action::Grant(1 << 20)]);
    assert!(verdict.relieved && verdict.steps.is_empty(), "{verdict:?}");
    assert!(verdict.summary.contains("free again") && verdict.summary.contains("4.0 MiB"), "{}", verdict.summary);
    assert_eq!((brake.grants, brake.given_up, brake.resumed), (0, false, true));
}

#[test]
fn a_hold_that_lasts_is_acted_on() {
    let (verdict, brake) = decided(false, &[Action::Grant(1 << 20)]);
    assert!(verdict.relieved, "{verdict:?}");
    assert_eq!(verdict.steps.iter().map(|step| &*step.action).collect::<Vec<_>>(), ["grant=1M"]);
    assert_eq!((brake.grants, brake.given_up, brake.resumed), (1, false, true));
}

#[test]
fn what_is_deferred_is_the_kernels_at_once() {
    let (verdict, brake) = decided(false, &[Action::Defer]);
    assert_eq!((verdict.relieved, &*verdict.summary), (false, "defer: the kernel's OOM killer decides"));
    assert_eq!((brake.grants, brake.given_up, brake.resumed), (0, true, true));
}

#[test]
fn without_any_action_the_kernel_decides() {
    let (verdict, brake) = decided(true, &[]);
    assert!(verdict.relieved && !brake.given_up, "{verdict:?}");
    let (verdict, brake) = decided(false, &[]);
    assert!(!verdict.relieved, "{verdict:?}");
    assert!(brake.given_up && brake.resumed);
}

#[test]
fn a_rule_takes_over_when_it_holds_by_what_was_tried() {
    let rule = |name: &str, when: &str, action: Action| Rule {
        name: name.to_owned(),
        matches: None,
        when: Condition::parse(when).unwrap(),
        collect: None,
        ladder: vec![action],
    };
    let in_vain = "steps.exists(s, s.action.startsWith('throttle') && s.outcome != 'relieved' && s.seconds > 0.01)";
    let rules = vec![
        rule("fails", "stacks[0].share > 0.0", Action::Defer),
        rule("more", in_vain, Action::Grant(1 << 20)),
        rule("slow", "true", Action::Throttle(Duration::from_millis(50))),
    ];
    let (verdict, brake) = decided_by(None, &Policy { rules, ..Policy::fixed(vec![Action::Kill]) }, false);
    let told: Vec<_> = verdict.steps.iter().map(|step| (&*step.action, step.rule.as_deref(), step.outcome)).collect();
    let expected =
        [("throttle=50ms", Some("slow"), StepOutcome::NotEnough), ("grant=1M", Some("more"), StepOutcome::Relieved)];
    assert_eq!(told, expected);
    assert_eq!((verdict.rule.as_deref(), verdict.problems.len(), brake.grants), (Some("more"), 1, 1));
}

#[test]
fn whose_verdict_it_was_is_told_where_nothing_was_done() {
    let when = Condition::parse("true").unwrap();
    let rules = vec![Rule { name: "a".to_owned(), matches: None, when, collect: None, ladder: vec![Action::Kill] }];
    let (verdict, _) = decided_by(None, &Policy { rules, ..Policy::default() }, true);
    assert_eq!((verdict.rule.as_deref(), verdict.steps.len()), (Some("a"), 0));
}

#[test]
fn what_would_be_too_much_is_not_granted() {
    let purse = purse::Purse::new(Some(2 << 20));
    let allowance = purse.allowance(7, Some(2 << 20), 0);
    let ladder = [Action::Grant(3 << 20), Action::Grant(1 << 20)];
    let (verdict, brake) = decided_by(Some(&allowance), &Policy::fixed(ladder.to_vec()), false);
    assert_eq!(verdict.steps[0].outcome, StepOutcome::Failed);
    assert!(verdict.steps[0].effect.starts_with("refused: it would have been granted 3.0 MiB"), "{verdict:?}");
    assert_eq!((verdict.relieved, verdict.steps.len(), brake.grants), (true, 2, 1));
    // What is out by then counts.
    let (verdict, brake) = decided_by(Some(&allowance), &Policy::fixed(vec![Action::Grant(3 << 19)]), false);
    assert!(verdict.steps[0].effect.contains("2.5 MiB") && brake.grants == 0, "{verdict:?}");
}
