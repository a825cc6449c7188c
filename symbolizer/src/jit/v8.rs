//! Names that V8 gives to JavaScript: `JS:*leak /app/leak.js:3:14`, with a sign for the
//! compiler (`~` interpreted, `^` baseline, `+` Maglev, `*` TurboFan). Older versions, as
//! that of node 18, tell no column: `LazyCompile:*leak /app/leak.js:3`.
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
    let (rest, last) = number_behind(rest)?;
    let (rest, line, column) = match number_behind(rest) {
        Some((rest, line)) => (rest, line, Some(last)),
        None => (rest, last, None),
    };
    let (function, file) = rest.split_once(' ')?;
    let function = if function.is_empty() { "(anonymous)" } else { function };
    let file = file.strip_prefix("file://").unwrap_or(file);
    Some(Frame {
        function: function.to_owned(),
        file: (!file.is_empty()).then(|| file.to_owned()),
        line: (line > 0).then_some(line),
        column: column.filter(|&column| column > 0),
        inlined: false,
    })
}

/// `a:b:7` as `a:b` and 7.
fn number_behind(text: &str) -> Option<(&str, u32)> {
    let (rest, number) = text.rsplit_once(':')?;
    Some((rest, number.parse().ok()?))
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
        let js =
            |function: &str, file: &str, line, column| (function.to_owned(), Some(file.to_owned()), Some(line), column);
        assert_eq!(parts("JS:*leak /app/a b.js:3:14"), js("leak", "/app/a b.js", 3, Some(14)));
        assert_eq!(parts("JS:~ file:///app/m.mjs:1:1"), js("(anonymous)", "/app/m.mjs", 1, Some(1)));
        assert_eq!(parts("LazyCompile:^get node:internal/x:10:2"), js("get", "node:internal/x", 10, Some(2)));
        assert_eq!(parts("LazyCompile:*leak /app/leak.js:3"), js("leak", "/app/leak.js", 3, None));
        assert_eq!(parts("Function:~ node:internal/x:1"), js("(anonymous)", "node:internal/x", 1, None));
        // 0 is no line.
        assert_eq!(parts("JS:f a.js:0:0"), ("f".to_owned(), Some("a.js".to_owned()), None, None));
        for other in ["Builtin:ArrayMap", "JS:*f", "JS:f a:b:c", "Lorg/x/Y;::run", ""] {
            assert_eq!(parts(other), (other.to_owned(), None, None, None));
        }
        assert_eq!(parts("_ZN3foo3barEv").0, "foo::bar()");
    }
}
