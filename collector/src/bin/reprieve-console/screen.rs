//! The screen.

use crate::page;
use crate::state::{Console, Hold, Prompt, Stand};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use reprieve::desk::client::NoGuardian;
use reprieve::incident::units;
use std::time::Instant;
use textwrap::{Options, WordSplitter};

/// Holds that are listed at a time.
const LISTED: usize = 6;
/// Columns of a cgroup's path that are shown beside any outcome, however long.
const PATH_LEAST: usize = 24;
/// Columns of the text after it that are shown beside any path.
const THEN_LEAST: usize = 24;
/// What is done by keys; 80 columns have room for either.
const DECIDE: &str = "t throttle  g grant  z freeze  k kill  d defer to the kernel  + 30 s more";
const MOVE: &str = "up/down hold  tab page  left/right profile  pgup/pgdn scroll  s shell  q quit";

/// Draws it; returns how far it could be scrolled of what was asked for.
pub fn draw(frame: &mut Frame<'_>, console: &Console) -> usize {
    let listed = console.holds.len().clamp(1, LISTED) as u16;
    let width = usize::from(frame.area().width);
    let told = console.hold().map(|hold| about_hold(hold, width)).unwrap_or_default();
    let most = frame.area().height / 3;
    let [head, list, about, page, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(listed + 2),
        Constraint::Length(most.min(told.len() as u16)),
        Constraint::Min(1),
        Constraint::Length(3),
    ])
    .areas(frame.area());
    draw_head(frame, head, console);
    draw_list(frame, list, console);
    draw_foot(frame, foot, console);
    let Some(hold) = console.hold() else {
        page::draw_idle(frame, page, console);
        return 0;
    };
    frame.render_widget(Paragraph::new(told), about);
    page::draw(frame, page, console, hold)
}

/// What there is to say about a hold, in lines of this width.
fn about_hold(hold: &Hold, width: usize) -> Vec<Line<'static>> {
    let mut lines = labelled("", &hold.pending.summary, width);
    // Whole, where the list may have no room for it.
    if hold.pending.cgroup.chars().count() > width / 3 {
        lines.extend(labelled("cgroup  ", &hold.pending.cgroup, width));
    }
    if let Stand::Over(outcome, _) = &hold.stand {
        lines.extend(labelled("it is over  ", outcome, width));
    }
    lines.extend(hold.pending.notes.last().into_iter().flat_map(|note| labelled("so far  ", note, width)));
    lines.extend(labelled("recommended  ", &hold.pending.recommended, width));
    lines
}

/// A text after a label.
fn labelled(label: &str, text: &str, width: usize) -> Vec<Line<'static>> {
    let options = Options::new(width).initial_indent(label).word_splitter(WordSplitter::NoHyphenation);
    let line = |line: &std::borrow::Cow<'_, str>| match line.strip_prefix(label) {
        Some(rest) => Line::from(vec![Span::styled(label.to_owned(), bold()), Span::raw(rest.to_owned())]),
        None => Line::from(line.to_string()),
    };
    textwrap::wrap(text, options).iter().map(line).collect()
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, console: &Console) {
    let waiting = console.holds.iter().filter(|hold| hold.stand == Stand::Waits).count();
    let guardians = units::count(console.guardians() as u64, "guardian");
    let verb = if waiting == 1 { "waits" } else { "wait" };
    let holds = units::count(waiting as u64, "hold");
    let is_there = |problem: &&(std::path::PathBuf, NoGuardian)| !matches!(problem.1, NoGuardian::Dead(_));
    let others = match console.problems.iter().filter(is_there).count() {
        0 => String::new(),
        count => format!(", {count} that cannot be talked to"),
    };
    let text = format!(" reprieve on {}   {holds} {verb} for a decision, {guardians}{others}", console.host);
    let style = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(text).style(style), area);
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, console: &Console) {
    let block = Block::new().borders(Borders::TOP | Borders::BOTTOM).title(" Holds ");
    let at = console.at().unwrap_or(0);
    let first = (at + 1).saturating_sub(LISTED);
    let row = |(number, hold): (usize, &Hold)| {
        let pending = &hold.pending;
        let (left, then, color) = match &hold.stand {
            Stand::Waits => {
                let left = hold.until.saturating_duration_since(Instant::now()).as_secs_f64();
                let color = if left < 10.0 { Color::Red } else { Color::Yellow };
                (format!("{left:>5.0} s"), format!("then {}", pending.fallback), color)
            }
            Stand::Decided(how) => ("decided".to_owned(), how.clone(), Color::Cyan),
            Stand::Over(outcome, _) => ("   over".to_owned(), outcome.clone(), Color::DarkGray),
        };
        let mark = if number == at { ">" } else { " " };
        let usage = format!("{} of {}", units::bytes(pending.usage_bytes), units::bytes(pending.limit_bytes));
        let left = format!("{mark} {left}  ");
        let taken = left.len() + usage.len() + 4 + then.chars().count().min(THEN_LEAST);
        let path = end_of(&pending.cgroup, usize::from(area.width).saturating_sub(taken).max(PATH_LEAST));
        let line = Line::from(vec![
            Span::styled(left, Style::new().fg(color)),
            Span::styled(format!("{path}  "), bold()),
            Span::raw(format!("{usage}  {then}")),
        ]);
        if number == at { line } else { line.style(Style::new().add_modifier(Modifier::DIM)) }
    };
    let lines: Vec<Line<'_>> = match console.holds.is_empty() {
        true => vec![Line::from("  nothing waits for a decision")],
        false => console.holds.iter().enumerate().skip(first).take(LISTED).map(row).collect(),
    };
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// As much of a path's end as there is room for: paths of containers begin alike.
fn end_of(path: &str, room: usize) -> String {
    let length = path.chars().count();
    if length <= room {
        return path.to_owned();
    }
    let end: String = path.chars().skip(length + 1 - room.max(1)).collect();
    format!("…{end}")
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, console: &Console) {
    let said = match &console.prompt {
        Some(Prompt::Grant(size)) => {
            let hint = if console.said.is_empty() { "enter: do it, escape: not" } else { &console.said };
            format!("grant how much? {size}_   ({hint})")
        }
        Some(Prompt::Sure(action)) => {
            let whom = console.hold().map(|hold| hold.pending.cgroup.clone()).unwrap_or_default();
            format!("{action} in {whom}? y: yes, any other key: no")
        }
        None => console.said.clone(),
    };
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let lines = vec![Line::styled(said, bold()), Line::styled(DECIDE, reversed), Line::styled(MOVE, reversed)];
    frame.render_widget(Paragraph::new(lines), area);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_path_the_end_is_shown() {
        assert_eq!(end_of("/a/b", 4), "/a/b");
        assert_eq!(end_of("/kubepods.slice/é-0123.scope", 13), "…é-0123.scope");
        assert_eq!(end_of("/a/b", 0), "…");
    }

    #[test]
    fn texts_are_wrapped_after_their_label() {
        let text = |line: &Line<'_>| line.spans.iter().map(|span| span.content.as_ref()).collect::<String>();
        let lines = labelled("so far  ", "one two three", 16);
        assert_eq!(lines.iter().map(text).collect::<Vec<_>>(), ["so far  one two", "three"]);
        assert!(DECIDE.len() <= 80 && MOVE.len() <= 80);
    }
}
