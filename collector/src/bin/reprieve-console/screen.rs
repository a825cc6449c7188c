//! The screen.

use crate::page;
use crate::state::{Console, Prompt, Stand};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Wrap};
use reprieve::incident::units;
use std::time::Instant;

/// Holds that are listed at a time.
const LISTED: usize = 6;

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, console: &Console) {
    let listed = console.holds.len().clamp(1, LISTED) as u16;
    let [head, list, about, page, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(listed + 2),
        Constraint::Length(if console.holds.is_empty() { 0 } else { 6 }),
        Constraint::Min(1),
        Constraint::Length(2),
    ])
    .areas(frame.area());
    draw_head(frame, head, console);
    draw_list(frame, list, console);
    if let Some(hold) = console.hold() {
        let mut lines = vec![
            Line::from(hold.pending.summary.clone()),
            Line::from(vec![Span::styled("recommended  ", bold()), Span::raw(hold.pending.recommended.clone())]),
        ];
        lines.extend(hold.pending.notes.last().map(|note| Line::from(format!("so far  {note}"))));
        if let Stand::Over(outcome, _) = &hold.stand {
            lines.push(Line::from(vec![Span::styled("it is over  ", bold()), Span::raw(outcome.clone())]));
        }
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), about);
        page::draw(frame, page, console, hold);
    } else {
        page::draw_idle(frame, page, console);
    }
    draw_foot(frame, foot, console);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, console: &Console) {
    let waiting = console.holds.iter().filter(|hold| hold.stand == Stand::Waits).count();
    let guardians = units::count(console.guardians() as u64, "guardian");
    let verb = if waiting == 1 { "waits" } else { "wait" };
    let text = format!(" reprieve   {} {verb} for a decision, {guardians}", units::count(waiting as u64, "hold"));
    let style = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(text).style(style), area);
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, console: &Console) {
    let block = Block::new().borders(Borders::TOP | Borders::BOTTOM).title(" Holds ");
    let at = console.at().unwrap_or(0);
    let first = (at + 1).saturating_sub(LISTED);
    let row = |(number, hold): (usize, &crate::state::Hold)| {
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
        let line = Line::from(vec![
            Span::styled(format!("{mark} {left}  "), Style::new().fg(color)),
            Span::styled(format!("{}  ", pending.cgroup), bold()),
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
    let keys = "t throttle  g grant  z freeze  k kill  + 30 s more  d defer  s shell  tab page  q quit";
    let lines = vec![Line::styled(said, bold()), Line::styled(keys, Style::new().add_modifier(Modifier::REVERSED))];
    frame.render_widget(Paragraph::new(lines), area);
}
