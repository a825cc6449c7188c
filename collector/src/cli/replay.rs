//! `replay`: what a policy would have done.

use super::find::store;
use super::{ASSERTION, FAILED, Failure, NOT_FOUND, USAGE, print};
use crate::cgroup::Glob;
use crate::config::Config;
use crate::incident::model::Incident;
use crate::incident::read::read_incident;
use crate::incident::store::{INCIDENT, Store};
use crate::snapshot::Parts;
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
  reprieve replay new.toml leak.json --assert-rule 'the cache may be dropped'

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
    /// Exit with 6 unless the first action about each is this one, like kill; with 3 where
    /// there is no incident.
    #[arg(long, value_name = "ACTION")]
    assert: Option<String>,
    /// Exit with 6 unless the rule that decides first about each is this one; '(no rule)'
    /// is none.
    #[arg(long, value_name = "NAME")]
    assert_rule: Option<String>,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(args: &ReplayArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let policy =
        Config::load_only(&args.policy).map_err(|problems| Failure { code: FAILED, error: problems.into() })?;
    if let Some(wrong) = args.assert.as_deref().filter(|wanted| !policy::is_action(wanted)) {
        let error = anyhow::anyhow!("--assert {wrong}: there is no such action; `reprieve run --help` lists all");
        return Err(Failure { code: USAGE, error });
    }
    if let Some(wrong) = args.assert_rule.as_deref().filter(|wanted| !is_rule(&policy, wanted)) {
        let error = anyhow::anyhow!(
            "--assert-rule {wrong}: no rule with an on_oom has this name; `reprieve config show` lists all, and {:?} is none",
            policy::NO_RULE
        );
        return Err(Failure { code: USAGE, error });
    }
    let mut wanted = args.incidents.clone();
    let store = if wanted.iter().all(|incident| Path::new(incident).exists()) && !wanted.is_empty() {
        Store::at(args.out.clone())
    } else {
        store(args.out.as_deref(), config)?
    };
    if wanted.is_empty() {
        wanted = store.ids()?;
    }
    let usual = Parts::usual(policy.records_cmdlines());
    if wanted.is_empty() {
        let none = format!("no incident in {}", store.dir().display());
        // What asserts about nothing must not look as if all were well.
        let asserted = [("--assert", &args.assert), ("--assert-rule", &args.assert_rule)];
        if let Some((option, value)) = asserted.into_iter().find_map(|(option, value)| Some((option, value.as_ref()?)))
        {
            let error = anyhow::anyhow!("{none}: nothing for {option} {value} to judge; name incidents, or --out DIR");
            return Err(Failure { code: NOT_FOUND, error });
        }
        let _ = writeln!(std::io::stderr(), "reprieve: {none}");
    }
    let mut code = ExitCode::SUCCESS;
    let mut rows = Vec::new();
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
        let choice = policy.replay(&incident, usual);
        let differs = args.assert.as_deref().is_some_and(|wanted| !choice.begins_with(wanted))
            || args.assert_rule.as_deref().is_some_and(|wanted| !choice.is_begun_by(wanted));
        if differs && code == ExitCode::SUCCESS {
            code = ExitCode::from(ASSERTION);
        }
        if args.json {
            print(&choice.json(&incident));
        } else {
            rows.push(Row::new(&incident, &choice, differs));
        }
    }
    print(&table(&rows));
    Ok(code)
}

/// Whether something can be done by a rule of this name, or by none.
fn is_rule(config: &Config, name: &str) -> bool {
    let rules = config.policy().rules;
    name == policy::NO_RULE || rules.iter().any(|rule| rule.name == name && !rule.ladder.is_empty())
}

/// What a table says of an incident, and what does not fit into a column.
struct Row {
    cells: [String; 3],
    rest: String,
    /// Lines of their own.
    more: Vec<String>,
}

impl Row {
    fn new(incident: &Incident, choice: &Choice<'_>, differs: bool) -> Self {
        let [rule, victim, mut rest] = choice.told(incident);
        if differs {
            rest.push_str("  <- not as asserted");
        }
        let left_out = choice.left_out().map(|left_out| format!("left out: {left_out}"));
        let more = left_out.into_iter().chain(choice.problems.iter().cloned());
        Row { cells: [incident.id.clone(), rule, victim], rest, more: more.collect() }
    }
}

/// Columns as wide as what is in them.
fn table(rows: &[Row]) -> String {
    let heading = ["INCIDENT", "RULE", "A KILL BEGINS WITH"].map(str::to_owned);
    let heading = Row { cells: heading, rest: "ACTIONS".to_owned(), more: Vec::new() };
    let all = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| all().map(|row| row.cells[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for row in all().filter(|_| !rows.is_empty()) {
        let cells = row.cells.iter().zip(widths);
        cells.for_each(|(cell, width)| text.push_str(&format!("{cell:width$}  ")));
        text.push_str(&format!("{}\n", row.rest));
        row.more.iter().for_each(|line| text.push_str(&format!("    {line}\n")));
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let row = |id: &str, rule: &str, more: &[&str]| Row {
            cells: [id.to_owned(), rule.to_owned(), "-".to_owned()],
            rest: "kill".to_owned(),
            more: more.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(table(&[]), "");
        assert_eq!(
            table(&[row("a", "größer als ein Name sonst", &[]), row("an-incident", "r", &["why"])]),
            "INCIDENT     RULE                       A KILL BEGINS WITH  ACTIONS\n\
             a            größer als ein Name sonst  -                   kill\n\
             an-incident  r                          -                   kill\n    why\n"
        );
    }
}
