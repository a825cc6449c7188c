//! Life of the watchdog.

use super::super::{Alarm, HandBack, alarm_of};
use super::ward::Ward;
use super::word::{Charge, MOST_BYTES, Word};
use super::{signal_pidfd, wait_pidfd};
use crate::cgroup::{Hierarchy, Memcg};
use crate::guardian::Locks;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long what the kernel refuses for now is tried again.
const GIVE_BACK_TIME: Duration = Duration::from_secs(10);
const GIVE_BACK_AGAIN: Duration = Duration::from_millis(50);

/// The memcgs by their numbers, and where new ones are found.
#[derive(Debug, Default)]
pub struct Wards {
    /// Guarded ones.
    pub all: BTreeMap<u32, Ward>,
    /// Where the paths of further ones begin.
    pub hierarchy: Option<Hierarchy>,
}

impl Wards {
    fn hear(&mut self, number: u32, word: Word) {
        match word {
            Word::Guard(charge) => self.guard(number, charge),
            Word::Forget => drop(self.all.remove(&number)),
            word => {
                let Some(ward) = self.all.get_mut(&number) else { return };
                match word {
                    Word::HoldUntil(time) => ward.hold(time),
                    Word::Released => ward.release(),
                    Word::Owe(debt) => ward.owe(debt),
                    Word::Paid(file) => ward.paid(&file),
                    Word::Guard(_) | Word::Forget | Word::GiveBack | Word::Dismiss => {}
                }
            }
        }
    }

    fn guard(&mut self, number: u32, charge: Charge) {
        let Some(hierarchy) = &self.hierarchy else { return };
        let memcg = Memcg::at(hierarchy, &charge.path);
        let answer = Duration::from_micros(charge.answer_us);
        let alarm = alarm_of(&charge.brake, &memcg);
        let hand_back = HandBack { alarm, writes: charge.writes, adopted: Some(memcg), ..HandBack::default() };
        match self.all.get_mut(&number) {
            Some(ward) => ward.renew(hand_back, answer),
            None => drop(self.all.insert(number, Ward::new(hand_back, answer))),
        }
    }

    /// Writes everything, again and again for a while; then what was ours is removed as
    /// soon as it is empty.
    fn give_back(&mut self) {
        let begun = Instant::now();
        loop {
            let undone = self.all.values_mut().filter_map(|ward| (!ward.give_back()).then_some(())).count();
            if undone == 0 {
                break;
            }
            if begun.elapsed() > GIVE_BACK_TIME {
                say("reprieve: a limit could not be put back, since more than that is in use\n");
                break;
            }
            std::thread::sleep(GIVE_BACK_AGAIN);
        }
        while !self.all.values().all(Ward::is_removed) {
            std::thread::sleep(GIVE_BACK_AGAIN);
        }
    }
}

/// Until it is dismissed, or the guardian dies or hangs.
pub fn watch(line: &OwnedFd, guardian: &OwnedFd, mut wards: Wards, locks: Locks) {
    let _ = nix::unistd::setsid();
    leave_terminal();
    // Fewer pages, but all of them in memory when memory is gone. Without the
    // right to lock we are no worse than any other process. Those of code are the
    // guardian's, too: unlocked by one alone they would stay.
    let _ = locks.take();
    // Without the right to, the guardian has warned already.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let mut bytes = vec![0; MOST_BYTES];
    loop {
        let end = wards.all.values().filter_map(Ward::end).min();
        let timeout = end.map_or(PollTimeout::NONE, |at| {
            // Rounded up: a poll of 0 ms would spin through the last one.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(line.as_fd(), PollFlags::POLLIN)];
        fds.extend(wards.all.values().filter_map(Ward::alarm).map(Alarm::bell));
        if poll(&mut fds, timeout) == Err(Errno::EINTR) {
            continue;
        }
        let spoke = fds[0].any() == Some(true);
        let rang: Vec<bool> = fds[1..].iter().map(|fd| fd.any() == Some(true)).collect();
        wards.all.values_mut().filter(|ward| ward.alarm().is_some()).zip(rang).for_each(|(ward, rang)| {
            if rang {
                ward.rang();
            }
        });
        if spoke {
            match nix::unistd::read(line, &mut bytes) {
                Err(Errno::EINTR) => {}
                Ok(length) if length > 0 => match Word::decode(&bytes[..length]) {
                    Some((_, Word::Dismiss)) => return,
                    Some((_, Word::GiveBack)) => return wards.give_back(),
                    Some((number, word)) => wards.hear(number, word),
                    None => {}
                },
                // The line is closed.
                _ => {
                    say("reprieve: the guardian died; let the kernel decide\n");
                    break;
                }
            }
            // What it said may be about the one whose time is over.
            continue;
        }
        let now = Instant::now();
        let late = wards.all.values_mut().filter(|ward| ward.end().is_some_and(|end| end <= now));
        // All of them, each has its own to lose.
        if late.fold(false, |hung, ward| ward.is_hung() | hung) {
            // In this order: inside the full memcg the words cost memory, for which we
            // would be held ourselves.
            let _ = signal_pidfd(guardian, libc::SIGKILL);
            say("reprieve: the guardian hangs past its deadline; ended it and let the kernel decide\n");
            break;
        }
    }
    wait_pidfd(guardian, Duration::from_secs(10));
    wards.give_back();
}

/// A pipe that we kept open would never end for its reader.
fn leave_terminal() {
    let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") else { return };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::sys::prctl::set_name(c"reprieve-watch");
}

fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
