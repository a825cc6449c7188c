//! `stacks.folded`: one line per distinct stack, outermost frame first, frames
//! separated by `;`, then a space and the value. Read by inferno, flamelens and
//! speedscope.

use crate::tree::merged_lines;
use crate::{Profile, RenderError};
use std::io::Write;

/// Writes one sample type, in order of the stacks' text.
pub fn write(profile: &Profile, sample_type: usize, mut to: impl Write) -> Result<(), RenderError> {
    profile.check(sample_type)?;
    for (path, value) in merged_lines(profile, sample_type) {
        writeln!(to, "{path} {value}")?;
    }
    Ok(())
}
