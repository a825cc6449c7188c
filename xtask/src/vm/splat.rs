//! What a kernel says on its console when something in it is wrong.

use std::collections::BTreeMap;

/// Marks of lines that report a bug, as lib/, kernel/ and mm/ print them.
const MARKS: &[&str] = &[
    "BUG: ",
    "WARNING: ",
    "KASAN: ",
    "KCSAN: ",
    "UBSAN: ",
    "ODEBUG: ",
    "INFO: possible ",
    "INFO: suspicious ",
    "INFO: inconsistent ",
    "INFO: rcu",
    "rcu: INFO: ",
    "blocked for more than",
    "general protection fault",
    "Oops: ",
    "Kernel panic",
    "list_add corruption",
    "list_del corruption",
];
/// What names of the series' functions have in them.
const OURS: &[&str] = &["oom_hold", "oom_handler", "oom_reserve", "oom_park", "memory_oom_", "try_charge_over"];
/// KCSAN's mark, whose findings are many in any kernel.
const RACE: &str = "KCSAN: ";
/// Longest report, in lines.
const REPORT_LINES: usize = 60;

/// What a console's log has of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Splats {
    /// Reports, each with the lines that follow it.
    pub(super) reports: Vec<String>,
    /// Data races in which the series has no part: headline and count.
    pub(super) foreign_races: BTreeMap<String, usize>,
}

/// Finds the reports in a console's log.
pub(super) fn find(log: &str) -> Splats {
    let lines: Vec<&str> = log.lines().collect();
    let mut splats = Splats::default();
    let mut at = 0;
    while at < lines.len() {
        if !MARKS.iter().any(|mark| lines[at].contains(mark)) {
            at += 1;
            continue;
        }
        let end = end_of_report(&lines, at);
        let report = lines[at..end].join("\n");
        if lines[at].contains(RACE) && !OURS.iter().any(|name| report.contains(name)) {
            *splats.foreign_races.entry(without_time(lines[at]).to_owned()).or_default() += 1;
        } else {
            splats.reports.push(report);
        }
        at = end;
    }
    splats
}

/// The line after a report: lockdep, KASAN and KCSAN close theirs with a rule, a
/// warning with the end of its trace.
fn end_of_report(lines: &[&str], begin: usize) -> usize {
    let limit = lines.len().min(begin + REPORT_LINES);
    (begin + 1..limit)
        .find(|&at| {
            let text = without_time(lines[at]);
            text.starts_with("======") && at > begin + 2 || text.starts_with("---[ end trace")
        })
        .map_or(limit, |at| at + 1)
}

/// A line of the log without the seconds before it.
fn without_time(line: &str) -> &str {
    line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "==================================================================";

    fn race(first: &str, second: &str, frame: &str) -> String {
        format!(
            "{RULE}\n[    1.5] BUG: KCSAN: data-race in {first} / {second}\n\nread to 0x1:\n {frame}+0x1/0x2\n{RULE}\n"
        )
    }

    #[test]
    fn quiet_logs_have_none() {
        assert_eq!(find("[    1.0] Out of memory: Killed process 7\n[    1.1] a=b\n"), Splats::default());
    }

    #[test]
    fn every_report_is_found_once() {
        let log = "[    1.0] WARNING: CPU: 0 PID: 1 at mm/a.c:1\n[    1.0]  f+0x1\n[    1.0] ---[ end trace 0 ]---\n\
                   fine\n[    2.0] INFO: possible recursive locking detected\n";
        let splats = find(log);
        assert_eq!(splats.reports.len(), 2);
        assert!(splats.reports[0].ends_with("end trace 0 ]---") && splats.reports[1].contains("recursive"));
    }

    #[test]
    fn races_elsewhere_are_told_apart() {
        let log = race("tick", "tock", "tick") + &race("tick", "tock", "tick") + &race("a", "b", "oom_hold_begin");
        let splats = find(&log);
        assert_eq!(splats.reports.len(), 1);
        assert_eq!(
            splats.foreign_races.into_iter().collect::<Vec<_>>(),
            [("BUG: KCSAN: data-race in tick / tock".to_owned(), 2)]
        );
    }
}
