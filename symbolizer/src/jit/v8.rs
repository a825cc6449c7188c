//! Names that V8 gives to JavaScript: `JS:*leak /app/leak.js:3:14`, with a sign for the
//! compiler (`~` interpreted, `^` baseline, `+` Maglev, `*` TurboFan).
//!
//! `src/logging/log.cc` (`LogEventListener`, `ComputeMarker`), `src/logging/code-events.h`.

use crate::demangle::demangle;
use crate::frame::Frame;

/// Kinds of code that are JavaScript.
const KINDS: [&str; 6] = ["JS:", "LazyCompile:", "Function:", "Script:", "Eval:", "Interpreter:"];

/// The frame of a name, of V8 or of anything else.
pub(super) fn frame(name: &str) -> Frame {
    script(name).unwrap_or_else(|| Frame {
        function: demangle(name),
        file: None,
        line: None,
        column: None,
        inlined: false,
    })
}

/// Whether the name is one of V8's for JavaScript.
pub(super) fn is_script(name: &str) -> bool {
    KINDS.iter().any(|kind| name.starts_with(kind))
}

fn script(name: &str) -> Option<Frame> {
    let rest = KINDS.iter().find_map(|kind| name.strip_prefix(kind))?;
    // One sign each for the compiler and, in some versions, for its own speed.
    let rest = rest.trim_start_matches(['~', '^', '+', '*', '\'']);
    let (rest, column) = rest.rsplit_once(':')?;
    let (rest, line) = rest.rsplit_once(':')?;
    let (function, file) = rest.split_once(' ')?;
    let (line, column) = (line.parse().ok()?, column.parse().ok()?);
    let function = if function.is_empty() { "(anonymous)" } else { function };
    let file = file.strip_prefix("file://").unwrap_or(file);
    Some(Frame {
        function: function.to_owned(),
        file: (!file.is_empty()).then(|| file.to_owned()),
        line: Some(line),
        column: Some(column),
        inlined: false,
    })
}

#[cfg(test)]
mod tests {
    use super::frame;

    fn parts(name: &str) -> (String, Option<String>, Option<u32>, Option<u32>) {
        let frame = frame(name);
        (frame.function, frame.file, frame.line, frame.column)
    }

    #[test]
    fn places_are_taken_from_names() {
        let js = |function: &str, file: &str, line, column| {
            (function.to_owned(), Some(file.to_owned()), Some(line), Some(column))
        };
        assert_eq!(parts("JS:*leak /app/a b.js:3:14"), js("leak", "/app/a b.js", 3, 14));
        assert_eq!(parts("JS:~ file:///app/m.mjs:1:1"), js("(anonymous)", "/app/m.mjs", 1, 1));
        assert_eq!(parts("LazyCompile:^get node:internal/x:10:2"), js("get", "node:internal/x", 10, 2));
        for other in ["Builtin:ArrayMap", "JS:*f", "JS:f a:b:c", "Lorg/x/Y;::run", ""] {
            assert_eq!(parts(other), (other.to_owned(), None, None, None));
        }
        assert_eq!(parts("_ZN3foo3barEv").0, "foo::bar()");
    }
}
