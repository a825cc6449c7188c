//! Flame graphs as SVG, by inferno.

use crate::tree::merged_lines;
use crate::{Profile, RenderError, SampleType};
use inferno::flamegraph::color::{BackgroundColor, BasicPalette, MultiPalette, Palette};
use inferno::flamegraph::{self, Options};
use std::io::Write;

/// What stands above the graph.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// In large letters.
    pub title: &'a str,
    /// Below it, may be empty.
    pub subtitle: &'a str,
}

/// Draws one sample type. The file is self-contained: it zooms and searches in
/// any browser and needs no network.
pub fn write(profile: &Profile, sample_type: usize, text: Text<'_>, to: impl Write) -> Result<(), RenderError> {
    let kind = profile.check(sample_type)?;
    let lines: Vec<String> =
        merged_lines(profile, sample_type).into_iter().map(|(path, value)| format!("{path} {value}")).collect();
    draw(&lines, kind, text, to)
}

/// Draws folded lines; where they have two values, the second with the difference in colour.
pub(crate) fn draw(lines: &[String], kind: &SampleType, text: Text<'_>, to: impl Write) -> Result<(), RenderError> {
    if lines.is_empty() {
        return Err(RenderError::Empty);
    }
    let mut options = Options::default();
    options.title = text.title.to_owned();
    options.subtitle = (!text.subtitle.is_empty()).then(|| text.subtitle.to_owned());
    options.count_name = if kind.unit == "count" { kind.kind.clone() } else { kind.unit.clone() };
    options.font_type = "ui-monospace, DejaVu Sans Mono, monospace".to_owned();
    options.bgcolors = Some(BackgroundColor::Grey);
    options.colors =
        if kind.unit == "bytes" { Palette::Basic(BasicPalette::Mem) } else { Palette::Multi(MultiPalette::Rust) };
    options.min_width = 0.05;
    // The same graph for the same evidence.
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), to)?;
    Ok(())
}
