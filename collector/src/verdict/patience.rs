//! How far rules may go, for everybody is stopped meanwhile.
//!
//! Every condition ends, but a few lists in each other take minutes. So each round that one
//! makes through a list is counted, by a call that is put into the condition itself; and where
//! there were too many, or it is too late, the condition is left by unwinding, since an error
//! would be passed over by its own `||` and `exists`. That takes no thread, which could not
//! be ended, and hardly any memory ([why](../../../docs/decisions/0026-rules-count-their-rounds.md)).

use cel::IdedExpr as Expression;
use cel::common::ast::operators::{ADD, CONDITIONAL};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue};
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Rounds of one rule: twelve times each of the 64 stacks with each other one.
const MOST_ROUNDS: u32 = 50_000;
/// Time that all rules have before an action, each at most half of what is left of it. A hold
/// has half a second for its verdict, and a second between two actions.
pub(super) const MOST_TIME: Duration = Duration::from_millis(200);
/// Name of the call; no condition can have it, since no name begins so.
pub(super) const ROUND: &str = "@round";

/// What is left of it, for the rules and for who asks them.
#[derive(Debug, Clone)]
pub(super) struct Patience(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// Of the rule that is asked.
    rounds: AtomicU32,
    began: Instant,
    /// When all rules, and when the one that is asked, have to be done: microseconds since then.
    until_us: AtomicU64,
    rule_until_us: AtomicU64,
}

/// What a rule had too much of.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Rounds,
    Time,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Rounds => write!(f, "it goes through lists for more than {MOST_ROUNDS} rounds"),
            Lost::Time => f.write_str("it takes too long"),
        }
    }
}

impl Patience {
    /// For rules that are asked now.
    pub(super) fn new(at_most: Duration) -> Self {
        let patience = Patience(Arc::new(Counts {
            rounds: AtomicU32::new(0),
            began: Instant::now(),
            until_us: AtomicU64::new(0),
            rule_until_us: AtomicU64::new(0),
        }));
        patience.renew(at_most);
        patience
    }

    /// The same when they are asked again.
    pub(super) fn renew(&self, at_most: Duration) {
        self.0.until_us.store(self.now_us() + at_most.as_micros() as u64, Relaxed);
    }

    fn now_us(&self) -> u64 {
        self.0.began.elapsed().as_micros() as u64
    }

    /// A round of the rule that is asked; always true, if it returns.
    pub(super) fn round(&self) -> bool {
        let lost = if self.0.rounds.fetch_add(1, Relaxed) >= MOST_ROUNDS {
            Lost::Rounds
        } else if self.now_us() >= self.0.rule_until_us.load(Relaxed) {
            Lost::Time
        } else {
            return true;
        };
        // Unlike a panic it is no fault of ours, and nobody is told.
        resume_unwind(Box::new(lost))
    }

    /// Whether the rule that was asked last had too many rounds.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.rounds.load(Relaxed) > MOST_ROUNDS
    }

    /// Asks one rule. The error is a sentence; a panic is one, too.
    pub(super) fn ask<T>(&self, rule: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let now_us = self.now_us();
        let left_us = self.0.until_us.load(Relaxed).saturating_sub(now_us);
        if left_us == 0 {
            return Err("other rules had taken all the time".to_owned());
        }
        self.0.rule_until_us.store(now_us + left_us.div_ceil(2), Relaxed);
        self.0.rounds.store(0, Relaxed);
        // What it looks at is not changed by looking.
        let asked = catch_unwind(AssertUnwindSafe(rule));
        asked.unwrap_or_else(|payload| Err(why(payload.as_ref())))
    }
}

fn why(payload: &(dyn Any + Send)) -> String {
    let panicked = |message: &str| format!("it panicked: {message}");
    match (payload.downcast_ref::<Lost>(), payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(lost), ..) => lost.to_string(),
        (_, Some(message), _) => panicked(message),
        (_, _, Some(message)) => panicked(message),
        _ => panicked("without a word"),
    }
}

/// Puts the call into every list of a condition; how deep the condition is nested.
pub(super) fn count_rounds(expression: &mut Expression) -> usize {
    let depth = 1 + parts(expression).into_iter().map(count_rounds).max().unwrap_or(0);
    if let Expr::Comprehension(list) = &mut expression.expr {
        let counted = in_each_round(list);
        *counted = if_round(std::mem::take(counted));
    }
    depth
}

/// What an expression is made of.
fn parts(expression: &mut Expression) -> Vec<&mut Expression> {
    fn in_entry(entry: &mut EntryExpr) -> Vec<&mut Expression> {
        match entry {
            EntryExpr::StructField(field) => vec![&mut field.value],
            EntryExpr::MapEntry(entry) => vec![&mut entry.key, &mut entry.value],
        }
    }
    match &mut expression.expr {
        Expr::Call(call) => call.target.iter_mut().map(|target| &mut **target).chain(&mut call.args).collect(),
        Expr::List(list) => list.elements.iter_mut().collect(),
        Expr::Map(map) => map.entries.iter_mut().flat_map(|entry| in_entry(&mut entry.expr)).collect(),
        Expr::Struct(of) => of.entries.iter_mut().flat_map(|entry| in_entry(&mut entry.expr)).collect(),
        Expr::Select(select) => vec![&mut select.operand],
        Expr::Comprehension(list) => {
            let ComprehensionExpr { iter_range, accu_init, loop_cond, loop_step, result, .. } = &mut **list;
            vec![iter_range, accu_init, loop_cond, loop_step, result]
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

/// A part that is evaluated in each round. Of `map` and `filter` it is inside of what is
/// added to their list: cel adds to it in place only where it finds the step in the form that
/// their macros have, and with a literal as the condition.
fn in_each_round(list: &mut ComprehensionExpr) -> &mut Expression {
    let ComprehensionExpr { loop_cond, loop_step, .. } = list;
    if !matches!(loop_cond.expr, Expr::Literal(_)) {
        return loop_cond;
    }
    let Expr::Call(CallExpr { func_name, args, .. }) = &mut loop_step.expr else { return loop_cond };
    match (func_name.as_str(), args.as_mut_slice()) {
        (CONDITIONAL, [guard, _, _]) => guard,
        (ADD, [_, Expression { expr: Expr::List(added), .. }]) if added.elements.len() == 1 => &mut added.elements[0],
        _ => loop_cond,
    }
}

/// `@round() ? inner : false`.
fn if_round(inner: Expression) -> Expression {
    let id = inner.id;
    let part = |expr: Expr| Expression { id, expr };
    let round = Expr::Call(CallExpr { func_name: ROUND.to_owned(), target: None, args: Vec::new() });
    let never = Expr::Literal(LiteralValue::Boolean(false.into()));
    let args = vec![part(round), inner, part(never)];
    part(Expr::Call(CallExpr { func_name: CONDITIONAL.to_owned(), target: None, args }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cel::{Context, Program, Value};

    /// What an expression comes to with its rounds counted, and their number.
    fn counted(text: &str) -> (Value, u32) {
        let patience = Patience::new(Duration::from_secs(60));
        let mut context = Context::default();
        let counting = patience.clone();
        context.add_function(ROUND, move || counting.round()).unwrap();
        let mut expression = Program::compile(text).unwrap().expression().clone();
        count_rounds(&mut expression);
        let value = patience.ask(|| context.resolve(&expression).map_err(|error| error.to_string())).unwrap();
        (value, patience.0.rounds.load(Relaxed))
    }

    #[test]
    fn every_round_of_every_list_is_counted_and_nothing_else_changes() {
        for (text, rounds) in [
            ("1 + 2", 0),
            ("[1, 2, 3].all(x, x > 0)", 3),
            ("[1, 2, 3].exists(x, x > 2)", 3),
            ("[1, 2, 3].exists_one(x, x > 2)", 3),
            ("[1, 2, 3].map(x, x * 2)", 3),
            ("[1, 2, 3].map(x, x > 1, x * 2)", 3),
            ("[1, 2, 3].filter(x, x > 1)", 3),
            ("{'a': 1, 'b': 2}.all(key, key != '')", 2),
            ("[1, 2].all(x, [3, 4, 5].exists(y, y > x + 3))", 8),
            ("size([[1, 2].map(x, x), [3].filter(x, true)]) + {'a': [1].map(x, x)}['a'][0]", 4),
            ("[1, 2].map(x, [x].map(y, y))[0][0] == 1 || [1].all(x, true)", 4),
        ] {
            let plain = Program::compile(text).unwrap().execute(&Context::default()).unwrap();
            let (value, counted) = counted(text);
            assert_eq!(value, plain, "{text}");
            assert_eq!(counted, rounds, "{text}");
        }
    }

    #[test]
    fn who_has_too_many_rounds_or_too_little_time_is_left() {
        let rounds = |patience: &Patience, many: u32| patience.ask(|| Ok((0..many).all(|_| patience.round())));
        let patience = Patience::new(Duration::from_secs(60));
        assert_eq!(rounds(&patience, MOST_ROUNDS), Ok(true));
        // The next rule has as many.
        assert_eq!(rounds(&patience, MOST_ROUNDS), Ok(true));
        assert!(rounds(&patience, MOST_ROUNDS + 1).unwrap_err().contains("50000 rounds"));
        patience.renew(Duration::ZERO);
        assert_eq!(rounds(&patience, 1), Err("other rules had taken all the time".to_owned()));
        patience.renew(Duration::from_millis(8));
        let slow = || {
            std::thread::sleep(Duration::from_millis(5));
            Ok(patience.round())
        };
        assert_eq!(patience.ask(slow), Err("it takes too long".to_owned()));
        patience.renew(Duration::from_secs(60));
        assert_eq!(patience.ask(|| Err::<bool, _>("no".to_owned())), Err("no".to_owned()));
    }
}
