//! An incident for an issue, a chat or a wiki: GitHub's Markdown (github.github.com/gfm).

use super::model::{Incident, StepOutcome};
use super::others;
use super::profile::View;
use super::show;
use super::units::{bytes, count, micros, time};
use super::{accounts, growers, left_out, since};
use reprieve_flamegraph::top::{self, TopStack};
use std::fmt::Write;

/// Stacks shown of each view.
const STACKS: usize = 5;
/// Frames shown of each stack.
const FRAMES: usize = 16;
/// Processes shown.
const PROCESSES: usize = 16;

/// The page. `drawn` are the views with the sample type of each that stacks are ranked by.
#[must_use]
pub fn page(incident: &Incident, drawn: &[(&View, usize)]) -> String {
    let mut page = String::new();
    let mut line = |text: &str| page.push_str(&format!("{text}\n"));
    line(&format!("# {}\n", text(&show::headline(incident))));
    let host = &incident.host;
    line(&format!(
        "{} · {} · kernel {} · incident {}\n",
        time(incident.time_unix_us),
        text(&host.name),
        text(&host.kernel),
        code(&incident.id)
    ));
    if let Some(verdict) = &incident.verdict {
        let named =
            |rule: &Option<String>| rule.as_ref().map_or(String::new(), |rule| format!(" (rule {})", code(rule)));
        let several = show::has_several_rules(verdict);
        let rule = if several { String::new() } else { named(&verdict.rule) };
        line(&format!("**Verdict:** {}{rule}\n", text(&show::verdict_line(incident, verdict))));
        verdict.problems.iter().for_each(|problem| line(&format!("- {}", text(problem))));
        if !verdict.steps.is_empty() {
            line("| action | outcome | charged before | after | time | what was measured | why |");
            line("|---|---|--:|--:|--:|---|---|");
        }
        for step in &verdict.steps {
            let outcome = match step.outcome {
                StepOutcome::Relieved => "relieved",
                StepOutcome::NotEnough => "not enough",
                StepOutcome::Failed => "failed",
            };
            line(&format!(
                "| {}{} | {outcome} | {} | {} | {} | {} | {} |",
                code(&step.action),
                if several { named(&step.rule) } else { String::new() },
                bytes(step.usage_before_bytes),
                bytes(step.usage_after_bytes),
                micros(step.took_us),
                text(&step.effect),
                text(&step.reason),
            ));
        }
        line("");
    }
    if let Some(hold) = &incident.hold {
        line(&format!("**Hold:** {}\n", text(&show::hold_line(hold))));
    }
    if let Some(left_out) = left_out::line(incident) {
        line(&format!("**Left out on purpose:** {}\n", text(&left_out)));
    }
    if let Some(others) = others::line(incident) {
        line(&format!("**Others:** {}\n", text(&others)));
    }
    if !incident.kernel_victims.is_empty() {
        line("## Killed by the kernel\n");
        for victim in &incident.kernel_victims {
            line(&format!("- {} \\[{}\\], {} resident", text(&victim.comm), victim.pid, bytes(victim.rss_bytes)));
        }
        line("");
    }
    grown(&mut page, incident);
    charged(&mut page, incident);
    processes(&mut page, incident);
    for (view, sample_type) in drawn {
        stacks(&mut page, incident, view, *sample_type);
    }
    let unknown = show::unknown(incident);
    if !unknown.is_empty() {
        page.push_str("## Not known\n\n");
        unknown.iter().for_each(|gap| page.push_str(&format!("- {}\n", text(gap))));
    }
    page.truncate(page.trim_end().len());
    page + "\n"
}

fn grown(page: &mut String, incident: &Incident) {
    let Some(baseline) = incident.baseline.as_ref().filter(|baseline| since::is_compared(baseline)) else { return };
    let time = since::span(baseline.span_us());
    let _ = writeln!(page, "## What grew in {time}\n\n| growth | before | after | what |\n|--:|--:|--:|---|");
    for rows in [since::kinds(baseline), since::processes(baseline), since::functions(incident)] {
        for row in rows.iter().filter(|row| row.growth() != 0).take(STACKS) {
            let (before, after) = (bytes(row.before_bytes), bytes(row.after_bytes));
            let _ = writeln!(page, "| {} | {before} | {after} | {} |", row.signed(), text(&row.place));
        }
    }
    page.push('\n');
}

fn charged(page: &mut String, incident: &Incident) {
    let Some(line) = accounts::line(incident) else { return };
    let _ = writeln!(page, "## What it is charged for\n\n{}\n\n| bytes | share | what |\n|--:|--:|---|", text(&line));
    for row in accounts::rows(incident) {
        let inset = "&emsp;".repeat(row.depth);
        let _ = writeln!(page, "| {} | {} | {inset}{} |", row.bytes, row.share, text(&row.what));
    }
    page.push('\n');
}

fn processes(page: &mut String, incident: &Incident) {
    if incident.processes.is_empty() {
        return;
    }
    page.push_str(
        "## Processes\n\n| PID | name | resident | anonymous | shared | threads |\n|--:|---|--:|--:|--:|--:|\n",
    );
    let mut processes: Vec<_> = incident.processes.iter().collect();
    processes.sort_by_key(|process| std::cmp::Reverse(process.memory.pss_bytes));
    for p in processes.iter().take(PROCESSES) {
        let (rss, anon, shmem) = (p.memory.rss_bytes, p.memory.pss_anon_bytes, p.memory.pss_shmem_bytes);
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} |",
            p.pid,
            text(&p.comm),
            bytes(rss),
            bytes(anon),
            bytes(shmem),
            p.threads.len()
        );
    }
    page.push('\n');
    if processes.len() > PROCESSES {
        let _ = writeln!(page, "and {} more\n", processes.len() - PROCESSES);
    }
}

fn stacks(page: &mut String, incident: &Incident, view: &View, sample_type: usize) {
    let Some(kind) = view.profile.sample_types.get(sample_type) else { return };
    let top = top::stacks(&view.profile, sample_type, STACKS);
    if top.is_empty() {
        return;
    }
    let _ = writeln!(page, "## {}\n", text(&view.title_of(sample_type)));
    if view.name == "heap"
        && let Some(line) = show::heap_line(incident)
    {
        let _ = writeln!(page, "{}\n", text(&line));
    }
    if view.name == "growth" {
        let lines = growers::line(incident).into_iter().chain(growers::disagreements(incident));
        lines.for_each(|line| page.push_str(&format!("{}\n\n", text(&line))));
    }
    for stack in &top {
        let share = stack.share * 100.0;
        let _ =
            writeln!(page, "**{}, {share:.0} %** {}\n", text(&show::value(stack, kind)), text(&stack.labels.join(" ")));
        if !stack.frames.is_empty() {
            page.push_str(&block(stack));
        }
    }
}

/// Frames as they are, in a fence that none of them can close.
fn block(stack: &TopStack) -> String {
    let mut lines: Vec<String> = stack.frames.iter().take(FRAMES).map(|frame| plain(frame)).collect();
    let more = stack.frames.len().saturating_sub(FRAMES) as u64;
    if more > 0 {
        lines.push(format!("… and {}", count(more, "more frame")));
    }
    let fence = "`".repeat(lines.iter().map(|line| longest_run(line)).max().unwrap_or(0).max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n\n", lines.join("\n"))
}

fn longest_run(line: &str) -> usize {
    line.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// On one line, as control characters would end it.
fn plain(line: &str) -> String {
    line.chars().map(show::printable).collect()
}

/// Words that mean what they are: a backslash before each character that could mean more.
fn text(words: &str) -> String {
    let mut escaped = String::with_capacity(words.len());
    for c in words.chars().map(show::printable) {
        if "\\`*_{}[]<>|#~&$".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A word in the type of code, in a table, too.
fn code(word: &str) -> String {
    let word = plain(word);
    if word.contains(['`', '|']) { text(&word) } else { format!("`{word}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_is_markup() {
        assert_eq!(text("a<b>|_c_"), "a\\<b\\>\\|\\_c\\_");
        assert_eq!((code("kill"), code("a|b")), ("`kill`".to_owned(), "a\\|b".to_owned()));
        let stack = TopStack {
            frames: vec!["a ``` b".into(), "c\nd".into()],
            labels: vec![],
            value: 1,
            share: 1.0,
            spread: Default::default(),
        };
        assert_eq!(block(&stack), "````text\na ``` b\nc?d\n````\n\n");
    }
}
