//! What the ladder does, with a brake that only tells.

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
    decided_within(None, is_over, ladder)
}

/// The same where it may be granted so much.
fn decided_within(allowance: Option<&Allowance>, is_over: bool, ladder: &[Action]) -> (Verdict, Told) {
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
        is_deferred: false,
        released: None,
        kernel_kills: Some(0),
        other_victims: Vec::new(),
        was_helped: false,
        worths: &worth::Worths::default(),
        allowance,
        throttle: None,
    };
    let verdict = decide(&mut scene, ladder);
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
fn what_would_be_too_much_is_not_granted() {
    let purse = purse::Purse::new(Some(2 << 20));
    let allowance = purse.allowance(7, Some(2 << 20));
    let ladder = [Action::Grant(3 << 20), Action::Grant(1 << 20)];
    let (verdict, brake) = decided_within(Some(&allowance), false, &ladder);
    assert_eq!(verdict.steps[0].outcome, StepOutcome::Failed);
    assert!(verdict.steps[0].effect.starts_with("refused: it would have been granted 3.0 MiB"), "{verdict:?}");
    assert_eq!((verdict.relieved, verdict.steps.len(), brake.grants), (true, 2, 1));
    // What is out by then counts.
    let (verdict, brake) = decided_within(Some(&allowance), false, &[Action::Grant(3 << 19)]);
    assert!(verdict.steps[0].effect.contains("2.5 MiB") && brake.grants == 0, "{verdict:?}");
}
