//! `list`: which incidents there are.

use super::find::store;
use super::{FAILED, Failure, NOT_FOUND, print, width};
use crate::config::Config;
use crate::incident::model::Trigger;
use crate::incident::select::{Filter, Outcome};
use crate::incident::summary::Summary;
use crate::moment::parse_moment;
use crate::verdict::policy::is_action;
use clap::{Args, ValueEnum};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const LIST_HELP: &str = "\
Of conditions of several kinds all must hold; of several of one kind, one. Where
none fits, the exit code is 3.

Times are UTC: 2026-11-25, \"2026-11-25 08:46:13\", today, yesterday, 2h, 7d, @SECONDS.
Verdicts: relieved, not-relieved, none, or the action that ended it, like kill.

Examples:
  reprieve list --since yesterday --verdict kill
  reprieve list redis-server --cgroup system.slice -n 5 --reverse
  reprieve list --pod 0a1b2c3d --trigger killed-by-kernel --json | jq -r .dir";

/// What made us write an incident, as it is typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Why {
    /// The memcg was full and held.
    Oom,
    /// The kernel was first, or no action helped.
    #[value(alias = "killed_by_kernel")]
    KilledByKernel,
    /// On request.
    Snapshot,
}

#[derive(Debug, Args)]
#[command(after_help = LIST_HELP)]
pub(super) struct ListArgs {
    /// PID, name or program (with a /) of a process in it, or beginning or end of the ID.
    #[arg(value_name = "MATCH")]
    matches: Vec<String>,
    /// Not before this time.
    #[arg(long, short = 'S', value_name = "TIME", value_parser = parse_moment, allow_hyphen_values = true)]
    since: Option<u64>,
    /// Not after this time.
    #[arg(long, short = 'U', value_name = "TIME", value_parser = parse_moment, allow_hyphen_values = true)]
    until: Option<u64>,
    /// Cgroup, or a part of its path, like system.slice/nginx.service.
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<String>,
    /// UID of a pod, or its beginning.
    #[arg(long, value_name = "UID")]
    pod: Vec<String>,
    /// ID of a container, or its beginning.
    #[arg(long, value_name = "ID")]
    container: Vec<String>,
    /// What made reprieve write it.
    #[arg(long, value_enum, value_name = "TRIGGER")]
    trigger: Vec<Why>,
    /// What came of it.
    #[arg(long, value_name = "VERDICT", value_parser = parse_outcome)]
    verdict: Vec<Outcome>,
    /// The newest N only.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    lines: Option<u32>,
    /// Newest first.
    #[arg(long, short)]
    reverse: bool,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

fn parse_outcome(text: &str) -> Result<Outcome, String> {
    match text {
        "relieved" => Ok(Outcome::Relieved),
        "not-relieved" | "not_relieved" => Ok(Outcome::NotRelieved),
        "none" => Ok(Outcome::None),
        // With a value it would be one of many.
        action if is_action(action) && !action.contains('=') => Ok(Outcome::Action(action.to_owned())),
        _ => Err("write relieved, not-relieved, none, or an action like kill, grant or reclaim".to_owned()),
    }
}

pub(super) fn list(args: ListArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let filter = Filter {
        since_us: args.since,
        until_us: args.until,
        cgroups: args.cgroup,
        pods: args.pod,
        containers: args.container,
        triggers: args
            .trigger
            .into_iter()
            .map(|why| match why {
                Why::Oom => Trigger::Oom,
                Why::KilledByKernel => Trigger::KilledByKernel,
                Why::Snapshot => Trigger::Snapshot,
            })
            .collect(),
        verdicts: args.verdict,
        matches: args.matches,
    };
    let store = store(args.out.as_deref(), config)?;
    let mut ids = store.ids()?;
    let all = ids.len();
    ids.retain(|id| filter.may_fit(id));
    let newest = args.lines.map_or(usize::MAX, |lines| lines as usize);
    // From the newest, so that no more is read than is asked for.
    let from_newest = args.reverse || args.lines.is_some();
    if from_newest {
        ids.reverse();
    }
    let (mut found, mut kept, mut code) = (0, Vec::new(), ExitCode::SUCCESS);
    for id in ids {
        if found == newest {
            break;
        }
        let dir = store.dir().join(&id);
        let incident = match Summary::read(&dir) {
            Ok(incident) => incident,
            // One damaged incident must not hide the others.
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "reprieve: {error}");
                code = ExitCode::from(FAILED);
                continue;
            }
        };
        if !filter.fits(&incident) {
            continue;
        }
        found += 1;
        let line = if args.json { incident.json(&dir).to_string() } else { incident.line(width()) };
        if from_newest && !args.reverse {
            kept.push(line);
        } else {
            print(&format!("{line}\n"));
        }
    }
    kept.iter().rev().for_each(|line| print(&format!("{line}\n")));
    if found == 0 && !filter.is_empty() && code == ExitCode::SUCCESS {
        let error = anyhow::anyhow!("none of {all} incidents in {} fits", store.dir().display());
        return Err(Failure { code: NOT_FOUND, error });
    }
    Ok(code)
}
