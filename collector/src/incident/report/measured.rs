//! How it was measured, and how to see it again.

use crate::incident::model::{Incident, SymbolState};
use crate::incident::units::{bytes, count, micros};
use crate::incident::{accounts, growers, show, since};

/// Sentences on each witness: what it looked at, when, and how exact that is.
pub(super) fn sentences(incident: &Incident) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(hold) = &incident.hold {
        let exposed = match hold.exposed_us {
            0 => "no system call failed for want of memory".to_owned(),
            us => format!("for the first {} system calls could fail with ENOMEM or EFAULT", micros(us)),
        };
        said.push(format!("Hold: {}; {exposed}; deadline {}.", show::hold_line(hold), micros(hold.deadline_us)));
    }
    said.push(
        "Stacks: read from outside while every thread was stopped, each frame by unwind tables, or by frame \
         pointers where it says “guessed”."
            .to_owned(),
    );
    said.push(names(incident));
    if let Some(line) = accounts::line(incident) {
        said.push(format!(
            "What filled it: the kernel's counters, split by page frames that are charged to this cgroup, each once: {line}."
        ));
    }
    match show::heap_line(incident) {
        Some(line) => said.push(format!("Heap: {line}. ± is one standard deviation.")),
        None => said.push(
            "Heap: no witness saw it; thread stacks show who ran, not who holds the memory. reprieve heap env tells how to \
             start a service so that the next incident has it."
                .to_owned(),
        ),
    }
    if growers::is_known(incident) {
        said.push(format!(
            "Page faults: {}; each page counts for who touched it first. ± is sampling alone, and says nothing about who owns it.",
            growers::LABEL
        ));
    }
    match incident.baseline.as_ref() {
        Some(baseline) => {
            let cost = baseline.cost;
            let share = cost.took_us as f64 / cost.since_us.max(1) as f64 * 100.0;
            let mut line = format!(
                "What grew: {} in {}, which took {} ({share:.2} % of a processor) and {} of memory",
                count(cost.records, "record"),
                since::span(cost.since_us),
                micros(cost.took_us),
                bytes(cost.kept_bytes),
            );
            if since::is_compared(baseline) {
                let ago = since::span(baseline.before_us);
                line.push_str(&format!(
                    "; compared with that of {ago} before, after which four fifths of the growth came"
                ));
            }
            if baseline.heap_rest_bytes > 0 {
                let rest = bytes(baseline.heap_rest_bytes);
                line.push_str(&format!("; {rest} at small stacks were not kept apart, and count as grown since"));
            }
            said.push(format!("{line}."));
        }
        None => said.push("What grew: nobody had kept a record of this cgroup, so nothing is compared.".to_owned()),
    }
    if let Some(hold) = &incident.hold {
        said.push(format!(
            "reprieve itself: {} locked in memory, {} at most, and {} of heap for this hold{}.",
            bytes(hold.guardian_locked_bytes),
            bytes(hold.guardian_peak_bytes),
            bytes(hold.guardian_hold_heap_bytes),
            if hold.heap_table_bytes > 0 {
                format!("; {} of heap table", bytes(hold.heap_table_bytes))
            } else {
                String::new()
            },
        ));
    }
    said
}

fn names(incident: &Incident) -> String {
    let symbols = &incident.symbols;
    let named = symbols.addresses.iter().filter(|address| !address.frames.is_empty()).count();
    let of = count(symbols.addresses.len() as u64, "address");
    let when = match &symbols.state {
        SymbolState::BeforeVerdict => "before the verdict",
        SymbolState::AfterVerdict(_) => "after the verdict",
        SymbolState::Failed(_) => "not found",
        SymbolState::Pending => "not looked for yet",
    };
    let more = if named < symbols.addresses.len() { "; reprieve symbolize can find more later" } else { "" };
    format!("Names: {named} of {of} have one, {when}{more}.")
}

/// The command that would run the same again, as far as it is known.
pub(super) fn command(incident: &Incident) -> Option<String> {
    let biggest = incident.processes.iter().max_by_key(|process| process.memory.pss_bytes)?;
    let limit = incident.memcg.as_ref()?.limit_bytes?;
    let exe = biggest.exe.as_deref()?.trim_end_matches(" (deleted)");
    let arguments = match &biggest.cmdline {
        Some(cmdline) => cmdline.iter().skip(1).map(|argument| format!(" {}", quoted(argument))).collect(),
        None => " …".to_owned(),
    };
    Some(format!("reprieve run --memory {} -- {}{arguments}", size(limit), quoted(exe)))
}

/// As `--memory` takes it, in the largest unit that loses nothing.
fn size(bytes: u64) -> String {
    [("G", 30), ("M", 20), ("K", 10)]
        .into_iter()
        .find(|(_, shift)| bytes.is_multiple_of(1 << shift))
        .map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// As a POSIX shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_the_command_line() {
        for (bytes, text) in [(2 << 30, "2G"), (420 << 20, "420M"), (4096, "4K"), (5000, "5000")] {
            assert_eq!(size(bytes), text);
            assert_eq!(crate::size::parse_size(text), Ok(bytes));
        }
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("/usr/bin/sort"), "/usr/bin/sort");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!((quoted(""), quoted("a b;c")), ("''".to_owned(), "'a b;c'".to_owned()));
    }
}
