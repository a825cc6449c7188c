//! The page below the list: flame graph, processes, memory.

use crate::evidence::Evidence;
use crate::flame::{self, Cell};
use crate::state::{Console, Hold, Tab};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Wrap};

/// Warm colours, as flame graphs have them.
const FLAMES: [Color; 5] =
    [Color::Indexed(166), Color::Indexed(172), Color::Indexed(130), Color::Indexed(136), Color::Indexed(160)];

/// Draws what is known of a hold; returns how many of its lines are above the screen.
pub fn draw(frame: &mut Frame<'_>, area: Rect, console: &Console, hold: &Hold) -> usize {
    let (title, lines) = match (&hold.evidence, console.tab) {
        (Err(why), _) => (String::new(), vec![Line::from(why.clone())]),
        (Ok(evidence), Tab::Flame) => flames(evidence, console.profile, area.width),
        (Ok(evidence), Tab::Processes) => (String::new(), evidence.processes().into_iter().map(Line::from).collect()),
        (Ok(evidence), Tab::Memory) => (String::new(), evidence.memory().into_iter().map(Line::from).collect()),
    };
    let mut block = Block::new().borders(Borders::TOP).title(tabs(console.tab, &title));
    // The last line stays in sight.
    let height = usize::from(area.height.saturating_sub(1)).max(1);
    let count = lines.len();
    let scroll = console.scroll.min(count.saturating_sub(height));
    if count > height {
        let place = format!(" {}-{} of {count} lines ", scroll + 1, scroll + height);
        block = block.title(Line::from(place).right_aligned());
    }
    let shown: Vec<Line<'_>> = lines.into_iter().skip(scroll).collect();
    frame.render_widget(Paragraph::new(shown).block(block), area);
    scroll
}

/// Draws what there is to say while nothing waits.
pub fn draw_idle(frame: &mut Frame<'_>, area: Rect, console: &Console) {
    let mut lines = Vec::new();
    if console.guardians() == 0 {
        lines.push(Line::from(format!(
            "No guardian listens in {}: `reprieve guard` does, and `reprieve run` whose policy has ask or freeze.",
            console.dir().display()
        )));
    }
    lines.extend(console.problems.iter().map(|(_, problem)| Line::from(problem.to_string())));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), area);
}

fn tabs(tab: Tab, title: &str) -> Line<'static> {
    let style = |of: Tab| if of == tab { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
    let mut spans = vec![
        Span::styled(" Flame graph ", style(Tab::Flame)),
        Span::styled(" Processes ", style(Tab::Processes)),
        Span::styled(" Memory ", style(Tab::Memory)),
    ];
    if !title.is_empty() {
        spans.push(Span::raw(format!(" < {title} > ")));
    }
    Line::from(spans)
}

fn flames(evidence: &Evidence, number: usize, width: u16) -> (String, Vec<Line<'static>>) {
    let Some((title, profile, sample_type)) = evidence.profile(number) else {
        return (String::new(), vec![Line::from("there is no profile of it")]);
    };
    let rows = flame::rows(&flame::tree(profile, sample_type), width);
    (title, rows.iter().map(|row| line(row)).collect())
}

fn line(row: &[Cell]) -> Line<'static> {
    let mut spans = Vec::new();
    let mut column = 0;
    for cell in row {
        let gap = usize::from(cell.at) - column;
        spans.push(Span::raw(" ".repeat(gap)));
        column += gap + cell.text.chars().count();
        // The same function has the same colour wherever it is.
        let name = cell.text.split([' ', '│']).find(|part| !part.is_empty()).unwrap_or_default();
        let hash = name.bytes().fold(7usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        let style = Style::new().bg(FLAMES[hash % FLAMES.len()]).fg(Color::White);
        spans.push(Span::styled(cell.text.clone(), style));
    }
    Line::from(spans)
}
