//! The thread that serves operators.

use super::announce::Call;
use super::message::{FromGuardian, FromOperator, MOST_BYTES, VERSION, decode, encode};
use super::socket::{Listener, Peer, hear, send};
use super::{Shared, State};
use crate::say;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most operators at a time.
const MOST_OPERATORS: usize = 32;

/// An operator.
struct Operator {
    fd: OwnedFd,
    peer: Peer,
    /// He hung up, or does not read.
    is_gone: bool,
}

impl Operator {
    /// Sends it, or gives him up: whoever is that far behind does not read.
    fn tell(&mut self, message: &FromGuardian) {
        let sent = encode(message).map_err(drop).and_then(|packet| send(self.fd.as_fd(), &packet).map_err(drop));
        self.is_gone |= sent.is_err();
    }
}

/// Serves until the desk closes.
pub(super) fn serve(listener: &Listener, shared: &Shared) {
    let mut operators: Vec<Operator> = Vec::new();
    let mut calls: Vec<Call> = Vec::new();
    loop {
        wait(listener, shared, &operators, &calls);
        let _ = shared.wake.read();
        while let Some(caller) = listener.accept() {
            admit(caller, &mut operators, &shared.state());
        }
        for operator in &mut operators {
            answer(operator, shared);
        }
        let mut state = shared.state();
        let news = std::mem::take(&mut state.news);
        let to_announce = std::mem::take(&mut state.to_announce);
        let is_closing = state.is_closing;
        let announce = (!to_announce.is_empty()).then(|| state.manner.announce.clone());
        drop(state);
        for message in &news {
            operators.iter_mut().for_each(|operator| operator.tell(message));
        }
        operators.retain(|operator| !operator.is_gone);
        for pending in &to_announce {
            calls.extend(announce.iter().flat_map(|announce| announce.calls(pending)));
        }
        calls.retain_mut(|call| !call.is_over(is_closing));
        if is_closing {
            return;
        }
    }
}

/// Until something happens, or the time of an announcement is over.
fn wait(listener: &Listener, shared: &Shared, operators: &[Operator], calls: &[Call]) {
    let mut fds =
        vec![PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN), PollFd::new(listener.fd.as_fd(), PollFlags::POLLIN)];
    fds.extend(operators.iter().map(|operator| PollFd::new(operator.fd.as_fd(), PollFlags::POLLIN)));
    fds.extend(calls.iter().map(|call| PollFd::new(call.fd(), PollFlags::POLLIN)));
    let timeout = calls.iter().map(Call::until).min().map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    let _ = poll(&mut fds, timeout);
}

/// Greets who may decide; tells others why not.
fn admit(fd: OwnedFd, operators: &mut Vec<Operator>, state: &State) {
    let Ok(peer) = Peer::of(&fd) else { return };
    let mut operator = Operator { fd, peer, is_gone: false };
    let refusal = if !peer.is_operator() {
        let us = nix::unistd::geteuid();
        say!(Warning; "{peer} wanted to decide and may not");
        Some(format!("uid {} may not decide; be uid {us}, or root", peer.uid))
    } else if operators.len() >= MOST_OPERATORS {
        Some(format!("there are {MOST_OPERATORS} operators already"))
    } else {
        None
    };
    if let Some(why) = refusal {
        operator.tell(&FromGuardian::GoAway { why });
        return;
    }
    operator.tell(&FromGuardian::Hello { version: VERSION, pid: std::process::id() });
    for asked in &state.asked {
        operator.tell(&FromGuardian::Pending(asked.told()));
        if let Some(decision) = &asked.decision {
            let (action, by) = (decision.action.to_string(), decision.by.clone());
            operator.tell(&FromGuardian::Decided { id: asked.pending.id.clone(), action, by });
        }
    }
    operator.tell(&FromGuardian::Listed);
    operators.push(operator);
}

/// Answers one message, if there is one: nobody keeps us from the others.
fn answer(operator: &mut Operator, shared: &Shared) {
    let mut buffer = [0; MOST_BYTES];
    let message = match hear(operator.fd.as_fd(), &mut buffer) {
        Err(Errno::EAGAIN | Errno::EINTR) => return,
        Ok(Some(packet)) => decode::<FromOperator>(packet),
        Err(Errno::EMSGSIZE) => None,
        Ok(None) | Err(_) => {
            operator.is_gone = true;
            return;
        }
    };
    let Some(message) = message else {
        operator.tell(&FromGuardian::GoAway { why: "that is not understood".to_owned() });
        operator.is_gone = true;
        return;
    };
    let by = operator.peer.to_string();
    let mut state = shared.state();
    let (id, done) = match message {
        FromOperator::Decide { id, action } => {
            let done = state.decide(&id, &action, &by).map(|()| action);
            (id, done)
        }
        FromOperator::More { id, ms } => {
            let done = state.more(&id, ms, &by).map(|left| format!("{:.0} s", left.as_secs_f64()));
            (id, done)
        }
    };
    drop(state);
    operator.tell(&match done {
        Ok(action) => FromGuardian::Accepted { id, action },
        Err((because, why)) => FromGuardian::Refused { id, because, why },
    });
}

#[cfg(test)]
mod tests {
    use super::super::client::{Guardian, NoGuardian, call_all};
    use super::super::message::Because;
    use super::super::{Announce, Desk, Manner, Place, Question, Standing, Subject};
    use super::*;
    use crate::verdict::Action;
    use std::path::Path;

    fn desk(dir: &Path) -> Desk {
        let manner = Manner { most: Duration::from_secs(60), announce: Announce::default() };
        Desk::open(Place { dir: dir.to_owned(), manner }, "guard").unwrap()
    }

    fn ask(desk: &Desk, id: &str, time: Duration) -> Question {
        desk.ask(&Subject { id, cgroup: "/a", fallback: "kill", ..Subject::default() }, time).unwrap()
    }

    /// An operator who has heard all that waits.
    fn operator(dir: &Path) -> (Guardian, Vec<FromGuardian>) {
        let (mut guardians, problems) = call_all(dir);
        assert!(guardians.len() == 1 && problems.is_empty(), "{guardians:?} {problems:?}");
        let mut guardian = guardians.remove(0);
        let mut heard = Vec::new();
        while heard.last() != Some(&FromGuardian::Listed) {
            heard.push(next(&mut guardian));
        }
        (guardian, heard)
    }

    fn next(guardian: &mut Guardian) -> FromGuardian {
        guardian.hear(Duration::from_secs(20)).unwrap().expect("a word in 20 s")
    }

    fn decide(guardian: &Guardian, id: &str, action: &str) {
        guardian.say(&FromOperator::Decide { id: id.to_owned(), action: action.to_owned() }).unwrap();
    }

    /// The answer to a decision, past what all are told.
    fn answer_to(guardian: &mut Guardian) -> FromGuardian {
        loop {
            let said = next(guardian);
            if matches!(said, FromGuardian::Accepted { .. } | FromGuardian::Refused { .. }) {
                return said;
            }
        }
    }

    fn refusal(guardian: &mut Guardian) -> (Because, String) {
        match answer_to(guardian) {
            FromGuardian::Refused { because, why, .. } => (because, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_of_two_decides_and_the_other_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let desk = desk(dir.path());
        let question = ask(&desk, "one", Duration::from_secs(50));
        let (mut first, heard) = operator(dir.path());
        assert!(matches!(&heard[1], FromGuardian::Pending(p) if p.id == "one" && p.left_ms > 40_000), "{heard:?}");
        let (mut second, _) = operator(dir.path());
        decide(&first, "one", "grant=64M");
        assert_eq!(answer_to(&mut first), FromGuardian::Accepted { id: "one".into(), action: "grant=64M".into() });
        decide(&second, "one", "kill");
        // In whatever order: it may have asked before all were told.
        let told = [next(&mut second), next(&mut second)];
        let sees = |word: &FromGuardian| matches!(word, FromGuardian::Decided { action, .. } if action == "grant=64M");
        assert!(told.iter().any(sees), "{told:?}");
        let is_refusal = |word: &FromGuardian| {
            matches!(word, FromGuardian::Refused { because: Because::TooLate, why, .. }
                if why.starts_with("grant=64M was decided before, by uid "))
        };
        assert!(told.iter().any(is_refusal), "{told:?}");
        let Standing::Decided(decision) = question.look() else { panic!("{:?}", question.look()) };
        assert_eq!(decision.action, Action::Grant(64 << 20));
        // It was refused by the machine, so it is asked again.
        question.ask_again("refused", None);
        decide(&second, "one", "kill");
        assert!(matches!(answer_to(&mut second), FromGuardian::Accepted { .. }));
        question.close("killed");
        loop {
            if let FromGuardian::Ended { outcome, .. } = next(&mut first) {
                break assert_eq!(outcome, "killed");
            }
        }
        decide(&first, "one", "kill");
        assert_eq!(refusal(&mut first).0, Because::TooLate);
        decide(&first, "two", "kill");
        let (because, why) = refusal(&mut first);
        assert!(because == Because::Unknown && why.contains("two"), "{why}");
    }

    #[test]
    fn what_cannot_be_decided_leaves_the_question_open() {
        let dir = tempfile::tempdir().unwrap();
        let desk = desk(dir.path());
        let question = ask(&desk, "one", Duration::from_secs(50));
        let (mut operator, _) = operator(dir.path());
        for (action, part) in [("explode", "known are"), ("ask=5s", "asked already")] {
            decide(&operator, "one", action);
            let (because, why) = refusal(&mut operator);
            assert!(because == Because::Wrong && why.contains(part), "{why}");
        }
        let Standing::Open(before) = question.look() else { panic!("decided") };
        operator.say(&FromOperator::More { id: "one".into(), ms: 5000 }).unwrap();
        assert!(matches!(answer_to(&mut operator), FromGuardian::Accepted { .. }));
        assert_eq!(question.look(), Standing::Open(before + Duration::from_secs(5)));
        // As much as there is, and then none.
        operator.say(&FromOperator::More { id: "one".into(), ms: u64::MAX }).unwrap();
        assert!(matches!(answer_to(&mut operator), FromGuardian::Accepted { .. }));
        operator.say(&FromOperator::More { id: "one".into(), ms: 5000 }).unwrap();
        assert!(refusal(&mut operator).1.contains("ask.most"));
        assert!(matches!(question.look(), Standing::Open(until) if until < before + Duration::from_secs(11)));
    }

    #[test]
    fn at_the_last_moment_who_was_told_yes_is_obeyed() {
        let dir = tempfile::tempdir().unwrap();
        let desk = desk(dir.path());
        let (mut operator, _) = operator(dir.path());
        let (mut obeyed, mut late) = (0, 0);
        for round in 0..200 {
            let id = format!("r{round}");
            let question = ask(&desk, &id, Duration::from_millis(3));
            std::thread::sleep(Duration::from_micros(2500 + 10 * (round % 100)));
            decide(&operator, &id, "kill");
            // As who holds does it: he looks when the time is over.
            let standing = loop {
                match question.look() {
                    Standing::Open(until) => std::thread::sleep(until - Instant::now().min(until)),
                    other => break other,
                }
            };
            drop(question);
            match answer_to(&mut operator) {
                FromGuardian::Accepted { .. } => {
                    assert!(matches!(standing, Standing::Decided(_)), "round {round}: {standing:?}");
                    obeyed += 1;
                }
                FromGuardian::Refused { because, why, .. } => {
                    assert_eq!((standing, because), (Standing::Late, Because::TooLate), "round {round}: {why}");
                    assert!(why.contains("nobody decided in time; next is kill"), "{why}");
                    late += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(obeyed + late, 200);
    }

    #[test]
    fn who_floods_who_hangs_and_who_dies_costs_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let desk = desk(dir.path());
        let question = ask(&desk, "one", Duration::from_secs(50));
        let (mut good, _) = operator(dir.path());
        // Says what nobody understands, and is shown out.
        let rude = super::super::socket::call(&dir.path().join("guard.sock")).unwrap();
        send(rude.as_fd(), b"kill them all").unwrap();
        // Reads nothing, however much there is; after a while he is given up.
        let (mut hanging, _) = operator(dir.path());
        let (dying, _) = operator(dir.path());
        drop(dying);
        // More than a socket's buffer has room for (net.core.wmem_default).
        for _ in 0..1000 {
            question.ask_again("again", None);
            assert!(matches!(next(&mut good), FromGuardian::Pending(_)));
        }
        assert!(loop {
            match hanging.hear(Duration::from_secs(20)) {
                Ok(heard) => assert!(heard.is_some(), "who does not read is not given up"),
                Err(error) => break matches!(error, NoGuardian::Dead(_)),
            }
        });
        decide(&good, "one", "defer");
        assert!(matches!(answer_to(&mut good), FromGuardian::Accepted { .. }));
        assert!(matches!(question.look(), Standing::Decided(_)));
        // One too many is told so.
        let crowd: Vec<_> = (0..MOST_OPERATORS - 1).map(|_| operator(dir.path())).collect();
        let (mut last, _) = call_all(dir.path());
        let error = last[0].hear(Duration::from_secs(20)).unwrap_err();
        assert!(matches!(&error, NoGuardian::Other(why) if why.contains("32 operators already")), "{error}");
        drop(crowd);
        drop(question);
        drop(desk);
        assert_eq!(call_all(dir.path()).0.len(), 0);
        assert!(loop {
            match good.hear(Duration::from_secs(20)) {
                Ok(_) => {}
                Err(error) => break matches!(error, NoGuardian::Dead(_)),
            }
        });
    }
}
