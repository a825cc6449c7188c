//! `decide`: what a person decides about a hold, for scripts.

use super::{FAILED, Failure, NOT_ABLE, NOT_FOUND, TOO_LATE, USAGE, print};
use crate::config::Config;
use crate::desk::client::{Guardian, NoGuardian, call_all};
use crate::desk::message::{Because, FromGuardian, FromOperator, Pending};
use crate::guard;
use crate::size::parse_duration;
use crate::verdict::Action;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Time a guardian gets to answer. It does so at once, unless it is stopped.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Time added where it is not said how much.
const MORE_TIME: Duration = Duration::from_secs(30);

const DECIDE_HELP: &str = "\
Decisions:
  throttle[=TIME]  let it run slowly and see whether it frees memory
  grant=SIZE       raise the limit by SIZE, if the machine has it
  kill             kill the least important process, then the biggest
  reclaim, signal=NAME, hook=PROG, defer   as in a policy
  freeze[=TIME]    leave it stopped, and wait so long for another decision
  more[=TIME]      wait so much longer for a decision (30s)

The first decision wins. Who comes second, or after the time was over, is told
so and gets exit code 5. A decision that does not help (a grant that the machine
cannot give) leaves the question open. Without one in time, the policy goes on.

Examples:
  reprieve decide                                 # what waits for a decision
  reprieve decide 20261125T074340-sort grant=256M
  reprieve decide sort-1a2b3c kill --wait
  id=$(reprieve decide --json | jq -r 'select(.cgroup == \"/batch/a\").id')";

#[derive(Debug, Args)]
#[command(after_help = DECIDE_HELP)]
pub(super) struct DecideArgs {
    /// ID of the incident, or its beginning or end; all that wait are listed without.
    id: Option<String>,
    /// What is to be done about it.
    #[arg(requires = "id")]
    action: Option<String>,
    /// Wait until it has been done, and tell what came of it.
    #[arg(long, requires = "action")]
    wait: bool,
    /// One JSON object per line, of what waits.
    #[arg(long, conflicts_with = "action")]
    json: bool,
    /// Folder of the guardians' sockets [default: guard.run_dir].
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// What is to be done: an action, or to wait longer.
fn parse(text: &str) -> Result<Option<Duration>, String> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("more", "") => Ok(Some(MORE_TIME)),
        ("more", time) => parse_duration(time).map(Some),
        _ => text.parse::<Action>().map(|_| None).map_err(|error| format!("{error}, and more[=TIME] for more time")),
    }
}

pub(super) fn decide(args: &DecideArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let wrong = |why: String| Failure { code: USAGE, error: anyhow::anyhow!(why) };
    let more = args.action.as_deref().map(parse).transpose().map_err(wrong)?;
    let dir = match &args.run_dir {
        Some(dir) => dir.clone(),
        None => config()?.guard_run_dir().unwrap_or_else(guard::default_dir),
    };
    let (guardians, mut problems) = call_all(&dir);
    let mut waiting: Vec<(Guardian, Vec<Told>)> = Vec::new();
    for mut guardian in guardians {
        match list(&mut guardian) {
            Ok(pending) => waiting.push((guardian, pending)),
            Err(problem) => problems.push(problem),
        }
    }
    // One that died is no news, unless it is what was asked for.
    problems.retain(|problem| !matches!(problem, NoGuardian::Dead(_)));
    problems.iter().for_each(|problem| drop(writeln!(std::io::stderr(), "reprieve: {problem}")));
    let worst = problems.iter().any(|problem| matches!(problem, NoGuardian::NotAllowed(_)));
    let (Some(wanted), Some(action), Some(more)) = (&args.id, &args.action, more) else {
        if let Some(action) = args.id.as_deref().filter(|text| parse(text).is_ok()) {
            return Err(wrong(format!(
                "{action} is a decision; which hold is it about? Name its ID first, which `reprieve decide` lists"
            )));
        }
        // What is decided waits for nobody.
        let all = waiting.iter().flat_map(|(_, all)| all).filter(|one| !one.is_decided).map(|one| &one.pending);
        let shown = all.filter(|one| args.id.as_deref().is_none_or(|wanted| is_meant(wanted, &one.id)));
        shown.for_each(|one| print(&if args.json { json(one) } else { line(one) }));
        return Ok(if worst { ExitCode::from(NOT_ABLE) } else { ExitCode::SUCCESS });
    };
    let (at, id) = choose(wanted, &waiting)?.unwrap_or((usize::MAX, wanted.clone()));
    let message = match more {
        Some(time) => FromOperator::More { id: id.clone(), ms: time.as_millis() as u64 },
        None => FromOperator::Decide { id: id.clone(), action: action.clone() },
    };
    // One that does not wait any more may be known to any of them.
    let asked = waiting.iter_mut().enumerate().filter(|(index, _)| at == usize::MAX || *index == at);
    let mut refused = None;
    for (_, (guardian, _)) in asked {
        match say(guardian, &id, &message) {
            Ok(Ok(done)) => {
                print(&format!("{id}: {}\n", if more.is_some() { format!("{done} left") } else { done }));
                return if args.wait { wait(guardian, &id) } else { Ok(ExitCode::SUCCESS) };
            }
            Ok(Err((Because::Unknown, _))) => {}
            Ok(Err(why)) => refused = Some(why),
            Err(problem) => return Err(Failure { code: FAILED, error: anyhow::anyhow!("{problem}") }),
        }
    }
    Err(match refused {
        Some((because, why)) => {
            let code = if because == Because::TooLate { TOO_LATE } else { FAILED };
            Failure { code, error: anyhow::anyhow!("{id}: {why}") }
        }
        None if worst => Failure { code: NOT_ABLE, error: anyhow::anyhow!("{id} may wait where you may not decide") },
        None => {
            let error = anyhow::anyhow!(
                "nothing called {id} waits for a decision in {}; `reprieve decide` lists what does",
                dir.display()
            );
            Failure { code: NOT_FOUND, error }
        }
    })
}

fn is_meant(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted) || id.ends_with(wanted)
}

/// A hold that a guardian tells of.
struct Told {
    pending: Pending,
    is_decided: bool,
}

/// Whose it is, and its whole ID; `None` where it is nobody's.
fn choose(wanted: &str, waiting: &[(Guardian, Vec<Told>)]) -> Result<Option<(usize, String)>, Failure> {
    let all = || {
        waiting.iter().enumerate().flat_map(|(at, (_, all))| all.iter().map(move |one| (at, one.pending.id.clone())))
    };
    let mut found: Vec<(usize, String)> = all().filter(|(_, id)| is_meant(wanted, id)).collect();
    if let Some(exact) = found.iter().find(|(_, id)| id == wanted) {
        return Ok(Some(exact.clone()));
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let ids: Vec<String> = found.into_iter().map(|(_, id)| id).collect();
            let error = anyhow::anyhow!("{wanted} could be any of {}; write more of it", ids.join(", "));
            Err(Failure { code: USAGE, error })
        }
    }
}

/// What waits at a guardian, or is being acted on.
fn list(guardian: &mut Guardian) -> Result<Vec<Told>, NoGuardian> {
    let until = Instant::now() + ANSWER_TIME;
    let mut told: Vec<Told> = Vec::new();
    loop {
        match next(guardian, until)? {
            FromGuardian::Pending(pending) => told.push(Told { pending, is_decided: false }),
            FromGuardian::Decided { id, .. } => {
                told.iter_mut().filter(|one| one.pending.id == id).for_each(|one| one.is_decided = true);
            }
            FromGuardian::Listed => return Ok(told),
            _ => {}
        }
    }
}

fn next(guardian: &mut Guardian, until: Instant) -> Result<FromGuardian, NoGuardian> {
    let heard = guardian.hear(until.saturating_duration_since(Instant::now()))?;
    let silent = || format!("{} does not answer: its guardian is stopped or hangs", guardian.socket.display());
    heard.ok_or_else(|| NoGuardian::Other(silent()))
}

/// Says it; what the guardian answers: what it does, or why it does not.
fn say(
    guardian: &mut Guardian,
    id: &str,
    message: &FromOperator,
) -> Result<Result<String, (Because, String)>, NoGuardian> {
    let until = Instant::now() + ANSWER_TIME;
    guardian.say(message).map_err(|error| NoGuardian::Other(format!("{}: {error}", guardian.socket.display())))?;
    loop {
        match next(guardian, until)? {
            FromGuardian::Accepted { id: of, action } if of == id => return Ok(Ok(action)),
            FromGuardian::Refused { id: of, because, why } if of == id => return Ok(Err((because, why))),
            _ => {}
        }
    }
}

/// Tells what came of it, until nobody is asked about it any more.
fn wait(guardian: &mut Guardian, id: &str) -> Result<ExitCode, Failure> {
    loop {
        match guardian.hear(Duration::from_secs(3600)) {
            Ok(Some(FromGuardian::Ended { id: of, outcome })) if of == id => {
                print(&format!("{outcome}\n"));
                return Ok(ExitCode::SUCCESS);
            }
            // It did not help, and is asked again.
            Ok(Some(FromGuardian::Pending(pending))) if pending.id == id => {
                let said = pending.notes.last().cloned().unwrap_or_default();
                print(&format!("{said}\n"));
                return Ok(ExitCode::from(FAILED));
            }
            Ok(_) => {}
            Err(problem) => return Err(Failure { code: FAILED, error: anyhow::anyhow!("{problem}") }),
        }
    }
}

fn line(pending: &Pending) -> String {
    format!(
        "{}  {:>5.1} s left, then {}  {}\n",
        pending.id,
        pending.left_ms as f64 / 1000.0,
        pending.fallback,
        pending.summary
    )
}

fn json(pending: &Pending) -> String {
    serde_json::to_string(pending).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_decided() {
        assert_eq!(parse("more"), Ok(Some(MORE_TIME)));
        assert_eq!(parse("more=5s"), Ok(Some(Duration::from_secs(5))));
        assert_eq!((parse("kill"), parse("grant=64M")), (Ok(None), Ok(None)));
        assert!(parse("explode").unwrap_err().contains("more[=TIME]") && parse("more=much").is_err());
    }
}
