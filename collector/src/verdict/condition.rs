//! When a rule holds.

use super::names;
use super::patience::{MOST_TIME, Patience, count_rounds};
use super::view::View;
use cel::{Context, IdedExpr as Expression, Program, Value};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Levels of a condition, of which a list in a list takes two: each takes some stack of
/// who answers, 40 KiB in a program that was built without optimization.
const MOST_DEPTH: usize = 32;

/// Time that a rule has in a configuration that is read: only its rounds count there.
const PATIENT: Duration = Duration::from_secs(10);

/// A condition in CEL, the Common Expression Language, over a [`View`].
#[derive(Clone)]
pub struct Condition {
    text: String,
    expression: Arc<Expression>,
    /// Whether it looks at who owns the heap.
    pub(super) sees_stacks: bool,
    /// Whether it looks at that, or at how big the heap is.
    pub(super) sees_heap: bool,
    /// Whether it looks at what was tried.
    pub(super) sees_steps: bool,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    /// Compiles, and tries it on a sample, so that a name that does not exist is
    /// told now and not in an OOM.
    pub fn parse(text: &str) -> Result<Self, String> {
        let program = Program::compile(text).map_err(|errors| {
            // Its message goes on with the text and an arrow below it.
            let message = errors.to_string();
            let first = message.lines().next().unwrap_or_default().to_owned();
            first.replace("ERROR: <input>:", "at line:column ")
        })?;
        let references = program.references();
        let sees_stacks = references.has_variable("stacks") || references.has_function("share");
        let asks_for_it = references.has_variable("known") && text.contains("heap");
        let sees_heap = sees_stacks || references.has_variable("heap") || asks_for_it;
        let sees_steps = references.has_variable("steps");
        let as_written = program.expression();
        let mut expression = as_written.clone();
        if count_rounds(&mut expression) > MOST_DEPTH {
            return Err(format!("it is nested in more than {MOST_DEPTH} levels; make several rules of it"));
        }
        let (text, expression) = (text.to_owned(), Arc::new(expression));
        let condition = Condition { text, expression, sees_stacks, sees_heap, sees_steps };
        let (mut sample, patience) = (View::sample(), Patience::new(MOST_TIME));
        names::check(as_written, &sample.names(), &sample.context(&patience)?)?;
        condition.holds(&sample.context(&patience)?, &patience)?;
        // As it is each time before the first action.
        sample.steps.clear();
        patience.renew(MOST_TIME);
        condition.holds(&sample.context(&patience)?, &patience).map_err(|error| {
            format!("while nothing was tried yet, steps is empty and {error}; begin with size(steps) > 0 &&")
        })?;
        // The sample has one of each, which tells nothing of how long it takes; nor is what
        // comes out of it of any interest.
        patience.renew(PATIENT);
        match condition.holds(&View::crowded().context(&patience)?, &patience) {
            Err(error) if patience.is_exhausted() => {
                Err(format!("where there are 64 stacks and processes, {error}; put fewer lists into each other"))
            }
            _ => Ok(condition),
        }
    }

    /// Whether it looks at the heap, which is not known before the evidence is there.
    #[must_use]
    pub fn sees_heap(&self) -> bool {
        self.sees_heap
    }

    /// Whether it holds of what a [`View::context`] of this patience has; the error is a
    /// sentence.
    pub(super) fn holds(&self, context: &Context<'_, '_>, patience: &Patience) -> Result<bool, String> {
        patience.ask(|| match context.resolve(&self.expression) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("it is {}, not true or false; compare it with something", other.type_of())),
            Err(error) => Err(error.to_string()),
        })
    }

    /// One at which cel panics: it has no value for it, and no text is parsed to it.
    #[cfg(test)]
    pub(super) fn panicking() -> Self {
        let expression = Arc::new(Expression::default());
        Condition { text: String::new(), expression, sees_stacks: false, sees_heap: false, sees_steps: false }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{Stack, Tried};
    use super::*;
    use crate::incident::model::StepOutcome;

    fn view() -> View {
        let mut view = View::sample();
        (view.memcg.usage, view.memcg.limit, view.growth) = (96e6, 100e6, 2e6);
        let stack = |name: &str, share: f64| Stack { functions: vec!["main".into(), name.into()], size: share, share };
        view.stacks = vec![stack("Cache::insert", 0.5), stack("Cache::grow", 0.25), stack("parse", 0.25)];
        view.steps = vec![Tried {
            action: "throttle=10s".to_owned(),
            outcome: StepOutcome::NotEnough,
            usage_before: 100e6,
            usage_after: 97e6,
            freed: 3e6,
            seconds: 10.0,
            rule: "slow".to_owned(),
        }];
        view
    }

    fn holds(condition: &Condition, view: &View) -> Result<bool, String> {
        let patience = Patience::new(MOST_TIME);
        condition.holds(&view.context(&patience).unwrap(), &patience)
    }

    #[test]
    fn conditions() {
        for (text, is_so) in [
            ("memcg.usage / memcg.limit > 0.95", true),
            ("growth > size_of('1M')", true),
            ("memcg.limit < size_of('1M')", false),
            ("share('Cache::') == 0.75", true),
            ("stacks[0].functions.exists(f, f == 'Cache::insert') && age < 60", true),
            ("processes.exists(p, p.name == 'redis-server')", false),
            ("memcg.path.startsWith('/batch') || 'anon' in memcg.stat", true),
            ("memcg.path.matches('^/a$')", true),
            ("priority < 0 && reservation == 0", false),
            ("!('pressure' in known) || pressure.some > 10 && pressure.scope == 'memcg'", false),
            ("steps.exists(s, s.action.startsWith('throttle') && s.outcome != 'relieved')", true),
            ("stacks.exists(a, stacks.exists(b, a != b && a.share == b.share))", true),
            ("size(steps) > 0 && steps[0].freed < size_of('4M') && steps[0].seconds >= 10", true),
            ("steps.all(s, s.rule == 'slow' && s.outcome == 'not_enough' && s.usage_before > s.usage_after)", true),
        ] {
            assert_eq!(holds(&Condition::parse(text).unwrap(), &view()), Ok(is_so), "{text}");
        }
    }

    #[test]
    fn what_a_condition_looks_at_is_known() {
        for (text, sees) in [
            ("age > 1", (false, false, false)),
            ("share('a') > 0", (true, true, false)),
            ("stacks.exists(s, s.share > 0.5)", (true, true, false)),
            ("heap.live > 1", (false, true, false)),
            ("'heap' in known", (false, true, false)),
            ("size(steps) == 0", (false, false, true)),
        ] {
            let condition = Condition::parse(text).unwrap();
            assert_eq!((condition.sees_stacks, condition.sees_heap, condition.sees_steps), sees, "{text}");
        }
    }

    /// Runs on a thread with such a stack.
    fn on_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(bytes);
            thread.spawn_scoped(scope, work).unwrap().join().unwrap()
        })
    }

    #[test]
    fn the_deepest_condition_fits_on_the_stack_of_who_answers() {
        // Evaluated to the bottom, two levels each.
        let nested =
            |depth: usize| (0..depth).fold("age >= 0".to_owned(), |inner, at| format!("[1].all(x{at}, {inner})"));
        // The parser takes more of it; that is done elsewhere.
        let parsed = |depth: usize| on_stack(64 << 20, move || Condition::parse(&nested(depth)));
        let error = parsed(MOST_DEPTH / 2).unwrap_err();
        assert!(error.contains("more than 32 levels"), "{error}");
        let deepest = parsed(MOST_DEPTH / 2 - 1).unwrap();
        // Who answers has frames of his own.
        assert_eq!(on_stack(crate::guard::STACK_BYTES * 3 / 4, || holds(&deepest, &view())), Ok(true));
    }

    #[test]
    fn mistakes_are_told_before_they_matter() {
        for (text, part) in [
            ("memcg.usage >", "at line:column 1:14"),
            ("memgc.usage > 1", "memgc"),
            ("memcg.usge > 1", "usge"),
            ("memcg.usage", "not true or false"),
            ("growth > size_of('much')", "not a size"),
            ("'a' > 1", "overload"),
            ("steps.exists(s, s.what == 'kill')", "what"),
            ("steps[0].outcome == 'failed'", "begin with size(steps) > 0 &&"),
            (
                "stacks.all(a, stacks.all(b, processes.all(c, a.share + b.share + c.size >= 0))) || true",
                "it goes through lists for more than 50000 rounds; put fewer",
            ),
        ] {
            let error = Condition::parse(text).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
