//! An incident as a page for a terminal, and what a search for more names came to.

use super::{estimate_bytes, fit, has_several_rules, headline, heap_line, hold_line, is_told, printable};
use super::{rule_of, unknown, value, verdict_line};
use crate::incident::model::{Incident, Subject, Trigger};
use crate::incident::units::{bytes, count, grouped, time};
use crate::incident::{accounts, growers, heaps, left_out, mallocs, others, profile, since};
use reprieve_flamegraph::{Profile, top};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Stacks shown.
const STACKS: usize = 3;
/// Frames shown of each.
const FRAMES: usize = 8;
/// Processes shown.
const PROCESSES: usize = 8;

/// How to show an incident.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// Columns of the terminal.
    pub width: usize,
    /// Sample type by which heap stacks are ranked, like `alloc_space`.
    pub sample_type: &'a str,
}

/// What a search for more names came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Completed {
    /// Addresses of the stacks.
    pub addresses: usize,
    /// How many had a name before.
    pub named_before: usize,
    /// How many have one now.
    pub named: usize,
    /// How many are told in more detail than before.
    pub improved: usize,
}

/// A search for more names: how many there are, and for those that are
/// missing where they were looked for.
#[must_use]
pub fn completed(incident: &Incident, completed: &Completed, width: usize) -> String {
    let Completed { addresses, named_before, named, improved } = *completed;
    let mut page = Page { text: String::new(), width };
    page.row(&format!(
        "{} of {} named, {} before; {} told in more detail",
        grouped(named as u64),
        count(addresses as u64, "address"),
        grouped(named_before as u64),
        grouped(improved as u64),
    ));
    let mut unnamed: BTreeMap<Subject, (u64, &str)> = BTreeMap::new();
    for address in &incident.symbols.addresses {
        if let Some(miss) = &address.miss {
            unnamed.entry(Subject::Module(address.at.module)).or_insert((0, miss)).0 += 1;
        }
    }
    for address in &incident.symbols.generated {
        if let Some(miss) = &address.miss {
            unnamed.entry(Subject::Process(address.pid)).or_insert((0, miss)).0 += 1;
        }
    }
    for search in &incident.symbols.searches {
        let missing = unnamed.remove(&search.subject);
        let less = search.without_inlined.saturating_add(search.without_lines);
        if missing.is_some() || less > 0 {
            page.search(incident, search.subject, missing);
            if less > 0 {
                page.prose(
                    "  ",
                    &format!("{} with less detail, for want of memory (--memory)", count(less, "address")),
                );
            }
            search.tried.iter().for_each(|tried| page.prose("    ", &tried.to_string()));
        }
    }
    unnamed.into_iter().for_each(|(subject, missing)| page.search(incident, subject, Some(missing)));
    page.text
}

/// The whole page, no line wider than the layout's width but for the report's path.
#[must_use]
pub fn page(incident: &Incident, dir: &Path, layout: Layout<'_>) -> String {
    let mut page = Page { text: String::new(), width: layout.width };
    page.prose("", &headline(incident));
    page.row(&format!("{}  kernel {}  {}", time(incident.time_unix_us), incident.host.kernel, incident.host.name));
    if let Some(verdict) = &incident.verdict {
        page.prose("\nVERDICT  ", &verdict_line(incident, verdict));
        if let Some(rule) = verdict.rule.as_ref().filter(|_| !has_several_rules(verdict)) {
            page.prose("  ", &format!("by rule {rule:?}"));
        }
        verdict.problems.iter().for_each(|problem| page.prose("  ", problem));
        for step in &verdict.steps {
            if is_told(verdict) {
                page.prose("  because ", &step.reason);
                continue;
            }
            page.prose("  ", &format!("{}: {}", step.action, step.effect));
            if has_several_rules(verdict) {
                page.prose("    ", &rule_of(step));
            }
            page.prose("    because ", &step.reason);
        }
    }
    if let Some(hold) = &incident.hold {
        page.prose("\nHOLD  ", &hold_line(hold));
    }
    if let Some(left_out) = left_out::line(incident) {
        page.prose("\nLEFT OUT  ", &left_out);
    }
    if let Some(others) = others::line(incident) {
        page.prose("\nOTHERS  ", &others);
    }
    if !incident.kernel_victims.is_empty() {
        page.row("\nKILLED BY THE KERNEL");
        for victim in &incident.kernel_victims {
            page.row(&format!("  {} [{}], {} resident", victim.comm, victim.pid, bytes(victim.rss_bytes)));
        }
    }
    page.grown(incident);
    page.processes(incident);
    page.accounting(incident);
    page.heap(incident, layout.sample_type);
    page.growth(incident);
    page.malloc(incident);
    page.threads(incident);
    let unknown = unknown(incident);
    if !unknown.is_empty() {
        page.row("\nNOT KNOWN");
        for gap in &unknown {
            page.prose("  ", gap);
        }
    }
    // A path must be whole to be of use.
    let _ = writeln!(page.text, "\nreport  {}", dir.join("report.html").display());
    page.text
}

/// Text for a terminal as it grows.
struct Page {
    text: String,
    width: usize,
}

impl Page {
    /// Words, wrapped behind a lead that may begin with a line feed.
    fn prose(&mut self, lead: &str, words: &str) {
        let words: String = words.chars().map(printable).collect();
        let indent = " ".repeat(lead.trim_start_matches('\n').len());
        let options = textwrap::Options::new(self.width)
            .initial_indent(&indent)
            .subsequent_indent(&indent)
            // Names of cgroups and files must stay whole.
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        let wrapped = textwrap::fill(&words, options);
        let _ = writeln!(self.text, "{lead}{}", &wrapped[indent.len().min(wrapped.len())..]);
    }

    /// A row of a table or a frame: one line, cut where names are least telling.
    fn row(&mut self, row: &str) {
        if let Some(row) = row.strip_prefix('\n') {
            self.text.push('\n');
            return self.row(row);
        }
        let _ = writeln!(self.text, "{}", fit(row, self.width));
    }

    /// Whose names are missing, how many, and why.
    fn search(&mut self, incident: &Incident, subject: Subject, missing: Option<(u64, &str)>) {
        let whose = match subject {
            Subject::Module(index) => {
                incident.modules.get(index as usize).map_or("[unknown]", |m| m.path.as_str()).to_owned()
            }
            Subject::Process(pid) => {
                let comm = incident.processes.iter().find(|p| p.pid == pid).map_or("", |p| p.comm.as_str());
                format!("generated code of {comm} [{pid}]")
            }
        };
        let why = missing.map(|(number, why)| format!(": {} without a name: {why}", count(number, "address")));
        self.prose("", &(whose + &why.unwrap_or_default()));
    }

    fn processes(&mut self, incident: &Incident) {
        if incident.processes.is_empty() {
            return;
        }
        self.row("\nPROCESSES");
        self.row("      PID       RSS      ANON     SHMEM  THREADS  NAME");
        let mut processes: Vec<_> = incident.processes.iter().collect();
        processes.sort_by_key(|p| std::cmp::Reverse(p.memory.pss_bytes));
        for p in processes.iter().take(PROCESSES) {
            self.row(&format!(
                "  {:>7} {:>9} {:>9} {:>9} {:>8}  {}",
                p.pid,
                bytes(p.memory.rss_bytes),
                bytes(p.memory.pss_anon_bytes),
                bytes(p.memory.pss_shmem_bytes),
                p.threads.len(),
                p.comm
            ));
        }
        if processes.len() > PROCESSES {
            self.row(&format!("  and {} more", processes.len() - PROCESSES));
        }
    }

    fn grown(&mut self, incident: &Incident) {
        let Some(baseline) = incident.baseline.as_ref().filter(|baseline| since::is_compared(baseline)) else {
            return;
        };
        let charged = since::charged(baseline);
        let then = bytes(baseline.before_bytes);
        self.prose(
            "\nWHAT GREW  ",
            &format!("{} in {}, from {then}", charged.signed(), since::span(baseline.span_us())),
        );
        for rows in [since::kinds(baseline), since::processes(baseline), since::functions(incident)] {
            for row in rows.iter().filter(|row| row.growth() > 0).take(STACKS) {
                self.row(&format!(
                    "  {:>10}  {:>9} → {:>9}  {}",
                    row.signed(),
                    bytes(row.before_bytes),
                    bytes(row.after_bytes),
                    row.place
                ));
            }
        }
    }

    fn accounting(&mut self, incident: &Incident) {
        let Some(line) = accounts::line(incident) else { return };
        self.prose("\nWHERE EVERY BYTE WENT  ", &line);
        for row in accounts::rows(incident) {
            let indent = "  ".repeat(row.depth);
            let mark = if row.is_unexplained { "? " } else { "" };
            self.row(&format!("  {:>9} {:>7}  {indent}{mark}{}", row.bytes, row.share, row.what));
        }
    }

    fn heap(&mut self, incident: &Incident, sample_type: &str) {
        let Some(line) = heap_line(incident) else { return };
        self.prose("\nWHO OWNS THE HEAP  ", &line);
        let rows = heaps::rows(incident);
        if rows.len() > 1 {
            self.row("      PID               LIVE     EVER  ONE IN  WITNESS   NAME");
        }
        for row in rows.iter().filter(|_| rows.len() > 1).take(PROCESSES) {
            let Some(process) = row.process else { continue };
            self.row(&format!(
                "  {:>7} {:>18} {:>8} {:>7}  {:9} {}{}",
                process.pid,
                estimate_bytes(&row.inuse),
                bytes(row.alloc.bytes),
                row.period_bytes.map_or(String::new(), bytes),
                row.witness,
                process.comm,
                if row.is_counted { "" } else { "  (seen better above: not in the sum)" },
            ));
        }
        let profile = profile::heap(incident);
        let chosen = profile.find(sample_type).unwrap_or(0);
        if chosen > 0 {
            self.row(&format!("  by {}:", profile::meaning(&profile.sample_types[chosen].kind)));
        }
        self.stacks(&profile, chosen);
    }

    fn growth(&mut self, incident: &Incident) {
        let Some(line) = growers::line(incident) else { return };
        self.row(&format!("\nWHO MADE IT GROW  ({})", growers::LABEL));
        self.prose("  ", &line);
        self.row("      PID     GROWN        RELIABLE    DIRECT    SHARED    STACKS      HEAP  NAME");
        for r in growers::rows(incident).iter().take(PROCESSES) {
            self.row(&format!(
                "  {:>7} {:>9} {:>15} {:>9} {:>9} {:>9} {:>9}  {}",
                r.pid, r.grown, r.reliable, r.direct, r.shared, r.stacks, r.heap, r.name
            ));
        }
        growers::disagreements(incident).iter().for_each(|line| self.prose("  ", line));
        self.stacks(&growers::profile(incident), 0);
    }

    fn malloc(&mut self, incident: &Incident) {
        let rows = mallocs::rows(incident);
        if rows.is_empty() {
            return;
        }
        self.row("\nMALLOC  (what it gave out, what it holds free, beside what is charged)");
        self.row("      PID      LIVE      FREE  RESIDENT       TOP    MAPPED  ANON CHARGED  NAME");
        for r in rows.iter().take(PROCESSES) {
            self.row(&format!(
                "  {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>13}  {}",
                r.pid, r.live, r.free, r.free_resident, r.top, r.mmapped, r.anon, r.name
            ));
        }
    }

    fn threads(&mut self, incident: &Incident) {
        if incident.processes.iter().any(|p| !p.threads.is_empty()) {
            let moment = match incident.trigger {
                Trigger::Snapshot => "they were stopped",
                Trigger::Oom | Trigger::KilledByKernel => "memory ran out",
            };
            self.row(&format!("\nTHREADS BY STACK  (who was running when {moment})"));
            self.stacks(&profile::threads(incident), 0);
        }
    }

    fn stacks(&mut self, profile: &Profile, sample_type: usize) {
        for stack in top::stacks(profile, sample_type, STACKS) {
            let value = value(&stack, &profile.sample_types[sample_type]);
            self.row(&format!("  {value}, {:.0} %  {}", stack.share * 100.0, stack.labels.join(" ")));
            for frame in stack.frames.iter().take(FRAMES) {
                self.row(&format!("      {frame}"));
            }
            let more = stack.frames.len().saturating_sub(FRAMES) as u64;
            if more > 0 {
                self.row(&format!("      … and {}", count(more, "more frame")));
            }
        }
    }
}
