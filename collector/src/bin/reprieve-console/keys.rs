//! What keys do.

use crate::state::{Console, Prompt, Tab};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use reprieve::desk::message::FromOperator;
use reprieve::verdict::Action;

/// Milliseconds that `+` adds.
const MORE_MS: u64 = 30_000;
/// Lines that a page key scrolls.
const PAGE: usize = 10;
/// What is offered to be granted.
const GRANT: &str = "64M";

/// Does what a key says.
pub fn press(console: &mut Console, key: KeyEvent) {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        console.is_over |= matches!(key.code, KeyCode::Char('c'));
        return;
    }
    if let Some(prompt) = console.prompt.take() {
        return answer(console, prompt, key.code);
    }
    console.said.clear();
    let at = console.at().unwrap_or(0);
    match key.code {
        KeyCode::Char('q') => console.is_over = true,
        KeyCode::Char('s') => console.wants_shell = true,
        KeyCode::Up => console.choose(at.saturating_sub(1)),
        KeyCode::Down => console.choose((at + 1).min(console.holds.len().saturating_sub(1))),
        KeyCode::Tab => {
            console.scroll = 0;
            console.tab = match console.tab {
                Tab::Flame => Tab::Processes,
                Tab::Processes => Tab::Memory,
                Tab::Memory => Tab::Flame,
            };
        }
        KeyCode::Right => turn(console, 1),
        KeyCode::Left => turn(console, -1),
        KeyCode::PageDown => console.scroll += PAGE,
        KeyCode::PageUp => console.scroll = console.scroll.saturating_sub(PAGE),
        // The others are for a hold.
        KeyCode::Char('t' | 'z' | '+' | 'g' | 'k' | 'd') if console.hold().is_none() => console.say_none(),
        KeyCode::Char('t') => console.decide("throttle"),
        KeyCode::Char('z') => console.decide("freeze"),
        KeyCode::Char('+') => console.say(|id| FromOperator::More { id, ms: MORE_MS }),
        KeyCode::Char('g') => console.prompt = Some(Prompt::Grant(GRANT.to_owned())),
        KeyCode::Char('k') => console.prompt = Some(Prompt::Sure("kill".to_owned())),
        KeyCode::Char('d') => console.prompt = Some(Prompt::Sure("defer".to_owned())),
        _ => {}
    }
}

/// Another profile of the same hold.
fn turn(console: &mut Console, by: isize) {
    let Some(Ok(evidence)) = console.hold().map(|hold| &hold.evidence) else { return };
    let profiles = evidence.profiles().max(1);
    console.profile = (console.profile + profiles).wrapping_add_signed(by) % profiles;
    console.scroll = 0;
}

fn answer(console: &mut Console, prompt: Prompt, key: KeyCode) {
    console.said.clear();
    match (prompt, key) {
        (_, KeyCode::Esc) => {}
        (Prompt::Sure(action), KeyCode::Char('y')) => console.decide(&action),
        (Prompt::Sure(_), _) => console.said = "nothing was decided".to_owned(),
        (Prompt::Grant(size), KeyCode::Enter) => {
            let action = format!("grant={size}");
            match action.parse::<Action>() {
                Ok(_) => console.decide(&action),
                Err(error) => {
                    console.said = error;
                    console.prompt = Some(Prompt::Grant(size));
                }
            }
        }
        (Prompt::Grant(mut size), key) => {
            match key {
                KeyCode::Backspace => drop(size.pop()),
                KeyCode::Char(typed) if size.len() < 16 => size.push(typed),
                _ => {}
            }
            console.prompt = Some(Prompt::Grant(size));
        }
    }
}
