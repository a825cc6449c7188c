//! `diff`: what grew from one incident to another.

use super::find::{choose, find, name_of};
use super::{FAILED, Failure, deliver, print, width};
use crate::config::Config;
use crate::incident::compare::Comparison;
use crate::incident::profile::{THREADS, View, comparable_views};
use clap::Args;
use reprieve_flamegraph::{Series, diff, svg};
use std::path::PathBuf;
use std::process::ExitCode;

/// Stacks and functions that are shown.
const MOST: usize = 10;

const DIFF_HELP: &str = "\
Stacks and functions are the same if their names are, whatever the line: so two
builds can be compared. The error behind ± is that of both sides together.

In the graph (--svg) widths are the second incident's; red grew, blue shrank. What
is gone has no width: exchange the two to see it.

Examples:
  reprieve diff 084613.639 091502.001
  reprieve diff ./before ./after --sample-type inuse_objects --svg growth.svg
  reprieve diff A B --json | jq '.functions[] | select(.total.growth > 1048576)'";

#[derive(Debug, Args)]
#[command(after_help = DIFF_HELP)]
pub(super) struct DiffArgs {
    /// What to compare with: ID, or its beginning or end, or an incident's folder or file.
    before: String,
    /// What is compared.
    after: String,
    /// By what, like inuse_space, threads or memory [default: the first in bytes that both have].
    #[arg(long, value_name = "TYPE")]
    sample_type: Option<String>,
    /// How many stacks and functions to tell [default: 10; all with --json].
    #[arg(long, short = 'n', value_name = "N")]
    lines: Option<usize>,
    /// Draw a flame graph of the difference, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn diff(args: &DiffArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let (_, before) = find(Some(&args.before), args.out.as_deref(), &config)?;
    let (_, after) = find(Some(&args.after), args.out.as_deref(), &config)?;
    let (views_before, views_after) = (comparable_views(&before), comparable_views(&after));
    let names = views_after.iter().flat_map(View::selectable);
    let both = |name: &&str| views_before.iter().any(|view| view.selectable().any(|other| other == *name));
    // Bytes tell more than which threads there were.
    let first = names.filter(both).min_by_key(|name| *name == THREADS).map(str::to_owned);
    let wanted = args.sample_type.clone().or(first);
    let (view_before, index_before) = choose(&views_before, wanted.as_deref(), &before)?;
    let (view_after, index_after) = choose(&views_after, wanted.as_deref(), &after)?;
    let title = format!("{}, what grew", view_after.title_of(index_after));
    let series = |profile, sample_type| Series { title: &title, profile, sample_type };
    let comparison = Comparison {
        before: (&before, series(&view_before.profile, index_before)),
        after: (&after, series(&view_after.profile, index_after)),
        sample_type: name_of(view_after, index_after),
    };
    if let Some(file) = &args.svg {
        let subtitle = format!("{} against {}", after.id, before.id);
        let mut image = Vec::new();
        let text = svg::Text { title: &title, subtitle: &subtitle };
        diff::write_svg(comparison.before.1, comparison.after.1, text, &mut image)
            .map_err(|error| Failure { code: FAILED, error: anyhow::Error::new(error).context("nothing to draw") })?;
        deliver(&image, Some(file))?;
    }
    print(&if args.json {
        format!("{}\n", comparison.json(args.lines))
    } else {
        comparison.page(args.lines.unwrap_or(MOST), width())
    });
    Ok(ExitCode::SUCCESS)
}
