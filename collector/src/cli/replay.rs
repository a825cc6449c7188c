//! `replay`: what a policy would have done.

use super::{ASSERTION, FAILED, Failure, USAGE, print};
use crate::cgroup::Glob;
use crate::config::Config;
use crate::incident::model::Incident;
use crate::incident::read::read_incident;
use crate::incident::store::{INCIDENT, Store};
use crate::verdict::policy::{self, Choice, Policy};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const REPLAY_EXAMPLES: &str = "\
Examples:
  reprieve replay /etc/reprieve                     # all incidents of the store
  reprieve replay new.toml 20261125T074340 --json
  reprieve replay new.toml fixtures/incidents/*.json --assert grant

An incident of a cgroup that the policy guards (guard.cgroups) is answered as
[guard] and [[cgroup]] say, any other one as [run] says; rules come first for
both. Nothing is done, and no cgroup is looked at.";

#[derive(Debug, Args)]
#[command(after_help = REPLAY_EXAMPLES)]
pub(super) struct ReplayArgs {
    /// A configuration: a file, or a folder like /etc/reprieve.
    policy: PathBuf,
    /// IDs, or files and folders of incidents; all of the store without.
    incidents: Vec<String>,
    /// Exit with 6 unless the first action about each is this one, like kill.
    #[arg(long, value_name = "ACTION")]
    assert: Option<String>,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(args: &ReplayArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let policy = if args.policy.is_dir() { Config::load(&args.policy) } else { Config::load_file(&args.policy) };
    let policy = policy.map_err(|problems| Failure { code: FAILED, error: problems.into() })?;
    if let Some(wrong) = args.assert.as_deref().filter(|wanted| !policy::is_action(wanted)) {
        let error = anyhow::anyhow!("--assert {wrong}: there is no such action; `reprieve run --help` lists all");
        return Err(Failure { code: USAGE, error });
    }
    let mut wanted = args.incidents.clone();
    let store = if wanted.iter().all(|incident| Path::new(incident).exists()) && !wanted.is_empty() {
        Store::at(args.out.clone())
    } else {
        Store::at(args.out.clone().or(config()?.store_dir()))
    };
    if wanted.is_empty() {
        wanted = store.ids()?;
    }
    let (mut code, mut has_heading) = (ExitCode::SUCCESS, false);
    for name in &wanted {
        let path = Path::new(name);
        let found = match () {
            () if path.is_dir() => read_incident(&path.join(INCIDENT)),
            () if path.is_file() => read_incident(path),
            () => store.load(Some(name)).map(|(_, incident)| incident),
        };
        // One that cannot be read must not hide the others.
        let incident = match found {
            Ok(incident) => incident,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "reprieve: {error}");
                code = ExitCode::from(FAILED);
                continue;
            }
        };
        let policy = policy_for(&policy, &incident);
        let choice = policy.choose(&incident);
        let differs = args.assert.as_deref().is_some_and(|wanted| !choice.begins_with(wanted));
        if differs && code == ExitCode::SUCCESS {
            code = ExitCode::from(ASSERTION);
        }
        if !args.json && !std::mem::replace(&mut has_heading, true) {
            print(&Choice::heading());
        }
        print(&if args.json { choice.json(&incident) } else { choice.line(&incident, differs) });
    }
    Ok(code)
}

/// What is in force for the memcg of an incident.
fn policy_for(config: &Config, incident: &Incident) -> Policy {
    let path = incident.memcg.as_ref().map_or("", |memcg| memcg.path.as_str());
    let is_any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(path));
    match is_any(&config.guard_cgroups()) && !is_any(&config.guard_except()) {
        true => config.guarded(path).policy,
        false => config.policy(),
    }
}
