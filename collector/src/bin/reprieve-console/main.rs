//! `reprieve console`: holds that wait for a person, and the keys to decide.
//!
//! A program of its own: the guardian is locked in memory with all of its code, and none
//! of this is to be among it (docs/decisions/0023).

mod evidence;
mod flame;
mod keys;
mod page;
mod place;
mod screen;
mod shell;
mod state;

use nix::sys::mman::{MlockAllFlags, mlockall};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use shell::Shell;
use state::Console;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Between two looks at sockets, and two drawings of the time that is left.
const TICK: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("reprieve-console: start it with `reprieve console`");
        return ExitCode::from(2);
    };
    // SAFETY: isatty only looks at a descriptor.
    if unsafe { libc::isatty(0) } == 0 {
        eprintln!("reprieve: the console needs a terminal; scripts decide with `reprieve decide`");
        return ExitCode::from(1);
    }
    match run(Console::new(PathBuf::from(dir))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ratatui::restore();
            eprintln!("reprieve: the console ended: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(mut console: Console) -> std::io::Result<()> {
    console.said = place::leave_limits().err().unwrap_or_default();
    // Before anything else is: while memory is out nothing new may be had.
    let mut shell = Shell::set_aside();
    let mut terminal = ratatui::try_init()?;
    console.look();
    draw(&mut terminal, &mut console)?;
    // What it took to get here is what it takes to go on. Without the right to it we are
    // as likely to be slow as everybody.
    let _ = mlockall(MlockAllFlags::MCL_CURRENT);
    while !console.is_over {
        if event::poll(TICK)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => keys::press(&mut console, key),
                _ => {}
            }
        }
        console.look();
        if std::mem::take(&mut console.wants_shell) {
            ratatui::restore();
            console.said = shell.open();
            terminal = ratatui::try_init()?;
            shell = Shell::set_aside_again(shell);
        }
        draw(&mut terminal, &mut console)?;
    }
    ratatui::restore();
    Ok(())
}

fn draw(terminal: &mut ratatui::DefaultTerminal, console: &mut Console) -> std::io::Result<()> {
    let mut scroll = 0;
    terminal.draw(|frame| scroll = screen::draw(frame, console))?;
    // Past the end there is nothing to come back from.
    console.scroll = scroll;
    Ok(())
}
