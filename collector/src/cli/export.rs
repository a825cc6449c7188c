//! `export`: an incident for another tool.

use super::find::{choose, find};
use super::{FAILED, Failure, USAGE, deliver};
use crate::config::Config;
use crate::incident::markdown;
use crate::incident::model::Incident;
use crate::incident::profile::{View, views, whole};
use crate::incident::report;
use clap::{Args, ValueEnum};
use reprieve_flamegraph::{Profile, Series, firefox, folded, otlp, pprof, speedscope, svg};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

const EXPORT_HELP: &str = "\
Sample types: inuse_space, inuse_objects, alloc_space, alloc_objects (where a heap
was seen), growth, growth_reliable (where page faults were sampled: who grew RSS, not
who owns the heap), threads, memory (by process and mapping), charged (of a cgroup,
where every byte went). Without --sample-type, files that can hold several have all,
the others the first that the incident has.

Examples:
  reprieve export --format speedscope --to leak.speedscope.json
  reprieve export 20261125T084613 --format folded --sample-type threads | flamelens
  reprieve export --format pprof --to p.pb.gz && go tool pprof -http : p.pb.gz
  reprieve export --format markdown | gh issue create --title OOM --body-file -";

/// Formats, and what reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// go tool pprof, Pyroscope, Parca, speedscope (gzipped protobuf).
    Pprof,
    /// inferno, flamelens, flamegraph.pl: one line per stack.
    Folded,
    /// Any browser: a flame graph with search and zoom.
    Svg,
    /// speedscope.app (JSON).
    Speedscope,
    /// profiler.firefox.com (JSON, processed format).
    Firefox,
    /// OpenTelemetry: ProfilesData of v1development, as OTLP sends it (protobuf).
    Otlp,
    /// Any browser: the whole report.
    Html,
    /// Scripts: the whole incident, as `show --json` prints it.
    Json,
    /// Issues, chats and wikis: GitHub's Markdown.
    Markdown,
}

#[derive(Debug, Args)]
#[command(after_help = EXPORT_HELP)]
pub(super) struct ExportArgs {
    /// ID, or its beginning or end, or an incident's folder or file; the newest without.
    incident: Option<String>,
    /// What to write.
    #[arg(long, short, value_enum)]
    format: Format,
    /// By what stacks are weighted, like inuse_space or threads.
    #[arg(long, value_name = "TYPE")]
    sample_type: Option<String>,
    /// File to write to [default: standard output].
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn export(args: &ExportArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    if matches!(args.format, Format::Json | Format::Html) && args.sample_type.is_some() {
        let name = if args.format == Format::Json { "json" } else { "html" };
        let error = anyhow::anyhow!("--sample-type: --format {name} has the whole incident; leave one of them out");
        return Err(Failure { code: USAGE, error });
    }
    let is_binary = matches!(args.format, Format::Pprof | Format::Otlp);
    if is_binary && args.to.is_none() && std::io::stdout().is_terminal() {
        let error = anyhow::anyhow!("this format is not for a terminal; write it to a file with --to FILE");
        return Err(Failure { code: USAGE, error });
    }
    let (_, incident) = find(args.incident.as_deref(), args.out.as_deref(), config)?;
    let content = render(&incident, args.format, args.sample_type.as_deref())?;
    deliver(&content, args.to.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// The file's content.
fn render(incident: &Incident, format: Format, sample_type: Option<&str>) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure { code: FAILED, error };
    if format == Format::Json {
        let json = serde_json::to_string_pretty(incident).map_err(|error| failed(error.into()))?;
        return Ok((json + "\n").into_bytes());
    }
    let views = views(incident);
    if format == Format::Html {
        return Ok(report::html(incident, &views).into_bytes());
    }
    let (view, index) = choose(&views, sample_type, incident)?;
    let drawn: Vec<(&View, usize)> = match sample_type {
        Some(_) => vec![(view, index)],
        None => views.iter().flat_map(|view| (0..view.profile.sample_types.len()).map(move |i| (view, i))).collect(),
    };
    let titles: Vec<String> = drawn.iter().map(|(view, index)| view.title_of(*index)).collect();
    let series: Vec<Series<'_>> = drawn
        .iter()
        .zip(&titles)
        .map(|((view, index), title)| Series { title, profile: &view.profile, sample_type: *index })
        .collect();
    let (program, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let mut content = Vec::new();
    match format {
        Format::Pprof => pprof::write(&of_one(incident, sample_type.map(|_| (view, index))), &mut content),
        Format::Folded => folded::write(&view.profile, index, &mut content),
        Format::Svg => {
            let title = view.title_of(index);
            svg::write(&view.profile, index, svg::Text { title: &title, subtitle: &incident.id }, &mut content)
        }
        Format::Speedscope => speedscope::write(&series, &incident.id, program, &mut content),
        Format::Firefox => firefox::write(&series, program, &mut content),
        Format::Otlp => {
            let resource = [
                ("host.name", incident.host.name.as_str()),
                ("os.type", "linux"),
                ("os.version", incident.host.kernel.as_str()),
                ("reprieve.incident", incident.id.as_str()),
            ];
            otlp::write(&series, otlp::Origin { scope: (program, version), resource: &resource }, &mut content)
        }
        Format::Markdown => {
            // One sample type of each view tells enough.
            let first: Vec<(&View, usize)> = match sample_type {
                Some(_) => drawn,
                None => views.iter().map(|view| (view, 0)).collect(),
            };
            content = markdown::page(incident, &first).into_bytes();
            Ok(())
        }
        Format::Json | Format::Html => Ok(()),
    }
    .map_err(|error| {
        failed(anyhow::Error::new(error).context(format!("incident {} has nothing to draw", incident.id)))
    })?;
    Ok(content)
}

/// Everything that one file of pprof's can hold, or what was chosen.
fn of_one(incident: &Incident, chosen: Option<(&View, usize)>) -> Profile {
    chosen.map_or_else(|| whole(incident), |(view, index)| view.profile.only(index))
}
